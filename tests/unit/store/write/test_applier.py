"""An apply says that it erased content, so that the SQLite file's WAL is truncated, and that it stood still."""

import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from letopis.store import (
    ConversationDeleted,
    ConversationRewound,
    ConversationStore,
    FaultClass,
    Message,
    MessageRedacted,
    StoreFault,
)
from letopis.store.model.codec import EncodedEvent
from letopis.store.model.event_types import Body
from letopis.store.model.records import Scope
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.record_changes import clear
from letopis.store.write import applier
from letopis.store.write.applier import Applier
from tests.support.sayings import send

LANE = Scope.conversation("a").name


@pytest.mark.parametrize(
    ("body", "erased"),
    [
        (ConversationDeleted(), 1),
        (ConversationRewound(erase=True), 1),
        (MessageRedacted(message_id="m"), 1),
        (ConversationRewound(), 0),
        (clear(LANE, erase=True), 1),
        (clear(LANE), 0),
    ],
)
async def test_apply_tells_once_that_content_was_erased(
    body: Body | EncodedEvent, erased: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, told = Outbox(), list[None]()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        await send(store, outbox, "a", Message.user("erased", id="m"))
        monkeypatch.setattr((await store._runtime.prepared()).applier, "_erased", lambda: told.append(None))
        if isinstance(body, EncodedEvent):
            outbox.append_encoded(LANE, [body])
        else:
            outbox.append("a", body)
        await send(store, outbox, "b", Message.user("what else is in the delivery"))

    assert len(told) == erased


async def test_first_apply_tells_of_erasures_of_a_process_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, told, counts = Outbox(), list[None](), list[int]()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        monkeypatch.setattr((await store._runtime.prepared()).applier, "_erased", lambda: told.append(None))
        for body in (Message.user("1", id="m"), Message.user("2"), MessageRedacted(message_id="m"), Message.user("3")):
            await send(store, outbox, "a", body)
            counts.append(len(told))

    assert counts == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("limit", "code", "raised"),
    [(0, "25P03", "stood-still"), (0, "2013", "stood-still"), (0, "disk-full", "disk-full"), (3_600, "25P03", "25P03")],
)
async def test_apply_stood_still_if_it_lost_its_connection_while_it_held_the_log_too_long(
    limit: int, code: str, raised: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, outbox = applier.append_to_log, Outbox()

    async def append(*given: Any) -> None:
        await real(*given)
        raise StoreFault(fault_class=FaultClass.UNAVAILABLE, code=code, reason="the server ended the transaction")

    monkeypatch.setattr("letopis.store.write.transaction.LOG_IDLE_SECONDS", limit)
    monkeypatch.setattr(applier, "append_to_log", append)
    outbox.append("a", Message.user("words"))
    async with ConversationStore.open(tmp_path / "history.db") as store:
        with pytest.raises(StoreFault) as caught:
            await outbox.deliver(store)

    assert caught.value.code == raised
    assert (caught.value.fault_class is FaultClass.CONFLICT) == (raised == "stood-still")


async def test_decoding_a_large_batch_lets_other_tasks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox, turns = Outbox(), 0
    for number in range(20):
        outbox.append(f"c{number}", *(Message.user("words") for _ in range(50)))
    done = asyncio.Event()

    async def other() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(Applier, "_apply_once", AsyncMock(side_effect=InterruptedError))  # the transaction
    async with ConversationStore.open(tmp_path / "history.db") as store:
        applier = (await store._runtime.prepared()).applier
        task = asyncio.create_task(other())
        with pytest.raises(InterruptedError):
            await applier.apply(outbox.origin, outbox.pending())
        done.set()
        await task

    assert turns > 5

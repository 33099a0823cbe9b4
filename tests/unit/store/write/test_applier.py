"""An apply says that it erased content, so that the SQLite file's WAL is truncated; it keeps no event loop waiting."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from letopis.store import ConversationDeleted, ConversationRewound, ConversationStore, Message, MessageRedacted
from letopis.store.model.codec import EncodedEvent
from letopis.store.model.event_types import Body
from letopis.store.model.records import Scope
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.record_changes import clear
from letopis.store.write.applier import Applier

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
        outbox.append("a", Message.user("erased", id="m"))
        await outbox.deliver(store)
        monkeypatch.setattr((await store._runtime.prepared()).applier, "_erased", lambda: told.append(None))
        if isinstance(body, EncodedEvent):
            outbox.append_encoded(LANE, [body])
        else:
            outbox.append("a", body)
        outbox.append("b", Message.user("what else is in the delivery"))
        await outbox.deliver(store)

    assert len(told) == erased


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

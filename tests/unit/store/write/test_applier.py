"""What an apply refuses, marks for later and tells of; when it notes an outbox, and which conversation is next."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from letopis.outbox.event_log.append_encoding import prepare
from letopis.store import (
    ConversationArchived,
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    ConversationStore,
    Event,
    FaultClass,
    Message,
    MessageEdited,
    MessageRedacted,
    Seen,
    StoreFault,
)
from letopis.store.model.codec import EncodedEvent
from letopis.store.model.event_types import Body, ConversationActivated
from letopis.store.model.large_content import LARGE_BYTES
from letopis.store.model.records import Scope
from letopis.store.ops.move.mover import move
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.record_changes import clear
from letopis.store.write import applier
from letopis.store.write.applier import Applier
from letopis.testing import ManualClock
from tests.support.sayings import new_outbox, raises_fault, send
from tests.support.sqlite_rows import rows

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
        monkeypatch.setattr((await store.runtime.prepared()).applier, "_erased", lambda: told.append(None))
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
        monkeypatch.setattr((await store.runtime.prepared()).applier, "_erased", lambda: told.append(None))
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
        applier = (await store.runtime.prepared()).applier
        task = asyncio.create_task(other())
        with pytest.raises(InterruptedError):
            await applier.apply(outbox.origin, outbox.pending())
        done.set()
        await task

    assert turns > 5


@pytest.mark.parametrize(
    ("body", "fault_class", "code", "reason"),
    [
        (None, FaultClass.POISON, "content", "large content of the message is missing in the outbox file"),
        (b"other", FaultClass.POISON, "content", "large content of the message is not what was appended"),
        (b"", FaultClass.CONFLICT, "content-erased", "large content was erased"),
    ],
)
async def test_large_content_is_refused_unless_it_is_what_was_appended(
    body: bytes | None, fault_class: FaultClass, code: str, reason: str, tmp_path: Path
) -> None:
    outbox = Outbox()
    outbox.append("c", Message.user("x" * (LARGE_BYTES + 1)))
    outbox.lanes["c"] = [replace(event, contents=None) for event in outbox.lanes["c"]]
    outbox.origin = replace(outbox.origin, read_content=lambda conversation_id, name: body)
    async with ConversationStore.open(tmp_path / "history.db") as store:
        with raises_fault(fault_class, code, match=reason):
            await outbox.deliver(store)


@pytest.mark.parametrize(("seconds", "noted"), [(3_599, False), (3_601, True)])
async def test_last_seen_is_written_once_an_hour(seconds: int, noted: bool, tmp_path: Path) -> None:
    clock, outbox, seen = ManualClock(), Outbox(), []
    async with ConversationStore.open(tmp_path / "history.db", now=clock.now) as store:
        for _ in range(2):
            await send(store, outbox, "c", Message.user("words"))
            seen += rows(tmp_path / "history.db", "SELECT last_seen_at FROM letopis_origins")[0]
            clock.advance(seconds)

    assert seen[1] - seen[0] == noted * seconds * 1_000_000


async def test_moved_store_refuses_events_that_it_holds(tmp_path: Path) -> None:
    async with ConversationStore.open(tmp_path / "history.db") as store:
        outbox = await new_outbox(store, "c", Message.user("words"))
        await move(tmp_path / "history.db", tmp_path / "new.db")
        with raises_fault(FaultClass.WRONG_STORE, "moved", match=r"new\.db: deliver there"):
            await store.apply(outbox.origin, [outbox.batch("c")])


LONG = 20


@pytest.mark.parametrize("left", [4, 15])
async def test_long_rewind_leaves_the_right_count(left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letopis.store.write.loading.MAX_ROWS_PER_TRANSACTION", 2)
    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        await send(store, outbox, "c", *(Message.user("words", id=f"m{number}") for number in range(1, LONG + 1)))
        await send(store, outbox, "c", ConversationRewound(to_message_id=f"m{left}"))
        found = await store.conversation("c")

        assert (await store.pending_tasks()).tasks == 1
    assert found is not None
    assert found.message_count == left


@pytest.mark.parametrize("body", [ConversationDeleted(), ConversationRewound(erase=True)])
async def test_erasure_of_few_messages_with_many_events_is_left_to_steps(
    body: Body, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.store.write.loading.MAX_ROWS_PER_TRANSACTION", 2)
    async with ConversationStore.open(tmp_path / "history.db") as store:
        edits = [MessageEdited(message_id="m", content=f"draft {number}") for number in range(3)]
        outbox = await new_outbox(store, "c", Message.user("words", id="m"), *edits)
        await send(store, outbox, "c", body)

        assert (await store.pending_tasks()).erasing == 1


async def superseded(path: Path, *parts: tuple[int, int], rival: bool) -> set[int]:
    """Deliver an append, 3 and 4, whose first event is refused, and an answer to it, 5; return what is superseded."""
    async with ConversationStore.open(path) as store:
        if rival:
            await new_outbox(store, "c", Message.user("seen by all that follow"))
        outbox = await new_outbox(store, "c", Message.user("tea", id="m"), MessageRedacted(message_id="m"))
        append = [MessageEdited(message_id="m", content="late"), Message.user("more")]
        outbox.append_encoded("c", prepare("c", append, after=Seen(sequence=2, version=2 + rival)).events)
        outbox.append_encoded("c", prepare("c", [Message.user("answer")], after=Seen(sequence=3)).events)
        results = [await store.apply(outbox.origin, [outbox.batch("c", *part)]) for part in parts]
    return {sequence for result in results for applied in result.applied for sequence in applied.superseded}


@pytest.mark.parametrize("rival", [False, True])
@pytest.mark.parametrize("parts", [[(3, 5)], [(3, 3), (4, 5)], [(3, 4), (5, 5)], [(3, 3), (4, 4), (5, 5)]])
async def test_refused_event_makes_neither_the_rest_of_its_append_nor_an_answer_late(
    parts: list[tuple[int, int]], rival: bool, tmp_path: Path
) -> None:
    assert await superseded(tmp_path / "history.db", *parts, rival=rival) == {3}


def at(second: int, what: Message | Body) -> Event:
    return Event.of(what, conversation_id="", occurred_at=datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC))


@pytest.mark.parametrize(
    ("before", "together", "active"),
    [
        (3, [8, 30], "c"),  # c had activity at 10; what b says at 30 is too late
        (3, [15, 30], "b"),
        (12, [30], "b"),
        (3, [30], "c"),
        (20, [], "b"),  # at the very moment
    ],
)
async def test_next_active_conversation_had_the_newest_activity_when_the_other_left(
    before: int, together: list[int], active: str, tmp_path: Path
) -> None:
    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        for number, name in enumerate("abc"):
            outbox.append(name, at(number, ConversationStarted(owner_id="42")))
        outbox.append("a", at(3, ConversationActivated()))
        outbox.append("b", at(before, Message.user("before")))
        await send(store, outbox, "c", at(10, Message.user("activity")))
        outbox.append("a", at(20, ConversationArchived()))
        await send(store, outbox, "b", *(at(second, Message.user("together")) for second in together))

    assert rows(tmp_path / "history.db", "SELECT active_conversation_id FROM letopis_owners") == [(active,)]


async def test_a_conversation_that_began_after_the_other_left_does_not_become_active(tmp_path: Path) -> None:
    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        outbox.append("a", at(1, ConversationStarted(owner_id="42")), at(2, ConversationActivated()))
        outbox.append("b", at(3, ConversationStarted(owner_id="42")))
        await send(store, outbox, "late", at(25, ConversationStarted(owner_id="42")))
        await send(store, outbox, "a", at(20, ConversationArchived()))

    assert rows(tmp_path / "history.db", "SELECT active_conversation_id FROM letopis_owners") == [("b",)]

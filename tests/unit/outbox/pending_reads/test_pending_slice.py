"""What is read of the file: the verdicts of the history store with it, and the newest where not all fit."""

import sqlite3
from dataclasses import replace
from functools import partial

import pytest

from letopis.outbox import OutboxFile
from letopis.outbox.event_log.acknowledge import acknowledge
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.statements import on_cursor
from letopis.outbox.pending_reads import pending_search
from letopis.outbox.pending_reads.pending_search import pending_of, snapshot
from letopis.outbox.pending_reads.pending_slice import read_slice
from letopis.outbox.pending_reads.read_path import ReadPath
from letopis.store import Conflict, ConversationRewound, Message
from letopis.store.rules.preconditions import SUPERSEDED_KEY
from tests.support.relays import lane, say


async def test_slice_of_delivered_events_has_their_conflicts(outbox: OutboxFile) -> None:
    await say(outbox, "a", 3)
    conflicts = {3: Conflict(expected=2, actual=7)}
    await outbox.write(partial(acknowledge, delivered={"a": 3}, now_us=1, superseded={"a": conflicts}))
    read = partial(read_slice, conversation_id="a", origin_id=outbox.origin.origin_id)
    for since, known in ((2, conflicts), (3, {})):
        assert (await outbox.read(partial(on_cursor, work=partial(read, since=since)))).conflicts == known


@pytest.mark.parametrize("events", [1, 8, 9])
async def test_a_few_events_are_read_in_the_loop(
    outbox: OutboxFile, monkeypatch: pytest.MonkeyPatch, events: int
) -> None:
    await say(outbox, "a", events)
    read = partial(read_slice, conversation_id="a", origin_id=outbox.origin.origin_id)
    expected = await outbox.read(lambda connection: on_cursor(connection, read))
    hops = []
    monkeypatch.setattr(outbox, "read", lambda work, real=outbox.read: hops.append(work) or real(work))
    pending = await ReadPath(outbox, None)._pending("a", None, None)  # type: ignore[arg-type]
    assert pending == expected
    assert len(pending.rows) == expected.head  # the event that begins the conversation, too
    assert bool(hops) is (expected.head > 8)


async def test_a_file_that_the_loop_cannot_read_is_read_in_the_thread(outbox: OutboxFile) -> None:
    await say(outbox, "a", 1)

    def busy(_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    outbox.probe.lookup("a")
    assert outbox.probe.read(busy) is None
    assert outbox.probe.read(lambda cursor: cursor) is None, "a connection with an error is not used again"
    assert not outbox.probe.lookup("a").settled
    assert outbox.probe.read(lambda cursor: cursor.execute("SELECT 1").fetchone()) == (1,)


async def test_a_cut_tells_whether_its_message_is_in_the_slice_itself(outbox: OutboxFile) -> None:
    await outbox.append(prepare("a", [Message.user("one", id="m1"), Message.user("two", id="m2")]))
    for target in ("m1", "older"):
        await outbox.append(prepare("a", [ConversationRewound(to_message_id=target)]))
    read = partial(read_slice, conversation_id="a", origin_id=outbox.origin.origin_id)
    pending = await outbox.read(partial(on_cursor, work=read))

    assert pending.path_cuts(0) == [("m1", True), ("older", False)]
    assert pending.path_cuts(2) == [("m1", False), ("older", False)]


async def test_events_that_the_store_set_aside_are_marked(outbox: OutboxFile) -> None:
    await say(outbox, "a", 3)
    verdicts = {"a": {3: Conflict(expected=2, actual=7)}}
    await outbox.write(partial(acknowledge, delivered={"a": 3}, now_us=1, superseded=verdicts))
    before = replace(await lane(outbox, "a"), delivered=1)

    found = await outbox.read(partial(pending_of, lanes=[before], origin_id=outbox.origin.origin_id))

    marked = {event.sequence: SUPERSEDED_KEY in event.metadata for event in found["a"].events}
    assert marked == {2: False, 3: True, 4: False}


async def test_the_conversation_with_the_newest_event_is_read_where_not_all_fit(
    outbox: OutboxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("newest", "longest ago", "newest"):
        await say(outbox, name)
    monkeypatch.setattr(pending_search, "MAX_SEARCHED_EVENTS", 4)

    found = await outbox.read(partial(snapshot, origin_id=outbox.origin.origin_id, conversation=None))

    assert (list(found.conversations), found.complete) == (["newest"], False)

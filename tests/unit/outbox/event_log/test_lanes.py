"""What is pending, and what is delivered next."""

import tracemalloc
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from letopis import Message, OutboxFile, Seen
from letopis.outbox.concurrency.clock import Clock, RetryTimers
from letopis.outbox.event_log import lanes
from letopis.outbox.event_log.acknowledge import acknowledge, schedule_retry
from letopis.outbox.event_log.append import append_events
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.lanes import DueBatches, count_lanes, delivered_positions, next_batch
from tests.support.relays import lane, say, sql
from tests.support.sayings import present

WAITS = RetryTimers(Clock(), longest=60)


async def due(outbox: OutboxFile, **limits: Any) -> DueBatches:
    return await outbox.read(partial(next_batch, **{"waits": WAITS, **limits}))


def sizes(found: DueBatches) -> dict[str, int]:
    return {batch.conversation_id: len(batch.deliveries) for batch in found.batches}


async def test_what_was_said_comes_back_as_it_was_said(outbox: OutboxFile) -> None:
    prepared = prepare("c", [Message.user("привет"), Message.assistant("hello", tokens=3)], owner="o")
    await outbox.append(prepared)
    (batch,) = (await due(outbox)).batches
    assert [one.sequence for one in batch.deliveries] == [1, 2, 3]
    assert [one.event for one in batch.deliveries[1:]] == list(prepared.events)
    assert batch.deliveries[0].event.type == "conversation.started"


async def test_a_batch_is_bounded_by_events_lanes_and_events_a_lane(outbox: OutboxFile) -> None:
    for number in range(10):
        await say(outbox, f"c{number}", 20)
    assert sorted(sizes(await due(outbox, max_events=37)).values()) == [9, 9, 9, 10]
    assert len(sizes(await due(outbox, max_lanes=3))) == 3
    assert set(sizes(await due(outbox, per_lane=5)).values()) == {5}
    assert sizes(await due(outbox, max_events=1)) == {"c0": 1}


async def test_a_batch_is_bounded_by_bytes_and_the_first_event_goes_in_any_case(outbox: OutboxFile) -> None:
    text = "x" * 100_000
    for name in ("a", "b"):
        await outbox.append(prepare(name, [Message.user(text) for _ in range(20)]))
    assert sizes(await due(outbox, max_bytes=1_000_000)) == {"a": 5, "b": 5}
    assert sizes(await due(outbox, max_bytes=50_000)) == {"a": 1, "b": 1}  # only what begins the conversations
    await outbox.write(lambda connection: acknowledge(connection, {"a": 1, "b": 1}, now_us=0))
    assert sizes(await due(outbox, max_bytes=50_000)) == {"a": 1}


async def test_a_large_backlog_is_read_in_bounded_memory(outbox: OutboxFile) -> None:
    """Of two thousand lanes, and of one with eight hundred kilobytes, no more is read than a batch takes."""

    def fill(connection: sa.Connection) -> None:
        said = [prepare("long", [Message.user("x" * 20_000) for _ in range(40)])]
        said += [prepare(f"c{number}", [Message.user("x")]) for number in range(2_000)]
        append_events(connection.connection.cursor(), said, now_us=1)

    def batch(connection: sa.Connection) -> tuple[DueBatches, int]:
        tracemalloc.start()
        try:
            found = next_batch(connection, waits=WAITS, max_bytes=100_000, max_lanes=2)
            return found, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    await outbox.write(fill)
    found, peak = await outbox.read(batch)
    assert sizes(found) == {"long": 4, "c0": 2}
    assert peak < 150_000


async def test_an_append_with_a_condition_goes_whole(outbox: OutboxFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def messages() -> list[Message]:
        return [Message.user("x" * 100) for _ in range(20)]

    seen = await outbox.append(prepare("whole", [Message.user("first")]))
    after = Seen(sequence=max(seen.sequences))
    await outbox.append(prepare("whole", messages(), after=after))
    await outbox.append(prepare("whole", messages()))
    await outbox.append(prepare("plain", messages()))
    few = {"max_events": 30, "per_lane": 3}

    # The start of the conversation, the first message and all of the append; of the one without a condition, a share.
    assert sizes(await due(outbox, **few)) == {"whole": 22, "plain": 3}
    assert sizes(await due(outbox, max_bytes=500)) == {"whole": 22}
    assert sizes(await due(outbox, max_events=2)) == {"whole": 2}
    for bound, value in (("MAX_WHOLE_EVENTS", 18), ("MAX_WHOLE_BYTES", 1_000)):
        with monkeypatch.context() as patch:
            patch.setattr(lanes, bound, value)
            assert sizes(await due(outbox, **few)) == {"whole": 3, "plain": 3}
    # What is left of it when a part was delivered goes whole, too; nobody stumbles over a damaged condition.
    await outbox.write(lambda connection: acknowledge(connection, {"whole": 5}, now_us=0))
    assert sizes(await due(outbox, **few)) == {"whole": 17, "plain": 3}
    await sql(outbox, "UPDATE letopis_outbox_events SET metadata = '{\"letopis.expects\"' WHERE sequence = 8")
    assert sizes(await due(outbox, **few)) == {"whole": 3, "plain": 3}


async def test_bytes_are_counted_as_they_are_sent(outbox: OutboxFile) -> None:
    """A Cyrillic letter is two bytes."""
    await outbox.append(prepare("a", [Message.user("ж" * 1_000) for _ in range(100)]))
    assert sizes(await due(outbox, max_bytes=100_000)) == {"a": 49}  # by characters it would be twice as many


@pytest.mark.parametrize("data", [None, b"{}"])
def test_damaged_data_come_as_text_that_matches_no_digest(data: Any) -> None:
    row = (1, bytes(16), "message.appended", 1, data, None, bytes(32), bytes(16), 0, 0)
    assert not lanes.sequenced_event("chat", row).event.intact


async def test_only_lanes_that_are_ready_or_due_again_are_served(outbox: OutboxFile) -> None:
    for state in ("ready", "retrying", "blocked", "paused"):
        await say(outbox, state)
        await sql(outbox, "UPDATE letopis_outbox_lanes SET state = ?1 WHERE conversation_id = ?1", (state,))
    assert list(sizes(await due(outbox))) == ["ready", "retrying"]


async def test_a_lane_that_waits_tells_for_how_long(outbox: OutboxFile) -> None:
    await say(outbox, "a")
    waits = RetryTimers(Clock(), longest=60)
    fault: dict[str, Any] = {"attempts": 1, "due_at_us": waits.set("a", 30), "fault_class": "poison", "fault": "no"}
    await outbox.write(partial(schedule_retry, lane=await lane(outbox, "a"), **fault))
    found = await due(outbox, waits=waits)
    assert found.batches == ()
    assert 28 < present(found.wait) <= 30


async def test_a_hole_in_the_file_is_reported_not_skipped(outbox: OutboxFile) -> None:
    await say(outbox, "a", 5)
    await say(outbox, "b", 5)
    await sql(
        outbox,
        "DELETE FROM letopis_outbox_events WHERE position IN"
        " (SELECT position FROM letopis_outbox_log WHERE conversation_id = 'a' AND sequence = 3)",
    )
    assert sizes(await due(outbox)) == {"a": 2, "b": 6}

    await outbox.write(lambda connection: acknowledge(connection, {"a": 2}, now_us=0))
    found = await due(outbox)
    assert sizes(found) == {"b": 6}
    assert [one.conversation_id for one in found.broken] == ["a"]


async def test_owed_lanes_are_found_by_their_index(outbox: OutboxFile) -> None:
    plan = await sql(
        outbox,
        "EXPLAIN QUERY PLAN SELECT conversation_id FROM letopis_outbox_lanes"
        " WHERE pending_since IS NOT NULL AND delivered < head AND state IN ('ready', 'retrying')"
        " ORDER BY pending_since",
    )

    assert "ix_letopis_outbox_lanes_pending" in plan[0][3]
    assert not any("TEMP B-TREE" in row[3] for row in plan)


async def test_bytes_of_a_large_backlog_are_extrapolated(outbox: OutboxFile) -> None:
    await outbox.append(prepare("a", [Message.user("x" * 100, id=f"m{number:05}") for number in range(12_000)]))
    found = await outbox.read(count_lanes)
    exact = (await sql(outbox, "SELECT sum(length(data)) FROM letopis_outbox_events"))[0][0]
    assert found.pending == 12_001
    assert abs(found.pending_bytes - exact) < exact / 100


async def test_tails_are_paged_by_conversation(outbox: OutboxFile) -> None:
    for name in ("a", "b", "c", "d"):
        await say(outbox, name, 2)
    await outbox.write(lambda connection: acknowledge(connection, {"a": 1, "b": 2, "d": 3}, now_us=0))
    assert await outbox.read(partial(delivered_positions, limit=2)) == {"a": 1, "b": 2}
    assert await outbox.read(partial(delivered_positions, after="b", limit=2)) == {"d": 3}

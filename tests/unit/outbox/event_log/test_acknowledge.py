"""Delivery outcomes recorded in the lanes."""

from functools import partial
from typing import Any

import pytest

from letopis import OutboxAdmin, OutboxFile, Selection
from letopis.outbox.event_log.acknowledge import (
    MAX_FAULT_LENGTH,
    acknowledge,
    block_lane,
    clear_fault,
    rewind_lane,
    schedule_retry,
)
from letopis.outbox.event_log.lanes import Lane
from letopis.store import Conflict
from tests.support.relays import lane, say, sql

NOW = 4_000_000_000_000_000


async def ack(outbox: OutboxFile, delivered: dict[str, int], now_us: int = NOW) -> Any:
    return await outbox.write(partial(acknowledge, delivered=delivered, now_us=now_us))


async def block(outbox: OutboxFile, of: Lane, fault_class: str = "poison", fault: str = "no") -> bool:
    return await outbox.write(lambda db: block_lane(db, of, attempts=4, fault_class=fault_class, fault=fault))


async def retry_later(outbox: OutboxFile, of: Lane, attempts: int = 2) -> bool:
    fault = {"fault_class": "poison", "fault": "no"}
    return await outbox.write(lambda db: schedule_retry(db, of, attempts=attempts, due_at_us=5, **fault))


def trouble(of: Lane) -> tuple[object, ...]:
    return of.state, of.attempts, of.due_at_us, of.fault_class, of.fault


async def rewind(outbox: OutboxFile, head: int) -> Any:
    return await outbox.write(partial(rewind_lane, conversation_id="a", head=head, now_us=NOW))


async def test_an_acknowledgement_moves_lanes_counts_events_and_reports_what_did_not_move(outbox: OutboxFile) -> None:
    """There already, asked to go back, asked beyond the head, or gone from the file."""
    for name in ("there", "back", "beyond"):
        await say(outbox, name, 3)
    found = await ack(outbox, {"there": 2, "back": 4})
    assert (found.events, found.missed) == (6, ())
    assert (await lane(outbox, "back")).pending_since_us is None
    found = await ack(outbox, {"there": 2, "back": 1, "beyond": 5, "gone": 1})
    assert (found.events, set(found.missed)) == (0, {"there", "back", "beyond", "gone"})
    assert [(await lane(outbox, one)).delivered for one in ("there", "back", "beyond")] == [2, 4, 0]


async def test_the_age_of_what_is_pending_follows_the_oldest_event(outbox: OutboxFile) -> None:
    """And never lies in the future of a clock that was set back."""
    await say(outbox, "a", 3)
    await sql(outbox, "UPDATE letopis_outbox_events SET appended_at = 1000 + sequence")
    await sql(outbox, "UPDATE letopis_outbox_lanes SET pending_since = 1001")
    await ack(outbox, {"a": 2})
    assert (await lane(outbox, "a")).pending_since_us == 1003
    await ack(outbox, {"a": 3}, now_us=77)
    assert (await lane(outbox, "a")).pending_since_us == 77


async def test_an_acknowledgement_heals_a_lane_in_trouble(outbox: OutboxFile) -> None:
    await say(outbox, "a", 3)
    await retry_later(outbox, await lane(outbox, "a"))
    assert trouble(await lane(outbox, "a")) == ("retrying", 2, 5, "poison", "no")
    await ack(outbox, {"a": 1})
    assert trouble(await lane(outbox, "a")) == ("ready", 0, 0, None, None)


async def test_a_paused_lane_stays_paused(outbox: OutboxFile) -> None:
    """An operator paused it while a delivery was in flight."""
    await say(outbox, "a", 3)
    one = await lane(outbox, "a")
    await sql(outbox, "UPDATE letopis_outbox_lanes SET state = 'paused'")
    marked = await block(outbox, one)
    await ack(outbox, {"a": 1})
    assert not marked
    assert (await lane(outbox, "a")).state == "paused"


async def test_a_mark_on_a_lane_that_moved_on_is_dropped(outbox: OutboxFile) -> None:
    await say(outbox, "a", 3)
    one = await lane(outbox, "a")
    await ack(outbox, {"a": 1})
    assert (await block(outbox, one), await retry_later(outbox, one)) == (False, False)
    assert (await lane(outbox, "a")).state == "ready"


async def test_a_refusal_from_before_an_operator_retried_is_dropped(outbox: OutboxFile) -> None:
    """A relay that could not write for a while still holds it."""
    await say(outbox, "a")
    assert await retry_later(outbox, await lane(outbox, "a"), 3)
    old = await lane(outbox, "a")
    assert await retry_later(outbox, old, 4)
    assert await retry_later(outbox, old, 4), "the same write again, after a commit that ended in an error"
    assert await OutboxAdmin(outbox).retry(Selection()) == ["a"]
    assert not await block(outbox, old)
    assert not await retry_later(outbox, old, 4)
    assert (await lane(outbox, "a")).state == "ready"


@pytest.mark.parametrize("fault_class", ["poison", "unclassified", "diverged", "lost", "damaged"])
async def test_what_is_given_back_is_what_the_store_was_to_blame_for(outbox: OutboxFile, fault_class: str) -> None:
    state = "ready" if fault_class in ("poison", "unclassified") else "blocked"
    for name in ("blocked", "retrying", "fine"):
        await say(outbox, name, 3)
    await block(outbox, await lane(outbox, "blocked"), fault_class)
    await retry_later(outbox, await lane(outbox, "retrying"))
    given = await outbox.write(lambda connection: clear_fault(connection, ["blocked", "retrying", "fine", "unknown"]))
    assert given == (2 if state == "ready" else 1)
    assert (await lane(outbox, "blocked")).state == state
    assert trouble(await lane(outbox, "retrying")) == ("ready", 0, 0, None, None)


async def test_a_long_fault_is_cut(outbox: OutboxFile) -> None:
    await say(outbox, "a")
    await block(outbox, await lane(outbox, "a"), fault="x" * 10_000)
    assert (await lane(outbox, "a")).fault == "x" * MAX_FAULT_LENGTH


async def test_a_damaged_event_that_was_set_aside_takes_no_other_content_with_it(outbox: OutboxFile) -> None:
    """Its data does not tell which message the store has erased."""
    await say(outbox, "a", 3)
    await sql(outbox, "UPDATE letopis_outbox_events SET data = '{' WHERE sequence = 2")
    before = await sql(outbox, "SELECT data FROM letopis_outbox_events")
    superseded = {"a": {2: Conflict(expected=0, actual=5, erased="message")}}
    await outbox.write(partial(acknowledge, delivered={"a": 2}, now_us=NOW, superseded=superseded))
    assert await sql(outbox, "SELECT data FROM letopis_outbox_events") == before


@pytest.mark.parametrize(
    ("delivered", "changes", "head", "told", "state", "left"),
    [
        (10, "pruned = 0", 4, (6, 0), "ready", 4),
        (3, "pruned = 0", 7, (0, 0), "ready", 3),  # it never moves a lane on
        # An operator paused it; that its events have to be sent again does not resume it.
        (8, "state = 'paused'", 2, (6, 0), "paused", 2),
        (8, "state = 'paused', pruned = 5", 2, (3, 3), "paused", 5),
        # Its bad event is no longer the next one; it will be refused again when its turn comes.
        (5, "state = 'blocked', attempts = 4, fault_class = 'poison', fault = 'no'", 2, (3, 0), "ready", 2),
    ],
)
async def test_a_rewind_makes_delivered_events_pending_again(
    outbox: OutboxFile, delivered: int, changes: str, head: int, told: tuple[int, int], state: str, left: int
) -> None:
    await say(outbox, "a", 9)
    await ack(outbox, {"a": delivered})
    await sql(outbox, f"UPDATE letopis_outbox_lanes SET {changes}")
    found = await rewind(outbox, head)
    again = await lane(outbox, "a")
    assert ((found.events, found.lost), again.delivered, again.state) == (told, left, state)
    if state == "ready":
        assert trouble(again) == ("ready", 0, 0, None, None)


async def test_events_that_are_pending_again_are_as_old_as_their_rewind(outbox: OutboxFile) -> None:
    """Otherwise a lane that heals would count as stuck since its events were first appended."""
    await say(outbox, "a", 9)
    await ack(outbox, {"a": 10})
    await rewind(outbox, 4)
    assert (await lane(outbox, "a")).pending_since_us == NOW
    await ack(outbox, {"a": 6}, now_us=NOW + 5)
    assert (await lane(outbox, "a")).pending_since_us == NOW


async def test_what_was_pruned_blocks_the_lane_as_far_back_as_the_file_reaches(outbox: OutboxFile) -> None:
    """A relay compares again and again; the loss is told once."""
    await say(outbox, "a", 9)
    await ack(outbox, {"a": 8})
    await sql(outbox, "UPDATE letopis_outbox_lanes SET pruned = 5")
    await sql(outbox, "DELETE FROM letopis_outbox_events WHERE sequence <= 5")
    found = [await rewind(outbox, head) for head in (2, 2, 1)]
    stuck = await lane(outbox, "a")
    assert [(one.events, one.lost) for one in found] == [(3, 3), (0, 0), (0, 4)]
    assert (stuck.delivered, stuck.state, stuck.fault_class) == (5, "blocked", "lost")
    assert "4 events" in (stuck.fault or "")

"""What the outbox file keeps of records: values beside their events, within bounds."""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox import Bounds, History, RecordPut
from letopis.outbox.concurrency.clock import Clock, RetryTimers
from letopis.outbox.event_log.append_encoding import Prepared, prepare
from letopis.outbox.event_log.lanes import count_lanes, next_batch
from letopis.outbox.event_log.records.changes import prepare_clear, prepare_put, together
from letopis.outbox.event_log.retention import prune_bodies
from letopis.store import ABSENT, ConversationRewound, Message, OutboxFull, RecordConflict
from tests.support.relays import sql

CP = ("cp",)
MIB = 1024 * 1024


def rows(history: History, statement: str) -> Any:
    return sql(history.outbox, statement)


async def keys(history: History) -> list[str]:
    found = await rows(history, "SELECT record_key FROM letopis_outbox_records WHERE present ORDER BY sequence")
    return [key.decode() for (key,) in found]


async def in_one_commit(history: History, appends: Sequence[Prepared]) -> Sequence[object]:
    """Append while the writer is busy with another append, so that all are written together."""
    busy = prepare("busy", [Message.user("hello")])
    _, *outcomes = await asyncio.gather(*map(history.outbox.append, (busy, *appends)), return_exceptions=True)
    return outcomes


async def test_delivered_values_beyond_the_budget_are_pruned_oldest_first_and_pending_ones_never(
    history: History,
) -> None:
    records = history.records(conversation="chat-1")
    for number in range(6):
        await records.put(CP, f"{number}", bytes(100_000))
    await rows(history, "UPDATE letopis_outbox_lanes SET delivered = 4")
    pruned = await history.outbox.write(lambda connection: prune_bodies(connection.connection.cursor(), most=250_000))
    again = await history.outbox.write(lambda connection: prune_bodies(connection.connection.cursor(), most=0))
    assert (pruned, again) == (2, 2)
    assert await keys(history) == ["4", "5"]
    assert await rows(history, "SELECT pruned, delivered, head FROM letopis_outbox_lanes") == [(4, 4, 6)]
    assert await rows(history, "SELECT count(*) FROM letopis_outbox_record_bodies") == [(2,)]


async def test_a_batch_counts_values_and_a_value_larger_than_one_goes_alone(history: History) -> None:
    records = history.records(conversation="chat-1")
    for number, size in enumerate((5 * MIB, 3 * MIB, 3 * MIB, 10)):
        await records.put(CP, f"{number}", bytes(size))
    await history.append("chat-2", Message.user("hello"))
    sizes = []
    for delivered in (0, 1, 2, 3):
        await rows(history, f"UPDATE letopis_outbox_lanes SET delivered = {delivered} WHERE conversation_id < char(2)")
        due = await history.outbox.read(partial(next_batch, waits=RetryTimers(Clock(), longest=1.0)))
        sizes.append([len(one.event.body or b"") for one in due.batches[0].deliveries])
    assert sizes == [[5 * MIB], [3 * MIB], [3 * MIB], [10]]
    counts = await history.outbox.read(count_lanes)
    assert 10 < counts.pending_bytes < 2_000


async def test_a_replaced_value_goes_and_the_event_stays_comparable(history: History) -> None:
    records = history.records(conversation="chat-1")
    await records.put(CP, "a", "first")
    [before] = await rows(history, "SELECT data, digest FROM letopis_outbox_events")
    await records.put(CP, "a", "second")
    events = await rows(history, "SELECT data, digest, redacted FROM letopis_outbox_events ORDER BY sequence")
    assert events[0] == (*before, 1) and events[1][2] == 0
    assert await rows(history, "SELECT body FROM letopis_outbox_record_bodies") == [(b'"second"',)]
    await records.delete(CP, "a")
    assert await rows(history, "SELECT body FROM letopis_outbox_record_bodies") == []


@pytest.mark.parametrize("put_first", [True, False])
async def test_a_reset_and_a_put_of_one_commit_keep_their_order(history: History, put_first: bool) -> None:
    await history.append("chat-1", Message.user("hello"))
    records = history.records(conversation="chat-1")
    put = together(records.scope, [prepare_put(records.scope, CP, "a", 1)])
    reset = prepare("chat-1", [ConversationRewound(erase=True)])
    await in_one_commit(history, (put, reset) if put_first else (reset, put))
    assert await keys(history) == ([] if put_first else ["a"])


async def test_conditions_of_one_commit_see_each_other(history: History) -> None:
    scope = history.records(space="app").scope

    def put(value: int) -> Prepared:
        return together(scope, [prepare_put(scope, CP, "a", value, expected=ABSENT)], trusting=True)

    appends = [put(1), put(2), together(scope, prepare_clear(scope, CP)), put(3)]
    outcomes = await in_one_commit(history, appends)
    await history.records(space="app").put(CP, "a", 4)  # the store has to decide the one before as it was meant

    assert [isinstance(outcome, RecordConflict) for outcome in outcomes] == [False, True, False, False]
    bodies = await rows(history, "SELECT body FROM letopis_outbox_record_bodies ORDER BY position")
    assert bodies == [(b"1",), (b"3",), (b"4",)]


async def test_changes_of_several_lanes_are_written_all_or_none(history: History) -> None:
    records = history.records(space="app", new=True)
    puts = [RecordPut((f"{number}",), "a", number, ABSENT) for number in range(40)]
    with pytest.raises(RecordConflict):
        await records.put_many([*puts, puts[0]])
    assert await rows(history, "SELECT count(*) FROM letopis_outbox_lanes") == [(0,)]

    await records.put_many(puts)

    assert len(await keys(history)) == 40
    [(lanes,)] = await rows(history, "SELECT count(*) FROM letopis_outbox_lanes WHERE pending_since IS NOT NULL")
    assert 1 < lanes <= 16


async def test_a_put_is_refused_when_the_outbox_is_full(tmp_path: Path) -> None:
    async with History(
        tmp_path / "bot.outbox.db", relay=False, watch=False, bounds=Bounds(max_bytes=250_000)
    ) as history:
        records = history.records(space="app")
        await records.put(CP, "large", bytes(MIB))
        async with history.transaction() as tx:
            with pytest.raises(OutboxFull):
                await tx.put(records, CP, "other", 1)
        with pytest.raises(OutboxFull):
            await records.put(CP, "other", 1)
        assert await keys(history) == ["large"]


async def test_a_clear_takes_nothing_from_another_conversation(history: History) -> None:
    one, other = (history.records(conversation=name) for name in ("chat-1", "chat-2"))
    await one.put(CP, "k", b"1")
    await other.put(CP, "k", b"2")
    await history.outbox.append(together(one.scope, prepare_clear(one.scope, CP)))
    bodies = await rows(history, "SELECT body FROM letopis_outbox_record_bodies")
    assert await keys(history) == ["k"]
    assert bodies == [(b"2",)]

"""What the outbox file keeps of records: values beside their events, within bounds."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from letopis.outbox import History, RecordPut, Records
from letopis.outbox.concurrency.clock import Clock, RetryTimers
from letopis.outbox.event_log.append_encoding import Prepared, prepare
from letopis.outbox.event_log.lanes import count_lanes, next_batch
from letopis.outbox.event_log.records.changes import prepare_clear, prepare_put, together
from letopis.outbox.event_log.retention import prune_bodies
from letopis.store import ABSENT, ConversationRewound, Message, OutboxFull, RecordConflict

CP = ("cp",)
MIB = 1024 * 1024


@pytest.fixture
async def bot(tmp_path: Path) -> AsyncIterator[History]:
    async with History(tmp_path / "bot.outbox.db", relay=False, watch=False) as opened:
        yield opened


async def sql(history: History, statement: str) -> list[tuple[object, ...]]:
    def run(connection: sa.Connection) -> list[tuple[object, ...]]:
        result = connection.exec_driver_sql(statement)
        return [tuple(row) for row in result.all()] if result.returns_rows else []

    return await history.outbox.write(run)


async def keys(records: Records) -> list[str]:
    rows = await records._outbox.read(
        lambda connection: connection.exec_driver_sql(
            "SELECT record_key FROM letopis_outbox_records WHERE present ORDER BY sequence"
        ).all()
    )
    return [row[0].decode() for row in rows]


async def in_one_commit(history: History, appends: Sequence[Prepared]) -> Sequence[object]:
    """Append while the writer is busy with another append, so that all are written together."""
    busy = prepare("busy", [Message.user("hello")])
    _, *outcomes = await asyncio.gather(*map(history.outbox.append, (busy, *appends)), return_exceptions=True)
    return outcomes


async def test_delivered_values_beyond_the_budget_are_pruned_oldest_first_and_pending_ones_never(bot: History) -> None:
    records = bot.records(conversation="chat-1")
    for number in range(6):
        await records.put(CP, f"{number}", bytes(100_000))
    await sql(bot, "UPDATE letopis_outbox_lanes SET delivered = 4")

    pruned = await bot.outbox.write(lambda connection: prune_bodies(connection.connection.cursor(), most=250_000))
    again = await bot.outbox.write(lambda connection: prune_bodies(connection.connection.cursor(), most=0))

    assert (pruned, again) == (2, 2)
    assert await keys(records) == ["4", "5"]
    assert await sql(bot, "SELECT pruned, delivered, head FROM letopis_outbox_lanes") == [(4, 4, 6)]
    assert await sql(bot, "SELECT count(*) FROM letopis_outbox_record_bodies") == [(2,)]


async def test_a_batch_counts_values_and_a_value_larger_than_one_goes_alone(bot: History) -> None:
    records = bot.records(conversation="chat-1")
    for number, size in enumerate((5 * MIB, 3 * MIB, 3 * MIB, 10)):
        await records.put(CP, f"{number}", bytes(size))
    await bot.append("chat-2", Message.user("hello"))
    sizes = []
    for delivered in (0, 1, 2, 3):
        await sql(bot, f"UPDATE letopis_outbox_lanes SET delivered = {delivered} WHERE conversation_id < char(2)")
        due = await bot.outbox.read(lambda connection: next_batch(connection, waits=RetryTimers(Clock(), longest=1.0)))
        sizes.append([len(one.event.body or b"") for one in due.batches[0].deliveries])
    assert sizes == [[5 * MIB], [3 * MIB], [3 * MIB], [10]]
    counts = await bot.outbox.read(count_lanes)
    assert 10 < counts.pending_bytes < 2_000


async def test_a_put_is_refused_when_the_outbox_is_full(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db", relay=False, watch=False, max_bytes=2 * MIB) as bot:
        records = bot.records(space="app")

        async def fill() -> None:
            # What is in use is measured once a second.
            async with asyncio.timeout(30):
                for number in itertools.count():
                    await records.put(CP, f"{number}", bytes(200_000))
                    await asyncio.sleep(0.05)

        with pytest.raises(OutboxFull):
            await fill()

        async def put_in_transaction() -> None:
            async with bot.transaction() as tx:
                await tx.put(records, CP, "other", 1)

        with pytest.raises(OutboxFull):
            await put_in_transaction()
        held = await keys(records)
        assert len(held) > 5 and "other" not in held


async def test_a_replaced_value_goes_and_the_event_stays_comparable(bot: History) -> None:
    records = bot.records(conversation="chat-1")
    await records.put(CP, "a", "first")
    [before] = await sql(bot, "SELECT data, digest FROM letopis_outbox_events")
    await records.put(CP, "a", "second")
    rows = await sql(bot, "SELECT data, digest, redacted FROM letopis_outbox_events ORDER BY sequence")
    assert rows[0] == (*before, 1) and rows[1][2] == 0
    assert await sql(bot, "SELECT body FROM letopis_outbox_record_bodies") == [(b'"second"',)]
    await records.delete(CP, "a")
    assert await sql(bot, "SELECT body FROM letopis_outbox_record_bodies") == []


@pytest.mark.parametrize("put_first", [True, False])
async def test_a_reset_and_a_put_of_one_commit_keep_their_order(bot: History, put_first: bool) -> None:
    await bot.append("chat-1", Message.user("hello"))
    records = bot.records(conversation="chat-1")
    put = together(records.scope, [prepare_put(records.scope, CP, "a", 1)])
    reset = prepare("chat-1", [ConversationRewound(erase=True)])

    await in_one_commit(bot, (put, reset) if put_first else (reset, put))

    assert await keys(records) == ([] if put_first else ["a"])


async def test_conditions_of_one_commit_see_each_other(bot: History) -> None:
    scope = bot.records(space="app").scope

    def put(value: int) -> Prepared:
        return together(scope, [prepare_put(scope, CP, "a", value, expected=ABSENT)], trusting=True)

    appends = [put(1), put(2), together(scope, prepare_clear(scope, CP)), put(3)]
    outcomes = await in_one_commit(bot, appends)

    assert [isinstance(outcome, RecordConflict) for outcome in outcomes] == [False, True, False, False]
    assert await sql(bot, "SELECT body FROM letopis_outbox_record_bodies ORDER BY position DESC") == [(b"3",), (b"1",)]


async def test_changes_of_several_lanes_are_written_all_or_none(bot: History) -> None:
    records = bot.records(space="app", new=True)
    puts = [RecordPut((f"{number}",), "a", number, ABSENT) for number in range(40)]

    with pytest.raises(RecordConflict):
        await records.put_many([*puts, puts[0]])
    assert await sql(bot, "SELECT count(*) FROM letopis_outbox_lanes") == [(0,)]
    receipts = await records.put_many(puts)

    assert len({receipt.revision for receipt in receipts}) == 40
    [(lanes,)] = await sql(
        bot, "SELECT count(*) FROM letopis_outbox_lanes WHERE head > 0 AND pending_since IS NOT NULL"
    )
    assert isinstance(lanes, int) and 1 < lanes <= 16

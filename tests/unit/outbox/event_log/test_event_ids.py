"""The index of event ids finds what reading all events finds, and an append writes few pages."""

import asyncio
import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa

from letopis import Message, OutboxFile, Retention
from letopis.ops.verify import find_problems
from letopis.outbox.event_log.acknowledge import acknowledge
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.event_ids import MAX_UNINDEXED_EVENTS, find_positions, newest_position
from letopis.outbox.event_log.retention import Pruner
from letopis.store.model.identifiers import uuid7
from letopis.store.ops.wal_format import scan_wal
from tests.support.relays import say, sql

TEXT = "what a person says, " * 45


async def _append(outbox: OutboxFile, names: Sequence[str]) -> None:
    await asyncio.gather(*(outbox.append(prepare(name, [Message.user(TEXT)])) for name in names))


async def _deliver_all(outbox: OutboxFile) -> None:
    heads = dict(await sql(outbox, "SELECT conversation_id, head FROM letopis_outbox_lanes"))
    await outbox.write(lambda connection: acknowledge(connection, heads, now_us=1))


async def _prune_all(outbox: OutboxFile) -> None:
    pruner = Pruner(Retention(keep_last=0, keep_for=timedelta(0)), lambda: outbox.now_us() + 1_000_000)
    while await outbox.write(pruner):
        pass


def _look_up(connection: sa.Connection, event_id: bytes) -> tuple[list[int], list[int], list[int]]:
    """Return the positions of an event id: by the index and the newest events, by the view, and by reading all."""
    with closing(connection.connection.cursor()) as cursor:
        (indexed,) = cursor.execute("SELECT indexed FROM letopis_outbox_origin").fetchone()  # type: ignore[union-attr]
        found = find_positions(cursor, [event_id], indexed=indexed)
    by_view, plain = (
        list(connection.exec_driver_sql(f"SELECT position FROM {table} WHERE event_id = ?", (event_id,)).scalars())
        for table in ("letopis_outbox_known_ids", "letopis_outbox_events")
    )
    return found, by_view, plain


async def test_every_id_is_found_where_reading_all_events_finds_it(outbox: OutboxFile) -> None:
    chance = random.Random(7)
    seen = {uuid7().bytes}
    for turn in range(40):
        names = [f"c{chance.randrange(5)}" for _ in range(chance.choice((1, 1, 3, MAX_UNINDEXED_EVENTS + 3)))]
        await _append(outbox, names)
        seen.update(row[0] for row in await sql(outbox, "SELECT event_id FROM letopis_outbox_events"))
        if turn % 9 == 5:
            await _deliver_all(outbox)
        if turn % 9 == 7:
            await _prune_all(outbox)
        for event_id in chance.sample(sorted(seen), min(20, len(seen))):
            found, by_view, plain = await outbox.read(lambda connection, one=event_id: _look_up(connection, one))
            assert found == by_view == plain
    await outbox.close()

    assert list(find_problems(outbox.path)) == []


async def test_the_position_of_a_pruned_event_is_not_used_again(outbox: OutboxFile) -> None:
    await say(outbox, "a", 3)
    ((last,),) = await sql(outbox, "SELECT max(position) FROM letopis_outbox_events")
    await _deliver_all(outbox)
    await _prune_all(outbox)
    for table in ("events", "event_ids"):
        assert await sql(outbox, f"SELECT count(*) FROM letopis_outbox_{table}") == [(0,)]
    assert await outbox.read(lambda connection: newest_position(connection.connection.cursor())) == last
    await say(outbox, "b")
    assert await sql(outbox, "SELECT min(position) FROM letopis_outbox_events") == [(last + 1,)]


async def test_an_id_that_is_missing_from_the_index_is_a_problem(outbox: OutboxFile) -> None:
    await say(outbox, "a", MAX_UNINDEXED_EVENTS)
    await sql(
        outbox,
        "UPDATE letopis_outbox_event_ids SET event_id = ?1"
        " WHERE position = (SELECT min(position) FROM letopis_outbox_event_ids)",
        (UUID(int=1).bytes,),
    )
    await outbox.close()

    assert list(find_problems(outbox.path)) == [
        "1 events are not in the index of event ids",
        "1 entries of the index of event ids belong to no event",
    ]


# Shapes: they do not depend on the machine.


def _pages(path: Path) -> int:
    """Return how many pages were written to the WAL since it was last emptied; empty it."""
    wal = path.with_name(f"{path.name}-wal")
    count = len(scan_wal(wal.read_bytes()).read)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    return count


async def test_an_append_writes_few_pages_also_into_a_long_log(outbox: OutboxFile) -> None:
    names = [f"chat-{number}" for number in range(64)]
    for start in range(0, 20_000, 500):
        await _append(outbox, [names[(start + place) % 64] for place in range(500)])

    async def pages_of(*appends: Sequence[str]) -> float:
        """Return how many pages an append takes, the mean of these."""
        _pages(outbox.path)
        count = 0
        for append in appends:
            await _append(outbox, append)
            count += _pages(outbox.path)
        return count / len(appends)

    assert await pages_of(*([name] for name in names)) <= 4.5
    assert await pages_of(*[names] * 8) <= 100
    # Conversations with a page of the index each, as all of these, are the most expensive; new ones share pages.
    fresh = [f"new-{number}" for number in range(64)]
    await _append(outbox, fresh)
    assert await pages_of(*[fresh] * 8) <= 40

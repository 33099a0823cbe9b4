"""Delivered events stay for a while, pending ones until they are delivered."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from letopis import Message, OutboxFile, Retention
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.retention import Pruner
from letopis.store.rules.retention import ContentRetention
from tests.support.relays import Hands, say, sql


@pytest.fixture
async def outbox(tmp_path: Path, hands: Hands) -> AsyncIterator[OutboxFile]:
    opened = await OutboxFile.open(tmp_path / "bot.outbox.db", now=hands.now)
    yield opened
    await opened.close()


async def fill(outbox: OutboxFile, conversation_id: str, count: int, delivered: int) -> None:
    """Append ``count`` events and mark the first ``delivered`` of them as delivered."""
    await say(outbox, conversation_id, count - 1)
    lane = "UPDATE letopis_outbox_lanes SET delivered = ? WHERE conversation_id = ?"
    await sql(outbox, lane, (delivered, conversation_id))


async def held(outbox: OutboxFile, conversation_id: str) -> list[int]:
    log = "SELECT sequence FROM letopis_outbox_log WHERE conversation_id = ? ORDER BY sequence"
    sequences = [sequence for (sequence,) in await sql(outbox, log, (conversation_id,))]
    lane = "SELECT pruned FROM letopis_outbox_lanes WHERE conversation_id = ?"
    [(pruned,)] = await sql(outbox, lane, (conversation_id,))
    assert sequences == list(range(pruned + 1, pruned + 1 + len(sequences))), "a lane never has a hole"
    return sequences


async def round_of(outbox: OutboxFile, pruner: Pruner) -> None:
    while await outbox.write(pruner):
        pass


async def test_an_event_goes_when_it_is_delivered_old_and_not_among_the_last(outbox: OutboxFile, hands: Hands) -> None:
    await fill(outbox, "c1", 10, delivered=8)
    pruner = Pruner(Retention(keep_last=4, keep_for=timedelta(hours=1)), outbox.now_us)
    await round_of(outbox, pruner)
    assert await held(outbox, "c1") == list(range(1, 11)), "still young"
    hands.advance(2 * 3_600)
    await fill(outbox, "c2", 3, delivered=3)
    await round_of(outbox, pruner)
    assert await held(outbox, "c1") == [7, 8, 9, 10], "the last four of the conversation stay"
    assert await held(outbox, "c2") == [1, 2, 3]


async def test_what_is_pending_stays_whatever_its_age(outbox: OutboxFile, hands: Hands) -> None:
    await fill(outbox, "c1", 10, delivered=3)
    hands.advance(365 * 86_400)
    await round_of(outbox, Pruner(Retention(keep_last=0, keep_for=timedelta(0)), outbox.now_us))
    assert await held(outbox, "c1") == list(range(4, 11))


async def test_content_that_may_not_stay_longer_goes_though_it_is_among_the_last(
    outbox: OutboxFile, hands: Hands
) -> None:
    await fill(outbox, "c1", 10, delivered=8)
    hands.advance(2 * 86_400)
    retention = Retention(keep_last=200, keep_for=timedelta(days=30), content=ContentRetention(max_age_days=1))
    await round_of(outbox, Pruner(retention, outbox.now_us))
    assert await held(outbox, "c1") == [9, 10]


async def test_a_long_round_is_made_of_small_transactions(outbox: OutboxFile, hands: Hands) -> None:
    for number in range(12):
        await fill(outbox, f"c{number}", 30, delivered=30)
    hands.advance(2 * 86_400)
    pruner = Pruner(Retention(keep_last=5), outbox.now_us, limit=20)
    deleted: list[int] = []

    async def count() -> int:
        ((events,),) = await sql(outbox, "SELECT count(*) FROM letopis_outbox_events")
        return int(events)

    more = True
    while more:
        before = await count()
        more = await outbox.write(pruner)
        deleted.append(before - await count())

    assert max(deleted) <= 20
    assert sum(deleted) == pruner.pruned == 12 * 25
    for number in range(12):
        assert await held(outbox, f"c{number}") == [26, 27, 28, 29, 30]


async def test_large_content_stays_with_the_last_event_that_shows_it(outbox: OutboxFile) -> None:
    for _ in range(2):
        await outbox.append(prepare("c", [Message.user("a picture " * 50_000)]))
    kept, rows = [], "SELECT count(*) FROM letopis_outbox_contents"
    for delivered in ("head - 1", "head"):
        await sql(outbox, f"UPDATE letopis_outbox_lanes SET delivered = {delivered}")
        await round_of(outbox, Pruner(Retention(keep_last=0, keep_for=timedelta(0)), outbox.now_us))
        kept += await sql(outbox, rows)

    assert kept == [(1,), (0,)]

"""A subscription yields every event once and each partition in order, whatever writes meanwhile."""

import asyncio
import random
from contextlib import aclosing
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from letopis.store import ConversationStore, FaultClass, Message, RecordedEvent, StoreFault
from letopis.store.database.engines import create_store_engine
from letopis.store.testing.outbox import Outbox, assert_no_gaps

WRITERS = 16
ROUNDS = 12


async def take(store: ConversationStore, count: int, **options: Any) -> list[RecordedEvent]:
    seen: list[RecordedEvent] = []
    async with aclosing(store.subscribe(**options, batch=7, poll=0.002)) as events:
        async for event in events:
            seen.append(event)
            if len(seen) == count:
                break
    return seen


async def test_sixteen_writers_and_nothing_is_missed(store_url: str) -> None:
    async with ConversationStore.open(store_url, migrate=True, pool_size=WRITERS + 2) as store:
        outboxes = [Outbox(f"{number}.db") for number in range(WRITERS)]

        async def write(number: int, outbox: Outbox) -> None:
            chance = random.Random(number)
            for _ in range(ROUNDS):
                for _ in range(3):
                    outbox.append(chance.choice(["shared", f"own-{number}"]), Message.user("x"))
                while outbox.pending():
                    try:
                        await outbox.deliver(store)
                    except StoreFault as fault:
                        if fault.fault_class is not FaultClass.CONFLICT:
                            raise
                await asyncio.sleep(chance.random() * 0.005)

        total = WRITERS * ROUNDS * 3
        with anyio.fail_after(60):
            follower = asyncio.ensure_future(take(store, total))
            await asyncio.gather(*(write(number, outbox) for number, outbox in enumerate(outboxes)))
            seen = await follower

        assert [event.position for event in seen] == list(range(1, total + 1))
        await assert_no_gaps(store)
        for outbox in outboxes:
            for name, lane in outbox.lanes.items():
                mine = [one for one in seen if (one.conversation_id, one.origin_id) == (name, outbox.origin.origin_id)]
                assert [one.event_id for one in mine] == [event.event_id for event in lane]
                assert [one.sequence for one in mine] == list(range(1, len(lane) + 1))


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_the_danger_is_real_where_the_database_gives_out_the_positions(kind: str, new_store_url: object) -> None:
    """The control: with an auto-increment column, the same reader misses a row that commits late."""
    engine = create_store_engine(new_store_url(kind))  # type: ignore[operator]
    log = sa.Table("log", sa.MetaData(), sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=True))
    async with engine.begin() as connection:
        await connection.run_sync(log.create)
    seen: list[int] = []

    async def look() -> None:
        async with engine.connect() as reader:
            after = seen[-1] if seen else 0
            seen.extend((await reader.execute(sa.select(log).where(log.c.position > after))).scalars())

    async with engine.connect() as slow, engine.connect() as fast:
        await slow.execute(log.insert())
        await fast.execute(log.insert())
        await fast.commit()
        await look()
        await slow.commit()
        await look()
        await slow.execute(log.delete())
        await slow.commit()
    await engine.dispose()
    assert seen == [2], "position 1 was committed after 2 had been read"


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_a_writer_that_commits_late_holds_the_positions_after_its_own(kind: str, new_store_url: object) -> None:
    """The same moment with the counter row: the second transaction cannot be read first, because it has to wait."""
    url = new_store_url(kind)  # type: ignore[operator]
    outbox = Outbox()
    outbox.append("chat-1", Message.user("first"))
    async with ConversationStore.open(url, migrate=True) as store:
        slow = create_async_engine(store.url)
        async with slow.connect() as connection:
            await connection.execute(sa.text("SELECT * FROM letopis_log_heads FOR UPDATE"))
            second = asyncio.ensure_future(outbox.deliver(store))
            done, _ = await asyncio.wait({second}, timeout=0.3)
            assert not done and await store.head() == 0
            await connection.rollback()
        await second
        assert [event.position for event in await take(store, 1)] == [1]
        await slow.dispose()


PARTITIONS = 16
CHATS = [f"chat-{number}" for number in range(60)]


async def test_every_partition_is_followed_unless_one_is_asked_for(empty_database_url: str) -> None:
    """And a subscription goes on from a position in each."""
    outbox, total = Outbox(), 3 * len(CHATS)
    for chat in CHATS:
        outbox.append(chat, *(Message.user(str(number)) for number in range(3)))
    async with ConversationStore.open(empty_database_url, migrate=True, partitions=PARTITIONS) as store:
        with anyio.fail_after(60):
            follower = asyncio.ensure_future(take(store, total))
            await outbox.deliver(store)
            seen = await follower
            first = seen[: total // 2]
            last = {event.partition: event.position for event in first if event.partition is not None}
            rest = await take(store, total - len(first), from_position=last)

        said = {event.event_id for lane in outbox.lanes.values() for event in lane}
        assert {event.event_id for event in seen} == {event.event_id for event in (*first, *rest)} == said
        for partition in range(PARTITIONS):
            positions = [event.position for event in seen if event.partition == partition]
            assert positions == list(range(1, await store.head(partition) + 1))
        assert len({event.partition for event in seen}) == PARTITIONS
        only = await take(store, await store.head(5), partition=5)
        assert only == [event for event in seen if event.partition == 5]

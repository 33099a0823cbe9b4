"""An apply is on disk when it is acknowledged, and takes its places from the counters of the log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store import ConversationStore, FaultClass, Message, Projection, RecordedEvent, StoreFault
from letopis.store.database.engines import create_store_engine
from letopis.store.database.schema import log_heads
from letopis.store.testing.outbox import Outbox, assert_no_gaps

FEW, MANY = 3, 120
"""Enough events for PostgreSQL to get them as arrays, and enough to be copied."""


class Asking(Projection):
    """Notes in the transaction of each apply whether its commit will wait for the disk."""

    name = "custom.asking"
    version = 1

    def __init__(self) -> None:
        self.answers: list[str] = []

    async def apply(self, connection: AsyncConnection, events: Sequence[RecordedEvent], *, replaying: bool) -> None:
        found = await connection.exec_driver_sql("SHOW synchronous_commit")
        self.answers.append(str(found.scalar_one()))


def said(count: int) -> list[Message]:
    return [Message.user(f"message {number}") for number in range(count)]


async def test_postgresql_waits_for_the_disk_whatever_its_default_is(fresh_postgresql_url: str) -> None:
    await carelessly(fresh_postgresql_url)
    asking, outbox = Asking(), Outbox()
    async with ConversationStore.open(fresh_postgresql_url, migrate=True, projections=[asking]) as store:
        for count in (FEW, FEW, MANY):  # of an outbox that is new, and of one that is known
            outbox.append("chat-1", *said(count))
            await outbox.deliver(store)
        assert await default_of(fresh_postgresql_url) == "off"  # or this proves nothing

    assert asking.answers == ["on", "on", "on"]


async def carelessly(url: str) -> None:
    """Have new connections to a database not wait for the disk."""
    engine = create_store_engine(url)
    async with engine.begin() as connection:
        name = (await connection.exec_driver_sql("SELECT current_database()")).scalar_one()
        await connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    await engine.dispose()


async def default_of(url: str) -> str:
    engine = create_store_engine(url)
    async with engine.connect() as connection:
        found = str((await connection.exec_driver_sql("SHOW synchronous_commit")).scalar_one())
    await engine.dispose()
    return found


@pytest.mark.parametrize("partitions", [1, 3])
async def test_a_counter_that_is_gone_stops_everything(empty_database_url: str, partitions: int) -> None:
    outbox = Outbox()
    names = [f"chat-{number}" for number in range(20)]
    async with ConversationStore.open(empty_database_url, migrate=True, partitions=partitions) as store:
        for name in names:
            outbox.append(name, *said(1))
        await outbox.deliver(store)
        before = [await store.head(partition) for partition in range(partitions)]
        engine = create_store_engine(empty_database_url)
        async with engine.begin() as connection:
            await connection.execute(sa.delete(log_heads).where(log_heads.c.partition == partitions - 1))
        await engine.dispose()
        for name in names:
            outbox.append(name, *said(1))

        with pytest.raises(StoreFault) as refused:
            await outbox.deliver(store)

        assert (refused.value.fault_class, refused.value.code) == (FaultClass.MISCONFIGURED, "partitions")
        engine = create_store_engine(empty_database_url)
        async with engine.begin() as connection:
            left = (await connection.execute(sa.select(log_heads.c.position).order_by(log_heads.c.partition))).scalars()
            assert list(left) == before[:-1]
            await connection.execute(sa.insert(log_heads).values(partition=partitions - 1, position=before[-1]))
        await engine.dispose()
        await outbox.deliver(store)
        await assert_no_gaps(store)
        assert sum([await store.head(partition) for partition in range(partitions)]) == 2 * len(names)


@pytest.mark.parametrize("partitions", [1, 3])
async def test_outboxes_that_deliver_at_once_share_the_counters(empty_database_url: str, partitions: int) -> None:
    outboxes = [Outbox() for _ in range(4)]
    async with ConversationStore.open(empty_database_url, migrate=True, partitions=partitions) as store:
        for _ in range(5):
            for number, outbox in enumerate(outboxes):
                for chat in range(12):
                    outbox.append(f"chat-{number}-{chat}", *said(2))
            await asyncio.gather(*(outbox.deliver(store) for outbox in outboxes))

        await assert_no_gaps(store)
        assert sum([await store.head(partition) for partition in range(partitions)]) == 4 * 5 * 12 * 2

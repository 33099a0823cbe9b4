"""Write down each event that a projection takes, under a key that a second time would violate."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store import ConversationStore, Message, Projection, RecordedEvent
from letopis.store.database.engines import create_store_engine
from letopis.store.testing.outbox import Outbox

seen = sa.Table(
    "seen",
    sa.MetaData(),
    sa.Column("rules", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("replayed", sa.Integer, nullable=False),
    sa.Column("words", sa.Text, nullable=False),
)


class Seen(Projection):
    name = "custom.seen"

    def __init__(self, version: int = 1) -> None:
        self.version = version
        self.poison: str | None = None

    async def apply(self, connection: AsyncConnection, events: Sequence[RecordedEvent], *, replaying: bool) -> None:
        assert [event.position for event in events] == sorted(event.position or 0 for event in events)
        for event in events:
            words = str(event.data.get("content", ""))
            if self.poison is not None and words == self.poison:
                raise ValueError("a secret: " + words)
            row = {
                "rules": self.version,
                "partition": event.partition,
                "position": event.position,
                "replayed": int(replaying),
                "words": words,
            }
            await connection.execute(sa.insert(seen), row)


class Acting(Seen):
    """Does something outside too."""

    def __init__(self, version: int = 1) -> None:
        super().__init__(version)
        self.done: list[int] = []

    async def effects(self, events: Sequence[RecordedEvent]) -> None:
        self.done += [event.position or 0 for event in events]


async def make_table(url: str) -> None:
    """Create the table of the projection, as a bot's own migrations would."""
    engine = create_store_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(seen.create)
    await engine.dispose()


async def rows_of(url: str, version: int = 1) -> list[tuple[int, int, int]]:
    engine = create_store_engine(url)
    async with engine.connect() as connection:
        found = await connection.execute(
            sa.select(seen.c.partition, seen.c.position, seen.c.replayed)
            .where(seen.c.rules == version)
            .order_by(seen.c.partition, seen.c.position)
        )
        rows = [tuple(row) for row in found]
    await engine.dispose()
    return rows  # type: ignore[return-value]


async def say(store: ConversationStore, outbox: Outbox, count: int, conversation: str = "c") -> None:
    """Apply this many messages, one transaction each."""
    for number in range(count):
        outbox.append(conversation, Message.user(f"message {number}"))
        await outbox.deliver(store)


class Slow(Seen):
    """Says on stdout that it has written, then keeps its transaction open for a while."""

    async def apply(self, connection: AsyncConnection, events: Sequence[RecordedEvent], *, replaying: bool) -> None:
        await super().apply(connection, events, replaying=replaying)
        print(events[-1].position, flush=True)
        await asyncio.sleep(0.02)


class Dying(Acting):
    """Its process ends before it has done anything outside."""

    async def effects(self, events: Sequence[RecordedEvent]) -> None:
        os._exit(9)


CHILDREN = {"slow": Slow, "dying": Dying}


async def project(kind: str, url: str) -> None:
    async with ConversationStore.open(url) as store:
        await store.projector(CHILDREN[kind](), batch=5).run()

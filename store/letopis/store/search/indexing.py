"""Indexing: bring the full-text index up to what the log holds, from where it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.dialects import Dialect
from letopis.store.faults import StoreFault, translated
from letopis.store.schema import checkpoints, log_heads
from letopis.store.search.documents import Stretches
from letopis.store.search.index import Index
from letopis.store.search.words import GENERATION
from letopis.store.shield import interrupted_once, uninterrupted
from letopis.store.upcasters import Upcasters

T = TypeVar("T")

NAME: Final = "search"
"""Of the projection, in the checkpoints."""
STEP: Final = 250
"""Events in one transaction: some 50 ms, for as long as which an SQLite file has no other writer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far the index of one log partition has got."""

    partition: int
    indexed: int
    head: int

    @property
    def behind(self) -> int:
        """Events that it has not read."""
        return self.head - self.indexed


async def standings(connection: AsyncConnection) -> list[Standing]:
    """Return how far the index has got, by partition."""
    rows = await connection.execute(_STANDINGS)
    return [Standing(partition=row.partition, indexed=row.indexed or 0, head=row.head) for row in rows]


class Indexing:
    """Takes events of the log into the index, some in each transaction.

    Any number of processes may do so at once: one works on a partition at a time. A transaction holds the new rows and
    how far the log was read, so whatever is cut off is done again, and nothing is left out.
    """

    def __init__(
        self, engine: AsyncEngine, dialect: Dialect, index: Index, *, upcasters: Upcasters, now: Callable[[], int]
    ) -> None:
        self._engine = engine
        self._readers = engine.execution_options(sqlite_begin="DEFERRED")
        self._embedded = engine.dialect.name == "sqlite"
        self._index = index
        self._now = now
        self._stretches = Stretches(dialect, upcasters)
        self._lock = dialect.locked(_CHECKPOINT)
        self._try_lock = _CHECKPOINT if dialect.locked(_CHECKPOINT) is _CHECKPOINT else _SKIPPING

    async def catch_up(self, limit: int, *, wait: bool = True) -> int:
        """Read at most ``limit`` events, a batch in each transaction; return how many, 0 where there are none.

        :param wait: ``False`` to leave a partition aside that another process works on.
        :raises StoreFault: the database failed; what was committed stays.
        """
        done = 0
        for standing in await self._shielded(self._behind()):
            while done < limit:
                # One by one: a cancellation waits for one transaction, and not for all.
                read = await self._shielded(self._step(standing.partition, min(STEP, limit - done), wait=wait))
                done += read
                if not read:
                    break
        return done

    async def _behind(self) -> list[Standing]:
        with translated():
            async with self._readers.connect() as connection:
                return [one for one in await standings(connection) if one.behind]

    async def _shielded(self, work: Awaitable[T]) -> T:
        return await (uninterrupted(work) if self._embedded else interrupted_once(work))

    async def _step(self, partition: int, limit: int, *, wait: bool) -> int:
        for attempt in range(3):
            try:
                return await self._transaction(partition, limit, wait=wait)
            except StoreFault as fault:
                # Somebody else made the checkpoint since we looked.
                if attempt == 2 or not isinstance(fault.__cause__, IntegrityError):
                    raise
        return 0  # never comes here

    async def _transaction(self, partition: int, limit: int, *, wait: bool) -> int:
        with translated():
            async with self._engine.begin() as connection:
                key = {"partition": partition}
                row = (await connection.execute(self._lock if wait else self._try_lock, key)).first()
                if row is None:
                    if (await connection.execute(_CHECKPOINT, key)).first() is not None:
                        return 0  # another process is at it
                    await connection.execute(_FIRST.values(partition=partition, updated_at=self._now()))
                after = 0 if row is None else row.position
                head = (await connection.execute(_HEAD, key)).scalar_one()
                stretch = await self._stretches.read(
                    connection, partition=partition, after=after, upto=head, limit=limit
                )
                if not stretch.events:
                    return 0
                # It takes the processor for some time, and the loop has other things to do.
                rows = await asyncio.to_thread(self._index.rows, stretch.documents)
                for name, versions in sorted(stretch.gone.items()):
                    await self._index.forget(connection, partition, name, versions)
                there = {(made[2], made[3]) for made in rows}
                for one in stretch.documents:
                    # An edit may have left it without a word.
                    if one.content_version != one.version and (one.conversation_id, one.version) not in there:
                        await self._index.forget(connection, partition, one.conversation_id, (one.version,))
                await self._index.write(connection, rows)
                await connection.execute(
                    _MOVE, {"b_partition": partition, "b_position": stretch.last, "b_updated": self._now()}
                )
                return stretch.events


_MINE: Final = (checkpoints.c.name == NAME, checkpoints.c.version == GENERATION)
_CHECKPOINT: Final[Any] = sa.select(checkpoints.c.position).where(
    *_MINE, checkpoints.c.partition == sa.bindparam("partition")
)
_SKIPPING: Final = _CHECKPOINT.with_for_update(skip_locked=True)
_FIRST: Final = sa.insert(checkpoints).values(name=NAME, version=GENERATION, position=0, replay_to=0)
_MOVE: Final = (
    sa.update(checkpoints)
    .where(*_MINE, checkpoints.c.partition == sa.bindparam("b_partition"))
    .values(position=sa.bindparam("b_position"), updated_at=sa.bindparam("b_updated"))
)
_HEAD: Final = sa.select(log_heads.c.position).where(log_heads.c.partition == sa.bindparam("partition"))
_STANDINGS: Final = (
    sa.select(log_heads.c.partition, log_heads.c.position.label("head"), checkpoints.c.position.label("indexed"))
    .select_from(log_heads.outerjoin(checkpoints, sa.and_(*_MINE, checkpoints.c.partition == log_heads.c.partition)))
    .order_by(log_heads.c.partition)
)

"""Checkpoints: how far each version of a projection has read the log, in the transaction of what it writes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.dialects import Dialect
from letopis.store.plan import Row
from letopis.store.schema import checkpoints

Key = tuple[str, int, int]
"""Name, version and partition."""


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """A row of the checkpoints; mutable for the time of one transaction.

    :ivar replay_to: events up to here were done before: no side effects.
    """

    name: str
    version: int
    partition: int
    position: int
    replay_to: int
    new: bool = False

    @classmethod
    def first(cls, key: Key, *, replay_to: int) -> Self:
        """Return the checkpoint of a version that has read nothing yet."""
        name, version, partition = key
        return cls(name=name, version=version, partition=partition, position=0, replay_to=replay_to, new=True)

    def beside(self, name: str, partition: int, version: int) -> bool:
        """Whether it is of another version of the same projection, in the same partition."""
        return (self.name, self.partition) == (name, partition) and self.version != version

    def as_row(self, now: int) -> Row:
        """Return the values in the order of the table's columns."""
        return (self.name, self.version, self.partition, self.position, self.replay_to, now)


class Checkpoints:
    """Reads, locks and moves checkpoints; its statements are made once."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        named = (
            sa.select(checkpoints)
            .where(dialect.among(checkpoints.c.name, "names"), dialect.among(checkpoints.c.partition, "partitions"))
            .order_by(checkpoints.c.name, checkpoints.c.version, checkpoints.c.partition)
        )
        self._there: Any = named
        self._locked: Any = dialect.locked(named)

    async def read(
        self, connection: AsyncConnection, names: Collection[str], partitions: Collection[int]
    ) -> list[Checkpoint]:
        """Return the checkpoints of all versions of projections."""
        return await self._rows(connection, self._there, names, partitions)

    async def lock(
        self, connection: AsyncConnection, names: Collection[str], partitions: Collection[int]
    ) -> list[Checkpoint]:
        """Return them, and keep them locked until the end of the transaction."""
        return await self._rows(connection, self._locked, names, partitions)

    async def move(self, connection: AsyncConnection, moved: Collection[Checkpoint], *, now: int) -> None:
        """Write checkpoints; an :class:`sqlalchemy.exc.IntegrityError` if another process has made a new one."""
        fresh = [one.as_row(now) for one in moved if one.new]
        await self._dialect.insert(connection, checkpoints, fresh)
        await self._dialect.overwrite(connection, checkpoints, [one.as_row(now) for one in moved if not one.new])

    async def drop(self, connection: AsyncConnection, name: str, version: int) -> None:
        """Take away the checkpoints of one version."""
        await connection.execute(
            sa.delete(checkpoints).where(checkpoints.c.name == name, checkpoints.c.version == version)
        )

    async def _rows(
        self, connection: AsyncConnection, statement: Any, names: Collection[str], partitions: Collection[int]
    ) -> list[Checkpoint]:
        found = await connection.execute(statement, {"names": list(names), "partitions": list(partitions)})
        return [
            Checkpoint(
                name=row.name,
                version=row.version,
                partition=row.partition,
                position=row.position,
                replay_to=row.replay_to,
            )
            for row in found
        ]

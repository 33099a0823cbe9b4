"""Read, lock and move the checkpoints of projections."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect
from letopis.store.database.schema import checkpoints
from letopis.store.rules.apply_plan import TableRow

CheckpointKey = tuple[str, int, int]
"""Name, version and partition."""


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """How far one version of a projection has read one partition; mutable within one transaction.

    :ivar replay_to: the position up to which events were done before, so that they have no side effects.
    :ivar new: whether its row is still to be inserted.
    """

    name: str
    version: int
    partition: int
    position: int
    replay_to: int
    new: bool = False

    @classmethod
    def first(cls, key: CheckpointKey, *, replay_to: int) -> Self:
        """Return the checkpoint of a version that has read nothing yet."""
        name, version, partition = key
        return cls(name=name, version=version, partition=partition, position=0, replay_to=replay_to, new=True)

    def is_other_version_of(self, name: str, partition: int, version: int) -> bool:
        """Return True if it belongs to another version of the same projection in the same partition."""
        return (self.name, self.partition) == (name, partition) and self.version != version

    def as_row(self, now: int) -> TableRow:
        """Return the values in the order of the table's columns."""
        return (self.name, self.version, self.partition, self.position, self.replay_to, now)


class Checkpoints:
    """Reads, locks and moves checkpoints; its statements are built once."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        named = (
            sa.select(checkpoints)
            .where(dialect.among(checkpoints.c.name, "names"), dialect.among(checkpoints.c.partition, "partitions"))
            .order_by(checkpoints.c.name, checkpoints.c.version, checkpoints.c.partition)
        )
        self._unlocked: Any = named
        self._locked: Any = dialect.locked(named)

    async def read(
        self, connection: AsyncConnection, names: Collection[str], partitions: Collection[int]
    ) -> list[Checkpoint]:
        """Return the checkpoints of all versions of some projections."""
        return await self._rows(connection, self._unlocked, names, partitions)

    async def lock(
        self, connection: AsyncConnection, names: Collection[str], partitions: Collection[int]
    ) -> list[Checkpoint]:
        """Return the same checkpoints, locked until the end of the transaction."""
        return await self._rows(connection, self._locked, names, partitions)

    async def move(self, connection: AsyncConnection, moved: Collection[Checkpoint], *, now: int) -> None:
        """Write checkpoints.

        :raises IntegrityError: another process has inserted one of the new ones.
        """
        fresh = [one.as_row(now) for one in moved if one.new]
        await self._dialect.insert(connection, checkpoints, fresh)
        await self._dialect.overwrite(connection, checkpoints, [one.as_row(now) for one in moved if not one.new])

    async def drop(self, connection: AsyncConnection, name: str, version: int) -> None:
        """Delete the checkpoints of one version."""
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

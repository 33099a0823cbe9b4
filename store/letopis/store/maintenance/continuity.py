"""Check that a history store is still the one that was written to, and that its log has no gaps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.schema import events, log_heads
from letopis.store.database.store_identity import read_heads

NEWEST_POSITIONS: Final = 500
"""Positions at the end of each log partition that every count covers."""
RANGE_POSITIONS: Final = 1_000
"""Positions of the rest of each partition that one count covers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCount:
    """The result of counting a part of the log."""

    missing: int = 0
    partition: int = 0
    after: int = 0
    upto: int = 0
    next: int = 0
    heads: Mapping[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"the log of the history store lacks {self.missing} events between the positions {self.after + 1} and"
            f" {self.upto} of partition {self.partition}"
        )


class Continuity:
    """Watches the connections of a store, and counts its log a range at a time."""

    def __init__(
        self,
        on_change: Callable[[Callable[..., None]], None],
        read: Callable[[Callable[[Any, AsyncConnection], Awaitable[LogCount]]], Awaitable[LogCount]],
    ) -> None:
        self._read = read
        self._heads: Mapping[int, int] | None = None  # at the last count
        self.generation = 0
        """Changes with every connection that is opened or lost, since another store may answer now.

        It is a hint only: behind a pooler, connections outlive those to the server."""

        def count(*_: Any) -> None:
            self.generation += 1

        on_change(count)

    async def count(self, after: int = 0, *, newest: int = NEWEST_POSITIONS, length: int = RANGE_POSITIONS) -> LogCount:
        """Count the events at the end of the log, and those in a range after a position, in one statement by key."""
        counted = await self._read(
            lambda _, connection: count_log(connection, after, newest=newest, length=length, heads=self._heads)
        )
        self._heads = counted.heads
        return counted


async def count_log(
    connection: AsyncConnection, after: int, *, newest: int, length: int, heads: Mapping[int, int] | None = None
) -> LogCount:
    """Count as :meth:`Continuity.count` does, on an open connection.

    :param heads: heads that were read before, which bound the counts: an engine that spreads its tables may read the
        counter and the events of a partition at different moments.
    """
    if heads is None:
        heads = await read_heads(connection)
    ranges = [(number, after, after + length) for number in sorted(heads)]
    ranges += [(number, max(0, heads[number] - newest), heads[number]) for number in sorted(heads)]
    # Bounds are parameters: with a join, PostgreSQL plans for any size and MariaDB reads the whole table.
    counts = [_count_range(index, *bounds) for index, bounds in enumerate(ranges)]
    rows = (await connection.execute(sa.union_all(_NOW, *counts))).all()
    now = {row[1]: row[2] for row in rows if row[0] < 0}
    held = {row[0]: row[2] for row in rows if row[0] >= 0}
    ends = {number: min(head, now.get(number, 0)) for number, head in heads.items()}  # a restored store ends earlier
    log = LogCount(next=after + length if any(end > after + length for end in ends.values()) else 0, heads=now)
    for index, (partition, first, last) in enumerate(ranges):
        upto = min(last, ends[partition])
        if (missing := max(0, upto - first) - held[index]) > 0:
            return replace(log, missing=missing, partition=partition, after=first, upto=upto)
    return log


def _count_range(index: int, partition: int, first: int, last: int) -> Any:
    within = (events.c.partition == partition, events.c.position > first, events.c.position <= last)
    return sa.select(sa.literal_column(str(index)), sa.literal_column("0"), sa.func.count()).where(*within)


_NOW: Final = sa.select(sa.literal_column("-1"), log_heads.c.partition, log_heads.c.position)

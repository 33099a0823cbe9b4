"""Make anchors of a log, and compare a log with one; read in pages and change nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.database.fault_classification import translated
from letopis.store.database.schema import events, log_heads
from letopis.store.database.store_identity import read_identity
from letopis.store.maintenance.anchor_format import BLOCK_EVENTS, Anchor, AnchorBlock, PartitionAnchor, block_of
from letopis.store.maintenance.integrity import MAX_NAMED_PROBLEMS, Checked, unheard

PAGE_EVENTS: Final = 1_000
"""Events of a page, rounded to whole blocks."""
_HEADS: Final = sa.select(log_heads.c.partition, log_heads.c.position).order_by(log_heads.c.partition)


@dataclass(slots=True, kw_only=True)
class PartitionComparison:
    """How one partition of a log compares with an anchor.

    :ivar position: up to which the anchor goes.
    :ivar head: the position given out last; ``None`` if the partition is gone.
    :ivar redacted: events whose content was redacted since the anchor was made.
    :ivar unchanged: whether nothing else has changed.
    """

    partition: int
    position: int
    head: int | None
    redacted: int = 0
    unchanged: bool = True


async def make_anchor(
    engine: AsyncEngine, *, now: datetime, block_events: int = BLOCK_EVENTS, checked: Checked = unheard
) -> Anchor:
    """Return the anchor of a store at this release's revision, up to the heads that its log has when this begins.

    Nothing is checked: an anchor of a log that was changed before confirms the changed log.

    :param checked: called with how many events of how many were read.
    :raises StoreFault: the database failed.
    """
    with translated():
        async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
            store_id = (await read_identity(connection)).store_id
            heads = {row.partition: row.position for row in await connection.execute(_HEADS)}
            progress = _Progress(checked, sum(heads.values()))
            partitions = []
            for partition, head in sorted(heads.items()):
                blocks = [
                    block async for block in _blocks(connection, partition, head, block_events, report=progress.add)
                ]
                partitions.append(PartitionAnchor(position=head, blocks=tuple(blocks)))
    return Anchor(store_id=store_id, made_at=now, block_events=block_events, partitions=tuple(partitions))


class AnchorCheck:
    """The comparison of a log with an anchor; it finds nothing in events that are newer than the anchor.

    The content of an event is compared by its digest: check also that contents match their digests, as
    :func:`~letopis.store.maintenance.integrity.find_problems` does.
    """

    def __init__(self, anchor: Anchor) -> None:
        self.anchor = anchor
        self.partitions: list[PartitionComparison] = []
        """The partitions that were compared."""

    async def problems(self, engine: AsyncEngine, *, checked: Checked = unheard) -> AsyncIterator[str]:
        """Yield in what a store's log differs from the anchor. Content is never quoted.

        :param checked: called with how many events of how many were read.
        :raises StoreFault: the database failed.
        """
        anchor = self.anchor
        with translated():
            async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
                found = (await read_identity(connection)).store_id
                if found != anchor.store_id:
                    yield f"the anchor is of history store {anchor.store_id}, and this is {found}"
                    return
                heads = {row.partition: row.position for row in await connection.execute(_HEADS)}
                if unknown := sorted(heads.keys() - set(range(len(anchor.partitions)))):
                    yield f"the anchor does not have partition {unknown[0]} of the log"
                progress = _Progress(checked, sum(one.position for one in anchor.partitions))
                for partition, one in enumerate(anchor.partitions):
                    compared = PartitionComparison(
                        partition=partition, position=one.position, head=heads.get(partition)
                    )
                    self.partitions.append(compared)
                    async for problem in self._problems_of(connection, one, compared, report=progress.add):
                        compared.unchanged = False
                        yield problem

    async def _problems_of(
        self,
        connection: AsyncConnection,
        anchored: PartitionAnchor,
        compared: PartitionComparison,
        *,
        report: Callable[[int], None],
    ) -> AsyncIterator[str]:
        name, size, upto = f"partition {compared.partition} of the log", self.anchor.block_events, anchored.position
        if compared.head is None:
            yield f"{name} is gone"
            return
        if compared.head < upto:
            yield f"{name} ends at {compared.head}, and the anchor knows it up to {upto}"
            upto = compared.head // size * size  # the block that was cut off cannot be compared
        identities, contents = list[int](), list[int]()
        number = 0
        async for block in _blocks(connection, compared.partition, upto, size, report=report):
            wanted = anchored.blocks[number]
            if block.identity != wanted.identity:
                identities.append(number)
            elif block.content != wanted.content:
                contents.append(number)
            compared.redacted += max(0, block.redacted - wanted.redacted)
            number += 1
        for numbers, what in ((identities, "are not those of the anchor"), (contents, "have other content")):
            ranges = [f"{first * size + 1} to {min((last + 1) * size, upto)}" for first, last in _runs(numbers)]
            for one in ranges[:MAX_NAMED_PROBLEMS]:
                yield f"{name}: events {one} {what}"
            if (more := len(ranges) - MAX_NAMED_PROBLEMS) > 0:
                yield f"{name}: events in {more} more places {what}"


class _Progress:
    """Adds up what was read, for a report of all partitions."""

    def __init__(self, checked: Checked, total: int) -> None:
        self._checked, self._done, self._total = checked, 0, total

    def add(self, count: int) -> None:
        self._done += count
        self._checked(self._done, self._total)


async def _blocks(
    connection: AsyncConnection, partition: int, upto: int, size: int, *, report: Callable[[int], None]
) -> AsyncIterator[AnchorBlock]:
    """Yield the blocks of a partition up to a position, also those without an event."""
    page = max(1, PAGE_EVENTS // size) * size
    for after in range(0, upto, page):
        last = min(after + page, upto)
        statement = sa.select(events).where(
            events.c.partition == partition, events.c.position > after, events.c.position <= last
        )
        rows = (await connection.execute(statement.order_by(events.c.position))).all()
        # A long transaction would keep the database from clearing up behind its writers.
        await connection.rollback()
        by_block = {number: list(group) for number, group in groupby(rows, lambda row: (row.position - 1) // size)}
        for number in range(after // size, -(-last // size)):
            yield block_of(by_block.get(number, ()))
        report(last - after)


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last of each run of consecutive numbers."""
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], members[-1]

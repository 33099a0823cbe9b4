"""Count messages of a period, pending ones included."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.pending_reads.pending_statistics import (
    LaneRange,
    StaleRead,
    count_messages,
    pending_erasures,
    pending_lanes,
    pending_messages,
    pending_ranges,
    retained_lanes,
)
from letopis.outbox.pending_reads.store_gateway import UNAVAILABLE_CLASSES, StoreGateway, is_reachable
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import StoreFault
from letopis.store.database.store_identity import expect_store
from letopis.store.model.events import Upcasters
from letopis.store.rules.statistics import Erasures, PartialStatistics, Period, Statistics, StatisticsBuilder

_LANES_PER_READ: Final = 200  # lanes that are counted in one read of the file, which other reads wait for


@dataclass(slots=True, kw_only=True, eq=False)
class MessageCounter:
    """Counts messages over the outbox and the history store."""

    outbox: OutboxFile
    store: ConversationStore
    gateway: StoreGateway
    upcasters: Upcasters

    async def statistics(
        self, *, owner: str | None, since: datetime | None, until: datetime | None, by: str | None
    ) -> Statistics:
        period = Period.of(owner=owner, since=since, until=until, by=by)
        erasures = Erasures()
        for _ in range(3):
            # Pending events first: what is delivered after that is recognised by how far its lane has got.
            pending, messages, erasures = await self.outbox.read(lambda connection: _pending(connection, period))
            counted = await self._count_stored(period, messages, erasures)
            if counted is None:
                break
            counting = counted.counting
            try:
                ranges = pending_ranges(pending, counted.heads, counted.owned, period.owner)
                names = await self._count_ranges(counting, ranges, period, counted)
            except StaleRead:
                continue
            counting.conversations += len(names - counted.there)
            return counting.result()
        # The store is unavailable, or has lost events that the outbox has pruned: count what the outbox retains.
        retained = await self.outbox.read(lambda connection: retained_lanes(connection, period.owner))
        counting = StatisticsBuilder(period.by, erasures=erasures)
        counting.conversations = len(await self._count_ranges(counting, retained, period))
        return counting.result(complete=False)

    async def _count_stored(
        self, period: Period, messages: Mapping[str, Collection[UUID]], erasures: Erasures
    ) -> PartialStatistics | None:
        # Without the deadline of reads: a count may take longer, and each of its statements has a limit of its own.
        if await self.gateway.read(lambda: is_reachable(self.store)) is None:
            return None
        try:
            with expect_store(self.gateway.bound_to()):
                reader, origin_id = (await self.store.runtime.prepared()).statistics, self.outbox.origin.origin_id
                return await self.store.runtime.connected(
                    lambda connection: reader.count(
                        connection, period, origin_id=origin_id, lanes=messages, erasures=erasures
                    )
                )
        except StoreFault as fault:
            if fault.fault_class not in UNAVAILABLE_CLASSES:
                raise
            return None

    async def _count_ranges(
        self,
        counting: StatisticsBuilder,
        ranges: list[LaneRange],
        period: Period,
        counted: PartialStatistics | None = None,
    ) -> set[str]:
        stored, deleted = (counted.stored, counted.deleted) if counted is not None else ((), ())
        names: set[str] = set()
        for start in range(0, len(ranges), _LANES_PER_READ):
            part = ranges[start : start + _LANES_PER_READ]
            names.update(
                await self.outbox.read(
                    lambda connection, part=part: count_messages(  # type: ignore[misc]
                        connection, counting, part, period, upcasters=self.upcasters, stored=stored, deleted=deleted
                    )
                )
            )
        return names


def _pending(connection: sa.Connection, period: Period) -> tuple[list[LaneRange], dict[str, list[UUID]], Erasures]:
    lanes = pending_lanes(connection, period.owner)
    # What is erased counts in no group, and as before in the sums.
    erasures = Erasures() if period.by is None else pending_erasures(connection)
    return lanes, pending_messages(connection, lanes), erasures

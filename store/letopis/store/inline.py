"""Inline projections: written in the transaction of the apply that records their events."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import groupby

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.checkpoints import Checkpoint, Checkpoints, Key
from letopis.store.codec import decode
from letopis.store.dialects import Dialect
from letopis.store.events import RecordedEvent, from_microseconds
from letopis.store.plan import Row
from letopis.store.projections import Projection, blamed

logger = logging.getLogger("letopis.store.projections")


class Inline:
    """The inline projections of a store.

    Each has a checkpoint, and takes in what is recorded only where that comes next. So one that was added later, or
    that a process without it left behind, makes no gap: it waits until its projector has brought it up to the head of
    the log, and goes on from there in the very next apply.
    """

    def __init__(self, projections: Sequence[Projection], dialect: Dialect) -> None:
        self._projections = projections
        self._checkpoints = Checkpoints(dialect)
        self._told: set[Key] = set()

    async def take(self, connection: AsyncConnection, recorded: Sequence[Row]) -> None:
        """Take in what an apply has just recorded, while it holds the counters of the log.

        :param recorded: rows of the events, in order.
        :raises StoreFault: a projection failed, and with it the apply.
        """
        if not self._projections or not recorded:
            return
        events = sorted((_event(row) for row in recorded), key=_place)
        parts = {partition: list(part) for partition, part in groupby(events, key=lambda event: event.partition or 0)}
        names = sorted({one.name for one in self._projections})
        found = await self._checkpoints.lock(connection, names, list(parts))
        known = {(one.name, one.version, one.partition): one for one in found}
        moved = []
        for projection in self._projections:
            for partition, part in parts.items():
                before, last = (part[0].position or 0) - 1, part[-1].position or 0
                key = (projection.name, projection.version, partition)
                # What another version has done, perhaps a moment ago, is not done again outside.
                done = max(
                    (one.position for one in known.values() if one.beside(projection.name, partition, key[1])),
                    default=0,
                )
                checkpoint = known.setdefault(key, Checkpoint.first(key, replay_to=done or before))
                if checkpoint.position != before:
                    self._tell(key, before - checkpoint.position)
                    continue
                with blamed(projection):
                    await projection.apply(connection, part, replaying=done >= last)
                checkpoint.position, checkpoint.replay_to = last, max(checkpoint.replay_to, done)
                moved.append(checkpoint)
                self._told.discard(key)
        await self._checkpoints.move(connection, moved, now=recorded[0][-1])

    def _tell(self, key: Key, behind: int) -> None:
        if key not in self._told:
            self._told.add(key)
            logger.warning(
                "the inline projection %s, version %d, is %d events behind and takes nothing in: run its projector's "
                "catch_up() once",
                key[0],
                key[1],
                behind,
            )


def _place(event: RecordedEvent) -> tuple[int, int]:
    return event.partition or 0, event.position or 0


def _event(row: Row) -> RecordedEvent:
    """Return the event that a new row of the log holds; its values are in the order of the columns."""
    (
        partition,
        position,
        conversation_id,
        version,
        event_id,
        origin_id,
        sequence,
        type_name,
        schema_version,
        data,
        metadata,
        digest,
        occurred_at,
        recorded_at,
    ) = row
    return RecordedEvent(
        conversation_id=conversation_id,
        event_id=event_id,
        origin_id=origin_id,
        sequence=sequence,
        type=type_name,
        schema_version=schema_version,
        data=decode(data),
        metadata=decode(metadata),
        digest=digest,
        occurred_at=from_microseconds(occurred_at),
        version=version,
        partition=partition,
        position=position,
        recorded_at=from_microseconds(recorded_at),
    )

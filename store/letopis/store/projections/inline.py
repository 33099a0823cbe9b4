"""Write inline projections in the transaction of the apply that records their events."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect
from letopis.store.database.schema import events
from letopis.store.model.codec import decode
from letopis.store.model.events import RecordedEvent, from_microseconds
from letopis.store.projections.base import Checkpoint, CheckpointKey, Checkpoints, Projection, attributed_to
from letopis.store.rules.apply_plan import TableRow

logger = logging.getLogger("letopis.store.projections")
_COLUMNS: Final = tuple(events.columns.keys())


class InlineProjections:
    """The inline projections of a store.

    Each has a checkpoint, and applies recorded events only where they follow it directly. A projection that was added
    later, or that a process without it left behind, makes no gap: it waits until its projector has caught up to the
    head of the log, and goes on from there in the next apply.
    """

    def __init__(self, projections: Sequence[Projection], dialect: Dialect) -> None:
        self._projections = projections
        self._checkpoints = Checkpoints(dialect)
        self._warned: set[CheckpointKey] = set()

    async def apply(self, connection: AsyncConnection, recorded: Sequence[TableRow]) -> None:
        """Apply what was just recorded, while the transaction holds the counters of the log."""
        if not self._projections or not recorded:
            return
        events = sorted((_event(row) for row in recorded), key=_log_order)
        parts = {partition: list(part) for partition, part in groupby(events, key=lambda event: event.partition or 0)}
        names = sorted({projection.name for projection in self._projections})
        locked = await self._checkpoints.lock(connection, names, list(parts))
        known = {(checkpoint.name, checkpoint.version, checkpoint.partition): checkpoint for checkpoint in locked}
        moved = []
        for projection in self._projections:
            for partition, part in parts.items():
                before, last = (part[0].position or 0) - 1, part[-1].position or 0
                key = (projection.name, projection.version, partition)
                # External effects of another version are not repeated.
                others = (
                    checkpoint.position
                    for checkpoint in known.values()
                    if checkpoint.is_other_version_of(projection.name, partition, projection.version)
                )
                done = max(others, default=0)
                checkpoint = known.setdefault(key, Checkpoint.first(key, replay_to=done or before))
                if checkpoint.position != before:
                    self._warn(key, before - checkpoint.position)
                    continue
                with attributed_to(projection):
                    await projection.apply(connection, part, replaying=done >= last)
                checkpoint.position, checkpoint.replay_to = last, max(checkpoint.replay_to, done)
                moved.append(checkpoint)
                self._warned.discard(key)
        await self._checkpoints.move(connection, moved, now=recorded[0][-1])

    def _warn(self, key: CheckpointKey, behind: int) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning(
                "the inline projection %s, version %d, is %d events behind and applies nothing: run its projector's "
                "catch_up() once",
                key[0],
                key[1],
                behind,
            )


def _log_order(event: RecordedEvent) -> tuple[int, int]:
    return event.partition or 0, event.position or 0


def _event(row: TableRow) -> RecordedEvent:
    """Return the event of a new row of the log, whose values are in the order of the columns."""
    values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    salt = values.pop("salt")
    values |= {name: decode(values[name]) for name in ("data", "metadata")}
    values |= {name: from_microseconds(values[name]) for name in ("occurred_at", "recorded_at")}
    if salt is None:
        values["digest"] = None
    return RecordedEvent(**values)

"""Look up the events on which the conflicts of conditional events depend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.row_mapping import conflict_of
from letopis.store.database.schema import events, lanes
from letopis.store.rules.preconditions import (
    Conflict,
    LoggedEvent,
    Precondition,
    detect_conflicts,
    lowest_seen_version,
)
from letopis.store.write.lanes import AcceptedLane
from letopis.store.write.transaction import ApplyTransaction, of_conversation

Condition = tuple[int, UUID, Precondition]
"""Sequence, event id and condition of an event."""


class ConflictLookup:
    """Finds the conflicts of one lane at a time; the statements are compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        origin: sa.BindParameter[Any] = sa.bindparam("origin")
        self._others = sa.select(lanes.c.origin_id).where(*of_conversation(lanes), lanes.c.origin_id != origin).limit(1)
        logged = sa.select(
            events.c.version, events.c.event_id, events.c.type, events.c.sequence, events.c.metadata
        ).where(*of_conversation(events))
        own = logged.where(events.c.origin_id == origin)
        self._last_seen = (
            own.where(events.c.sequence <= sa.bindparam("sequence")).order_by(events.c.version.desc()).limit(1)
        )
        self._batches = own.where(dialect.among(events.c.event_id, "ids"))
        self._unseen = logged.where(events.c.origin_id != origin, events.c.version > sa.bindparam("after")).order_by(
            events.c.version
        )

    async def find(self, transaction: ApplyTransaction, lane: AcceptedLane) -> dict[int, Conflict]:
        """Return the conflicts of a lane's fresh events, by sequence.

        Call it under the lock of the conversation, so that no other writer can come in between.
        """
        conditions = [
            (item.delivery.sequence, item.delivery.event.event_id, item.expects)
            for item in lane.fresh
            if item.expects is not None
        ]
        if not conditions:
            return {}
        key: dict[str, Any] = {**lane.key, "origin": transaction.origin.origin_id}
        return await self._detect(transaction.connection, key, conditions, lane.compared.head)

    async def find_before(
        self, connection: AsyncConnection, key: Mapping[str, Any], event_id: UUID, expects: Precondition, *, head: int
    ) -> Conflict | None:
        """Return the conflict that an event would have if it were delivered now; ``None`` if it is stored already."""
        if (await connection.execute(self._batches, {**key, "ids": [event_id]})).first() is not None:
            return None
        sequence = max(head, expects.sequence) + 1
        found = await self._detect(connection, key, [(sequence, event_id, expects)], head)
        return found.get(sequence)

    async def _detect(
        self, connection: AsyncConnection, key: Mapping[str, Any], conditions: Sequence[Condition], head: int
    ) -> dict[int, Conflict]:
        # If every event is from this outbox, no other writer can have been first.
        if (await connection.execute(self._others, key)).first() is None:
            return {}
        found: list[Any] = []
        for sequence in {seen.sequence for _, _, seen in conditions if seen.version is None and seen.sequence <= head}:
            found += await connection.execute(self._last_seen, {**key, "sequence": sequence})
        for part in in_batches({seen.batch_id for _, _, seen in conditions if seen.batch_id is not None}):
            found += await connection.execute(self._batches, {**key, "ids": part})
        own = [_logged(row, own=True) for row in found]
        after = lowest_seen_version(conditions, own, head=head)
        unseen = await connection.execute(self._unseen, {**key, "after": after})
        return detect_conflicts(conditions, [*own, *(_logged(row, own=False) for row in unseen)], head=head)


def _logged(row: Any, *, own: bool) -> LoggedEvent:
    return LoggedEvent(
        version=row.version,
        event_id=row.event_id,
        type=row.type,
        sequence=row.sequence,
        own=own,
        conflict=conflict_of(row.metadata),
    )

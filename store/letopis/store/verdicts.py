"""Verdicts: look up what conditional events are judged by, in the transaction of an apply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.dialects import Dialect, lookups
from letopis.store.rows import conflict_of
from letopis.store.schema import events, lanes
from letopis.store.turns import Conflict, Expects, Logged, judge, unseen_from


class Verdicts:
    """Judges the conditional events of one lane at a time; its statements are made once."""

    def __init__(self, dialect: Dialect) -> None:
        self._others = (
            sa.select(lanes.c.origin_id)
            .where(
                lanes.c.partition == sa.bindparam("partition"),
                lanes.c.conversation_id == sa.bindparam("conversation"),
                lanes.c.origin_id != sa.bindparam("origin"),
            )
            .limit(1)
        )
        logged = sa.select(
            events.c.version, events.c.event_id, events.c.type, events.c.sequence, events.c.metadata
        ).where(
            events.c.partition == sa.bindparam("partition"),
            events.c.conversation_id == sa.bindparam("conversation"),
        )
        ours = logged.where(events.c.origin_id == sa.bindparam("origin"))
        self._last_seen = (
            ours.where(events.c.sequence <= sa.bindparam("sequence")).order_by(events.c.version.desc()).limit(1)
        )
        self._turns = ours.where(dialect.among(events.c.event_id, "ids"))
        self._unseen = logged.where(
            events.c.origin_id != sa.bindparam("origin"), events.c.version > sa.bindparam("after")
        ).order_by(events.c.version)

    async def of(
        self,
        connection: AsyncConnection,
        conditions: Sequence[tuple[int, UUID, Expects]],
        *,
        partition: int,
        conversation_id: str,
        origin_id: UUID,
        head: int,
    ) -> dict[int, Conflict]:
        """Return which of a lane's conditional events came too late, by sequence.

        To be asked under the lock of the conversation, so that nobody else can come in between.

        :param head: how far the history store holds the lane.
        """
        key: dict[str, Any] = {"partition": partition, "conversation": conversation_id, "origin": origin_id}
        # Where every event is from this outbox, nobody else can have been first.
        if not conditions or (await connection.execute(self._others, key)).first() is None:
            return {}
        found: list[Any] = []
        for sequence in {one.sequence for _, _, one in conditions if one.version is None and one.sequence <= head}:
            found += (await connection.execute(self._last_seen, {**key, "sequence": sequence})).all()
        for part in lookups({one.turn for _, _, one in conditions if one.turn is not None}):
            found += (await connection.execute(self._turns, {**key, "ids": part})).all()
        own = [_logged(one, own=True) for one in found]
        after = unseen_from(conditions, own, head=head)
        unseen = await connection.execute(self._unseen, {**key, "after": after})
        return judge(conditions, [*own, *(_logged(one, own=False) for one in unseen)], head=head)


def _logged(row: Any, *, own: bool) -> Logged:
    return Logged(
        version=row.version,
        event_id=row.event_id,
        type=row.type,
        sequence=row.sequence,
        own=own,
        conflict=conflict_of(row.metadata),
    )

"""Read what pages about a whole store show: how fast it grows, its log in brief, and the forks of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect
from letopis.store.database.schema import conversations, events
from letopis.store.model.event_types import ConversationStarted, MessageAppended
from letopis.store.model.events import from_microseconds
from letopis.store.rules.bisection import Bisection
from letopis.store.rules.message_figures import LoggedRow

COUNTED_TYPES: Final = (ConversationStarted.type, MessageAppended.type)
"""The types of events that figures are made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkSummary:
    """A conversation that was forked off another one.

    :ivar version: the version of its parent that it reads up to; ``None`` if the fork names an event.
    """

    conversation_id: str
    title: str | None
    version: int | None
    created_at: datetime


class ActivityReader:
    """Reads over connections that it is given; each method reads a bounded number of rows."""

    def __init__(self, dialect: Dialect) -> None:
        of_partition = events.c.partition == sa.bindparam("partition")
        self._moments = sa.select(events.c.position, events.c.recorded_at).where(
            of_partition, dialect.among(events.c.position, "positions")
        )
        # By position alone, so that the rows are those that were asked for; other types are left out afterwards.
        self._log = (
            sa.select(
                events.c.position,
                events.c.conversation_id,
                events.c.type,
                events.c.occurred_at,
                events.c.metadata,
                events.c.data,
            )
            .where(of_partition, events.c.position > sa.bindparam("after"), events.c.position <= sa.bindparam("upto"))
            .order_by(events.c.position)
        )
        self._forks = (
            sa.select(
                conversations.c.conversation_id,
                conversations.c.title,
                conversations.c.state,
                conversations.c.forked_from_version,
                conversations.c.created_at,
            )
            .where(conversations.c.forked_from_id == sa.bindparam("parent"))
            .order_by(conversations.c.conversation_id)
            .limit(sa.bindparam("limit"))
        )

    async def positions_at(
        self, connection: AsyncConnection, *, partition: int, head: int, moments: Sequence[int], floor: int = 0
    ) -> list[int]:
        """Return the last position that was recorded before each moment; about 20 small reads in a million events."""
        search = Bisection(moments, low=floor, high=head)
        while wanted := search.wanted():
            rows = await connection.execute(self._moments, {"partition": partition, "positions": wanted})
            search.learn({row.position: row.recorded_at for row in rows})
        return search.found()

    async def log(self, connection: AsyncConnection, *, partition: int, after: int, limit: int) -> list[LoggedRow]:
        """Return the events of ``limit`` positions that figures are made of, in order."""
        rows = await connection.execute(self._log, {"partition": partition, "after": after, "upto": after + limit})
        return [
            LoggedRow(row.conversation_id, row.type, row.occurred_at, row.metadata, row.data)
            for row in rows
            if row.type in COUNTED_TYPES
        ]

    async def forks(self, connection: AsyncConnection, conversation_id: str, *, limit: int) -> list[ForkSummary]:
        """Return at most ``limit`` forks of a conversation that were not deleted."""
        rows = await connection.execute(self._forks, {"parent": conversation_id, "limit": limit})
        return [_fork(row) for row in rows if row.state != "deleted"]


def _fork(row: Any) -> ForkSummary:
    return ForkSummary(
        conversation_id=row.conversation_id,
        title=row.title,
        version=row.forked_from_version,
        created_at=from_microseconds(row.created_at),
    )

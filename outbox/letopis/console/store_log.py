"""Read what pages about a whole store show: how fast it grows, its log in brief, and the forks of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.conversation_store import ConversationStore
from letopis.store.database.schema import conversations, events
from letopis.store.model.event_types import ConversationStarted, MessageAppended
from letopis.store.model.events import from_microseconds
from letopis.store.read.paging import check_count

COUNTED_TYPES: Final = (ConversationStarted.type, MessageAppended.type)
"""The types of events that figures are made of."""

_OF_PARTITION: Final = events.c.partition == sa.bindparam("partition")
_MOMENTS: Final = sa.select(events.c.position, events.c.recorded_at).where(
    _OF_PARTITION, events.c.position.in_(sa.bindparam("positions", expanding=True))
)
# By position alone, so that the rows are those that were asked for; other types are left out afterwards.
_LOG: Final = (
    sa.select(
        events.c.conversation_id,
        events.c.type,
        events.c.occurred_at,
        events.c.metadata,
        events.c.data,
    )
    .where(_OF_PARTITION, events.c.position > sa.bindparam("after"), events.c.position <= sa.bindparam("upto"))
    .order_by(events.c.position)
)
_FORKS: Final = (
    sa.select(
        conversations.c.conversation_id,
        conversations.c.title,
        conversations.c.state,
        conversations.c.forked_from_version.label("version"),
        conversations.c.created_at,
    )
    .where(conversations.c.forked_from_id == sa.bindparam("parent"))
    .order_by(conversations.c.conversation_id)
    .limit(sa.bindparam("limit"))
)
_IDS: Final = (
    sa.select(conversations.c.conversation_id)
    .where(
        # The primary key begins with the partition.
        conversations.c.partition.in_(sa.bindparam("partitions", expanding=True)),
        conversations.c.conversation_id >= sa.bindparam("prefix"),
        conversations.c.conversation_id < sa.bindparam("end"),
    )
    .order_by(conversations.c.conversation_id)
    .limit(sa.bindparam("limit"))
)
LAST_CHARACTER: Final = "\U0010ffff"
"""Ids compare byte by byte in UTF-8, in which it is the greatest."""


class LoggedRow(NamedTuple):
    """An event as a log holds it, in brief; ``metadata`` and ``data`` are JSON text."""

    conversation_id: str
    type: str
    occurred_at: int
    metadata: str | None
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkSummary:
    """A conversation that was forked off another one.

    :ivar version: the version of its parent that it reads up to; ``None`` if the fork names an event.
    """

    conversation_id: str
    title: str | None
    version: int | None
    created_at: datetime


class Bisection:
    """Narrows down, for several moments together, the last position that was recorded before each.

    ::

        search = Bisection(moments, low=0, high=head)
        while wanted := search.wanted():
            search.learn(read_moments_of(wanted))
        positions = search.found()

    Times in a log rise nearly always; where they do not, a position near the moment is found. A position that is not
    there counts as one from before the moment.

    :param low: a position from before all moments; ``0`` is before all positions.
    :param high: the last position.
    """

    def __init__(self, moments: Sequence[int], *, low: int, high: int) -> None:
        self._moments = tuple(moments)
        # Of each moment: recorded before it is `low`, and everything behind `high` is not.
        self._low = [min(low, high)] * len(self._moments)
        self._high = [high] * len(self._moments)

    def wanted(self) -> list[int]:
        """Return the positions to look at next, sorted; empty at the end."""
        return sorted({(low + high + 1) // 2 for low, high in zip(self._low, self._high, strict=True) if low < high})

    def learn(self, recorded: Mapping[int, int]) -> None:
        """Take the moments at which the wanted positions were recorded."""
        for index, moment in enumerate(self._moments):
            low, high = self._low[index], self._high[index]
            if low >= high:
                continue
            middle = (low + high + 1) // 2
            if recorded.get(middle, moment - 1) < moment:
                self._low[index] = middle
            else:
                self._high[index] = middle - 1

    def found(self) -> list[int]:
        """Return the position of each moment, in the order in which they were given."""
        return list(self._low)


async def positions_at(
    store: ConversationStore, moments: Sequence[int], *, partition: int, head: int, floor: int = 0
) -> list[int]:
    """Return the last position that was recorded before each moment; about 20 small reads in a million events.

    :param moments: UTC microseconds.
    :param head: the last position of the partition.
    :param floor: a position that was recorded before all of them.
    """
    search = Bisection(moments, low=floor, high=head)
    while wanted := search.wanted():
        rows = await _rows(store, _MOMENTS, {"partition": partition, "positions": wanted})
        search.learn({row.position: row.recorded_at for row in rows})
    return search.found()


async def log_in_brief(store: ConversationStore, *, partition: int, after: int, limit: int) -> list[LoggedRow]:
    """Return those of the next ``limit`` positions that figures are made of, in order."""
    values = {"partition": partition, "after": after, "upto": after + check_count(limit, "limit")}
    rows = await _rows(store, _LOG, values)
    return [LoggedRow._make(row) for row in rows if row.type in COUNTED_TYPES]


async def forks(store: ConversationStore, conversation_id: str, *, limit: int) -> list[ForkSummary]:
    """Return at most ``limit`` forks of a conversation that were not deleted."""
    rows = await _rows(store, _FORKS, {"parent": conversation_id, "limit": check_count(limit, "limit")})
    return [
        ForkSummary(
            conversation_id=row.conversation_id,
            title=row.title,
            version=row.version,
            created_at=from_microseconds(row.created_at),
        )
        for row in rows
        if row.state != "deleted"
    ]


async def ids_with_prefix(store: ConversationStore, prefix: str, *, limit: int) -> list[str]:
    """Return at most ``limit`` ids of conversations that begin with ``prefix``, sorted."""
    partitions = list(range(store.runtime.known_partitions))
    values = {"partitions": partitions, "prefix": prefix, "end": prefix + LAST_CHARACTER}
    rows = await _rows(store, _IDS, values | {"limit": check_count(limit, "limit")})
    return [row.conversation_id for row in rows]


async def _rows(store: ConversationStore, statement: Any, values: dict[str, Any]) -> Sequence[sa.Row[Any]]:
    async def read(_: object, connection: AsyncConnection) -> Sequence[sa.Row[Any]]:
        return (await connection.execute(statement, values)).all()

    return await store.runtime.snapshot(read)

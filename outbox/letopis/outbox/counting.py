"""Counting: add to a store's count what the outbox file holds beyond it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox.lanes import find_lane
from letopis.outbox.overlay import Overtaken
from letopis.store.codec import decode
from letopis.store.errors import OutboxUnavailable
from letopis.store.statistics import Counting, Period
from letopis.store.upcasters import Upcasters
from letopis.store.vocabulary import MessageAppended

_LANES: Final = (
    "SELECT conversation_id, owner_id, pruned, head FROM letopis_outbox_lanes WHERE {conditions}"
    " ORDER BY conversation_id"
)
_MESSAGES: Final = (
    "SELECT e.sequence, e.schema_version, e.data, s.sequence IS NOT NULL FROM letopis_outbox_events AS e"
    " LEFT JOIN letopis_outbox_superseded AS s"
    " ON s.conversation_id = e.conversation_id AND s.sequence = e.sequence"
    " WHERE e.conversation_id = ? AND e.sequence > ? AND e.sequence <= ? AND e.type = ?"
    " AND (?5 IS NULL OR e.occurred_at >= ?5) AND (?6 IS NULL OR e.occurred_at < ?6)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A lane's events to count: those after ``start``, up to ``head``.

    :ivar owner_id: ``None`` where the outbox does not know whose the conversation is.
    :ivar alone: whether no store is read, so that events before ``start`` are simply not known.
    """

    conversation_id: str
    owner_id: str | None
    start: int
    head: int
    alone: bool = False


def pending_lanes(connection: sa.Connection, owner_id: str | None) -> list[Stretch]:
    """Return the lanes that have something pending: an owner's, and those of which nobody knows whose they are.

    ``start`` is not known yet: it is the store's to tell.
    """
    conditions = "delivered < head" if owner_id is None else "delivered < head AND coalesce(owner_id, ?1) = ?1"
    return _lanes(connection, conditions, owner_id, alone=False)


def retained_lanes(connection: sa.Connection, owner_id: str | None) -> list[Stretch]:
    """Return the lanes of which the file holds anything, from where it begins."""
    conditions = "pruned < head" if owner_id is None else "pruned < head AND owner_id = ?1"
    return _lanes(connection, conditions, owner_id, alone=True)


def beyond(
    stretches: Iterable[Stretch], heads: Mapping[str, int], owned: frozenset[str], owner_id: str | None
) -> list[Stretch]:
    """Return what of the pending lanes a store does not hold: of those that are the owner's, as both know.

    :param heads: how far the lanes had got in the store. ``owned``: the conversations that the store knows as his.
    """
    return [
        Stretch(
            conversation_id=one.conversation_id,
            owner_id=one.owner_id,
            start=heads.get(one.conversation_id, 0),
            head=one.head,
        )
        for one in stretches
        if owner_id is None or one.owner_id == owner_id or one.conversation_id in owned
    ]


def count(
    connection: sa.Connection, counting: Counting, stretches: Iterable[Stretch], period: Period, *, upcasters: Upcasters
) -> list[str]:
    """Take the messages of some lanes in; return of which conversations there were any.

    :raises Overtaken: events of them were delivered and let go meanwhile: ask the store again.
    :raises OutboxUnavailable: an event is damaged in the file.
    """
    found = []
    cursor = connection.connection.cursor()
    try:
        for one in stretches:
            start = _start(connection, one)
            cursor.execute(
                _MESSAGES, (one.conversation_id, start, one.head, MessageAppended.type, period.since, period.until)
            )
            any_ = False
            while (row := cursor.fetchone()) is not None:
                any_ = True
                _, data = upcasters.upcast(MessageAppended.type, row[1], _decoded(row[2], row[0]))
                counting.take(data, superseded=bool(row[3]))
            if any_:
                found.append(one.conversation_id)
    finally:
        cursor.close()
    return found


def _lanes(connection: sa.Connection, conditions: str, owner_id: str | None, *, alone: bool) -> list[Stretch]:
    cursor = connection.connection.cursor()
    try:
        cursor.execute(_LANES.format(conditions=conditions), () if owner_id is None else (owner_id,))
        return [
            Stretch(conversation_id=row[0], owner_id=row[1], start=row[2], head=row[3], alone=alone)
            for row in cursor.fetchall()
        ]
    finally:
        cursor.close()


def _start(connection: sa.Connection, stretch: Stretch) -> int:
    lane = find_lane(connection, stretch.conversation_id)
    if lane is None or stretch.alone:
        return stretch.start
    if lane.delivered < stretch.start and lane.state == "blocked" and lane.fault_class == "diverged":
        return lane.delivered  # the store holds other events there
    if lane.pruned > stretch.start:
        raise Overtaken
    return stretch.start


def _decoded(text: str, sequence: int) -> Mapping[str, Any]:
    try:
        return decode(text)
    except ValueError:
        # Not chained: the error holds the text.
        reason = (
            f"event {sequence} of a conversation is damaged in the outbox file: `letopis outbox` can fix or skip it"
        )
    raise OutboxUnavailable(reason)

"""Add to a store's count the messages that only the outbox file holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.event_log.lanes import find_lane
from letopis.outbox.event_log.retention import decoded
from letopis.outbox.event_log.statements import fetch_all, iterate
from letopis.store.model.event_types import MessageAppended
from letopis.store.model.events import Upcasters
from letopis.store.model.identifiers import uuid_of
from letopis.store.rules.redaction import stripped
from letopis.store.rules.statistics import Erasures, Period, StatisticsBuilder

_LANES: Final = (
    "SELECT conversation_id, owner_id, pruned, head FROM letopis_outbox_lanes WHERE {conditions}"
    " ORDER BY conversation_id"
)
_MESSAGES: Final = (
    "SELECT e.sequence, e.schema_version, e.data, s.sequence IS NOT NULL, e.event_id"
    " FROM letopis_outbox_log AS e"
    " LEFT JOIN letopis_outbox_superseded AS s"
    " ON s.conversation_id = e.conversation_id AND s.sequence = e.sequence"
    " WHERE e.conversation_id = ? AND e.sequence > ? AND e.sequence <= ? AND e.type = ?"
    " AND (?5 IS NULL OR e.occurred_at >= ?5) AND (?6 IS NULL OR e.occurred_at < ?6)"
)
_PENDING: Final = (
    "SELECT l.conversation_id, e.event_id FROM letopis_outbox_lanes AS l"
    " JOIN letopis_outbox_events AS e ON e.lane = l.lane AND e.sequence > l.delivered"
    " WHERE l.pending_since IS NOT NULL AND l.delivered < l.head AND e.type = ?"
)
# Only what groups messages is content; roles and tokens stay.
_ERASURES: Final = (
    "SELECT l.conversation_id, max(e.sequence), CASE e.type WHEN 'message.redacted'"
    " THEN json_extract(e.data, '$.message_id') END AS message_id"
    " FROM letopis_outbox_lanes AS l JOIN letopis_outbox_events AS e ON e.lane = l.lane AND e.sequence > l.delivered"
    " WHERE l.pending_since IS NOT NULL AND l.delivered < l.head AND json_valid(e.data)"
    " AND (e.type IN ('message.redacted', 'conversation.deleted')"
    " OR e.type = 'conversation.rewound' AND json_extract(e.data, '$.erase') IS TRUE) GROUP BY l.lane, message_id"
)


class StaleRead(Exception):
    """Events between what the store held and what the file holds were delivered and pruned meanwhile: read again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneRange:
    """A lane's events to count: those after ``start``, up to ``head``."""

    conversation_id: str
    owner_id: str | None  # ``None`` if the outbox does not know the owner
    start: int
    head: int
    alone: bool = False  # no store is read, so events before ``start`` are not known


def pending_lanes(connection: sa.Connection, owner_id: str | None) -> list[LaneRange]:
    """Return lanes with pending events, an owner's and ownerless ones; ``pending_ranges`` gives their ``start``."""
    conditions = "pending_since IS NOT NULL AND delivered < head"
    if owner_id is not None:
        conditions += " AND coalesce(owner_id, ?1) = ?1"
    return _lanes(connection, conditions, owner_id, alone=False)


def pending_messages(connection: sa.Connection, ranges: Iterable[LaneRange]) -> dict[str, list[UUID]]:
    """Return the events of the messages that lanes have still to deliver, by conversation; none for a lane without."""
    ids: dict[str, list[UUID]] = {lane.conversation_id: [] for lane in ranges}
    for conversation_id, event_id in fetch_all(connection, _PENDING, (MessageAppended.type,)):
        if conversation_id in ids:
            ids[conversation_id].append(uuid_of(event_id))
    return ids


def pending_erasures(connection: sa.Connection) -> Erasures:
    """Return what pending events erase."""
    erasures = Erasures()
    for conversation_id, sequence, message_id in fetch_all(connection, _ERASURES):
        erasures.setdefault(conversation_id, {})[message_id] = sequence
    return erasures


def retained_lanes(connection: sa.Connection, owner_id: str | None) -> list[LaneRange]:
    """Return the lanes of which the file retains events, from the first one on."""
    conditions = "pruned < head" if owner_id is None else "pruned < head AND owner_id = ?1"
    return _lanes(connection, conditions, owner_id, alone=True)


def pending_ranges(
    ranges: Iterable[LaneRange], heads: Mapping[str, int], owned: frozenset[str], owner_id: str | None
) -> list[LaneRange]:
    """Return the pending range of each of the owner's lanes that the store does not hold yet."""
    return [
        replace(lane, start=heads.get(lane.conversation_id, 0))
        for lane in ranges
        if owner_id is None or lane.owner_id == owner_id or lane.conversation_id in owned
    ]


def count_messages(
    connection: sa.Connection,
    counting: StatisticsBuilder,
    ranges: Iterable[LaneRange],
    period: Period,
    *,
    upcasters: Upcasters,
    stored: Collection[UUID] = (),
    deleted: Collection[str] = (),
) -> list[str]:
    """Count the messages of some lanes, and return the conversations that had any."""
    lanes = []
    for lane in ranges:
        values = (lane.conversation_id, _start(connection, lane), lane.head, MessageAppended.type)
        counted = False
        for sequence, version, text, superseded, event_id in iterate(
            connection, _MESSAGES, (*values, period.since, period.until)
        ):
            if uuid_of(event_id) in stored:
                continue
            counted = True
            _, data = upcasters.upcast(MessageAppended.type, version, decoded(text, sequence))
            if counting.erasures.of(lane.conversation_id, data.get("message_id"), sequence):
                data = stripped(MessageAppended.type, data)
            counting.take(data, superseded=bool(superseded) or lane.conversation_id in deleted)
        if counted:
            lanes.append(lane.conversation_id)
    return lanes


def _lanes(connection: sa.Connection, conditions: str, owner_id: str | None, *, alone: bool) -> list[LaneRange]:
    values = () if owner_id is None else (owner_id,)
    return [
        LaneRange(conversation_id=row[0], owner_id=row[1], start=row[2], head=row[3], alone=alone)
        for row in fetch_all(connection, _LANES.format(conditions=conditions), values)
    ]


def _start(connection: sa.Connection, lane_range: LaneRange) -> int:
    lane = find_lane(connection, lane_range.conversation_id)
    if lane is None or lane_range.alone:
        return lane_range.start
    if lane.delivered < lane_range.start and lane.state == "blocked" and lane.fault_class == "diverged":
        return lane.delivered  # the store holds other events there
    if lane.pruned > lane_range.start:
        raise StaleRead
    return lane_range.start

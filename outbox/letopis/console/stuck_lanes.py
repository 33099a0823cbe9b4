"""List the conversations that do not move, each with its fault and the event that it waits for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.event_log.statements import fetch_all
from letopis.outbox.operations.pending_events import next_attempt
from letopis.store.model.events import from_microseconds

STUCK_STATES: Final = ("blocked", "retrying", "paused")

_STUCK: Final = (
    " FROM letopis_outbox_lanes AS l WHERE l.state <> 'ready'"
    " AND (l.state = 'blocked' OR (l.pending_since IS NOT NULL AND l.delivered < l.head))"
)
_LIST: Final = (
    "SELECT s.conversation_id, s.owner_id, s.state, s.attempts, s.due_at, s.fault_class, s.fault, s.head - s.delivered,"  # noqa: S608
    " s.pending_since, e.event_id, e.type,"
    " length(CAST(e.data AS BLOB)) + coalesce(length(CAST(e.metadata AS BLOB)), 0),"
    f" e.appended_at FROM (SELECT l.*{_STUCK}"
    " AND l.conversation_id > ?1 AND (?2 IS NULL OR l.state = ?2) AND (?3 IS NULL OR l.fault_class = ?3)"
    " ORDER BY l.conversation_id LIMIT ?4) AS s"
    " LEFT JOIN letopis_outbox_events AS e ON e.lane = s.lane AND e.sequence = s.delivered + 1"
    " ORDER BY s.conversation_id"
)
_GROUPS: Final = (
    f"SELECT l.state, l.fault_class, count(*), sum(l.head - l.delivered){_STUCK}"
    " GROUP BY 1, 2 ORDER BY l.state <> 'blocked', 3 DESC, 2 LIMIT 100"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckLane:
    """A conversation that is blocked, paused or being retried, and the event that it waits for.

    :ivar state: ``blocked``, ``retrying`` or ``paused``.
    :ivar due_at: when it is retried, never in the past; ``None`` if it is due, or waits for an operator.
    :ivar fault: a sentence with class and code.
    :ivar pending: its events that the history store lacks.
    :ivar since: when the oldest of them was appended.
    :ivar event_id: the event that it waits for; ``None`` if the outbox no longer holds it.
    :ivar bytes: of that event's data and metadata.
    """

    conversation_id: str
    owner_id: str | None
    state: str
    attempts: int
    due_at: datetime | None
    fault_class: str | None
    fault: str | None
    pending: int
    since: datetime | None
    event_id: UUID | None
    type: str | None
    bytes: int
    appended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckGroup:
    """How many conversations are stuck in one state with one class of fault."""

    state: str
    fault_class: str | None
    conversations: int
    events: int


def list_stuck(
    connection: sa.Connection,
    *,
    limit: int,
    after: str = "",
    state: str | None = None,
    fault_class: str | None = None,
) -> list[StuckLane]:
    """Return at most ``limit`` stuck conversations by id, the first one behind ``after``."""
    return [_lane(row) for row in fetch_all(connection, _LIST, (after, state, fault_class, limit))]


def count_stuck(connection: sa.Connection) -> list[StuckGroup]:
    """Return the numbers of stuck conversations by state and class of fault, blocked ones first."""
    return [
        StuckGroup(state=state, fault_class=fault_class, conversations=conversations, events=events)
        for state, fault_class, conversations, events in fetch_all(connection, _GROUPS)
    ]


def _lane(row: Any) -> StuckLane:
    return StuckLane(
        conversation_id=row[0],
        owner_id=row[1],
        state=row[2],
        attempts=row[3],
        due_at=next_attempt(row[2], row[4]),
        fault_class=row[5],
        fault=row[6],
        pending=row[7],
        since=_moment(row[8]),
        event_id=None if row[9] is None else UUID(bytes=row[9]),
        type=row[10],
        bytes=row[11] or 0,
        appended_at=_moment(row[12]),
    )


def _moment(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else from_microseconds(microseconds)

"""Store incidents in the outbox file, where every process that watches it finds the same ones.

These are functions for `OutboxFile.read` and `OutboxFile.write`. A change is stored only if the incident is still as it
was when the change was decided: of two processes that decide the same one wins, and only that one goes on to notify.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from letopis.outbox.alerting.incidents import (
    BreakerView,
    Change,
    IncidentKind,
    IncidentRecord,
    IncidentState,
    LaneView,
    Observation,
    RelayView,
)
from letopis.outbox.event_log.event_ids import NEWEST_POSITION
from letopis.outbox.event_log.statements import query_all
from letopis.store.model.events import from_microseconds, to_microseconds
from letopis.store.model.identifiers import uuid7

if TYPE_CHECKING:
    import sqlalchemy as sa

MAX_NEW_INCIDENTS: Final = 200
"""Lanes that become incidents in one observation; the others follow in the next ones."""
_MAX_OPEN: Final = 1_000
_RETENTION: Final = timedelta(days=30)

# While an operator holds the relay back nothing can be delivered, as from a lane that is paused.
_PENDING: Final = (
    "SELECT count(*), coalesce(sum(head - delivered), 0), coalesce(sum(state IN ('ready', 'retrying')"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_hold)), 0)"
    " FROM letopis_outbox_lanes WHERE owed_since IS NOT NULL AND delivered < head"
)
_RELAY: Final = (
    "SELECT incarnation, heartbeat_at, progress_at, delivered_total, breaker, breaker_since,"
    " coalesce(breaker_detail || ' [' || breaker_reason || ']', breaker_reason) FROM letopis_outbox_relay"
)
# The sentence of a fault normally ends with its class and code.
_REASON: Final = (
    "CASE WHEN l.fault IS NULL THEN l.fault_class WHEN l.fault LIKE '%]' OR l.fault_class IS NULL THEN l.fault"
    " ELSE l.fault || ' [' || l.fault_class || ']' END"
)
_LANE: Final = (
    f"l.conversation_id, l.owner_id, l.state = 'blocked', {_REASON}, l.head, l.delivered, coalesce(l.owed_since, 0)"
)
_WITHOUT_INCIDENT: Final = (
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_incidents i WHERE i.kind = 'conversation_blocked'"
    " AND coalesce(i.conversation_id, '') = l.conversation_id AND i.resolved_at IS NULL)"
)
_BLOCKED: Final = (
    f"SELECT {_LANE} FROM letopis_outbox_lanes l WHERE l.state = 'blocked'"  # noqa: S608
    f"{_WITHOUT_INCIDENT} ORDER BY l.owed_since LIMIT {MAX_NEW_INCIDENTS}"
)
# An age is never taken from owed_since, which is a wall clock's: a position seen long ago is certainly old.
_LATE: Final = (
    f"SELECT {_LANE} FROM letopis_outbox_lanes l CROSS JOIN letopis_outbox_events e"  # noqa: S608
    " ON e.lane = l.lane AND e.sequence = l.delivered + 1"
    " WHERE l.owed_since IS NOT NULL AND l.delivered < l.head AND l.state IN ('ready', 'retrying') AND e.position <= ?"
    f"{_WITHOUT_INCIDENT} ORDER BY l.owed_since LIMIT {MAX_NEW_INCIDENTS}"
)
INCIDENT_COLUMNS: Final = (
    "i.incident_id, i.kind, i.conversation_id, i.owner_id, i.state, i.reason, i.events, i.conversations, i.ran,"
    " i.number, i.repeats, i.why, i.mark, i.outcome, i.opened_at, i.changed_at, i.notified_at, i.resolved_at,"
    " i.revision"
)
_OPEN_WIDE: Final = (
    f"SELECT {INCIDENT_COLUMNS} FROM letopis_outbox_incidents i"  # noqa: S608
    " WHERE i.resolved_at IS NULL AND i.kind <> 'conversation_blocked'"
)
# Those that were changed longest ago, besides those in which something must change now.
_OPEN_LANES: Final = (
    f"SELECT {INCIDENT_COLUMNS}, {_LANE} FROM letopis_outbox_incidents i"  # noqa: S608
    " LEFT JOIN letopis_outbox_lanes l ON l.conversation_id = i.conversation_id"
    " WHERE i.resolved_at IS NULL AND i.kind = 'conversation_blocked'"
)
_OPEN_SOME: Final = f"{_OPEN_LANES} ORDER BY i.changed_at LIMIT {_MAX_OPEN}"
_OPEN_CHANGED: Final = (
    f"{_OPEN_LANES} AND (l.conversation_id IS NULL OR l.delivered >= i.mark"
    f" OR (l.state = 'blocked' AND i.reason IS NOT {_REASON})) LIMIT {_MAX_OPEN}"
)
_OPEN: Final = (
    f"SELECT {INCIDENT_COLUMNS} FROM letopis_outbox_incidents i WHERE i.resolved_at IS NULL"  # noqa: S608
    " ORDER BY i.kind = 'conversation_blocked', i.opened_at LIMIT ?"
)
_OPEN_OF_KIND: Final = (
    f"SELECT {INCIDENT_COLUMNS} FROM letopis_outbox_incidents i WHERE i.resolved_at IS NULL AND i.kind = ?"  # noqa: S608
)
_INSERT: Final = (
    "INSERT INTO letopis_outbox_incidents (incident_id, kind, conversation_id, owner_id, state, reason, events,"
    " conversations, ran, number, repeats, why, mark, outcome, opened_at, changed_at, notified_at, resolved_at,"
    " revision) SELECT :incident_id, :kind, :conversation_id, :owner_id, :state, :reason, :events, :conversations,"
    " :ran, :number, :repeats, :why, :mark, :outcome, :opened_at, :changed_at, :notified_at, :resolved_at, :revision"
    " WHERE NOT EXISTS (SELECT 1 FROM letopis_outbox_incidents WHERE kind = :kind"
    " AND coalesce(conversation_id, '') = coalesce(:conversation_id, '') AND resolved_at IS NULL)"
)
_UPDATE: Final = (
    "UPDATE letopis_outbox_incidents SET owner_id = :owner_id, state = :state, reason = :reason, events = :events,"
    " conversations = :conversations, ran = :ran, number = :number, repeats = :repeats, why = :why, mark = :mark,"
    " outcome = :outcome, changed_at = :changed_at, resolved_at = :resolved_at, revision = :revision"
    " WHERE incident_id = :incident_id AND revision = :before"
)


def read_observation(connection: sa.Connection, *, now: datetime, late_before: int) -> Observation:
    """Return what the outbox file shows. Reads only, in the caller's transaction.

    The time it takes grows with the number of lanes that have pending events.

    :param late_before: lanes whose oldest pending event lies at or before this position are late; 0 for none.
    """
    conversations, events, deliverable = connection.exec_driver_sql(_PENDING).one()
    relay = connection.exec_driver_sql(_RELAY).one_or_none()
    blocked = connection.exec_driver_sql(_BLOCKED).all()
    late = connection.exec_driver_sql(_LATE, (late_before,)).all() if late_before and deliverable else ()
    incidents = {row[0]: incident_from_row(row) for row in connection.exec_driver_sql(_OPEN_WIDE)}
    lanes: dict[str, LaneView] = {}
    for statement in (_OPEN_SOME, _OPEN_CHANGED):
        for row in connection.exec_driver_sql(statement):
            incidents[row[0]] = incident_from_row(row)
            if row[WIDTH] is not None:
                lanes[row[WIDTH]] = _lane_of(row[WIDTH:])
    return Observation(
        now=now,
        breaker=None
        if relay is None
        else BreakerView(state=relay[4], since=_moment(relay[5] or None), reason=relay[6]),
        relay=None
        if relay is None
        else RelayView(incarnation=relay[0], heartbeat_at=relay[1], progress_at=relay[2], delivered=relay[3]),
        events=events,
        conversations=conversations,
        deliverable=deliverable,
        newest=connection.exec_driver_sql(NEWEST_POSITION).scalar_one(),
        blocked=tuple(_lane_of(row) for row in blocked),
        late=tuple(_lane_of(row) for row in late),
        open=tuple(incidents.values()),
        lanes=lanes,
    )


def write_changes(connection: sa.Connection, changes: Iterable[Change]) -> tuple[Change, ...]:
    """Store changes in the caller's write transaction, and return those that were still valid.

    A change that is not returned was decided on a state that another process has changed since: observe again.
    """
    stored = []
    for change in changes:
        values = _values(change.after)
        if change.before is None:
            done = connection.exec_driver_sql(_INSERT, values)
        else:
            done = connection.exec_driver_sql(_UPDATE, {**values, "before": change.before.revision})
        if done.rowcount == 1:
            stored.append(change)
    return tuple(stored)


def open_incidents(connection: sa.Connection) -> tuple[IncidentRecord, ...]:
    """Return the incidents that are not over, the global ones first; reads only."""
    with closing(connection.connection.cursor()) as cursor:
        return open_incidents_of(cursor)


def open_incidents_of(cursor: Any) -> tuple[IncidentRecord, ...]:
    """Return the incidents of a DBAPI cursor's outbox file that are not over, the global ones first."""
    return tuple(map(incident_from_row, query_all(cursor, _OPEN, (_MAX_OPEN,))))


def note_skipped(connection: sa.Connection, conversation_id: str) -> bool:
    """Note in a conversation's open incident that an operator skipped an event, for the message to its user.

    Call it in the transaction that skips. Return True if there was an open incident.
    """
    done = connection.exec_driver_sql(
        "UPDATE letopis_outbox_incidents SET outcome = 'skipped', revision = revision + 1"
        " WHERE kind = 'conversation_blocked' AND coalesce(conversation_id, '') = ? AND resolved_at IS NULL",
        (conversation_id,),
    )
    return done.rowcount == 1


def record_incomplete(connection: sa.Connection, what: str | None, *, now_us: int) -> bool:
    """Open the incident that the history store lacks events, or resolve it. Return True if that changed anything.

    :param what: what is missing, in words; ``None`` where nothing is.
    """
    now = from_microseconds(now_us)
    row = connection.exec_driver_sql(_OPEN_OF_KIND, (IncidentKind.HISTORY_INCOMPLETE,)).one_or_none()
    if (row is None) == (what is None):
        return False
    if row is None:
        before = None
        after = IncidentRecord(
            incident_id=uuid7(),
            kind=IncidentKind.HISTORY_INCOMPLETE,
            state=IncidentState.FIRING,
            reason=what,
            number=1,
            why="opened",
            opened_at=now,
            changed_at=now,
        )
    else:
        before = incident_from_row(row)
        after = replace(
            before,
            state=IncidentState.RESOLVED,
            outcome="saved",
            changed_at=now,
            resolved_at=now,
            revision=before.revision + 1,
        )
    return bool(write_changes(connection, (Change(before=before, after=after),)))


def prune_incidents(connection: sa.Connection, *, now: datetime) -> int:
    """Delete a few incidents that were resolved a month ago, with their notifications; return how many."""
    old = connection.exec_driver_sql(
        "SELECT incident_id FROM letopis_outbox_incidents WHERE resolved_at IS NOT NULL AND resolved_at < ?"
        " ORDER BY resolved_at LIMIT ?",
        (to_microseconds(now - _RETENTION), MAX_NEW_INCIDENTS),
    ).all()
    for (incident_id,) in old:
        connection.exec_driver_sql("DELETE FROM letopis_outbox_notices WHERE incident_id = ?", (incident_id,))
        connection.exec_driver_sql("DELETE FROM letopis_outbox_incidents WHERE incident_id = ?", (incident_id,))
    return len(old)


def _moment(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else from_microseconds(microseconds)


_FIELDS: Final = tuple(column.strip().removeprefix("i.") for column in INCIDENT_COLUMNS.split(","))
WIDTH: Final = len(_FIELDS)
_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "incident_id": lambda value: UUID(bytes=value),
    "kind": IncidentKind,
    "state": IncidentState,
    "ran": lambda value: value / 1_000_000,
    **dict.fromkeys(("opened_at", "changed_at", "notified_at", "resolved_at"), _moment),
}


def incident_from_row(row: Any) -> IncidentRecord:
    """Return the incident whose columns, in the order of ``INCIDENT_COLUMNS``, begin ``row``."""
    values = dict(zip(_FIELDS, row, strict=False))
    for name, read in _READERS.items():
        values[name] = read(values[name])
    return IncidentRecord(**values)


def _values(incident: IncidentRecord) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(incident, name) for name in _FIELDS}
    for name, value in values.items():
        if isinstance(value, datetime):
            values[name] = to_microseconds(value)
    return {
        **values,
        "incident_id": incident.incident_id.bytes,
        "kind": str(incident.kind),
        "state": str(incident.state),
        "ran": round(incident.ran * 1_000_000),
    }


def _lane_of(row: Any) -> LaneView:
    conversation_id, owner_id, blocked, reason, head, delivered, owed_since = row
    return LaneView(
        conversation_id=conversation_id,
        owner_id=owner_id,
        blocked=bool(blocked),
        reason=reason,
        head=head,
        delivered=delivered,
        since=from_microseconds(owed_since),
    )

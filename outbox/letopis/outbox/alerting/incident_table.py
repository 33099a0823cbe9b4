"""Store incidents in the outbox file: of two processes that decide the same change, one stores it and notifies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
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

MAX_NEW_INCIDENTS: Final = 200  # from lanes in one observation; the others follow in the next ones
_MAX_OPEN: Final = 1_000
_RETENTION: Final = timedelta(days=30)

_PENDING_LANES: Final = "FROM letopis_outbox_lanes WHERE pending_since IS NOT NULL AND delivered < head"
COUNT_PENDING: Final = f"SELECT coalesce(sum(head - delivered), 0), count(*) {_PENDING_LANES}"
# While an operator holds the relay back nothing can be delivered, as from a lane that is paused.
_PENDING: Final = (
    "SELECT coalesce(sum(head - delivered), 0), coalesce(sum(state IN ('ready', 'retrying')"  # noqa: S608
    f" AND NOT EXISTS (SELECT 1 FROM letopis_outbox_pause)), 0) {_PENDING_LANES}"
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
    f"l.conversation_id, l.owner_id, l.state = 'blocked', {_REASON}, l.head, l.delivered, coalesce(l.pending_since, 0)"
)
_WITHOUT_INCIDENT: Final = (
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_incidents i WHERE i.kind = 'conversation_blocked'"
    " AND coalesce(i.conversation_id, '') = l.conversation_id AND i.resolved_at IS NULL)"
)
_BLOCKED: Final = (
    f"SELECT {_LANE} FROM letopis_outbox_lanes l WHERE l.state = 'blocked'"  # noqa: S608
    f"{_WITHOUT_INCIDENT} ORDER BY l.pending_since LIMIT {MAX_NEW_INCIDENTS}"
)
# An age is never taken from pending_since, which is a wall clock's: a position seen long ago is certainly old.
_LATE: Final = (
    f"SELECT {_LANE} FROM letopis_outbox_lanes l CROSS JOIN letopis_outbox_events e"  # noqa: S608
    " ON e.lane = l.lane AND e.sequence = l.delivered + 1"
    " WHERE l.pending_since IS NOT NULL AND l.delivered < l.head AND l.state IN ('ready', 'retrying')"
    " AND e.position <= ?"
    f"{_WITHOUT_INCIDENT} ORDER BY l.pending_since LIMIT {MAX_NEW_INCIDENTS}"
)
_STORED: Final = (
    "incident_id", "kind", "conversation_id", "state", "reason", "escalations", "mark", "outcome", "opened_at",
    "resolved_at", "revision",
)  # fmt: skip
_COMPUTED: Final = ("owner_id", "events", "conversations")
WIDTH: Final = len(_STORED) + len(_COMPUTED)  # of an incident's columns; a statement may select others behind them
# SQLite runs a subquery that names nothing from outside once a statement, and only if it is needed.
SELECT_INCIDENT: Final = (
    f"SELECT {', '.join(f'i.{column}' for column in _STORED)}, l.owner_id, CASE WHEN i.conversation_id IS NOT NULL"  # noqa: S608
    f" THEN coalesce(l.head - l.delivered, 0) ELSE (SELECT coalesce(sum(head - delivered), 0) {_PENDING_LANES}) END,"
    f" CASE WHEN i.conversation_id IS NULL THEN (SELECT count(*) {_PENDING_LANES}) ELSE (SELECT count(*)"
    " FROM letopis_outbox_incidents WHERE kind = 'conversation_blocked' AND resolved_at IS NULL) END"
)
JOIN_LANE: Final = " LEFT JOIN letopis_outbox_lanes l ON l.conversation_id = i.conversation_id"
_FROM_OPEN: Final = f" FROM letopis_outbox_incidents i{JOIN_LANE} WHERE i.resolved_at IS NULL"
_IN_ORDER: Final = " ORDER BY i.kind = 'conversation_blocked', i.opened_at LIMIT ?"
# Those about a conversation, which may be many, only where something must change.
_OPEN_AND_CHANGED: Final = (
    f"{SELECT_INCIDENT}, {_LANE}{_FROM_OPEN} AND (i.kind <> 'conversation_blocked'"
    " OR l.conversation_id IS NULL OR l.delivered >= i.mark"
    f" OR (l.state = 'blocked' AND i.reason IS NOT {_REASON})){_IN_ORDER}"
)
_OPEN: Final = (
    f"{SELECT_INCIDENT}, (SELECT min(told_at) FROM letopis_outbox_notifications n"  # noqa: S608
    f" WHERE n.incident_id = i.incident_id){_FROM_OPEN}{_IN_ORDER}"
)
_OPEN_OF_KIND: Final = f"{SELECT_INCIDENT}{_FROM_OPEN} AND i.kind = ?"
_INSERT: Final = (
    f"INSERT INTO letopis_outbox_incidents ({', '.join(_STORED)}) VALUES ({', '.join(f':{name}' for name in _STORED)})"  # noqa: S608
    " ON CONFLICT (kind, coalesce(conversation_id, '')) WHERE resolved_at IS NULL DO NOTHING"
)
_UPDATE: Final = (
    "UPDATE letopis_outbox_incidents SET state = :state, reason = :reason, escalations = :escalations, mark = :mark,"
    " outcome = :outcome, resolved_at = :resolved_at, revision = revision + 1"
    " WHERE incident_id = :incident_id AND revision = :revision"
)
_PRUNE: Final = [
    f"DELETE FROM letopis_outbox_{table} WHERE incident_id IN (SELECT incident_id FROM letopis_outbox_incidents"  # noqa: S608
    " WHERE resolved_at < ? ORDER BY resolved_at LIMIT ?)"
    for table in ("notifications", "incidents")
]


def read_observation(connection: sa.Connection, *, now: datetime, late_before: int) -> Observation:
    """Return what the outbox file shows. Reads only, in the caller's transaction."""
    events, deliverable = connection.exec_driver_sql(_PENDING).one()
    relay = connection.exec_driver_sql(_RELAY).one_or_none()
    blocked = connection.exec_driver_sql(_BLOCKED).all()
    late = connection.exec_driver_sql(_LATE, (late_before,)).all() if late_before and deliverable else ()
    incidents = connection.exec_driver_sql(_OPEN_AND_CHANGED, (_MAX_OPEN,)).all()
    return Observation(
        now=now,
        breaker=None if relay is None else BreakerView(relay[4], _moment(relay[5] or None), relay[6]),
        relay=None if relay is None else RelayView(*relay[:4]),
        events=events,
        deliverable=deliverable,
        newest=connection.exec_driver_sql(NEWEST_POSITION).scalar_one(),
        blocked=tuple(LaneView(*row) for row in blocked),
        late=tuple(LaneView(*row) for row in late),
        open=tuple(incident_from_row(row[:WIDTH]) for row in incidents),
        lanes={row[WIDTH]: LaneView(*row[WIDTH:]) for row in incidents if row[WIDTH] is not None},
    )


def write_changes(connection: sa.Connection, changes: Iterable[Change]) -> tuple[Change, ...]:
    """Store changes in the caller's write transaction; return those that no other process has forestalled."""
    stored = []
    for change in changes:
        values = {name: as_stored(getattr(change.after, name)) for name in _STORED}
        if connection.exec_driver_sql(_INSERT if change.before is None else _UPDATE, values).rowcount == 1:
            stored.append(change)
    return tuple(stored)


def open_incidents_of(cursor: Any) -> tuple[IncidentRecord, ...]:
    """Return the incidents of a DBAPI cursor's outbox file that are not over, the global ones first."""
    return tuple(map(incident_from_row, query_all(cursor, _OPEN, (_MAX_OPEN,))))


def note_skipped(connection: sa.Connection, conversation_id: str) -> bool:
    """Note in a conversation's open incident that an operator skipped an event, for the message to its user."""
    done = connection.exec_driver_sql(
        "UPDATE letopis_outbox_incidents SET outcome = 'skipped', revision = revision + 1"
        " WHERE kind = 'conversation_blocked' AND coalesce(conversation_id, '') = ? AND resolved_at IS NULL",
        (conversation_id,),
    )
    return done.rowcount == 1


def record_finding(connection: sa.Connection, kind: IncidentKind, what: str | None, *, now_us: int) -> bool:
    """Open the incident that the history store lacks ``what``, or resolve it for ``None``. Return True for a change."""
    row = connection.exec_driver_sql(_OPEN_OF_KIND, (str(kind),)).one_or_none()
    if (row is None) == (what is None):
        return False
    now, before = from_microseconds(now_us), None if row is None else incident_from_row(row)
    if before is not None:
        after = replace(before, state=IncidentState.RESOLVED, outcome="saved", resolved_at=now)
    else:
        after = IncidentRecord(incident_id=uuid7(), kind=kind, state=IncidentState.FIRING, reason=what, opened_at=now)
    return bool(write_changes(connection, (Change(before=before, after=after),)))


def prune_incidents(connection: sa.Connection, *, now: datetime) -> int:
    """Delete a few incidents that were resolved a month ago, with their notifications; return how many."""
    values = (to_microseconds(now - _RETENTION), MAX_NEW_INCIDENTS)
    return [connection.exec_driver_sql(statement, values).rowcount for statement in _PRUNE][-1]


def incident_from_row(row: Any) -> IncidentRecord:
    """Return the incident of a row that ``SELECT_INCIDENT`` gives, perhaps followed by ``notified_at``."""
    values = as_read((*_STORED, *_COMPUTED, "notified_at"), row, kind=IncidentKind, state=IncidentState)
    values["incident_id"] = UUID(bytes=values["incident_id"])
    return IncidentRecord(**values)


def as_read(names: Sequence[str], row: Any, **kinds: type[StrEnum]) -> dict[str, Any]:
    """Return a row's values by name, those of some names as members of an enumeration."""
    values = dict(zip(names, row, strict=False))
    moments = {name: _moment(value) for name, value in values.items() if name.endswith("_at")}
    return values | moments | {name: kind(values[name]) for name, kind in kinds.items()}


def as_stored(value: Any) -> Any:
    """Return a value as the tables hold it."""
    if isinstance(value, datetime):
        return to_microseconds(value)
    return value.bytes if isinstance(value, UUID) else str(value) if isinstance(value, StrEnum) else value


def _moment(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else from_microseconds(microseconds)

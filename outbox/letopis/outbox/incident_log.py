"""Keep incidents in the outbox file, where every process that watches it finds the same ones.

These are functions for `OutboxFile.read` and `OutboxFile.write`. A change is kept only if the incident is still as it
was when the change was decided, so of two processes that come to the same conclusion one wins, and only one goes on
to say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.incidents import BreakerView, Case, Change, Kind, LaneView, Observation, RelayView, State
from letopis.store.events import from_microseconds, to_microseconds

MOST: Final = 200
"""Lanes that become incidents in one observation; the others follow in the next ones."""
_MOST_OPEN: Final = 1_000

# While a person holds the relay back nothing can be delivered, as from a lane that is paused.
_OWED: Final = (
    "SELECT count(*), coalesce(sum(head - delivered), 0), coalesce(sum(state IN ('ready', 'retrying')"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_hold)), 0)"
    " FROM letopis_outbox_lanes WHERE delivered < head"
)
_NEWEST: Final = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'letopis_outbox_events'), 0)"
_RELAY: Final = (
    "SELECT incarnation, heartbeat_at, progress_at, delivered_total, breaker, breaker_since, breaker_reason"
    " FROM letopis_outbox_relay"
)
# The sentence of a fault ends with its class and code, as a rule.
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
    f"SELECT {_LANE} FROM letopis_outbox_lanes l WHERE l.delivered < l.head AND l.state = 'blocked'"  # noqa: S608
    f"{_WITHOUT_INCIDENT} ORDER BY l.owed_since LIMIT {MOST}"
)
# An age is never taken from owed_since, which is a wall clock's: a position that was seen long ago is old for certain.
_LATE: Final = (
    f"SELECT {_LANE} FROM letopis_outbox_lanes l JOIN letopis_outbox_events e"  # noqa: S608
    " ON e.conversation_id = l.conversation_id AND e.sequence = l.delivered + 1"
    " WHERE l.delivered < l.head AND l.state IN ('ready', 'retrying') AND e.position <= ?"
    f"{_WITHOUT_INCIDENT} ORDER BY l.owed_since LIMIT {MOST}"
)
_CASE: Final = (
    "i.incident_id, i.kind, i.conversation_id, i.owner_id, i.state, i.reason, i.events, i.conversations, i.ran,"
    " i.number, i.repeats, i.why, i.mark, i.outcome, i.opened_at, i.changed_at, i.notified_at, i.resolved_at,"
    " i.revision"
)
CASE_COLUMNS: Final = _CASE
_OPEN_WIDE: Final = (
    f"SELECT {_CASE} FROM letopis_outbox_incidents i"  # noqa: S608
    " WHERE i.resolved_at IS NULL AND i.kind <> 'conversation_blocked'"
)
# Those that were not looked at for longest, and besides those that are over.
_OPEN_LANES: Final = (
    f"SELECT {_CASE}, {_LANE} FROM letopis_outbox_incidents i"  # noqa: S608
    " LEFT JOIN letopis_outbox_lanes l ON l.conversation_id = i.conversation_id"
    " WHERE i.resolved_at IS NULL AND i.kind = 'conversation_blocked'"
)
_OPEN_SOME: Final = f"{_OPEN_LANES} ORDER BY i.changed_at LIMIT {_MOST_OPEN}"
_OVER: Final = " AND (l.conversation_id IS NULL OR (l.delivered >= i.mark AND l.state <> 'blocked'))"
_OPEN_OVER: Final = f"{_OPEN_LANES}{_OVER} LIMIT {_MOST_OPEN}"
_OPEN: Final = (
    f"SELECT {_CASE} FROM letopis_outbox_incidents i WHERE i.resolved_at IS NULL"  # noqa: S608
    " ORDER BY i.kind = 'conversation_blocked', i.opened_at LIMIT ?"
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


def look(connection: sa.Connection, *, now: datetime, late_before: int) -> Observation:
    """Return what the outbox file shows. Reads only, in the caller's transaction.

    The time it takes grows with the number of lanes that owe something (some 50 ms for 100,000 of them).

    :param late_before: lanes whose oldest owed event stands at or before this position are late; 0 for none.
    """
    conversations, events, deliverable = connection.exec_driver_sql(_OWED).one()
    relay = connection.exec_driver_sql(_RELAY).one_or_none()
    blocked = connection.exec_driver_sql(_BLOCKED).all() if conversations > deliverable else ()
    late = connection.exec_driver_sql(_LATE, (late_before,)).all() if late_before and deliverable else ()
    cases = {row[0]: case_of(row) for row in connection.exec_driver_sql(_OPEN_WIDE)}
    lanes: dict[str, LaneView] = {}
    for statement in (_OPEN_SOME, _OPEN_OVER):
        for row in connection.exec_driver_sql(statement):
            cases[row[0]] = case_of(row)
            if row[19] is not None:
                lanes[row[19]] = _lane_of(row[19:])
    return Observation(
        now=now,
        breaker=None if relay is None else _breaker_of(relay),
        relay=None
        if relay is None
        else RelayView(incarnation=relay[0], heartbeat_at=relay[1], progress_at=relay[2], delivered=relay[3]),
        events=events,
        conversations=conversations,
        deliverable=deliverable,
        newest=connection.exec_driver_sql(_NEWEST).scalar_one(),
        blocked=tuple(_lane_of(row) for row in blocked),
        late=tuple(_lane_of(row) for row in late),
        open=tuple(cases.values()),
        lanes=lanes,
    )


def keep(connection: sa.Connection, changes: Iterable[Change]) -> tuple[Change, ...]:
    """Write changes, in the caller's write transaction, and return those that were still true.

    A change that is not returned was decided on what is no longer so (another process was faster); look again.
    """
    kept = []
    for change in changes:
        values = _values(change.after)
        if change.before is None:
            done = connection.exec_driver_sql(_INSERT, values)
        else:
            done = connection.exec_driver_sql(_UPDATE, {**values, "before": change.before.revision})
        if done.rowcount == 1:
            kept.append(change)
    return tuple(kept)


def open_incidents(connection: sa.Connection, *, limit: int = 1_000) -> tuple[Case, ...]:
    """Return the incidents that are not over, the ones about everything first; reads only."""
    return tuple(case_of(row) for row in connection.exec_driver_sql(_OPEN, (limit,)))


def note_skipped(connection: sa.Connection, conversation_id: str) -> bool:
    """Note that an operator left an event of a conversation out of the history, so that its user hears the truth.

    For the verb that does it, in its own transaction. Returns whether there was an open incident to note it in.
    """
    done = connection.exec_driver_sql(
        "UPDATE letopis_outbox_incidents SET outcome = 'skipped', revision = revision + 1"
        " WHERE kind = 'conversation_blocked' AND coalesce(conversation_id, '') = ? AND resolved_at IS NULL",
        (conversation_id,),
    )
    return done.rowcount == 1


def forget(connection: sa.Connection, *, now: datetime, keep_for: timedelta = timedelta(days=30)) -> int:
    """Delete a few incidents that have been over for long, with their notices; return how many."""
    before = to_microseconds(now - keep_for)
    old = connection.exec_driver_sql(
        "SELECT incident_id FROM letopis_outbox_incidents WHERE resolved_at IS NOT NULL AND resolved_at < ?"
        " ORDER BY resolved_at LIMIT ?",
        (before, MOST),
    ).all()
    for (incident_id,) in old:
        connection.exec_driver_sql("DELETE FROM letopis_outbox_notices WHERE incident_id = ?", (incident_id,))
        connection.exec_driver_sql("DELETE FROM letopis_outbox_incidents WHERE incident_id = ?", (incident_id,))
    return len(old)


def case_of(row: Any) -> Case:
    """Return the incident whose columns, in the order of ``CASE_COLUMNS``, begin ``row``."""
    return Case(
        incident_id=UUID(bytes=row[0]),
        kind=Kind(row[1]),
        conversation_id=row[2],
        owner_id=row[3],
        state=State(row[4]),
        reason=row[5],
        events=row[6],
        conversations=row[7],
        ran=row[8] / 1_000_000,
        number=row[9],
        repeats=row[10],
        why=row[11],
        mark=row[12],
        outcome=row[13],
        opened_at=from_microseconds(row[14]),
        changed_at=from_microseconds(row[15]),
        notified_at=None if row[16] is None else from_microseconds(row[16]),
        resolved_at=None if row[17] is None else from_microseconds(row[17]),
        revision=row[18],
    )


def _values(case: Case) -> dict[str, Any]:
    return {
        "incident_id": case.incident_id.bytes,
        "kind": str(case.kind),
        "conversation_id": case.conversation_id,
        "owner_id": case.owner_id,
        "state": str(case.state),
        "reason": case.reason,
        "events": case.events,
        "conversations": case.conversations,
        "ran": round(case.ran * 1_000_000),
        "number": case.number,
        "repeats": case.repeats,
        "why": case.why,
        "mark": case.mark,
        "outcome": case.outcome,
        "opened_at": to_microseconds(case.opened_at),
        "changed_at": to_microseconds(case.changed_at),
        "notified_at": None if case.notified_at is None else to_microseconds(case.notified_at),
        "resolved_at": None if case.resolved_at is None else to_microseconds(case.resolved_at),
        "revision": case.revision,
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


def _breaker_of(row: Any) -> BreakerView:
    return BreakerView(state=row[4], since=from_microseconds(row[5]) if row[5] else None, reason=row[6])

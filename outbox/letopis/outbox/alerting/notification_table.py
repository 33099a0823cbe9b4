"""Store notifications in the outbox file, claimed before they are sent: no restart or second process repeats one.

A recipient whose notification was claimed counts as notified, though its process may have died before sending it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox.alerting.incident_table import (
    JOIN_LANE,
    MAX_NEW_INCIDENTS,
    SELECT_INCIDENT,
    WIDTH,
    as_read,
    as_stored,
    incident_from_row,
)
from letopis.outbox.alerting.incidents import IncidentRecord
from letopis.outbox.alerting.notifications import (
    Notification,
    NotificationKind,
    NotificationState,
    PendingNotification,
    next_notification,
)
from letopis.outbox.event_log.statements import fetch_all, iterate
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.model.events import from_microseconds, to_microseconds

# Who is notified of a conversation: its owner, and without one the conversation itself.
_USER: Final = (
    "CASE WHEN {0}.owner_id IS NULL THEN 'user:conversation:' || {0}.conversation_id"
    " ELSE 'user:owner:' || {0}.owner_id END"
)
_IS_USER: Final = "n.recipient >= 'user:' AND n.recipient < 'user;'"
# Who may get another notification. The index is of these.
_ACTIVE: Final = "(n.kind = 'stuck' OR n.state = 'retrying')"
_COLUMNS: Final = ("kind", "escalations", "number", "state", "told_at", "attempts", "changed_at", "revision")
_FIRING: Final = f" FROM letopis_outbox_incidents i{JOIN_LANE} WHERE i.resolved_at IS NULL AND i.state = 'firing'"
# A user is notified of one problem that concerns everyone, and of no other until that one is over.
_INFORMED: Final = (
    "SELECT n.recipient FROM letopis_outbox_notifications n JOIN letopis_outbox_incidents g"
    " ON g.incident_id = n.incident_id WHERE n.kind = 'stuck' AND g.kind <> 'conversation_blocked'"
    " AND (g.resolved_at IS NULL OR n.told_at IS NOT NULL)"
)
# CROSS JOIN: SQLite would sometimes read all events up to a position, and look up the lane of each; and without the +
# all lanes by name, for the few that have something pending. No reply waits in a lane of records, so only operators are
# notified; the names of these lanes sort before all ids.
_WAITING: Final = (
    " letopis_outbox_lanes p CROSS JOIN letopis_outbox_events e ON e.lane = p.lane AND e.sequence = p.delivered + 1"
    " WHERE p.pending_since IS NOT NULL AND p.delivered < p.head AND e.position <= :position"
    " AND +p.conversation_id > char(2)"
)
_NEW_TO_CHANNEL: Final = (
    f"{SELECT_INCIDENT}, :recipient, i.conversation_id, NULL, NULL{_FIRING}"  # noqa: S608
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_notifications n WHERE n.incident_id = i.incident_id"
    " AND n.recipient = :recipient) ORDER BY i.kind = 'conversation_blocked', i.opened_at"
)
_NEW_OF_CONVERSATIONS: Final = (
    f"{SELECT_INCIDENT}, {_USER.format('l')}, i.conversation_id, l.pending_since, NULL{_FIRING}"  # noqa: S608
    " AND l.delivered < l.head AND l.conversation_id > char(2)"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_notifications n"
    f" WHERE n.incident_id = i.incident_id AND {_IS_USER})"
    f" AND {_USER.format('l')} NOT IN ({_INFORMED}) ORDER BY i.opened_at"
)
_NEW_OF_ALL: Final = (
    f"{SELECT_INCIDENT}, {_USER.format('p')} AS recipient, p.conversation_id, min(p.pending_since) AS since,"  # noqa: S608
    " sum(p.head - p.delivered)"
    " FROM (SELECT * FROM letopis_outbox_incidents WHERE resolved_at IS NULL AND state = 'firing'"
    f" AND kind IN ('store_down', 'relay_silent') ORDER BY kind DESC LIMIT 1) i{JOIN_LANE} CROSS JOIN{_WAITING}"
    f" AND p.state IN ('ready', 'retrying') AND recipient NOT IN ({_INFORMED}) GROUP BY recipient ORDER BY since"
)
_SENT: Final = (
    f"{SELECT_INCIDENT}, n.recipient, n.conversation_id, NULL, NULL, {', '.join(f'n.{name}' for name in _COLUMNS)}"
    " FROM letopis_outbox_notifications n"
    f" JOIN letopis_outbox_incidents i ON i.incident_id = n.incident_id{JOIN_LANE} WHERE {_ACTIVE}"
    " AND (i.resolved_at IS NULL OR n.told_at IS NOT NULL)"
)
# While an incident is open, most who were notified of it, who may be many, get nothing more, and are not read.
_SENT_TO_CHANNEL: Final = (
    f"{_SENT} AND n.recipient = :recipient AND (i.resolved_at IS NOT NULL OR n.state = 'retrying'"
    " OR n.escalations < i.escalations OR abs(:now - n.changed_at) >= :repeat)"
)
_SENT_TO_USERS: Final = (
    f"{_SENT} AND {_IS_USER}"
    " AND CASE WHEN i.resolved_at IS NULL THEN n.state = 'retrying' ELSE i.kind = 'conversation_blocked' END"
)
_ENDS: Final = (
    "SELECT DISTINCT i.mark FROM letopis_outbox_notifications n JOIN letopis_outbox_incidents i"  # noqa: S608
    f" ON i.incident_id = n.incident_id WHERE {_ACTIVE} AND n.told_at IS NOT NULL AND {_IS_USER}"
    " AND i.resolved_at IS NOT NULL AND i.kind <> 'conversation_blocked'"
)
# All but those with an event still pending that was pending at the end. A conversation whose own incident a user was
# notified of has its own recovery.
_RECOVERED_FOR_ALL: Final = (
    f"{_SENT} AND {_IS_USER} AND i.resolved_at IS NOT NULL AND i.kind <> 'conversation_blocked' AND i.mark = :position"  # noqa: S608
    f" AND n.recipient NOT IN (SELECT {_USER.format('p')} FROM{_WAITING} AND p.conversation_id NOT IN ("
    "SELECT i.conversation_id FROM letopis_outbox_incidents i JOIN letopis_outbox_notifications n"
    " ON n.incident_id = i.incident_id WHERE i.resolved_at IS NULL AND i.kind = 'conversation_blocked'"
    f" AND n.told_at IS NOT NULL AND {_IS_USER}))"
)
_CLAIM: Final = (
    "INSERT INTO letopis_outbox_notifications (incident_id, recipient, conversation_id, kind, escalations, number,"
    " state, told_at, attempts, changed_at, revision) SELECT incident_id, :recipient, :conversation_id, :kind,"
    " :escalations, :number, :state, :told_at, :attempts, :now, 1 FROM letopis_outbox_incidents"
    " WHERE incident_id = :incident_id AND (resolved_at IS NULL) = (:kind = 'stuck')"
    # The breaker is asked again: an outage that is over is announced to no one.
    " AND NOT (:kind = 'stuck' AND letopis_outbox_incidents.kind = 'store_down'"
    " AND coalesce(:closed, EXISTS (SELECT 1 FROM letopis_outbox_relay WHERE breaker = 'closed')))"
    " ON CONFLICT (incident_id, recipient) DO UPDATE SET kind = excluded.kind, escalations = excluded.escalations,"
    " number = excluded.number, state = excluded.state, told_at = excluded.told_at, attempts = excluded.attempts,"
    " changed_at = excluded.changed_at, revision = revision + 1 WHERE revision = :revision"
)
_RECORD: Final = (
    "UPDATE letopis_outbox_notifications SET state = :state, told_at = :told_at, changed_at = :now,"
    " revision = revision + 1"
    " WHERE incident_id = :incident_id AND recipient = :recipient AND revision = :revision + 1"
)


def pending_for_channel(
    connection: sa.Connection, recipient: str, *, now: datetime, policy: RetryPolicy, repeat: timedelta
) -> list[PendingNotification]:
    """Return the notifications due to an operators' channel; reads only."""

    def select(statement: str, repeat: timedelta) -> list[PendingNotification]:
        values = {"recipient": recipient, "now": to_microseconds(now), "repeat": repeat // timedelta(microseconds=1)}
        following = partial(next_notification, now=now, policy=policy, repeat=repeat)
        return _pending(connection, statement, values, following)

    new, sent = select(_NEW_TO_CHANNEL, repeat), select(_SENT_TO_CHANNEL, repeat)
    if any(pending.notification.reminder for pending in sent):
        # So that conversations that were blocked at different times are soon reminded of in one message.
        sent = select(_SENT_TO_CHANNEL, repeat / 2)
    return [*new, *sent]


def pending_for_users(
    connection: sa.Connection, *, now: datetime, policy: RetryPolicy, late_before: int
) -> list[PendingNotification]:
    """Return the notifications due to users; reads only."""
    wanted: list[tuple[str, dict[str, Any]]] = [(_NEW_OF_CONVERSATIONS, {}), (_SENT_TO_USERS, {})]
    if late_before:
        wanted.append((_NEW_OF_ALL, {"position": late_before}))
    wanted += [(_RECOVERED_FOR_ALL, {"position": position}) for (position,) in fetch_all(connection, _ENDS)]
    following = partial(next_notification, now=now, policy=policy, repeat=None)
    return [due for statement, values in wanted for due in _pending(connection, statement, values, following)]


def claim(
    connection: sa.Connection,
    pending: Iterable[PendingNotification],
    *,
    now: datetime,
    closed: bool | None = None,
    elsewhere: bool = False,
) -> tuple[PendingNotification, ...]:
    """Claim notifications in the caller's write transaction, and return those that this process is to send."""
    # Elsewhere: another file of the same outage tells it, and will tell the recovery.
    state = NotificationState.SENT if elsewhere else NotificationState.SENDING
    claimed = []
    for due in pending:
        told_at = due.notification.told_at or (None if elsewhere else now)
        more = {"conversation_id": due.conversation_id, "closed": closed}
        if _store(connection, _CLAIM, due, state=state, told_at=told_at, now=now, **more):
            claimed.append(due)
    return tuple(claimed)


def record_outcome(
    connection: sa.Connection,
    sent: Iterable[PendingNotification],
    *,
    told: bool | None,
    now: datetime,
    policy: RetryPolicy,
) -> None:
    """Store what became of claimed notifications; one with ``told=None`` is retried, and counts as told."""
    for due in sent:
        retries = due.notification.attempts <= policy.attempts
        failed = NotificationState.RETRYING if retries else NotificationState.FAILED
        told_at = due.notification.told_at or (None if told is False else now)
        _store(connection, _RECORD, due, state=NotificationState.SENT if told else failed, told_at=told_at, now=now)


def _store(connection: sa.Connection, statement: str, due: PendingNotification, **changes: Any) -> bool:
    """Run a statement with the columns of a notification, some of them changed; return True if it took effect."""
    key = {"incident_id": due.incident.incident_id, "recipient": due.recipient}
    values = {name: as_stored(value) for name, value in (asdict(due.notification) | key | changes).items()}
    return connection.exec_driver_sql(statement, values).rowcount == 1


def _pending(
    connection: sa.Connection,
    statement: str,
    values: dict[str, Any],
    following: Callable[[IncidentRecord, Notification | None], Notification | None],
) -> list[PendingNotification]:
    """Return a limited number of notifications that are due."""
    pending: list[PendingNotification] = []
    for row in iterate(connection, statement, values):
        incident = incident_from_row(row[:WIDTH])
        recipient, conversation_id, since, events, *sent = row[WIDTH:]
        last = as_read(_COLUMNS, sent, kind=NotificationKind, state=NotificationState) if sent else None
        notification = following(incident, None if last is None else Notification(**last))
        if notification is None:
            continue
        due = PendingNotification(
            incident=incident,
            recipient=recipient,
            notification=notification,
            conversation_id=conversation_id,
            since=from_microseconds(since) if since else incident.opened_at,
            events=incident.events if events is None else events,
        )
        pending.append(due)
        if len(pending) == MAX_NEW_INCIDENTS:
            break
    return pending

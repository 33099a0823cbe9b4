"""Store notifications in the outbox file, so that a restart or a second process repeats none.

A process claims a notification in a transaction of its own before it sends it. If it dies in the middle the recipient
may have been notified, and counts as such: the notification may be lost, and an operator's comes back with the
reminder. These are functions for `OutboxFile.read` and `OutboxFile.write`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox.alerting.incident_table import INCIDENT_COLUMNS, MAX_NEW_INCIDENTS, WIDTH, incident_from_row
from letopis.outbox.alerting.incidents import IncidentRecord
from letopis.outbox.alerting.notifications import (
    CLAIM_TIMEOUT,
    Notification,
    NotificationKind,
    NotificationState,
    PendingNotification,
    RetryBudget,
    next_kind,
)
from letopis.store.model.events import from_microseconds, to_microseconds

_USERS: Final = {"low": "user:", "high": "user;"}
"""Between these lie the recipients that are users; a channel's begin with ``channel:``."""
_NOTIFICATION: Final = (
    "n.recipient, n.word, n.number, n.state, n.reached, n.attempts, n.due_at, n.changed_at, n.conversation_id,"
    " n.owner_id"
)
# Who is notified of a conversation: its owner, and without one the conversation itself.
_RECIPIENT: Final = (
    "CASE WHEN {0}.owner_id IS NULL THEN 'user:conversation:' || {0}.conversation_id"
    " ELSE 'user:owner:' || {0}.owner_id END"
)
_LANE_RECIPIENT: Final = _RECIPIENT.format("l")
_INCIDENT_RECIPIENT: Final = _RECIPIENT.format("i")
# Told of a global incident, and not yet of its end: one more notification would be one too many.
_KNOWS_ALREADY: Final = (
    "SELECT 1 FROM letopis_outbox_notices o JOIN letopis_outbox_incidents w ON w.incident_id = o.incident_id"
    " WHERE o.recipient = {0} AND o.closed_at IS NULL AND w.kind <> 'conversation_blocked'"
    " AND (w.resolved_at IS NULL OR (o.word = 'stuck' AND o.reached > 0))"
)
_NEW_ALERTS: Final = (
    f"SELECT {INCIDENT_COLUMNS} FROM letopis_outbox_incidents i WHERE i.resolved_at IS NULL AND i.number > 0"  # noqa: S608
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_notices n WHERE n.incident_id = i.incident_id AND n.recipient = ?)"
    f" ORDER BY i.kind = 'conversation_blocked', i.opened_at LIMIT {MAX_NEW_INCIDENTS}"
)
_SENT: Final = (
    f"SELECT {INCIDENT_COLUMNS}, {_NOTIFICATION} FROM letopis_outbox_notices n"  # noqa: S608
    " JOIN letopis_outbox_incidents i ON i.incident_id = n.incident_id"
    " WHERE n.closed_at IS NULL AND n.recipient >= :low AND n.recipient < :high"
)
# While an incident is open there is something to say only when a notification is retried or a further alert is due: all
# others, which may be many, are not read.
_SENT_TO_CHANNEL: Final = f"{_SENT} AND (i.resolved_at IS NOT NULL OR n.state = 'waiting' OR n.number < i.number)"
_SENT_TO_USERS: Final = (
    f"{_SENT} AND CASE WHEN i.resolved_at IS NULL THEN n.state = 'waiting' ELSE i.kind = 'conversation_blocked' END"
)
_ENDED_FOR_ALL: Final = (
    "SELECT DISTINCT i.mark FROM letopis_outbox_notices n JOIN letopis_outbox_incidents i"
    " ON i.incident_id = n.incident_id WHERE n.closed_at IS NULL AND n.recipient >= 'user:' AND n.recipient < 'user;'"
    " AND i.resolved_at IS NOT NULL AND i.kind <> 'conversation_blocked'"
)
_NEW_FOR_CONVERSATIONS: Final = (
    f"SELECT {INCIDENT_COLUMNS}, {_INCIDENT_RECIPIENT}, l.owed_since, l.head - l.delivered"  # noqa: S608
    " FROM letopis_outbox_incidents i JOIN letopis_outbox_lanes l ON l.conversation_id = i.conversation_id"
    " WHERE i.resolved_at IS NULL AND i.number > 0 AND i.kind = 'conversation_blocked' AND l.delivered < l.head"
    # No reply waits in a lane of records, so only operators are notified. The names of these lanes sort before all ids.
    " AND l.conversation_id > char(2)"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_notices n WHERE n.incident_id = i.incident_id"
    " AND n.recipient >= 'user:' AND n.recipient < 'user;')"
    f" AND NOT EXISTS ({_KNOWS_ALREADY.format(_INCIDENT_RECIPIENT)})"
    f" ORDER BY i.opened_at LIMIT {MAX_NEW_INCIDENTS}"
)
# CROSS JOIN: SQLite would sometimes read all events up to a position, and look up the lane of each.
_NEW_FOR_ALL: Final = (
    f"SELECT {_LANE_RECIPIENT}, l.conversation_id, l.owner_id, min(l.owed_since), sum(l.head - l.delivered)"  # noqa: S608
    " FROM letopis_outbox_lanes l CROSS JOIN letopis_outbox_events e"
    " ON e.lane = l.lane AND e.sequence = l.delivered + 1"
    " WHERE l.owed_since IS NOT NULL AND l.delivered < l.head"
    " AND l.state IN ('ready', 'retrying') AND e.position <= :before AND l.conversation_id > char(2)"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_notices n WHERE n.incident_id = :incident"
    f" AND n.recipient = {_LANE_RECIPIENT}) AND NOT EXISTS ({_KNOWS_ALREADY.format(_LANE_RECIPIENT)})"
    f" GROUP BY 1 ORDER BY 4 LIMIT {MAX_NEW_INCIDENTS}"
)
# Without the recipients with an event still pending that was pending when the incident ended. A conversation with an
# incident of its own that they were notified of has its own recovery.
_RECOVERED_FOR_ALL: Final = (
    f"{_SENT} AND i.resolved_at IS NOT NULL AND i.kind <> 'conversation_blocked' AND i.mark = :mark"  # noqa: S608
    f" AND n.recipient NOT IN (SELECT {_LANE_RECIPIENT} FROM letopis_outbox_lanes l CROSS JOIN letopis_outbox_events e"
    " ON e.lane = l.lane AND e.sequence = l.delivered + 1"
    " WHERE l.owed_since IS NOT NULL AND l.delivered < l.head AND e.position <= :mark"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_incidents w JOIN letopis_outbox_notices o"
    f" ON o.incident_id = w.incident_id AND o.recipient = {_LANE_RECIPIENT} AND o.reached > 0"
    " WHERE w.kind = 'conversation_blocked' AND coalesce(w.conversation_id, '') = l.conversation_id"
    " AND w.resolved_at IS NULL))"
)
_CLAIM_NEW: Final = (
    "INSERT INTO letopis_outbox_notices (incident_id, recipient, conversation_id, owner_id, word, number, state,"
    " reached, attempts, due_at, changed_at) SELECT :incident_id, :recipient, :conversation_id, :owner_id, 'stuck',"
    " :number, 'telling', 1, 1, :now, :now"
    " WHERE EXISTS (SELECT 1 FROM letopis_outbox_incidents WHERE incident_id = :incident_id AND resolved_at IS NULL)"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_notices WHERE incident_id = :incident_id"
    " AND recipient = :recipient)"
)
_CLAIM_NEXT: Final = (
    "UPDATE letopis_outbox_notices SET word = :word, number = :number, state = 'telling', attempts = :attempts,"
    " reached = CASE WHEN :word = 'stuck' THEN max(reached, 1) ELSE reached END, changed_at = :now"
    " WHERE incident_id = :incident_id AND recipient = :recipient AND closed_at IS NULL AND word = :old_word"
    " AND number = :old_number AND state = :old_state AND attempts = :old_attempts AND changed_at = :old_changed_at"
    " AND (SELECT resolved_at IS NULL FROM letopis_outbox_incidents WHERE incident_id = :incident_id)"
    " = (:word = 'stuck')"
)
_RECORD: Final = (
    "UPDATE letopis_outbox_notices SET state = :state, reached = :reached, due_at = :due_at, changed_at = :now,"
    " closed_at = :closed_at WHERE incident_id = :incident_id AND recipient = :recipient AND word = :word"
    " AND number = :number AND attempts = :attempts AND state = 'telling'"
)
_NOTIFIED: Final = (
    "UPDATE letopis_outbox_incidents SET state = 'notified', notified_at = :now, changed_at = :now,"
    " revision = revision + 1 WHERE incident_id = :incident_id AND state = 'firing'"
)
_CLOSE: Final = (
    "UPDATE letopis_outbox_notices SET closed_at = :now WHERE closed_at IS NULL AND incident_id IN"
    " (SELECT incident_id FROM letopis_outbox_incidents WHERE resolved_at IS NOT NULL)"
    " AND ((word = 'stuck' AND state <> 'telling' AND reached = 0)"
    " OR (word = 'recovered' AND state = 'telling' AND NOT (changed_at > :stale AND changed_at <= :now)))"
)
_GLOBAL: Final = (
    f"SELECT {INCIDENT_COLUMNS} FROM letopis_outbox_incidents i"  # noqa: S608
    " WHERE i.resolved_at IS NULL AND i.kind IN ('relay_silent', 'store_down') AND i.number > 0 ORDER BY i.kind DESC"
)
_NOTIFIED_CONVERSATIONS: Final = (
    "SELECT count(*), max(n.changed_at) FROM letopis_outbox_notices n JOIN letopis_outbox_incidents i"
    " ON i.incident_id = n.incident_id WHERE n.recipient = ? AND n.closed_at IS NULL AND n.reached > 0"
    " AND i.kind = 'conversation_blocked' AND i.resolved_at IS NULL"
)


def pending_for_channel(
    connection: sa.Connection, recipient: str, *, now: datetime, longest: timedelta
) -> tuple[PendingNotification, ...]:
    """Return the notifications due to an operators' channel; reads only.

    :param longest: the longest wait between two attempts.
    """
    found = [
        _new(
            incident,
            recipient,
            conversation_id=incident.conversation_id,
            owner_id=incident.owner_id,
            since=incident.opened_at,
            events=incident.events,
        )
        for incident in map(incident_from_row, connection.exec_driver_sql(_NEW_ALERTS, (recipient,)))
    ]
    values = {"low": recipient, "high": f"{recipient}!"}
    return (*found, *_further(connection, _SENT_TO_CHANNEL, values, now=now, longest=longest, again=True))


def pending_for_users(
    connection: sa.Connection, *, now: datetime, longest: timedelta, late_before: int
) -> tuple[PendingNotification, ...]:
    """Return the notifications due to users; reads only.

    :param late_before: a user is notified of a global incident if an event of theirs up to this position is pending.
    """
    found = [
        _new(
            incident := incident_from_row(row),
            row[WIDTH],
            conversation_id=incident.conversation_id,
            owner_id=incident.owner_id,
            since=from_microseconds(row[WIDTH + 1]) if row[WIDTH + 1] else incident.opened_at,
            events=row[WIDTH + 2],
        )
        for row in connection.exec_driver_sql(_NEW_FOR_CONVERSATIONS)
    ]
    chosen: set[str] = set()  # one notification per user, also when the store is down and the relay silent
    for incident in map(incident_from_row, connection.exec_driver_sql(_GLOBAL).all() if late_before else ()):
        new = {"incident": incident.incident_id.bytes, "before": late_before}
        for recipient, conversation_id, owner_id, since, events in connection.exec_driver_sql(_NEW_FOR_ALL, new):
            if recipient not in chosen:
                chosen.add(recipient)
                moment = from_microseconds(since) if since else incident.opened_at
                found.append(
                    _new(
                        incident,
                        recipient,
                        conversation_id=conversation_id,
                        owner_id=owner_id,
                        since=moment,
                        events=events,
                    )
                )
    found.extend(_further(connection, _SENT_TO_USERS, _USERS, now=now, longest=longest, again=False))
    for mark in connection.exec_driver_sql(_ENDED_FOR_ALL).scalars().all():
        values = {**_USERS, "mark": mark}
        found.extend(_further(connection, _RECOVERED_FOR_ALL, values, now=now, longest=longest, again=False))
    return tuple(found)


def claim(
    connection: sa.Connection, pending: Iterable[PendingNotification], *, now: datetime
) -> tuple[PendingNotification, ...]:
    """Claim notifications in the caller's write transaction, and return those that this process is to send.

    The others were claimed by another process, or are no longer true.
    """
    claimed = []
    for one in pending:
        values: dict[str, Any] = {
            "incident_id": one.incident.incident_id.bytes,
            "recipient": one.recipient,
            "conversation_id": one.conversation_id,
            "owner_id": one.owner_id,
            "word": str(one.kind),
            "number": one.number,
            "attempts": one.attempts,
            "now": to_microseconds(now),
        }
        if one.previous is None:
            done = connection.exec_driver_sql(_CLAIM_NEW, values)
        else:
            values |= {
                "old_word": str(one.previous.kind),
                "old_number": one.previous.number,
                "old_state": str(one.previous.state),
                "old_attempts": one.previous.attempts,
                "old_changed_at": to_microseconds(one.previous.changed_at),
            }
            done = connection.exec_driver_sql(_CLAIM_NEXT, values)
        if done.rowcount == 1:
            claimed.append(one)
    return tuple(claimed)


def record_outcome(
    connection: sa.Connection,
    sent: Iterable[PendingNotification],
    *,
    told: bool | None,
    now: datetime,
    budget: RetryBudget,
) -> None:
    """Store what became of claimed notifications, in the caller's write transaction.

    :param told: ``None`` when that is not known: it is retried, and counts as heard.
    """
    stamp = to_microseconds(now)
    for one in sent:
        delay = None if told else budget.delay(one.attempts)
        failed = NotificationState.FAILED if delay is None else NotificationState.WAITING
        before = one.previous is not None and one.previous.reached
        connection.exec_driver_sql(
            _RECORD,
            {
                "incident_id": one.incident.incident_id.bytes,
                "recipient": one.recipient,
                "word": str(one.kind),
                "number": one.number,
                "attempts": one.attempts,
                "state": str(NotificationState.TOLD if told else failed),
                "reached": before or (one.kind is NotificationKind.STUCK and told is not False),
                "due_at": stamp if delay is None else to_microseconds(now + delay),
                "now": stamp,
                "closed_at": stamp if one.kind is NotificationKind.RECOVERED and delay is None else None,
            },
        )
        if told and one.kind is NotificationKind.STUCK:
            connection.exec_driver_sql(_NOTIFIED, {"incident_id": one.incident.incident_id.bytes, "now": stamp})


def close_unheard(connection: sa.Connection, *, now: datetime) -> int:
    """Close the notifications of resolved incidents whose recovery will not be announced; return how many.

    Their recipients were never reached, or the process died while it announced the recovery.
    """
    return connection.exec_driver_sql(
        _CLOSE, {"now": to_microseconds(now), "stale": to_microseconds(now - CLAIM_TIMEOUT)}
    ).rowcount


def notified_conversations(connection: sa.Connection, recipient: str) -> tuple[int, datetime | None]:
    """Return how many conversations that are still stuck a channel was notified of, and when last; reads only."""
    count, last = connection.exec_driver_sql(_NOTIFIED_CONVERSATIONS, (recipient,)).one()
    return count, None if last is None else from_microseconds(last)


def _new(
    incident: IncidentRecord,
    recipient: str,
    *,
    conversation_id: str | None,
    owner_id: str | None,
    since: datetime,
    events: int,
) -> PendingNotification:
    return PendingNotification(
        incident=incident,
        recipient=recipient,
        kind=NotificationKind.STUCK,
        previous=None,
        conversation_id=conversation_id,
        owner_id=owner_id,
        since=since,
        events=events,
    )


def _further(
    connection: sa.Connection,
    statement: str,
    values: dict[str, Any],
    *,
    now: datetime,
    longest: timedelta,
    again: bool,
) -> Iterator[PendingNotification]:
    """Yield a limited number of notifications to recipients that were notified before."""
    left = MAX_NEW_INCIDENTS
    with closing(connection.exec_driver_sql(statement, values)) as rows:
        for row in rows:
            incident, previous = incident_from_row(row), _notification_from_row(row[WIDTH:])
            kind = next_kind(incident, previous, now=now, longest=longest, again=again)
            if kind is None:
                continue
            yield PendingNotification(
                incident=incident,
                recipient=previous.recipient,
                kind=kind,
                previous=previous,
                conversation_id=row[WIDTH + 8],
                owner_id=row[WIDTH + 9],
                since=incident.opened_at,
                events=incident.events,
            )
            left -= 1
            if not left:
                return


def _notification_from_row(row: Any) -> Notification:
    return Notification(
        recipient=row[0],
        kind=NotificationKind(row[1]),
        number=row[2],
        state=NotificationState(row[3]),
        reached=bool(row[4]),
        attempts=row[5],
        due_at=from_microseconds(row[6]),
        changed_at=from_microseconds(row[7]),
    )

"""Decide which notification one recipient gets next about an incident, and build it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import UUID

from letopis.outbox.alerting.incidents import LATE, IncidentKind, IncidentRecord, IncidentState, fault_class
from letopis.outbox.alerting.language import Style, catalogue
from letopis.outbox.retry.policy import RetryPolicy

CLAIM_TIMEOUT: Final = timedelta(minutes=2)
"""A process that has been notifying a recipient for longer is taken for dead; the recipient is not notified again."""
NOTIFICATION_POLICY: Final = RetryPolicy(base=5.0, factor=2.0, cap=3_600.0, jitter="none", attempts=32)
"""A notification that fails is retried after 5 s, 10 s ... up to an hour, for about a day."""


class NotificationKind(StrEnum):
    STUCK = "stuck"
    RECOVERED = "recovered"


class NotificationState(StrEnum):
    SENDING = "sending"  # or its process died while it was
    RETRYING = "retrying"
    SENT = "sent"
    FAILED = "failed"  # given up


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """The last notification of one recipient about an incident, as stored, or the one that is to follow it."""

    kind: NotificationKind = NotificationKind.STUCK
    escalations: int = 0  # the incident's, as it tells
    number: int = 1  # one more for each reminder since that escalation
    state: NotificationState = NotificationState.SENDING
    told_at: datetime | None = None  # first; a call that timed out may have told
    attempts: int = 1  # this one included
    changed_at: datetime
    revision: int = 0

    @property
    def reminder(self) -> bool:
        """True if the recipient should know all of it already."""
        return self.kind is NotificationKind.STUCK and self.number > 1


class PendingNotification(NamedTuple):
    incident: IncidentRecord
    recipient: str
    notification: Notification
    conversation_id: str | None
    since: datetime
    events: int


def next_notification(
    incident: IncidentRecord, last: Notification | None, *, now: datetime, policy: RetryPolicy, repeat: timedelta | None
) -> Notification | None:
    """Return the notification that this recipient gets now, if any; a recovery only if told of the incident."""
    firing = incident.state is IncidentState.FIRING
    if last is None:
        return Notification(escalations=incident.escalations, changed_at=now) if firing else None
    age = now - last.changed_at  # below 0 if the wall clock was set back: that delays no retry
    following = replace(last, state=NotificationState.SENDING, attempts=1, changed_at=now)
    stuck, waits = last.kind is NotificationKind.STUCK, timedelta(seconds=policy.bound(last.attempts))
    if firing and repeat and last.escalations < incident.escalations:
        return replace(following, escalations=incident.escalations, number=1)
    if last.state is NotificationState.RETRYING and firing is stuck:
        return None if timedelta() <= age < waits else replace(following, attempts=last.attempts + 1)
    if firing:
        return replace(following, number=last.number + 1) if repeat and abs(age) >= repeat else None
    sending = last.state is NotificationState.SENDING and timedelta() <= age < CLAIM_TIMEOUT  # its outcome decides
    if not stuck or last.told_at is None or sending:
        return None
    return replace(following, kind=NotificationKind.RECOVERED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """The argument of ``on_stuck`` when a user's messages are stuck, and of ``on_recovered`` when no longer.

    Each call is about one recipient: ``owner_id`` is set when the conversation has an owner, otherwise
    ``conversation_id`` is the one to write to. A call that fails is repeated: a callback that must never notify twice
    compares ``key``.

    :ivar key: the same for every attempt at the same notification, and for no other.
    :ivar incident_id: the same for everything said about one incident.
    :ivar conversation_id: the conversation; of ``store_down`` and ``relay_silent`` the recipient's longest pending one.
    :ivar since: when the recipient's oldest pending event was appended; when recovered, the incident's start.
    :ivar events: the recipient's pending events.
    :ivar reason: a sentence of ours with fault class and code, no driver text; ``late`` for events pending too long.
    :ivar notified_at: when the recipient was notified of it before.
    :ivar resolved_at: when it was over.
    :ivar outcome: ``saved``, or ``skipped`` when an operator left an event out of the history; ``None`` before.
    """

    key: str
    incident_id: UUID
    kind: IncidentKind
    state: IncidentState
    conversation_id: str | None
    owner_id: str | None
    since: datetime
    events: int
    reason: str | None
    notified_at: datetime | None = None
    resolved_at: datetime | None = None
    outcome: str | None = None
    locale: str | None = None
    style: Style = "retrying"
    promise: bool = True

    @property
    def recovered(self) -> bool:
        """True once it is over."""
        return self.state is IncidentState.RESOLVED

    @property
    def needs_operator(self) -> bool:
        """True if it will not resolve without an operator."""
        if self.kind is IncidentKind.CONVERSATION_BLOCKED:
            return self.reason != LATE
        return fault_class(self.reason) != "unavailable"

    def text(self, locale: str | None = None) -> str:
        """Return what to tell the user.

        :param locale: their language as the platform gives it; without one the outbox's own. English if unknown.
        """
        gettext = catalogue(locale or self.locale).gettext
        if self.recovered and self.outcome == "skipped":
            return gettext("⚠️ The reply could not be saved: the chat history has a mark in its place.")
        if self.recovered:
            return gettext("✅ The reply is saved in the chat history.")
        if self.style == "failed":
            return gettext("⚠️ The reply could not be saved in the multichat history. Please try again later.")
        text = gettext("⚠️ The reply has not reached the chat history yet. It is kept, and I keep trying.")
        if self.needs_operator:
            text = gettext(
                "⚠️ The reply has not reached the chat history. It is kept, but an operator has to look into it."
            )
        promise = gettext("I will tell you once it is saved.")
        return f"{text} {promise}" if self.promise else text


Callback = Callable[[Incident], Awaitable[Any] | Any]  # what a bot is notified by
_SHARED: Final = ("incident_id", "kind", "state", "reason", "resolved_at", "outcome")


def build_incident(pending: PendingNotification, *, locale: str | None, style: Style, promise: bool) -> Incident:
    incident, (_, kind, name) = pending.incident, pending.recipient.split(":", 2)
    return Incident(
        **{name: getattr(incident, name) for name in _SHARED},
        key=f"{incident.incident_id}/{pending.recipient}/{pending.notification.kind}",
        conversation_id=pending.conversation_id,
        owner_id=name if kind == "owner" else None,
        since=pending.since,
        events=pending.events,
        notified_at=pending.notification.told_at,
        locale=locale,
        style=style,
        promise=promise,
    )

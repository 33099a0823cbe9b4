"""Decide which notification one recipient gets next about an incident, and build it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from letopis.outbox.alerting import texts
from letopis.outbox.alerting.incidents import LATE, IncidentKind, IncidentRecord, IncidentState, fault_class

CLAIM_TIMEOUT: Final = timedelta(minutes=2)
"""A process that has been notifying a recipient for longer is taken for dead; the recipient is not notified again."""


class NotificationKind(StrEnum):
    """What a notification announces."""

    STUCK = "stuck"
    RECOVERED = "recovered"


class NotificationState(StrEnum):
    """How far a notification has come."""

    TELLING = "telling"
    """A process is sending it, or died while it was."""
    WAITING = "waiting"
    """It failed and will be retried."""
    TOLD = "told"
    FAILED = "failed"
    """Its retry budget is spent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """How often a notification is attempted, and the seconds between; the default is about 20 minutes."""

    attempts: int = 9
    base: float = 5.0
    factor: float = 2.0
    cap: float = 600.0

    def delay(self, attempts: int) -> timedelta | None:
        """Return the wait after this many attempts, ``None`` when there is to be no other."""
        if attempts >= self.attempts:
            return None
        return timedelta(seconds=min(self.cap, self.base * self.factor ** (attempts - 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """The last notification of one recipient about an incident, as stored.

    :ivar number: the incident's alert that it was about.
    :ivar reached: True if the recipient was notified of the incident, or may have been when a call timed out.
    :ivar due_at: when a failed one is retried.
    """

    recipient: str
    kind: NotificationKind
    number: int
    state: NotificationState
    reached: bool
    attempts: int
    due_at: datetime
    changed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingNotification:
    """One thing to tell one recipient.

    :ivar previous: their last one, if any.
    :ivar since: when the recipient's oldest pending event was appended, for display.
    :ivar events: the recipient's pending events.
    """

    incident: IncidentRecord
    recipient: str
    kind: NotificationKind
    previous: Notification | None
    conversation_id: str | None
    owner_id: str | None
    since: datetime
    events: int

    @property
    def attempts(self) -> int:
        """Which attempt at this notification it is, from 1."""
        last = self.previous
        retried = (
            last is not None
            and last.state is NotificationState.WAITING
            and (last.kind, last.number) == (self.kind, self.number)
        )
        return last.attempts + 1 if last is not None and retried else 1

    @property
    def number(self) -> int:
        """Which alert it is."""
        if self.kind is NotificationKind.STUCK or self.previous is None:
            return self.incident.number
        return self.previous.number


def next_kind(
    incident: IncidentRecord, previous: Notification | None, *, now: datetime, longest: timedelta, again: bool
) -> NotificationKind | None:
    """Return which notification this recipient gets now, if any.

    A pending incident notifies no one, nothing is repeated, and a recovery is announced to exactly those who were
    notified of the incident.

    :param previous: the recipient's last notification.
    :param longest: the longest wait between two attempts, so that a clock that jumped back delays no longer.
    :param again: this recipient wants further alerts too: reminders, and that it got worse.
    """
    if incident.state is IncidentState.PENDING:
        return None
    resolved = incident.state is IncidentState.RESOLVED
    if previous is None:
        return None if resolved else NotificationKind.STUCK
    due = previous.state is NotificationState.WAITING and not now < previous.due_at <= now + longest
    if previous.kind is NotificationKind.RECOVERED:
        return NotificationKind.RECOVERED if due and resolved else None
    if not resolved:
        return NotificationKind.STUCK if due or (again and previous.number < incident.number) else None
    if previous.state is NotificationState.TELLING and previous.changed_at <= now < previous.changed_at + CLAIM_TIMEOUT:
        return None  # its outcome decides
    return NotificationKind.RECOVERED if previous.reached else None


def group_is_due(*, last: datetime | None, now: datetime, interval: timedelta) -> bool:
    """Return True if an alert about blocked conversations may go out now, and need not wait for others to join it.

    :param last: when the last one went out, if a conversation of it is still stuck.
    """
    return last is None or not last <= now < last + interval


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
    :ivar notified_at: when the first recipient was notified.
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
    style: texts.Style = "plain"
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
        return fault_class(self.reason) != "away"

    def text(self, locale: str | None = None) -> str:
        """Return what to tell the user.

        :param locale: their language as the platform gives it; without one the outbox's own. English if unknown.
        """
        language = locale or self.locale
        if self.recovered:
            return texts.user_recovered(skipped=self.outcome == "skipped", locale=language)
        return texts.user_stuck(
            needs_operator=self.needs_operator, promise=self.promise, style=self.style, locale=language
        )


Callback = Callable[[Incident], Awaitable[Any] | Any]
"""What a bot is notified by."""


def build_incident(pending: PendingNotification, *, locale: str | None, style: texts.Style, promise: bool) -> Incident:
    """Return the argument of the bot's callback.

    :param promise: the bot announces recoveries.
    """
    incident = pending.incident
    return Incident(
        key=f"{incident.incident_id}/{pending.recipient}/{pending.kind}",
        incident_id=incident.incident_id,
        kind=incident.kind,
        state=incident.state,
        conversation_id=pending.conversation_id,
        owner_id=pending.owner_id,
        since=pending.since,
        events=pending.events,
        reason=incident.reason,
        notified_at=incident.notified_at,
        resolved_at=incident.resolved_at,
        outcome=incident.outcome,
        locale=locale,
        style=style,
        promise=promise,
    )

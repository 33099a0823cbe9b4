"""Decide what one recipient is told next about an incident, and say it in an `Incident`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from letopis.outbox import texts
from letopis.outbox.incidents import LATE, Case, Kind, State, fault_class

TELLING_LIMIT: Final = timedelta(minutes=2)
"""A process that has been telling somebody for longer is taken for dead; nobody is told a second time for it."""


class Word(StrEnum):
    """What is said."""

    STUCK = "stuck"
    RECOVERED = "recovered"


class Telling(StrEnum):
    """How far a notice has come."""

    TELLING = "telling"
    """A process is at it, or died at it."""
    WAITING = "waiting"
    """It failed and is tried again."""
    TOLD = "told"
    FAILED = "failed"
    """It failed too often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How often telling somebody is tried, and how long between; in seconds. The default is about 20 minutes."""

    attempts: int = 9
    base: float = 5.0
    factor: float = 2.0
    cap: float = 600.0

    def delay(self, attempts: int) -> timedelta | None:
        """Return the wait after so many attempts, ``None`` when there is to be no other."""
        if attempts >= self.attempts:
            return None
        return timedelta(seconds=min(self.cap, self.base * self.factor ** (attempts - 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What one recipient was told about an incident, as it is kept.

    :ivar reached: 0 no, 1 perhaps (who told it died, or the call timed out), 2 yes; about ``stuck``.
    :ivar due_at: when a failed one is tried again.
    """

    recipient: str
    word: Word
    number: int
    state: Telling
    reached: int
    attempts: int
    due_at: datetime
    changed_at: datetime


def next_word(case: Case, given: Notice | None, *, now: datetime, longest: timedelta, again: bool) -> Word | None:
    """Return what this recipient is to be told now, if anything.

    Nobody is told of a pending incident; nobody is told the same thing twice; and of the end hears who heard of it.

    :param given: what the recipient was told so far.
    :param longest: the longest wait between two attempts, so that a clock that jumped back delays no longer.
    :param again: this recipient wants the further alerts too: reminders, and that it got worse.
    """
    if case.state is State.PENDING:
        return None
    open_ = case.state is not State.RESOLVED
    if given is None:
        return Word.STUCK if open_ else None
    due = given.state is Telling.WAITING and not now < given.due_at <= now + longest
    if given.word is Word.RECOVERED:
        return Word.RECOVERED if due and not open_ else None
    if open_:
        return Word.STUCK if due or (again and given.number < case.number) else None
    if given.state is Telling.TELLING and given.changed_at <= now < given.changed_at + TELLING_LIMIT:
        return None  # its outcome decides
    return Word.RECOVERED if given.reached else None


def group_is_due(
    *, told: int, due: int, last: datetime | None, now: datetime, interval: timedelta, growth: int
) -> bool:
    """Say whether one alert about ``due`` more conversations goes out now, or waits for others to join it.

    :param told: conversations that the last ones were about and that are still stuck.
    :param last: when the last one went out.
    """
    if not due:
        return False
    if not told or last is None or told + due >= growth * told:
        return True
    return not last <= now < last + interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """What a bot is told about one user: ``on_stuck`` when their messages are stuck, ``on_recovered`` when no longer.

    Each call is about one recipient: ``owner_id`` is set when the conversation has an owner, else ``conversation_id``
    is the one to turn to. A call that fails is made again, so a callback that must never say a thing twice compares
    ``key``.

    :ivar key: the same for every attempt at the same notice, and for no other.
    :ivar incident_id: the same for all that is said about one incident.
    :ivar conversation_id: the conversation; of ``store_down`` and ``relay_silent`` the recipient's longest owed one.
    :ivar since: when the oldest of the recipient's owed events was appended; when recovered, the incident's start.
    :ivar events: how many of the recipient's events are owed now.
    :ivar reason: a sentence of ours with fault class and code, no driver text; ``late`` for what is owed for too long.
    :ivar notified_at: when the first person was told of the incident.
    :ivar resolved_at: when it was over.
    :ivar outcome: ``saved``, or ``skipped`` when an operator left an event out of the history; ``None`` before.
    """

    key: str
    incident_id: UUID
    kind: Kind
    state: State
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
        """Whether it is over."""
        return self.state is State.RESOLVED

    @property
    def needs_person(self) -> bool:
        """Whether it will not mend itself."""
        if self.kind is Kind.CONVERSATION_BLOCKED:
            return self.reason != LATE
        return fault_class(self.reason) != "away"

    def text(self, locale: str | None = None) -> str:
        """Return what to say to the user.

        :param locale: their language as the platform gives it; without one the outbox's own. English if unknown.
        """
        language = locale or self.locale
        if self.recovered:
            return texts.user_recovered(skipped=self.outcome == "skipped", locale=language)
        return texts.user_stuck(needs_person=self.needs_person, promise=self.promise, style=self.style, locale=language)


def incident_of(
    case: Case,
    *,
    recipient: str,
    word: Word,
    conversation_id: str | None,
    owner_id: str | None,
    since: datetime,
    events: int,
    locale: str | None,
    style: texts.Style,
    promise: bool,
) -> Incident:
    """Return what a recipient is told about a case."""
    return Incident(
        key=f"{case.incident_id}/{recipient}/{word}",
        incident_id=case.incident_id,
        kind=case.kind,
        state=case.state,
        conversation_id=conversation_id,
        owner_id=owner_id,
        since=since,
        events=events,
        reason=case.reason,
        notified_at=case.notified_at,
        resolved_at=case.resolved_at,
        outcome=case.outcome,
        locale=locale,
        style=style,
        promise=promise,
    )

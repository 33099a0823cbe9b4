"""Keep who was told what in the outbox file, so that a restart or a second process tells nobody twice.

Whoever tells somebody claims it first, in a transaction of its own: a process that dies in the middle has perhaps told
them, and that is how it is kept. The price is that such a notice may be lost; an operator's is repeated within the
hour. These are functions for `OutboxFile.read` and `OutboxFile.write`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox.incident_log import CASE_COLUMNS, MOST, case_of
from letopis.outbox.incidents import Case
from letopis.outbox.notices import TELLING_LIMIT, Budget, Notice, Telling, Word, next_word
from letopis.store.events import from_microseconds, to_microseconds

_WIDTH: Final = 19  # of CASE_COLUMNS
_NOTICE: Final = (
    "n.recipient, n.word, n.number, n.state, n.reached, n.attempts, n.due_at, n.changed_at, n.conversation_id,"
    " n.owner_id"
)
# The one a conversation's notice goes to: its owner, and without one the conversation itself.
_RECIPIENT: Final = (
    "CASE WHEN {0}.owner_id IS NULL THEN 'user:conversation:' || {0}.conversation_id"
    " ELSE 'user:owner:' || {0}.owner_id END"
)
_LANE_RECIPIENT: Final = _RECIPIENT.format("l")
_CASE_RECIPIENT: Final = _RECIPIENT.format("i")
# Told of an incident that is about everything, and not yet of its end: then one more word would be one too many.
_TOLD_OF_ALL: Final = (
    "SELECT 1 FROM letopis_outbox_notices o JOIN letopis_outbox_incidents w ON w.incident_id = o.incident_id"
    " WHERE o.recipient = {0} AND o.closed_at IS NULL AND w.kind <> 'conversation_blocked'"
)
_NEW_ALERTS: Final = (
    f"SELECT {CASE_COLUMNS} FROM letopis_outbox_incidents i WHERE i.resolved_at IS NULL AND i.number > 0"  # noqa: S608
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_notices n WHERE n.incident_id = i.incident_id AND n.recipient = ?)"
    f" ORDER BY i.kind = 'conversation_blocked', i.opened_at LIMIT {MOST}"
)
_GIVEN: Final = (
    f"SELECT {CASE_COLUMNS}, {_NOTICE} FROM letopis_outbox_notices n"  # noqa: S608
    " JOIN letopis_outbox_incidents i ON i.incident_id = n.incident_id"
    " WHERE n.closed_at IS NULL AND n.recipient >= :low AND n.recipient < :high"
)
# Of an alert that was given and is not over there is something to say when it is due again or there is a further one:
# all others, which may be many, are left where they are.
_GIVEN_TO_CHANNEL: Final = f"{_GIVEN} AND (i.resolved_at IS NOT NULL OR n.state = 'waiting' OR n.number < i.number)"
_GIVEN_TO_USERS: Final = (
    f"{_GIVEN} AND CASE WHEN i.resolved_at IS NULL THEN n.state = 'waiting' ELSE i.kind = 'conversation_blocked' END"
)
_ENDED_FOR_ALL: Final = (
    "SELECT DISTINCT i.mark FROM letopis_outbox_notices n JOIN letopis_outbox_incidents i"
    " ON i.incident_id = n.incident_id WHERE n.closed_at IS NULL AND n.recipient >= 'user:' AND n.recipient < 'user;'"
    " AND i.resolved_at IS NOT NULL AND i.kind <> 'conversation_blocked'"
)
_NEW_OF_LANES: Final = (
    f"SELECT {CASE_COLUMNS}, {_CASE_RECIPIENT}, l.owed_since, l.head - l.delivered"  # noqa: S608
    " FROM letopis_outbox_incidents i JOIN letopis_outbox_lanes l ON l.conversation_id = i.conversation_id"
    " WHERE i.resolved_at IS NULL AND i.number > 0 AND i.kind = 'conversation_blocked'"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_notices n WHERE n.incident_id = i.incident_id"
    f" AND n.recipient >= 'user:' AND n.recipient < 'user;') AND NOT EXISTS ({_TOLD_OF_ALL.format(_CASE_RECIPIENT)})"
    f" ORDER BY i.opened_at LIMIT {MOST}"
)
_NEW_OF_ALL: Final = (
    f"SELECT {_LANE_RECIPIENT}, l.conversation_id, l.owner_id, min(l.owed_since), sum(l.head - l.delivered)"  # noqa: S608
    " FROM letopis_outbox_lanes l JOIN letopis_outbox_events e"
    " ON e.conversation_id = l.conversation_id AND e.sequence = l.delivered + 1"
    " WHERE l.delivered < l.head AND l.state IN ('ready', 'retrying') AND e.position <= :before"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_notices n WHERE n.incident_id = :incident"
    f" AND n.recipient = {_LANE_RECIPIENT}) AND NOT EXISTS ({_TOLD_OF_ALL.format(_LANE_RECIPIENT)})"
    f" GROUP BY 1 ORDER BY 4 LIMIT {MOST}"
)
# Without the recipients of whom something is still owed that was owed when the incident ended. A conversation that has
# an incident of its own of which they were told will have an end of its own.
_SAVED_AFTER_ALL: Final = (
    f"{_GIVEN} AND i.resolved_at IS NOT NULL AND i.kind <> 'conversation_blocked' AND i.mark = :mark"  # noqa: S608
    f" AND n.recipient NOT IN (SELECT {_LANE_RECIPIENT} FROM letopis_outbox_lanes l JOIN letopis_outbox_events e"
    " ON e.conversation_id = l.conversation_id AND e.sequence = l.delivered + 1"
    " WHERE l.delivered < l.head AND e.position <= :mark"
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
_SETTLE: Final = (
    "UPDATE letopis_outbox_notices SET state = :state, reached = :reached, due_at = :due_at, changed_at = :now,"
    " closed_at = :closed_at WHERE incident_id = :incident_id AND recipient = :recipient AND word = :word"
    " AND number = :number AND attempts = :attempts AND state = 'telling'"
)
_NOTIFIED: Final = (
    "UPDATE letopis_outbox_incidents SET state = 'notified', notified_at = :now, changed_at = :now,"
    " revision = revision + 1 WHERE incident_id = :incident_id AND state = 'firing'"
)
_CLOSABLE: Final = (
    " closed_at IS NULL AND recipient >= :low AND recipient < :high"
    " AND EXISTS (SELECT 1 FROM letopis_outbox_incidents i"
    " WHERE i.incident_id = letopis_outbox_notices.incident_id AND i.resolved_at IS NOT NULL)"
    # Never heard of it; or the process died while it told the end; or there is nobody here who tells ends.
    " AND ((word = 'stuck' AND state <> 'telling' AND (reached = 0 OR :mute))"
    " OR (state = 'telling' AND (word = 'recovered' OR :mute) AND NOT (changed_at > :stale AND changed_at <= :now)))"
)
_CLOSE: Final = f"UPDATE letopis_outbox_notices SET closed_at = :now WHERE{_CLOSABLE}"  # noqa: S608
_ANY_TO_CLOSE: Final = f"SELECT EXISTS (SELECT 1 FROM letopis_outbox_notices WHERE{_CLOSABLE})"  # noqa: S608


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """One thing to tell one recipient.

    :ivar given: what they were told so far.
    :ivar since: when the recipient's oldest owed event was appended; for people.
    :ivar events: what is owed to them.
    """

    case: Case
    recipient: str
    word: Word
    given: Notice | None
    conversation_id: str | None
    owner_id: str | None
    since: datetime
    events: int

    @property
    def attempts(self) -> int:
        """Which attempt at this word it is, from 1."""
        given = self.given
        if (
            given is None
            or given.state is not Telling.WAITING
            or (given.word, given.number) != (self.word, self.number)
        ):
            return 1
        return given.attempts + 1

    @property
    def number(self) -> int:
        """Which alert it is."""
        return self.case.number if self.word is Word.STUCK or self.given is None else self.given.number


def channel_errands(
    connection: sa.Connection, recipient: str, *, now: datetime, longest: timedelta
) -> tuple[Errand, ...]:
    """Return what an operators' channel is to be told; reads only.

    :param longest: the longest wait between two attempts.
    """
    found = [
        Errand(
            case=case,
            recipient=recipient,
            word=Word.STUCK,
            given=None,
            conversation_id=case.conversation_id,
            owner_id=case.owner_id,
            since=case.opened_at,
            events=case.events,
        )
        for case in map(case_of, connection.exec_driver_sql(_NEW_ALERTS, (recipient,)))
    ]
    values = {"low": recipient, "high": f"{recipient}!"}
    return (*found, *_further(connection, _GIVEN_TO_CHANNEL, values, now=now, longest=longest, again=True))


def user_errands(
    connection: sa.Connection, *, now: datetime, longest: timedelta, late_before: int
) -> tuple[Errand, ...]:
    """Return what users are to be told; reads only.

    :param late_before: of an incident that is about everything hears who is owed something up to this position.
    """
    found = [
        Errand(
            case=(case := case_of(row)),
            recipient=row[_WIDTH],
            word=Word.STUCK,
            given=None,
            conversation_id=case.conversation_id,
            owner_id=case.owner_id,
            since=from_microseconds(row[_WIDTH + 1] or row[14]),
            events=row[_WIDTH + 2],
        )
        for row in connection.exec_driver_sql(_NEW_OF_LANES)
    ]
    wide = connection.exec_driver_sql(
        f"SELECT {CASE_COLUMNS} FROM letopis_outbox_incidents i"  # noqa: S608  # names of our own
        " WHERE i.resolved_at IS NULL AND i.kind <> 'conversation_blocked' AND i.number > 0 ORDER BY i.kind DESC"
    ).all()
    chosen: set[str] = set()  # one word a user, also when the store is down and the relay silent
    for case in map(case_of, wide if late_before else ()):
        new = {"incident": case.incident_id.bytes, "before": late_before}
        for recipient, conversation_id, owner_id, since, events in connection.exec_driver_sql(_NEW_OF_ALL, new):
            if recipient in chosen:
                continue
            chosen.add(recipient)
            found.append(
                Errand(
                    case=case,
                    recipient=recipient,
                    word=Word.STUCK,
                    given=None,
                    conversation_id=conversation_id,
                    owner_id=owner_id,
                    since=from_microseconds(since or to_microseconds(case.opened_at)),
                    events=events,
                )
            )
    users = {"low": "user:", "high": "user;"}
    found.extend(_further(connection, _GIVEN_TO_USERS, users, now=now, longest=longest, again=False))
    for mark in connection.exec_driver_sql(_ENDED_FOR_ALL).scalars().all():
        values = {**users, "mark": mark}
        found.extend(_further(connection, _SAVED_AFTER_ALL, values, now=now, longest=longest, again=False))
    return tuple(found)


def claim(connection: sa.Connection, errands: Iterable[Errand], *, now: datetime) -> tuple[Errand, ...]:
    """Claim errands in the caller's write transaction, and return those that are this process's to run.

    The others were claimed by another process, or are no longer true.
    """
    mine = []
    for errand in errands:
        values: dict[str, Any] = {
            "incident_id": errand.case.incident_id.bytes,
            "recipient": errand.recipient,
            "conversation_id": errand.conversation_id,
            "owner_id": errand.owner_id,
            "word": str(errand.word),
            "number": errand.number,
            "attempts": errand.attempts,
            "now": to_microseconds(now),
        }
        if errand.given is None:
            done = connection.exec_driver_sql(_CLAIM_NEW, values)
        else:
            values |= {
                "old_word": str(errand.given.word),
                "old_number": errand.given.number,
                "old_state": str(errand.given.state),
                "old_attempts": errand.given.attempts,
                "old_changed_at": to_microseconds(errand.given.changed_at),
            }
            done = connection.exec_driver_sql(_CLAIM_NEXT, values)
        if done.rowcount == 1:
            mine.append(errand)
    return tuple(mine)


def settle(
    connection: sa.Connection, errands: Iterable[Errand], *, told: bool | None, now: datetime, budget: Budget
) -> None:
    """Keep what became of claimed errands, in the caller's write transaction.

    :param told: ``None`` when that is not known: it is tried again, and counts as heard.
    """
    for errand in errands:
        before = errand.given.reached if errand.given is not None else 0
        delay = None if told else budget.delay(errand.attempts)
        state = Telling.TOLD if told else Telling.FAILED if delay is None else Telling.WAITING
        reached = before
        if errand.word is Word.STUCK:
            reached = 2 if told else max(before, 1) if told is None else before
        stamp = to_microseconds(now)
        connection.exec_driver_sql(
            _SETTLE,
            {
                "incident_id": errand.case.incident_id.bytes,
                "recipient": errand.recipient,
                "word": str(errand.word),
                "number": errand.number,
                "attempts": errand.attempts,
                "state": str(state),
                "reached": reached,
                "due_at": stamp if delay is None else to_microseconds(now + delay),
                "now": stamp,
                "closed_at": stamp if errand.word is Word.RECOVERED and delay is None else None,
            },
        )
        if told and errand.word is Word.STUCK:
            connection.exec_driver_sql(_NOTIFIED, {"incident_id": errand.case.incident_id.bytes, "now": stamp})


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """Which notices of incidents that are over are to be closed, since nothing is left to say.

    :ivar recipient: a channel; ``None`` for all users.
    :ivar mute: nobody is told of an end here, so the notices of those who heard of the beginning are closed too.
    """

    recipient: str | None
    mute: bool
    now: datetime

    def is_due(self, connection: sa.Connection) -> bool:
        """Say whether there are any; reads only."""
        return bool(connection.exec_driver_sql(_ANY_TO_CLOSE, self._values()).scalar_one())

    def run(self, connection: sa.Connection) -> int:
        """Close them, in the caller's write transaction; return how many."""
        return connection.exec_driver_sql(_CLOSE, self._values()).rowcount

    def _values(self) -> dict[str, Any]:
        return {
            "low": self.recipient or "user:",
            "high": "user;" if self.recipient is None else f"{self.recipient}!",
            "mute": self.mute,
            "now": to_microseconds(self.now),
            "stale": to_microseconds(self.now - TELLING_LIMIT),
        }


def group_of(connection: sa.Connection, recipient: str) -> tuple[int, datetime | None]:
    """Return of how many conversations that are still stuck a channel was told, and when last; reads only."""
    told, last = connection.exec_driver_sql(
        "SELECT count(*), max(n.changed_at) FROM letopis_outbox_notices n JOIN letopis_outbox_incidents i"
        " ON i.incident_id = n.incident_id WHERE n.recipient = ? AND n.closed_at IS NULL AND n.reached > 0"
        " AND i.kind = 'conversation_blocked' AND i.resolved_at IS NULL",
        (recipient,),
    ).one()
    return told, None if last is None else from_microseconds(last)


def _further(
    connection: sa.Connection,
    statement: str,
    values: dict[str, Any],
    *,
    now: datetime,
    longest: timedelta,
    again: bool,
) -> Iterator[Errand]:
    """Yield what is to be told to those who were told something before, a limited number of them."""
    left = MOST
    with closing(connection.exec_driver_sql(statement, values)) as rows:
        for row in rows:
            case, given = case_of(row), _notice_of(row[_WIDTH:])
            word = next_word(case, given, now=now, longest=longest, again=again)
            if word is None:
                continue
            yield Errand(
                case=case,
                recipient=given.recipient,
                word=word,
                given=given,
                conversation_id=row[_WIDTH + 8],
                owner_id=row[_WIDTH + 9],
                since=case.opened_at,
                events=case.events,
            )
            left -= 1
            if not left:
                return


def _notice_of(row: Any) -> Notice:
    return Notice(
        recipient=row[0],
        word=Word(row[1]),
        number=row[2],
        state=Telling(row[3]),
        reached=row[4],
        attempts=row[5],
        due_at=from_microseconds(row[6]),
        changed_at=from_microseconds(row[7]),
    )

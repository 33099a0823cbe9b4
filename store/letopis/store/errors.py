"""Define the errors of Letopis: each is one situation, with its data and the next step.

::

    LetopisError
     +-- CallerError                        the caller's mistake: the same request is refused again
     |    +-- InvalidInput (also a ValueError)   a value cannot be stored; nothing was written
     |    |    +-- IdReused                 the id belongs to another event; nothing was written
     |    +-- VersionConflict               another writer was first; nothing was written, or it was set aside
     |    +-- RecordConflict                a record is not as a change expects it; nothing was written
     |    +-- ConversationGone              the conversation was deleted; nothing was written
     |    +-- Held                          a hold forbids the erasure; nothing was erased
     +-- ConfigurationError                 a URL, a file or an option is wrong; exit code 78
     +-- NotSaved                           written, but the history store has not said yet whether it stands
     +-- BatchRefused                       a delivery contradicts what the history store holds
     |    +-- SequenceGap                   events before it are missing; the relay rewinds
     |    +-- HistoryDiverged               the same place or id holds other content
     |    +-- OriginSuperseded              a newer copy of this outbox file has taken over
     +-- ErasuresPending                    the outbox has erasures to carry out before it delivers
     +-- OutboxFull                         the outbox refuses new events; nothing was dropped
     +-- OutboxUnavailable                  the local file cannot be read or written
     +-- StoreUnavailable                   the history store is unreachable, and only it can answer
     +-- ReadTimeout                        the history store took too long to answer
     +-- SendRefused                        raised by a bot's ``sender``: the reply can never be sent
     +-- Closed                             used after close
     +-- MoveFailed                         a move to another history store cannot continue; run it again
     +-- faults.StoreFault                  the history store failed, with the class of failure
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final
from uuid import UUID

# A URL, also one that lost a slash to path handling; but not a file's, the example in an error, or a bare `name://`.
# Everything before the last `@` may be a password, whatever characters are in it.
_URL: Final = re.compile(
    r"\b(?!(?:sqlite|file)(?::|%3A))[A-Za-z][A-Za-z0-9+.-]+(?::|%3A)(?:/|%2F){1,3}"
    r"(?!user@host)(?=[^\s/,;:.)'\"])(?:(?:(?!user@host).)*(?:@|%40))?[^\s'\"]*",
    re.DOTALL | re.IGNORECASE,
)
_DATABASE: Final = re.compile(r"(?:postgres(?:ql)?|mysql|mariadb)(?:\+[a-z0-9]+)?://", re.IGNORECASE)
_PASSWORD: Final = re.compile(r"\b(pass(?:word|wd)?|pwd|token|secret)(=|%3D)[^\s'\"&]+", re.IGNORECASE)


def without_credentials(text: str) -> str:
    """Return a message without anything in it that looks like a URL with a password.

    A URL gets into a message if a user gave it in place of something else, for example of a path.
    """
    if "=" in text or "%3" in text:
        text = _PASSWORD.sub(r"\1\2***", text)
    return _URL.sub(_hidden, text) if "/" in text or "%2" in text else text


def _hidden(found: re.Match[str]) -> str:
    url = found.group()
    login, at, _ = url.replace("%40", "@").rpartition("@")
    login = login.partition("://")[2].replace("%3A", ":").replace("%3a", ":")
    # A database URL is shown if it has no password or a masked one.
    bare = not at or ("@" not in login and (":" not in login or login.endswith(":***")))
    return url if bare and _DATABASE.match(url) is not None else "<a URL, not shown here>"


class LetopisError(Exception):
    """The root: every error that Letopis raises on purpose is one of these."""


class CallerError(LetopisError):
    """The request cannot be met as it is: made again without a change, it is refused again."""


class InvalidInput(CallerError, ValueError):
    """A value cannot be stored in every store; nothing was written.

    :ivar field: the path of the value, for example ``data.metadata.score``.
    :ivar reason: what is wrong and what to do, in one sentence without the value itself.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class ConfigurationError(LetopisError):
    """A URL, a file or an option is wrong; the message says what and how to fix it, and quotes no URL."""

    def __init__(self, message: str = "") -> None:
        super().__init__(without_credentials(message))


class Reuse(StrEnum):
    """Why a used id cannot be appended again."""

    OTHER_CONTENT = "other content"
    ERASED = "erased"
    """Its content was redacted or reset: it cannot be compared, and must not come back."""


_REUSED = {
    Reuse.OTHER_CONTENT: "already holds other content: use a new id, or append an edit",
    Reuse.ERASED: "belongs to a message whose content was erased, and is never used again: use a new id",
}


class IdReused(InvalidInput):
    """An event or message id was used before, for something else or for what was erased; nothing was written.

    Appending the *same* content under the same id is no error: it returns the first receipt, whatever has happened to
    the message since. A web service answers 409.

    :ivar reuse: what it clashes with: other content, or what was erased.
    """

    def __init__(
        self,
        *,
        conversation_id: str,
        event_id: UUID,
        message_id: str | None = None,
        reuse: Reuse = Reuse.OTHER_CONTENT,
    ) -> None:
        field, value = ("event_id", str(event_id)) if message_id is None else ("message_id", message_id)
        super().__init__(field, f"{value!r} {_REUSED[reuse]}")
        self.conversation_id = conversation_id
        self.event_id = event_id
        self.message_id = message_id
        self.reuse = reuse


class VersionConflict(CallerError):
    """The conversation has changed since the caller read it; nothing was written, unless ``set_aside`` says otherwise.

    :ivar expected: the sequence of the last event in this outbox that the caller had seen, 0 for none.
    :ivar actual: the sequence of an event that the caller had not seen: read the conversation again, then decide.
    :ivar in_store: with ``in_store=True``, True if the history store found an event of another outbox: ``expected``
        and ``actual`` are versions then.
    :ivar set_aside: True if the other outbox was first by moments, so that the append was written, and set aside.
    """

    def __init__(
        self, *, conversation_id: str, expected: int, actual: int, in_store: bool = False, set_aside: bool = False
    ) -> None:
        where = "the history store" if in_store else "this outbox"
        unit = "version" if in_store else "sequence"
        kept = "; the append was kept, and set aside" if set_aside else ""
        super().__init__(
            f"the conversation is at {unit} {actual} of {where}, not {expected}: read it again, then decide{kept}"
        )
        self.conversation_id = conversation_id
        self.expected = expected
        self.actual = actual
        self.in_store = in_store
        self.set_aside = set_aside


class NotSaved(LetopisError):
    """An append was to be in the history store, and is not yet: it is written, and may still be set aside.

    Appending the same again, with the same ids, waits for the answer once more.

    :ivar event_ids: the events, which are safe in the outbox.
    """

    def __init__(self, *, conversation_id: str, event_ids: tuple[UUID, ...]) -> None:
        super().__init__(
            "the append is safe in the outbox, but not yet in the history store: append the same again to"
            " wait for the answer, or see the status of the relay"
        )
        self.conversation_id = conversation_id
        self.event_ids = event_ids


class RecordConflict(CallerError):
    """A record is not as a change expects it; nothing was written.

    :ivar expected: the revision that was expected; ``None`` if there should have been no record.
    :ivar actual: the revision that the record has, as far as this outbox knows; ``None`` if there is no record.
    """

    def __init__(self, *, expected: UUID | None, actual: UUID | None) -> None:
        wanted = "absent" if expected is None else f"at revision {expected}"
        present = "there is none" if actual is None else f"it is at {actual}"
        super().__init__(f"the record should be {wanted}, and {present}: read it again and retry")
        self.expected = expected
        self.actual = actual


class ConversationGone(CallerError):
    """The conversation was deleted, and its id is never used again; nothing was written."""

    def __init__(self, *, conversation_id: str) -> None:
        super().__init__("the conversation was deleted: begin a new one, under another id")
        self.conversation_id = conversation_id


class BatchRefused(LetopisError):
    """A delivery contradicts what the history store holds for this lane; none of it was written."""

    def __init__(self, message: str, *, conversation_id: str) -> None:
        super().__init__(message)
        self.conversation_id = conversation_id


class SequenceGap(BatchRefused):
    """The history store lacks events that come before the delivered ones: send again from ``head + 1``.

    Occurs when the history store was restored from an older backup.
    """

    def __init__(self, *, conversation_id: str, head: int, first: int) -> None:
        super().__init__(
            f"the history store holds this lane up to sequence {head}, but {first} was delivered: rewind to {head + 1}",
            conversation_id=conversation_id,
        )
        self.head = head
        self.first = first


class HistoryDiverged(BatchRefused):
    """The history store holds other content under the same sequence or the same event id.

    Occurs when a copied or restored outbox file is used under its old identity, or when an id whose content was erased
    is used again through another outbox. Never retried automatically.

    :ivar erased: True if the history store erased the content of this id, so that it cannot be compared.
    """

    def __init__(self, *, conversation_id: str, sequence: int, event_id: UUID, erased: bool = False) -> None:
        if erased:
            what = (
                "has an id whose content was erased in the history store, and such an id is never used again: skip the "
                "event with `letopis outbox skip`; to say it again, append it under a new id"
            )
        else:
            what = (
                "differs from what the history store already holds: compare the two; `letopis outbox` can fix the "
                "event, put its original back, or skip it; give a copied file that stays in use a new identity with "
                "`letopis init --new-origin`"
            )
        super().__init__(f"sequence {sequence} (event {event_id}) {what}", conversation_id=conversation_id)
        self.sequence = sequence
        self.event_id = event_id
        self.erased = erased


class OriginSuperseded(LetopisError):
    """A newer copy of this outbox file delivers under the same identity; this one must not.

    Nothing is lost: pending events stay pending until an operator decides.
    """

    def __init__(self, *, origin_id: UUID, epoch: int, current: int) -> None:
        super().__init__(
            f"outbox {origin_id} is at epoch {epoch}, but a copy of the file already delivers at epoch {current}: "
            "stop one of the two; to keep both, give this one a new identity with `letopis init --new-origin`"
        )
        self.origin_id = origin_id
        self.epoch = epoch
        self.current = current


class ErasuresPending(LetopisError):
    """The history store records other erasures than this outbox has carried out; nothing of the delivery was written.

    The relay carries out in the file what it lacks, and delivers again.

    :ivar carried_out: the number of the last erasure that was.
    :ivar last: the number of the last one that the store records.
    """

    def __init__(self, *, carried_out: int, last: int) -> None:
        super().__init__(
            f"the last erasure of the history store is {last}, and the last that this outbox has compared with it is"
            f" {carried_out}: its relay carries out what it lacks, then delivers"
        )
        self.carried_out = carried_out
        self.last = last


class Held(CallerError):
    """A hold on the conversation, or on its owner, forbids the erasure; nothing was erased.

    :ivar kind: what is held, ``owner`` or ``conversation``.
    :ivar subject: the id of the owner or the conversation.
    :ivar reason: why it is held.
    """

    def __init__(self, *, kind: str, subject: str, reason: str) -> None:
        super().__init__(
            f"{kind} {subject!r} is on hold, so nothing of it is erased: {reason}; an operator releases it with"
            " `letopis history hold --release`"
        )
        self.kind = kind
        self.subject = subject
        self.reason = reason


class OutboxFull(LetopisError):
    """The outbox is at its limit and refuses new events; no event was dropped, and deliveries continue."""


class OutboxUnavailable(LetopisError):
    """The outbox file cannot be read or written; look up the event id to learn if the last commit took effect."""


class MoveFailed(LetopisError):
    """A move to another history store cannot continue; nothing is lost, and running it again resumes it.

    The message says why: the copy does not read back as it was written, an event of the source is damaged, or another
    run has taken over.
    """


class StoreUnavailable(LetopisError):
    """The history store is unreachable, and what the outbox holds does not suffice; nothing was written."""

    def __init__(self, missing: str) -> None:
        super().__init__(
            f"the history store is unreachable, and the outbox does not hold {missing}: try again once it is back"
        )


class ReadTimeout(LetopisError):
    """The history store took too long for a read that only it can answer; other reads are not affected."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}: give the read more time with timeout=, or ask for less")


class SendRefused(LetopisError):
    """Raised by the ``sender`` of a history: the platform will never accept this reply, so it is given up.

    Its text becomes the reason of the failure in the history and in the log: quote no message in it.
    """


class Closed(LetopisError):
    """The object was used after it was closed."""

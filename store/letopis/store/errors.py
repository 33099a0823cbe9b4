"""The errors of Letopis: each one situation, with its data and the next step.

::

    LetopisError
     +-- InvalidInput (also a ValueError)   what was given cannot be kept; nothing was written
     +-- ConfigurationError                 a URL, a file or an option is wrong; exit code 78
     +-- EventIdReused                      the id is taken by other content; nothing was written
     +-- VersionConflict                    somebody else was first; nothing was written
     +-- ConversationGone                   the conversation was deleted; nothing was written
     +-- BatchRefused                       a delivery contradicts what the history store holds
     |    +-- SequenceGap                   events before it are missing; the relay rewinds
     |    +-- HistoryDiverged               the same place or id holds other content
     |    +-- OriginSuperseded              a newer copy of this outbox file has taken over
     +-- OutboxFull                         the outbox refuses new events; nothing was dropped
     +-- OutboxUnavailable                  the local file cannot be read or written
     +-- Closed                             used after close
     +-- faults.StoreFault                  the history store failed, with the class of failure
"""

from __future__ import annotations

from uuid import UUID


class LetopisError(Exception):
    """The root: every error that Letopis raises on purpose is one of these."""


class InvalidInput(LetopisError, ValueError):
    """What was given cannot be kept in every store; nothing was written.

    :ivar field: the place of the fault as a path, for example ``data.metadata.score``.
    :ivar reason: what is wrong there and what to do, one sentence without the value itself.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class ConfigurationError(LetopisError):
    """A URL, a file or an option is wrong; the message says what and how to mend it."""


class EventIdReused(LetopisError):
    """An event or message id is already taken by other content; nothing was written.

    Appending the *same* content under the same id again is no error: it returns the first receipt.
    """

    def __init__(self, *, conversation_id: str, event_id: UUID, message_id: str | None = None) -> None:
        what = f"message id {message_id!r}" if message_id is not None else f"event id {event_id}"
        super().__init__(f"{what} already holds other content: use a new id, or append an edit")
        self.conversation_id = conversation_id
        self.event_id = event_id
        self.message_id = message_id


class VersionConflict(LetopisError):
    """The conversation has moved on since the caller read it; nothing was written.

    :ivar expected: the sequence of the last event in this outbox that the caller had seen, 0 for none.
    :ivar actual: the sequence of the event that the caller had not seen: read the conversation again, then decide.
    """

    def __init__(self, *, conversation_id: str, expected: int, actual: int) -> None:
        super().__init__(
            f"the conversation is at sequence {actual} of this outbox, not {expected}: read it again and decide anew"
        )
        self.conversation_id = conversation_id
        self.expected = expected
        self.actual = actual


class ConversationGone(LetopisError):
    """The conversation was deleted, and its id is never used again; nothing was written."""

    def __init__(self, *, conversation_id: str) -> None:
        super().__init__("the conversation was deleted: begin a new one, under another id")
        self.conversation_id = conversation_id


class BatchRefused(LetopisError):
    """A delivery contradicts what the history store holds for this lane; nothing of it was written."""

    def __init__(self, message: str, *, conversation_id: str) -> None:
        super().__init__(message)
        self.conversation_id = conversation_id


class SequenceGap(BatchRefused):
    """The history store lacks events that come before the delivered ones: send again from ``head + 1``.

    Met when the history store was restored from an older backup.
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

    Met when a copied or restored outbox file went on under its old identity. Never retried by itself.
    """

    def __init__(self, *, conversation_id: str, sequence: int, event_id: UUID) -> None:
        super().__init__(
            f"sequence {sequence} (event {event_id}) differs from what the history store already holds: "
            "compare the two; `letopis outbox` can fix the event, put its original back, or skip it, and a copied file "
            "that is to live on gets a name of its own with `letopis init --new-origin`",
            conversation_id=conversation_id,
        )
        self.sequence = sequence
        self.event_id = event_id


class OriginSuperseded(LetopisError):
    """A newer copy of this outbox file delivers under the same identity; this one must not.

    Nothing is lost: what is pending stays pending until a person decides.
    """

    def __init__(self, *, origin_id: UUID, epoch: int, current: int) -> None:
        super().__init__(
            f"outbox {origin_id} is at epoch {epoch}, but a copy of the file already delivers at epoch {current}: "
            "stop one of the two; to keep both, give this one a new identity with `letopis init --new-origin`"
        )
        self.origin_id = origin_id
        self.epoch = epoch
        self.current = current


class OutboxFull(LetopisError):
    """The outbox is at its limit and refuses new events; nothing old was dropped, acks still work."""


class OutboxUnavailable(LetopisError):
    """The outbox file cannot be read or written; whether the last commit took effect is knowable by event id."""


class Closed(LetopisError):
    """The object was used after it was closed."""

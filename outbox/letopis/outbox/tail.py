"""Tail: the events that the outbox file holds, delivered ones included, and when those are let go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.store.codec import decode
from letopis.store.errors import InvalidInput, OutboxUnavailable
from letopis.store.events import RecordedEvent, from_microseconds
from letopis.store.identifiers import uuid_of
from letopis.store.making import quick
from letopis.store.numbers import check_number
from letopis.store.vocabulary import MessageAppended

_COLUMNS: Final = "sequence, event_id, type, schema_version, data, metadata, digest, occurred_at, redacted"
_FORWARD: Final = (
    f"SELECT {_COLUMNS} FROM letopis_outbox_events WHERE conversation_id = ? AND sequence > ? ORDER BY sequence"  # noqa: S608
)
_BACKWARD: Final = (
    f"SELECT {_COLUMNS} FROM letopis_outbox_events WHERE conversation_id = ? AND sequence > ? ORDER BY sequence DESC"  # noqa: S608
)
_PAGE: Final = (
    "SELECT conversation_id, pruned, min(delivered, head - ?) FROM letopis_outbox_lanes"
    " WHERE conversation_id > ? ORDER BY conversation_id LIMIT ?"
)
_YOUNG: Final = (
    "SELECT sequence FROM letopis_outbox_events WHERE conversation_id = ? AND sequence > ? AND sequence <= ?"
    " AND appended_at > ? ORDER BY sequence LIMIT 1"
)
_PRUNE: Final = "UPDATE letopis_outbox_lanes SET pruned = ? WHERE conversation_id = ?"
_DELETE: Final = "DELETE FROM letopis_outbox_events WHERE conversation_id = ? AND sequence > ? AND sequence <= ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long delivered events stay in the outbox: for reads while the history store is away, and to heal it.

    An event is let go once it is delivered and beyond *both* limits. What is pending stays, whatever its age.

    :ivar keep_last: events a conversation.
    :ivar keep_for: since they were appended.
    """

    keep_last: int = 200
    keep_for: timedelta = timedelta(hours=24)

    def __post_init__(self) -> None:
        check_number(self.keep_last, "keep_last", whole=True)
        if not isinstance(self.keep_for, timedelta):
            raise InvalidInput("keep_for", f"must be a timedelta, not {type(self.keep_for).__name__}")
        if self.keep_last < 0:
            raise InvalidInput("keep_last", "must not be negative")
        if self.keep_for < timedelta(0):
            raise InvalidInput("keep_for", "must not be negative")


_recorded: Final = quick(RecordedEvent)


@dataclass(frozen=True, slots=True)
class Row:
    """An event of the file, not decoded yet."""

    sequence: int
    type: str
    values: tuple[Any, ...]

    def event(self, conversation_id: str, origin_id: UUID) -> RecordedEvent:
        """Return the event; its version in the history store is not known here.

        :raises OutboxUnavailable: it is damaged in the file.
        """
        _, event_id, name, schema_version, data, metadata, digest, occurred_at, redacted = self.values
        read_data, read_metadata = _decoded(data, self.sequence), _decoded(metadata, self.sequence)
        return _recorded(
            conversation_id=conversation_id,
            event_id=uuid_of(event_id),
            origin_id=origin_id,
            sequence=self.sequence,
            type=name,
            schema_version=schema_version,
            data=read_data,
            metadata=read_metadata,
            digest=None if redacted else digest,
            occurred_at=from_microseconds(occurred_at),
        )

    @property
    def data(self) -> Mapping[str, Any]:
        """What it says.

        :raises OutboxUnavailable: it is damaged in the file.
        """
        return _decoded(self.values[4], self.sequence)

    @property
    def event_id(self) -> UUID:
        """Its id."""
        return uuid_of(self.values[1])

    @property
    def occurred_at(self) -> datetime:
        """When it happened."""
        return from_microseconds(self.values[7])

    @property
    def appends(self) -> bool:
        """Whether it appends a message."""
        return self.type == MessageAppended.type


def _decoded(text: str | None, sequence: int) -> Mapping[str, Any]:
    try:
        return decode(text)
    except ValueError:
        # Not chained: the error holds the text.
        reason = (
            f"event {sequence} of the conversation is damaged in the outbox file: `letopis outbox` can fix or skip it"
        )
    raise OutboxUnavailable(reason)


def rows_after(
    connection: sa.Connection, conversation_id: str, sequence: int, *, backward: bool = False
) -> Iterator[Row]:
    """Yield the events of a conversation after a sequence, read as they are asked for."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(_BACKWARD if backward else _FORWARD, (conversation_id, sequence))
        while (values := cursor.fetchone()) is not None:
            yield Row(values[0], values[2], tuple(values))
    finally:
        cursor.close()


class Pruner:
    """Lets delivered events go that are beyond the retention, a little in each transaction.

    A chore for the relay: call it in a write transaction, again while it returns ``True``. Each round looks at every
    lane once. Only a prefix of what is delivered goes, so a lane is never left with a hole.
    """

    def __init__(self, retention: Retention, now_us: Callable[[], int], *, limit: int = 500) -> None:
        self._retention = retention
        self._now_us = now_us
        self._limit = limit
        self._after = ""
        self.pruned = 0
        """Events let go so far."""

    def __call__(self, connection: sa.Connection) -> bool:
        """Let at most ``limit`` events go, of at most ``limit`` lanes; return whether the round goes on."""
        cutoff = self._now_us() - self._retention.keep_for // timedelta(microseconds=1)
        cursor = connection.connection.cursor()
        try:
            cursor.execute(_PAGE, (self._retention.keep_last, self._after, self._limit))
            lanes = cursor.fetchall()
            left = self._limit
            for conversation_id, pruned, most in lanes:
                upto = min(most, pruned + left)
                if upto > pruned:
                    cursor.execute(_YOUNG, (conversation_id, pruned, upto, cutoff))
                    if (young := cursor.fetchone()) is not None:
                        upto = young[0] - 1
                if upto > pruned:
                    cursor.execute(_PRUNE, (upto, conversation_id))
                    cursor.execute(_DELETE, (conversation_id, pruned, upto))
                    left -= upto - pruned
                    self.pruned += upto - pruned
                if left <= 0:
                    return True  # this lane may have more
                self._after = conversation_id
        finally:
            cursor.close()
        if len(lanes) < self._limit:
            self._after = ""
            return False
        return True

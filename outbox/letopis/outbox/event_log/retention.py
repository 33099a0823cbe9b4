"""Read the events that the outbox file holds, and prune delivered ones beyond the retention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from letopis.outbox.concurrency.clock import MICROSECONDS_PER_SECOND
from letopis.outbox.event_log.contents import remove_pruned
from letopis.outbox.event_log.event_ids import index_event_ids
from letopis.outbox.event_log.lanes import SELECT_EVENT
from letopis.outbox.event_log.statements import query_all, query_one
from letopis.store.errors import InvalidInput, OutboxUnavailable
from letopis.store.model.codec import decode
from letopis.store.model.event_types import MessageAppended
from letopis.store.model.events import RecordedEvent, from_microseconds
from letopis.store.model.identifiers import check_number, uuid_of
from letopis.store.rules.retention import ContentRetention

if TYPE_CHECKING:
    import sqlalchemy as sa

_FORWARD: Final = SELECT_EVENT + " WHERE conversation_id = ? AND sequence > ? ORDER BY sequence"
_BACKWARD: Final = _FORWARD + " DESC"
_PAGE: Final = (
    "SELECT conversation_id, lane, pruned, min(delivered, head - ?), delivered FROM letopis_outbox_lanes"
    " WHERE conversation_id > ? ORDER BY conversation_id LIMIT ?"
)
_YOUNG: Final = (
    "SELECT sequence FROM letopis_outbox_events WHERE lane = ? AND sequence > ? AND sequence <= ?"
    " AND appended_at > ? ORDER BY sequence LIMIT 1"
)
_PRUNE: Final = "UPDATE letopis_outbox_lanes SET pruned = ? WHERE lane = ?"
_DELETE_IDS: Final = (
    "DELETE FROM letopis_outbox_event_ids WHERE event_id IN"
    " (SELECT event_id FROM letopis_outbox_events WHERE lane = ? AND sequence > ? AND sequence <= ?)"
)
_DELETE: Final = "DELETE FROM letopis_outbox_events WHERE lane = ? AND sequence > ? AND sequence <= ?"
_DELIVERED_BODIES: Final = (
    " FROM (SELECT size, position FROM letopis_outbox_record_bodies UNION ALL"
    " SELECT size, position FROM letopis_outbox_contents) AS b"
    " JOIN letopis_outbox_events AS e ON e.position = b.position"
    " JOIN letopis_outbox_lanes AS l ON l.lane = e.lane AND e.sequence <= l.delivered"
)
_BODY_BYTES: Final = f"SELECT coalesce(sum(b.size), 0){_DELIVERED_BODIES}"
_OLDEST_BODIES: Final = f"SELECT b.size, e.lane, e.sequence{_DELIVERED_BODIES} ORDER BY b.position LIMIT 500"
_PRUNED: Final = "SELECT pruned FROM letopis_outbox_lanes WHERE lane = ?"

MAX_RETAINED_BODY_BYTES: Final = 64 * 1024 * 1024
"""Bytes of delivered values of records, and of large content, that a file retains whatever its retention of events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long delivered events stay in the outbox: for reads while the history store is unavailable, and to repair it.

    An event is pruned once it is delivered and beyond *both* limits. Pending events stay, whatever their age.

    :ivar keep_last: events kept per conversation.
    :ivar keep_for: time since an event was appended.
    :ivar content: how long content stays in the history store; ``None`` for ever. The shortest of its ages limits the
        events here too.
    """

    keep_last: int = 200
    keep_for: timedelta = timedelta(hours=24)
    content: ContentRetention | None = None

    def __post_init__(self) -> None:
        check_number(self.keep_last, "keep_last", whole=True)
        if not isinstance(self.keep_for, timedelta):
            raise InvalidInput("keep_for", f"must be a timedelta, not {type(self.keep_for).__name__}")
        if self.content is not None and not isinstance(self.content, ContentRetention):
            raise InvalidInput("content", f"must be ContentRetention(...), not {type(self.content).__name__}")
        if self.keep_last < 0:
            raise InvalidInput("keep_last", "must not be negative")
        if self.keep_for < timedelta(0):
            raise InvalidInput("keep_for", "must not be negative")


@dataclass(frozen=True, slots=True)
class StoredRow:
    """An event of the file, not yet decoded."""

    sequence: int
    type: str
    values: tuple[Any, ...]

    def event(self, conversation_id: str, origin_id: UUID) -> RecordedEvent:
        """Return the event; its version in the history store is not known here."""
        _, event_id, name, schema_version, data, metadata, digest, salt, occurred_at, _ = self.values
        read_data, read_metadata = decoded(data, self.sequence), decoded(metadata, self.sequence)
        return RecordedEvent(
            conversation_id=conversation_id,
            event_id=uuid_of(event_id),
            origin_id=origin_id,
            sequence=self.sequence,
            type=name,
            schema_version=schema_version,
            data=read_data,
            metadata=read_metadata,
            digest=None if salt is None else digest,
            occurred_at=from_microseconds(occurred_at),
        )

    @property
    def data(self) -> Mapping[str, Any]:
        return decoded(self.values[4], self.sequence)

    @property
    def event_id(self) -> UUID:
        return uuid_of(self.values[1])

    @property
    def occurred_at(self) -> datetime:
        return from_microseconds(self.values[8])

    @property
    def appends(self) -> bool:
        return self.type == MessageAppended.type


def decoded(text: str | None, sequence: int) -> Mapping[str, Any]:
    try:
        return decode(text)
    except ValueError:
        # Not chained: the error holds the text.
        reason = (
            f"event {sequence} of the conversation is damaged in the outbox file: `letopis outbox` can fix or skip it"
        )
    raise OutboxUnavailable(reason)


def rows_after(cursor: Any, conversation_id: str, sequence: int, *, backward: bool = False) -> Iterator[StoredRow]:
    """Yield the events of a conversation after a sequence, read as they are asked for."""
    for values in cursor.execute(_BACKWARD if backward else _FORWARD, (conversation_id, sequence)):
        yield StoredRow(values[0], values[2], values)


def prune_bodies(cursor: Any, *, most: int = MAX_RETAINED_BODY_BYTES) -> int:
    """Prune the oldest delivered events with values, as prefixes of lanes, until values take at most ``most``."""
    [(total,)] = query_all(cursor, _BODY_BYTES)
    if total <= most:
        return 0
    upto: dict[int, int] = {}
    for size, lane, sequence in query_all(cursor, _OLDEST_BODIES):
        if total <= most:
            break
        total -= size
        upto[lane] = sequence
    pruned = 0
    for lane, last in upto.items():
        [(first,)] = query_all(cursor, _PRUNED, (lane,))
        pruned += _prune_lane(cursor, lane, first, last)
    return pruned


def _prune_lane(cursor: Any, lane: int, first: int, last: int) -> int:
    index_event_ids(cursor)
    cursor.execute(_PRUNE, (last, lane))
    cursor.execute(_DELETE_IDS, (lane, first, last))
    cursor.execute(_DELETE, (lane, first, last))
    remove_pruned(cursor, lane)
    return last - first


class Pruner:
    """Prunes delivered events beyond the retention, a prefix of each lane, in small write transactions."""

    def __init__(self, retention: Retention, now_us: Callable[[], int], *, limit: int = 500) -> None:
        self._retention = retention
        self._now_us = now_us
        self._limit = limit
        self._after = ""
        self.pruned = 0

    def __call__(self, connection: sa.Connection) -> bool:
        """Prune at most ``limit`` events of at most ``limit`` lanes. Return True if the round is not finished."""
        cutoff = self._now_us() - self._retention.keep_for // timedelta(microseconds=1)
        age = None if self._retention.content is None else self._retention.content.least_age
        aged = None if age is None else self._now_us() - age * MICROSECONDS_PER_SECOND
        with closing(connection.connection.cursor()) as cursor:
            lanes = query_all(cursor, _PAGE, (self._retention.keep_last, self._after, self._limit))
            left = self._limit
            for conversation_id, lane, pruned, last, delivered in lanes:
                upto = self._old(cursor, lane, pruned, min(last, pruned + left), cutoff)
                if aged is not None:
                    upto = max(upto, self._old(cursor, lane, pruned, min(delivered, pruned + left), aged))
                if upto > pruned:
                    left -= _prune_lane(cursor, lane, pruned, upto)
                    self.pruned += upto - pruned
                if left <= 0:
                    return True  # this lane may have more
                self._after = conversation_id
            if len(lanes) < self._limit:
                self._after = ""
                self.pruned += prune_bodies(cursor)
                return False
        return True

    @staticmethod
    def _old(cursor: Any, lane: int, pruned: int, upto: int, cutoff: int) -> int:
        """Return the last sequence up to ``upto`` before the first event that is younger than ``cutoff``."""
        young = query_one(cursor, _YOUNG, (lane, pruned, upto, cutoff)) if upto > pruned else None
        return upto if young is None else int(young[0]) - 1

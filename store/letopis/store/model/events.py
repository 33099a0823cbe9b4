"""Define the envelope of an event, before and after it is recorded, and read old events as of today."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from letopis.store.errors import InvalidInput
from letopis.store.model.event_types import Body, MessageAppended, read
from letopis.store.model.identifiers import derived_event_id, uuid7
from letopis.store.model.messages import EMPTY, Message, empty

Upcaster = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Takes the data of version *n* and returns the data of version *n + 1*; must not change its argument."""


class Upcasters:
    """A chain of rules, each keyed by the ``(type, schema_version)`` that it reads.

    Stored events do not change: upcasting happens on every read, so a rule stays for as long as there are old events.
    """

    __slots__ = ("_rules",)

    def __init__(self, rules: Mapping[tuple[str, int], Upcaster] | None = None) -> None:
        self._rules = dict(rules or {})

    def with_rule(self, type_name: str, version: int, rule: Upcaster) -> Upcasters:
        """Return a new chain that also reads ``version`` of ``type_name``.

        :raises ValueError: there is a rule for it already.
        """
        if (type_name, version) in self._rules:
            raise ValueError(f"there is an upcaster for version {version} of {type_name} already")
        return Upcasters({**self._rules, (type_name, version): rule})

    def upcast(self, type_name: str, version: int, data: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
        """Return version and data after every rule that applies, one after the other."""
        while (rule := self._rules.get((type_name, version))) is not None:
            version, data = version + 1, rule(data)
        return version, data


NO_UPCASTERS = Upcasters()
"""Reads every event as it was recorded."""


MAX_TYPE_LENGTH: Final = 64
_TYPE: Final = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)+")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_MIN_MICROSECONDS: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_MAX_MICROSECONDS: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND


def utc_now() -> datetime:
    """Return the present moment, aware, in UTC."""
    return datetime.now(UTC)


def to_microseconds(moment: datetime) -> int:
    """Return UTC microseconds since 1970, exact."""
    if not isinstance(moment, datetime):
        raise InvalidInput("occurred_at", f"must be a datetime, not {type(moment).__name__}")
    if moment.utcoffset() is None:
        raise InvalidInput("occurred_at", "has no time zone: give an aware datetime, for example datetime.now(UTC)")
    value = (moment - _EPOCH) // _MICROSECOND
    if not _MIN_MICROSECONDS <= value <= _MAX_MICROSECONDS:
        raise InvalidInput("occurred_at", "lies outside the years 1 to 9999 in UTC")
    return value


def now_microseconds() -> int:
    """Return the present moment in UTC microseconds since 1970."""
    return time.time_ns() // 1_000


def from_microseconds(value: int) -> datetime:
    """Return the aware UTC moment of ``value`` microseconds since 1970."""
    return _EPOCH + timedelta(0, 0, value)  # positional arguments are faster


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, before it is recorded.

    The default ``event_id`` is made once, here, so that every retry of an append carries the same one.

    :ivar type: a dotted name of at most 64 characters; ``custom.*`` is the application's.
    :ivar data: a JSON object.
    :ivar metadata: a JSON object about the event.
    :ivar occurred_at: when it happened, aware. For display: no order is ever taken from it.
    """

    type: str
    data: Mapping[str, Any] = field(default_factory=empty)
    schema_version: int = 1
    metadata: Mapping[str, Any] = field(default_factory=empty)
    event_id: UUID = field(default_factory=uuid7)
    occurred_at: datetime = field(default_factory=utc_now)

    @classmethod
    def of(
        cls,
        what: Message | Body | Event,
        *,
        conversation_id: str,
        metadata: Mapping[str, Any] = EMPTY,
        occurred_at: datetime | None = None,
    ) -> Event:
        """Return the event that records ``what`` in a conversation; an :class:`Event` is returned unchanged.

        If the caller chose the message id, the event id derives from the conversation and message ids.
        """
        if isinstance(what, Event):
            return what
        message = what.message if isinstance(what, MessageAppended) else what if isinstance(what, Message) else None
        if message is not None:
            return cls(
                type=MessageAppended.type,
                data=message.to_data(),
                metadata=metadata,
                event_id=message.event_id or derived_event_id(conversation_id, message.id),
                occurred_at=occurred_at or utc_now(),
            )
        if isinstance(what, str):
            raise InvalidInput("what", "append() takes a Message: write Message.user('hello')")
        if not isinstance(what, Body):
            raise InvalidInput(
                "what", f"append() takes a Message, an Event or an event of the vocabulary, not {type(what).__name__}"
            )
        return cls(
            type=what.type,
            data=what.to_data(),
            schema_version=what.schema_version,
            metadata=metadata,
            occurred_at=occurred_at or utc_now(),
        )


def check_type(name: object) -> str:
    """Return ``name`` if it may be an event type."""
    if not isinstance(name, str):
        raise InvalidInput("type", f"must be a string, not {type(name).__name__}")
    if len(name) > MAX_TYPE_LENGTH:
        raise InvalidInput("type", f"has {len(name)} characters, the limit is {MAX_TYPE_LENGTH}")
    if _TYPE.fullmatch(name) is None:
        raise InvalidInput("type", "must be dotted lower-case words, for example custom.payment_taken")
    return name


# Not frozen: reads make many, and a frozen dataclass sets each field through a call.
@dataclass(slots=True, kw_only=True)
class RecordedEvent:
    """One event as a log holds it.

    :ivar version: its place in the conversation in the history store, from 1, without gaps; ``None`` while pending.
    :ivar position: its place in its log partition, from 1, without gaps; ``None`` while pending.
    :ivar origin_id: the outbox that it came through.
    :ivar sequence: its place in the conversation in that outbox.
    :ivar recorded_at: when the history store recorded it; ``None`` while pending.
    :ivar digest: SHA-256 of a salt and the content; ``None`` where the content was redacted.
    """

    conversation_id: str
    event_id: UUID
    origin_id: UUID
    sequence: int
    type: str
    schema_version: int
    data: Mapping[str, Any]
    metadata: Mapping[str, Any]
    digest: bytes | None
    occurred_at: datetime
    version: int | None = None
    partition: int | None = None
    position: int | None = None
    recorded_at: datetime | None = None

    def body(self, upcasters: Upcasters = NO_UPCASTERS) -> Body:
        """Return the typed body; one that is not understood comes as ``UnknownEvent``, without an error."""
        version, data = upcasters.upcast(self.type, self.schema_version, self.data)
        return read(self.type, version, data)

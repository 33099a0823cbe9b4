"""Events to bytes and back: what is accepted here is accepted, byte for byte, by all three stores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import orjson

from letopis.store.errors import InvalidInput
from letopis.store.events import Event, check_type, now_microseconds, to_microseconds
from letopis.store.identifiers import check_identifier, derived_event_id
from letopis.store.making import quick
from letopis.store.messages import EMPTY, Message
from letopis.store.numbers import check_number
from letopis.store.vocabulary import VOCABULARY, MessageAppended, parse

_APPENDED: Final = MessageAppended.type
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1
TRACEPARENT: Final = "traceparent"
"""The key of an event's metadata that names the trace it was appended in (W3C Trace Context)."""
RESERVED: Final = "letopis."
"""How keys of an event's metadata begin that are Letopis' own; a caller's are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large an event may be.

    The defaults stay far below what any of the three stores refuses: MariaDB's ``max_allowed_packet`` (16 MB as
    shipped) bounds a statement, and its refusal looks like a lost connection.

    :ivar max_bytes: of the data, and of the metadata, as JSON in UTF-8.
    :ivar max_depth: of nested objects and lists.
    """

    max_bytes: int = 1_048_576
    max_depth: int = 64

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_depth"):
            check_number(getattr(self, name), name, whole=True)
        if not 1 <= self.max_bytes <= 8_388_608:
            raise InvalidInput("max_bytes", "must be between 1 and 8388608 (8 MiB)")
        if not 1 <= self.max_depth <= 200:  # orjson gives up at 254
            raise InvalidInput("max_depth", "must be between 1 and 200")


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedEvent:
    """An event as it is stored: JSON text, digest, microseconds.

    :ivar data: JSON with sorted keys. ``metadata`` likewise, ``None`` when empty.
    :ivar digest: SHA-256 over conversation id, type, schema version, data and metadata; *not* over the time, so that
        the same content said again with the clock moved on is the same content.
    :ivar occurred_at: UTC microseconds since 1970.
    :ivar redacted: whether its content was taken away after it was appended; then the digest is of what is left.
    """

    conversation_id: str
    event_id: UUID
    type: str
    schema_version: int
    data: str
    metadata: str | None
    digest: bytes
    occurred_at: int
    redacted: bool = False


_encoded: Final = quick(EncodedEvent)


def encode(event: Event, *, conversation_id: str, limits: Limits = DEFAULT_LIMITS) -> EncodedEvent:
    """Return ``event`` as it is stored.

    :raises InvalidInput: something in it would be refused, or changed, by one of the stores; the error names the field.
    """
    check_identifier(conversation_id, "conversation_id")
    check_type(event.type)
    if not isinstance(event.event_id, UUID):
        raise InvalidInput("event_id", f"must be a UUID, not {type(event.event_id).__name__}")
    if not _is_whole(event.schema_version) or not 1 <= event.schema_version <= 32_767:
        raise InvalidInput("schema_version", "must be a whole number from 1 to 32767")
    data = _dump(event.data, "data", limits)
    # Only an empty object may be left out: an empty list is as wrong as a full one.
    metadata = None if event.metadata == EMPTY else _dump(event.metadata, "metadata", limits)
    body = parse(event.type, event.schema_version, event.data)
    # The data of custom events, and of what only a newer release understands, is the caller's own affair.
    if type(body) is VOCABULARY.get(event.type):
        for name in ("message_id", "owner_id"):
            if (value := event.data.get(name)) is not None:
                check_identifier(value, f"data.{name}")
    return EncodedEvent(
        conversation_id=conversation_id,
        event_id=event.event_id,
        type=event.type,
        schema_version=event.schema_version,
        data=data.decode(),
        metadata=None if metadata is None else metadata.decode(),
        digest=digest_of(conversation_id, event.type, event.schema_version, data, metadata),
        occurred_at=to_microseconds(event.occurred_at),
    )


def encode_message(
    message: Message,
    *,
    conversation_id: str,
    metadata: Mapping[str, Any] = EMPTY,
    occurred_at: datetime | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> EncodedEvent:
    """Return the event that appends ``message`` as it is stored: what :func:`encode` makes of it, sooner.

    A message has checked its own shape when it was made, so that only what is inside is looked at here. The
    conversation id must have been checked.

    :raises InvalidInput: something in it would be refused, or changed, by one of the stores; the error names the field.
    """
    message.check()
    whole = message.to_data()
    # Role and id were checked with the message: words alone need no walk.
    words = type(message) is Message and len(whole) == 3 and type(text := whole["content"]) is str and "\0" not in text
    data = _dump_checked(whole, "data", limits) if words else _dump(whole, "data", limits)
    dumped = None if metadata is EMPTY or metadata == EMPTY else _dump(metadata, "metadata", limits)
    return _encoded(
        conversation_id=conversation_id,
        event_id=message.event_id or derived_event_id(conversation_id, message.id),
        type=_APPENDED,
        schema_version=MessageAppended.schema_version,
        data=data.decode(),
        metadata=None if dumped is None else dumped.decode(),
        digest=digest_of(conversation_id, _APPENDED, MessageAppended.schema_version, data, dumped),
        occurred_at=now_microseconds() if occurred_at is None else to_microseconds(occurred_at),
    )


def digest_of(
    conversation_id: str, type_name: str, schema_version: int, data: bytes | str, metadata: bytes | str | None
) -> bytes:
    """Return the SHA-256 of an event's content; of its metadata without the trace and what Letopis itself put there.

    The same message said again, in another trace or after another reading, is the same message.
    """
    if metadata is None:
        metadata = b""
    else:
        metadata = metadata.encode() if isinstance(metadata, str) else metadata
        if b'"traceparent"' in metadata or b'"letopis.' in metadata:
            metadata = _without_ours(metadata)
    # Ids and types hold no control characters and compact JSON no raw line feed, so the parts cannot run together.
    if isinstance(data, str):
        content = f"{conversation_id}\n{type_name}\n{schema_version}\n{data}\n".encode()
        return sha256(content + metadata if metadata else content).digest()
    return sha256(
        b"%s\n%s\n%d\n%s\n%s" % (conversation_id.encode(), type_name.encode(), schema_version, data, metadata)
    ).digest()


def _without_ours(metadata: bytes) -> bytes:
    try:
        value = decode(metadata)
    except ValueError:
        return metadata  # damaged: then the digest shall not match
    rest = {key: item for key, item in value.items() if key != TRACEPARENT and not key.startswith(RESERVED)}
    return orjson.dumps(rest, option=orjson.OPT_SORT_KEYS) if rest else b""


def decode(text: str | bytes | None) -> Mapping[str, Any]:
    """Return the JSON object that ``text`` holds; ``None`` is the empty object.

    :raises ValueError: the stored text is no JSON object, so the file was damaged.
    """
    if text is None:
        return EMPTY
    value = orjson.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"stored JSON is {type(value).__name__}, not an object")  # noqa: TRY004 - damage, not a type
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _dump(value: Any, field: str, limits: Limits) -> bytes:
    if not isinstance(value, dict | Mapping):  # a plain dict is told in no time, another mapping is not
        raise InvalidInput(field, f"must be an object, not {type(value).__name__}")
    _check(value, field, limits.max_depth)
    return _dump_checked(value, field, limits)


def _dump_checked(value: Mapping[str, Any], field: str, limits: Limits) -> bytes:
    try:
        # Sorted, so that equal objects have equal bytes whatever order their keys were set in.
        dumped = orjson.dumps(
            value if isinstance(value, dict) else dict(value), default=_as_dict, option=orjson.OPT_SORT_KEYS
        )
    except TypeError as error:  # a lone surrogate: orjson finds it faster than a walk over every character would
        raise InvalidInput(_surrogate(value, field) or field, "has a lone surrogate: it is not text") from error
    if len(dumped) > limits.max_bytes:
        raise InvalidInput(field, f"is {len(dumped)} bytes of JSON, the limit is {limits.max_bytes}: store a reference")
    return dumped


def _as_dict(value: Any) -> dict[str, Any]:
    """Return a mapping that is no ``dict`` as one; nothing else that orjson does not know has passed the check."""
    return dict(value)


def _check(value: Any, field: str, depth: int) -> None:
    """Refuse, by name, what a store would refuse or JSON would change without a word."""
    kind = type(value)
    if kind is dict:
        _check_object(value, field, depth)
        return
    if kind is str:
        if "\0" in value:
            raise InvalidInput(
                field, f"has a NUL character at {value.index(chr(0))}: PostgreSQL cannot store it, remove it"
            )
    elif kind is bool or value is None:
        return
    elif kind is int:
        if not INTEGER_MIN <= value <= INTEGER_MAX:
            raise InvalidInput(field, "is an integer beyond 64 bits: give it as a string")
    elif kind is float:
        if not math.isfinite(value):
            raise InvalidInput(field, "is not a finite number: JSON has no NaN and no infinity")
    elif isinstance(value, Mapping):
        _check_object(value, field, depth)
    elif kind is list or kind is tuple:
        if depth == 0:
            raise InvalidInput(field, "is nested too deep")
        for index, item in enumerate(value):
            _check(item, f"{field}[{index}]", depth - 1)
    else:
        raise InvalidInput(field, f"is {kind.__name__}: only what JSON has can be stored")


def _check_object(value: Mapping[Any, Any], field: str, depth: int) -> None:
    if depth == 0:
        raise InvalidInput(field, "is nested too deep")
    for key, item in value.items():
        if type(key) is not str:
            raise InvalidInput(field, f"has a key that is {type(key).__name__}: JSON keys are strings")
        if "\0" in key:
            raise InvalidInput(field, "has a key with a NUL character: PostgreSQL cannot store it")
        # Most of what is said is plain text: then nothing has to be named.
        if type(item) is not str or "\0" in item:
            _check(item, f"{field}.{key}" if key.isprintable() else f"{field}.{key!a}", depth - 1)


def _surrogate(value: Any, field: str) -> str | None:
    """Return the path of the first text that is not valid UTF-16, so not text at all."""
    if isinstance(value, str):
        return None if _encodable(value) else field
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not _encodable(key):
                return f"{field}.{key!a}"
            if (found := _surrogate(item, f"{field}.{key}")) is not None:
                return found
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if (found := _surrogate(item, f"{field}[{index}]")) is not None:
                return found
    return None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

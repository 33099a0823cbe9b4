"""Encode events as JSON that all three stores accept byte for byte."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import orjson

from letopis.store.errors import InvalidInput
from letopis.store.model.event_types import VOCABULARY, MessageAppended, parse
from letopis.store.model.events import Event, check_type, now_microseconds, to_microseconds
from letopis.store.model.identifiers import check_identifier, check_whole, derived_event_id
from letopis.store.model.large_content import CONTENT_TYPES, LARGE_BYTES, MARK_IN_JSON, extract, packed_bytes
from letopis.store.model.messages import EMPTY, Message

_APPENDED: Final = MessageAppended.type
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1
TRACEPARENT: Final = "traceparent"
"""The key of an event's metadata that names the trace it was appended in (W3C Trace Context)."""
RESERVED: Final = "letopis."
"""The prefix of Letopis' own keys in an event's metadata; refused in a caller's metadata."""
SALT_BYTES: Final = 16
_MARK: Final = MARK_IN_JSON.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large an event may be.

    The defaults stay far below what any of the three stores refuses: MariaDB's ``max_allowed_packet`` (16 MB by
    default) bounds a statement, and its refusal looks like a lost connection.

    :ivar max_bytes: the size of the data, and of the metadata, as JSON in UTF-8; at most 8 MiB. Strings of a message
        above 256 KiB are not counted, as they are kept apart, nor is an item that an adapter has packed: each may have
        64 MiB whatever this says.
    :ivar max_depth: how deep objects and lists may be nested; at most 200.
    """

    max_bytes: int = 1_048_576
    max_depth: int = 64

    def __post_init__(self) -> None:
        check_whole(self.max_bytes, "max_bytes", 1, 8_388_608)
        check_whole(self.max_depth, "max_depth", 1, 200)  # orjson gives up at 254


DEFAULT_LIMITS: Final = Limits()


@dataclass(slots=True)
class EncodedEvent:
    """The stored form of an event: JSON text, digest, microseconds.

    :ivar data: JSON with its keys in the order given.
    :ivar metadata: the same; ``None`` when empty.
    :ivar digest: SHA-256 over the salt, conversation id, type, schema version, data and metadata, with sorted keys;
        *not* over the time, so that a later retry has the same content. It stays when the content is erased.
    :ivar salt: 16 random bytes, without which nobody can try texts; ``None`` once the content was erased.
    :ivar occurred_at: UTC microseconds since 1970.
    :ivar redacted: True if the content was taken away after the append.
    :ivar body: the value of a record, which its data names by size and checksum; ``None`` for all other events.
    :ivar contents: the large strings of a message that its data refers to, by name; ``None`` without any, and of an
        event that was read.
    """

    conversation_id: str
    event_id: UUID
    type: str
    schema_version: int
    data: str
    metadata: str | None
    digest: bytes
    salt: bytes | None
    occurred_at: int
    redacted: bool = False
    body: bytes | None = None
    contents: Mapping[str, bytes] | None = None

    @property
    def intact(self) -> bool:
        """Whether the content matches the digest; erased content has none to match."""
        if self.salt is None:
            return True
        if self.metadata is None and type(self.data) is str:  # a damaged file may hold anything
            # The text of a plain message is canonical as it is stored; any other is parsed and sorted first.
            named = b"%s\n%s\n%d" % (self.conversation_id.encode(), self.type.encode(), self.schema_version)
            if sha256(b"%s%s\n%s\n" % (self.salt, named, self.data.encode())).digest() == self.digest:
                return True
        return self.has_content_of(self.digest, self.salt)

    def has_content_of(self, digest: bytes, salt: bytes) -> bool:
        """Return True if the content is that of another event, of which the digest and the salt are known."""
        return digest_of(self.conversation_id, self.type, self.schema_version, self.data, self.metadata, salt) == digest


def encode(
    event: Event, *, conversation_id: str, limits: Limits = DEFAULT_LIMITS, stored: bool = False
) -> EncodedEvent:
    """Return the stored form of ``event``; of one that was ``stored``, references to large content stay."""
    check_identifier(conversation_id, "conversation_id")
    check_type(event.type)
    if not isinstance(event.event_id, UUID):
        raise InvalidInput("event_id", f"must be a UUID, not {type(event.event_id).__name__}")
    check_whole(event.schema_version, "schema_version", 1, 32_767)
    given = _plain(event.data, "data", limits)
    contents: Mapping[str, bytes] | None = None
    data = _dump(given, "data")
    if event.type in CONTENT_TYPES and not stored and (len(data) > LARGE_BYTES or _MARK in data):
        given, contents, data = _without_large(given, conversation_id)
    _check_size(data, "data", limits, uncounted=packed_bytes(given))
    # Only an empty object may be left out; an empty list is refused.
    about = None if event.metadata == EMPTY else _plain(event.metadata, "metadata", limits)
    metadata = None if about is None else _checked(about, limits)
    body = parse(event.type, event.schema_version, event.data)
    # The data of custom events and of types that only a newer release understands is not interpreted.
    if type(body) is VOCABULARY.get(event.type):
        for name in ("message_id", "owner_id"):
            if (value := event.data.get(name)) is not None:
                check_identifier(value, f"data.{name}")
    salt = os.urandom(SALT_BYTES)
    return EncodedEvent(
        conversation_id=conversation_id,
        event_id=event.event_id,
        type=event.type,
        schema_version=event.schema_version,
        data=data.decode(),
        metadata=None if metadata is None else metadata.decode(),
        digest=_digest(conversation_id, event.type, event.schema_version, _sorted(given), about, salt),
        salt=salt,
        occurred_at=to_microseconds(event.occurred_at),
        contents=contents,
    )


def encode_message(
    message: Message,
    *,
    conversation_id: str,
    metadata: Mapping[str, Any] = EMPTY,
    occurred_at: datetime | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> EncodedEvent:
    """Return the stored form of the event that appends ``message``; the same as :func:`encode`, but faster."""
    # A message has checked its shape when it was made, and the caller has checked the conversation id.
    whole = message.to_data()
    # Role and id were checked with the message, so that plain text needs no walk; and its keys are sorted.
    plain = type(message) is Message and len(whole) == 3 and type(text := whole["content"]) is str and "\0" not in text
    if not plain:
        whole = _plain(whole, "data", limits)
    contents: Mapping[str, bytes] | None = None
    data = _dump(whole, "data")
    if len(data) > LARGE_BYTES or _MARK in data:
        whole, contents, data = _without_large(whole, conversation_id)
    if len(data) > limits.max_bytes:  # hardly ever, and a call less
        _check_size(data, "data", limits, uncounted=0 if plain else packed_bytes(whole))
    about = None if metadata is EMPTY or metadata == EMPTY else _plain(metadata, "metadata", limits)
    dumped = None if about is None else _checked(about, limits)
    salt = os.urandom(SALT_BYTES)
    return EncodedEvent(
        conversation_id,
        message.event_id or derived_event_id(conversation_id, message.id),
        _APPENDED,
        MessageAppended.schema_version,
        data.decode(),
        None if dumped is None else dumped.decode(),
        _digest(
            conversation_id, _APPENDED, MessageAppended.schema_version, data if plain else _sorted(whole), about, salt
        ),
        salt,
        now_microseconds() if occurred_at is None else to_microseconds(occurred_at),
        contents=contents,
    )


def encode_value(value: Any, field: str, limits: Limits) -> bytes:
    """Return a JSON value of any kind, with its keys in the order given; its size is not checked."""
    if _check(value, field, limits.max_depth):
        value = by_value(value)
    try:
        return orjson.dumps(value, default=_as_dict)
    except TypeError as error:  # a lone surrogate
        raise InvalidInput(_surrogate(value, field) or field, "has a lone surrogate: it is not text") from error


def digest_of(
    conversation_id: str,
    type_name: str,
    schema_version: int,
    data: bytes | str,
    metadata: bytes | str | None,
    salt: bytes,
) -> bytes:
    """Return the SHA-256 of a salt and an event's content, without the trace and Letopis' own keys of its metadata."""
    # So a message appended again in another trace, after another read or with other order of keys has the same one.
    return _digest(conversation_id, type_name, schema_version, _canonical(data), metadata, salt)


def _digest(
    conversation_id: str,
    type_name: str,
    schema_version: int,
    data: bytes,
    metadata: Mapping[str, Any] | bytes | str | None,
    salt: bytes,
) -> bytes:
    """Return the digest of canonical data, and of metadata as values or as they are stored."""
    about = b"" if metadata is None else _canonical(metadata, without_internal_keys=True)
    # Ids and types hold no control characters and compact JSON no raw line feed, so the parts cannot run together.
    return sha256(
        b"%s%s\n%s\n%d\n%s\n%s" % (salt, conversation_id.encode(), type_name.encode(), schema_version, data, about)
    ).digest()


def _canonical(given: Mapping[str, Any] | bytes | str, *, without_internal_keys: bool = False) -> bytes:
    """Return an object as JSON with sorted keys, so that equal objects have equal bytes whatever their order."""
    if isinstance(given, bytes | str):
        try:
            value = decode(given)
        except ValueError:
            return given if isinstance(given, bytes) else given.encode()  # damaged, so that the digest must not match
    else:
        value = given
    if without_internal_keys and any(key == TRACEPARENT or key.startswith(RESERVED) for key in value):
        value = {key: item for key, item in value.items() if key != TRACEPARENT and not key.startswith(RESERVED)}
        if not value:
            return b""
    return _sorted(value)


def _sorted(value: Mapping[str, Any]) -> bytes:
    return orjson.dumps(value, default=_as_dict, option=orjson.OPT_SORT_KEYS)


def decode(text: str | bytes | None) -> Mapping[str, Any]:
    """Return the JSON object in ``text``; ``None`` is the empty object."""
    if text is None:
        return EMPTY
    value = orjson.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"stored JSON is {type(value).__name__}, not an object")  # noqa: TRY004 - damage, not a type
    return value


def _plain(value: Any, field: str, limits: Limits) -> dict[str, Any]:
    """Return an object in which strings and numbers are of no class of the caller's."""
    if not isinstance(value, dict | Mapping):  # the check for a plain dict is cheap, the one for Mapping is not
        raise InvalidInput(field, f"must be an object, not {type(value).__name__}")
    if _check(value, field, limits.max_depth):
        return by_value(value)  # type: ignore[no-any-return]
    return value if isinstance(value, dict) else dict(value)


def _dump(value: dict[str, Any], field: str) -> bytes:
    try:
        return orjson.dumps(value, default=_as_dict)
    except TypeError as error:  # a lone surrogate: orjson finds it faster than a walk over every character
        raise InvalidInput(_surrogate(value, field) or field, "has a lone surrogate: it is not text") from error


def _checked(metadata: dict[str, Any], limits: Limits) -> bytes:
    dumped = _dump(metadata, "metadata")
    _check_size(dumped, "metadata", limits)
    return dumped


def _check_size(dumped: bytes, field: str, limits: Limits, *, uncounted: int = 0) -> None:
    if len(dumped) - uncounted > limits.max_bytes:
        raise InvalidInput(field, f"is {len(dumped)} bytes of JSON, the limit is {limits.max_bytes}: store a reference")


def _without_large(
    data: dict[str, Any], conversation_id: str
) -> tuple[dict[str, Any], Mapping[str, bytes] | None, bytes]:
    """Return an event's data with references for its large strings, these by name, and the data as JSON."""
    extracted = extract(data, conversation_id)
    return extracted.data, extracted.contents or None, _dump(extracted.data, "data")


def _as_dict(value: Any) -> dict[str, Any]:
    """Return a mapping as a dict; the check has let no other type pass that orjson does not know."""
    return dict(value)


def _check(value: Any, field: str, depth: int) -> bool:
    """Return True if a string or number is of a subclass."""
    kind = type(value)
    if kind is dict:
        return _check_object(value, field, depth)
    if isinstance(value, str):
        if "\0" in value:
            raise InvalidInput(
                field, f"has a NUL character at {value.index(chr(0))}: PostgreSQL cannot store it, remove it"
            )
        return kind is not str
    if kind is bool or value is None:
        return False
    if isinstance(value, int):
        if not INTEGER_MIN <= value <= INTEGER_MAX:
            raise InvalidInput(field, "is an integer beyond 64 bits: give it as a string")
        return kind is not int
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput(field, "is not a finite number: JSON has no NaN and no infinity")
        return kind is not float
    if kind is list or kind is tuple:
        if depth == 0:
            raise InvalidInput(field, "is nested too deep")
        subclassed = False
        for index, item in enumerate(value):
            subclassed |= _check(item, f"{field}[{index}]", depth - 1)
        return subclassed
    if isinstance(value, Mapping):
        return _check_object(value, field, depth)
    raise InvalidInput(field, f"is {kind.__name__}: only what JSON has can be stored")


def _check_object(value: Mapping[Any, Any], field: str, depth: int) -> bool:
    if depth == 0:
        raise InvalidInput(field, "is nested too deep")
    subclassed = False
    for key, item in value.items():
        if type(key) is not str:
            if not isinstance(key, str):
                raise InvalidInput(field, f"has a key that is {type(key).__name__}: JSON keys are strings")
            subclassed = True
        if "\0" in key:
            raise InvalidInput(field, "has a key with a NUL character: PostgreSQL cannot store it")
        # Most values are plain text: their names need not be built.
        if type(item) is not str or "\0" in item:
            subclassed |= _check(item, f"{field}.{key}" if key.isprintable() else f"{field}.{key!a}", depth - 1)
    if subclassed and len({str.__str__(key) for key in value}) < len(value):  # a class may compare as it likes
        raise InvalidInput(field, "has a key twice: as a string, and as a member of a class")
    return subclassed


def by_value(value: Any) -> Any:
    """Return JSON values in which no string or number is of a subclass, and no object of a class of its own."""
    for kind in (str, int, float):
        if isinstance(value, kind):
            # Not kind(value), which calls the __str__ or __int__ of an enum.
            return value if type(value) in (kind, bool) else getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {by_value(key): by_value(item) for key, item in value.items()}
    return [by_value(item) for item in value] if isinstance(value, list | tuple) else value


def _surrogate(value: Any, field: str) -> str | None:
    """Return the path of the first text with a lone surrogate."""
    if isinstance(value, str):
        return None if _encodable(value) else field
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not _encodable(key):
                return f"{field}.{key!a}"
            if (path := _surrogate(item, f"{field}.{key}")) is not None:
                return path
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if (path := _surrogate(item, f"{field}[{index}]")) is not None:
                return path
    return None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

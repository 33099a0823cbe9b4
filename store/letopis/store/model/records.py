"""Describe records: what a framework keeps beside the messages of a conversation, an owner or a space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from letopis.store.errors import InvalidInput
from letopis.store.model.identifiers import check_identifier, partition_of

RECORD_PUT: Final = "record.put"
RECORD_DELETED: Final = "record.deleted"
RECORDS_CLEARED: Final = "record.cleared"
RECORD_TYPES: Final = frozenset({RECORD_PUT, RECORD_DELETED, RECORDS_CLEARED})
"""The types of the events of a record lane."""

MAX_VALUE_BYTES: Final = 64 * 1024 * 1024
MAX_KEY_BYTES: Final = 512
"""Bytes of an encoded namespace, and of a key: what all three stores can index together with a scope."""
MAX_TAGS: Final = 8
MAX_TAG_BYTES: Final = 128
MAX_INLINE_BYTES: Final = 64 * 1024
"""Larger values are stored in parts."""
PART_BYTES: Final = 512 * 1024
SPACE_LANES: Final = 16
"""Lanes of a space, so that one record that no store accepts does not block all others of an application."""

_MARK: Final = "\x01"
"""Begins the name of each record lane. No conversation id can, because identifiers hold no control characters."""
FIRST_CONVERSATION_ID: Final = "\x02"
"""Sorts after the names of all lanes of records, and before all ids of conversations."""
CONVERSATION_SCOPES: Final = f"{_MARK}c:"
"""Begins the scopes of conversations."""
_OWNER: Final = f"{_MARK}o:"
_SPACE: Final = f"{_MARK}s:"
CONTENT_SCOPES: Final = f"{_MARK}m:"
"""Begins the scopes of large content, which no lane carries: it is written with the events that show it."""

Tag = str | int | bool | None
Namespace = tuple[str, ...]
RecordKey = tuple[bytes, bytes]
"""Namespace and key, encoded."""


class Media(StrEnum):
    """How the value of a record was given."""

    JSON = "json"
    BYTES = "bytes"


class Condition(Enum):
    """What a put or delete expects of the record, where it does not name a revision."""

    ANY = "any"
    ABSENT = "absent"


ANY: Final = Condition.ANY
"""Whatever is there: the last version wins."""
ABSENT: Final = Condition.ABSENT
"""There is no record under the key."""
Expected = Condition | UUID


@dataclass(frozen=True, slots=True)
class Scope:
    """What records belong to: a conversation or an owner, with which they are erased, or an independent space.

    :ivar name: of the scope in the lanes and tables.
    """

    name: str

    @classmethod
    def conversation(cls, conversation_id: str) -> Scope:
        """Return the scope of a conversation.

        :raises InvalidInput: the id cannot be one.
        """
        return cls(CONVERSATION_SCOPES + check_identifier(conversation_id, "conversation"))

    @classmethod
    def owner(cls, owner_id: str) -> Scope:
        """Return the scope of an owner.

        :raises InvalidInput: the id cannot be one.
        """
        return cls(_OWNER + check_identifier(owner_id, "owner"))

    @classmethod
    def space(cls, name: str) -> Scope:
        """Return the scope of an application, in as many lanes as :data:`SPACE_LANES`.

        :raises InvalidInput: the name cannot be one.
        """
        return cls(_SPACE + check_identifier(name, "space"))

    @classmethod
    def content(cls, conversation_id: str) -> Scope:
        """Return the scope of the large content of a conversation's messages."""
        return cls(CONTENT_SCOPES + conversation_id)

    def check(self) -> Scope:
        """Return the scope itself.

        :raises InvalidInput: its name is none that the other methods make.
        """
        made = {CONVERSATION_SCOPES: self.conversation, _OWNER: self.owner, _SPACE: self.space}
        for prefix, make in made.items():
            if isinstance(self.name, str) and self.name.startswith(prefix):
                return make(self.name.removeprefix(prefix))
        raise InvalidInput("scope", "is none: make it by Scope.conversation, Scope.owner or Scope.space")

    @property
    def conversation_id(self) -> str | None:
        """The conversation, if it is one."""
        return conversation_of(self.name)

    @property
    def named(self) -> tuple[str, str]:
        """The word for its kind, ``conversation``, ``owner`` or ``space``, and the name without the mark."""
        kinds = {CONVERSATION_SCOPES: "conversation", _OWNER: "owner", _SPACE: "space", CONTENT_SCOPES: "content"}
        return kinds[self.name[:3]], self.name[3:]

    @property
    def in_lanes(self) -> bool:
        """Whether its records are spread over several lanes."""
        return self.name.startswith(_SPACE)

    @property
    def lanes(self) -> tuple[str, ...]:
        """The names of all its lanes."""
        return tuple(f"{self.name}:{number}" for number in range(SPACE_LANES)) if self.in_lanes else (self.name,)

    def lane(self, namespace: bytes) -> str:
        """Return the one lane in which all changes of a namespace's records are delivered: their home lane."""
        if not self.in_lanes:
            return self.name
        # The namespace decides alone, so that every outbox agrees.
        return f"{self.name}:{sha256(namespace).digest()[0] % SPACE_LANES}"

    def partition(self, partitions: int) -> int:
        """Return the log partition in which its rows are: that of its conversation or owner."""
        return partition_of(self.name[3:], partitions)

    def __str__(self) -> str:
        return " ".join(self.named)


def is_record_lane(name: str) -> bool:
    """Return True if a lane carries records, and not the events of a conversation."""
    return name.startswith(_MARK)


def scope_of(lane: str) -> Scope:
    scope = Scope(lane)
    return Scope(lane.rpartition(":")[0]) if scope.in_lanes else scope


def conversation_of(lane: str) -> str | None:
    return lane.removeprefix(CONVERSATION_SCOPES) if lane.startswith(CONVERSATION_SCOPES) else None


def lane_partition(name: str, partitions: int) -> int:
    """Return the log partition of a lane, of a conversation or of records."""
    return scope_of(name).partition(partitions) if is_record_lane(name) else partition_of(name, partitions)


def shown_lane(name: str) -> str:
    """Return a lane's name as people may read it: without the mark of a record lane."""
    return f"records of {scope_of(name)}" if is_record_lane(name) else name


def lane_subject(name: str) -> str:
    """Return a lane's name as the subject of a sentence."""
    return shown_lane(name) if is_record_lane(name) else f"conversation {name!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record as it was read.

    :ivar scope: to what it belongs; ``history.records(scope)`` are all of them.
    :ivar value: a fresh copy of what was put: JSON values, or ``bytes``; ``None`` if the values were not asked for.
    :ivar revision: the id of the put that wrote it: give it as ``expected=`` to change it only if it is still this one.
    :ivar size: bytes of the value as stored.
    :ivar updated_at: when it was put, by the clock of the machine that put it; no order is taken from it.
    :ivar saved: ``False`` while it is pending in this outbox.
    :ivar current: ``False`` if the history store could not be asked: the outbox knows this version and no later one,
        but another outbox may have put one.
    """

    scope: Scope
    namespace: Namespace
    key: str
    value: Any
    media: Media
    revision: UUID
    size: int
    updated_at: datetime
    tags: Mapping[str, Tag] = field(default_factory=dict)
    saved: bool = True
    current: bool = True


def encode_namespace(labels: object, field_name: str = "namespace") -> bytes:
    """Return the labels of a namespace as one key: each escaped and ended by a slash."""
    # So a prefix is one range of keys, and cannot end within a label: ("acme",) is no prefix of ("acme-corp",).
    if isinstance(labels, str) or not isinstance(labels, tuple | list):
        raise InvalidInput(field_name, f"must be a tuple of strings, not {type(labels).__name__}")
    parts = []
    for index, label in enumerate(labels):
        where = f"{field_name}[{index}]"
        text = _text(label, where)
        if not text:
            raise InvalidInput(where, "must not be empty")
        parts.append(text.replace("%", "%25").replace("/", "%2F") + "/")
    encoded = "".join(parts).encode()
    if len(encoded) > MAX_KEY_BYTES:
        raise InvalidInput(field_name, f"is {len(encoded)} bytes in UTF-8, the limit is {MAX_KEY_BYTES}")
    return encoded


def decode_namespace(encoded: bytes) -> Namespace:
    """Return the labels of :func:`encode_namespace`."""
    return tuple(part.replace("%2F", "/").replace("%25", "%") for part in encoded.decode().split("/")[:-1])


def range_end(prefix: bytes) -> bytes | None:
    """Return the first key after all that begin with an encoded namespace; ``None`` if there is no such bound."""
    return prefix[:-1] + b"0" if prefix else None  # "0" follows "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRange:
    """Which records of a scope to read, in the order of namespace and key."""

    prefix: bytes = b""  # an encoded namespace; records in it and below it
    exact: bool = False  # only records in the namespace itself
    start: bytes | None = None  # the first key; with ``exact`` only
    end: bytes | None = None  # the key before which to stop; with ``exact`` only
    after: RecordKey | None = None  # the record after which to begin
    reverse: bool = False

    def holds(self, place: RecordKey) -> bool:
        """Return True if a record lies in the range, and after ``after``."""
        namespace, key = place
        bound = range_end(self.prefix)
        if self.exact:
            inside = namespace == self.prefix and (self.start is None or key >= self.start)
            inside = inside and (self.end is None or key < self.end)
        else:
            inside = namespace >= self.prefix and (bound is None or namespace < bound)
        if not inside or self.after is None:
            return inside
        return place < self.after if self.reverse else place > self.after


def encode_key(key: object, field_name: str = "key") -> bytes:
    """Return a key in UTF-8, whose order of bytes is the order of the list."""
    encoded = _text(key, field_name).encode()
    if not 0 < len(encoded) <= MAX_KEY_BYTES:
        raise InvalidInput(field_name, f"is {len(encoded)} bytes in UTF-8, it must be 1 to {MAX_KEY_BYTES}")
    return encoded


def read_place(namespace: object, key: object) -> RecordKey:
    """Return the namespace and key that a cursor holds."""
    if not isinstance(namespace, str) or not isinstance(key, str):
        raise TypeError
    return namespace.encode(), key.encode()


def check_tags(tags: object, field_name: str = "tags") -> dict[str, Tag]:
    """Return the tags of a record."""
    if tags is None:
        return {}
    if not isinstance(tags, Mapping):
        raise InvalidInput(field_name, f"must be an object, not {type(tags).__name__}")
    if len(tags) > MAX_TAGS:
        raise InvalidInput(field_name, f"has {len(tags)} tags, the limit is {MAX_TAGS}")
    checked: dict[str, Tag] = {}
    for name, value in tags.items():
        label = _text(name, field_name)
        where = f"{field_name}.{label}" if label.isprintable() else field_name
        if not 0 < len(label.encode()) <= MAX_TAG_BYTES:
            raise InvalidInput(where, f"has a name of {len(label.encode())} bytes, it must be 1 to {MAX_TAG_BYTES}")
        if not (value is None or isinstance(value, str | int)):
            raise InvalidInput(
                where, f"must be a string, a whole number, a boolean or null, not {type(value).__name__}"
            )
        if len(encode_tag(value, where)) > MAX_TAG_BYTES:
            raise InvalidInput(where, f"is longer than {MAX_TAG_BYTES} bytes in UTF-8")
        checked[label] = value
    return checked


def encode_tag(value: Tag, field_name: str = "tags") -> bytes:
    """Return the form in which a tag's value is compared: with its type, so that ``True``, ``1`` and ``"1"`` differ."""
    match value:
        case None:
            return b"n:"
        case bool():
            return b"b:1" if value else b"b:0"
        case int():
            if not -(2**63) <= value < 2**63:
                raise InvalidInput(field_name, "is an integer beyond 64 bits: give it as a string")
            return b"i:%d" % int(value)
        case str():
            return b"s:" + _text(value, field_name).encode()
    raise InvalidInput(field_name, f"must be a string, a whole number, a boolean or null, not {type(value).__name__}")


def has_tags(held: Mapping[str, Tag], wanted: Mapping[str, Tag]) -> bool:
    """Return True if all wanted tags are held; ``1``, ``True`` and ``"1"`` differ."""
    return all(name in held and encode_tag(held[name]) == encode_tag(value) for name, value in wanted.items())


def _text(value: object, field_name: str) -> str:
    if not isinstance(value, str):
        raise InvalidInput(field_name, f"must be a string, not {type(value).__name__}")
    if "\0" in value:
        raise InvalidInput(field_name, f"has a NUL character at {value.index(chr(0))}: remove it")
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(field_name, f"has a lone surrogate at {error.start}: it is not text") from None
    return text

"""Decide which messages a read returns; the same for stored and for pending ones, and in every database."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.identifiers import check_identifier
from letopis.store.model.messages import ROLES, empty
from letopis.store.model.parts import part_types


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which messages are wanted: those to which everything that is given applies.

    ``Filter(roles=["user", "assistant"], metadata={"agent": "planner"})``

    :ivar roles: those of their authors; ``None`` for all.
    :ivar metadata: keys of their metadata, each with its value. Values are equal as JSON is: ``1`` and ``1.0`` are,
        ``true``, ``1`` and ``"1"`` are not, and an object or a list must be equal as a whole. ``None`` is a null, and
        no missing key. A redacted message has no metadata.
    :ivar id_prefix: what their ids begin with.
    :ivar parts: types of content parts, for example ``tool_call`` and ``file``, of which they hold any; content given
        as a string is ``text``. ``None`` for all.
    :raises InvalidInput: a value is of the wrong kind.
    """

    roles: Collection[str] | None = None
    metadata: Mapping[str, Any] = field(default_factory=empty)
    id_prefix: str | None = None
    parts: Collection[str] | None = None

    def __post_init__(self) -> None:
        if self.roles is not None:
            given = self.roles
            if isinstance(given, str) or not isinstance(given, Collection) or not all(role in ROLES for role in given):
                raise InvalidInput("roles", f"must be some of {', '.join(ROLES)}, for example a set")
            object.__setattr__(self, "roles", frozenset(map(str.__str__, given)))
        if not isinstance(self.metadata, Mapping) or not all(isinstance(key, str) for key in self.metadata):
            raise InvalidInput("metadata", "must be an object: keys of the messages' metadata, with their values")
        if self.id_prefix is not None:
            # A database may refuse to be asked for what no id can begin with.
            object.__setattr__(self, "id_prefix", check_identifier(self.id_prefix, "id_prefix"))
        if self.parts is not None:
            types = self.parts
            if isinstance(types, str) or not isinstance(types, Collection):
                raise InvalidInput("parts", "must be types of content parts, for example a set")
            if not all(isinstance(kind, str) and kind for kind in types):
                raise InvalidInput("parts", "must be types of content parts, each a string that is not empty")
            object.__setattr__(self, "parts", frozenset(map(str.__str__, types)))

    def matches(self, message: RecordedMessage) -> bool:
        """Return True if the message is wanted."""
        if self.roles is not None and message.role not in self.roles:
            return False
        if self.id_prefix is not None and not message.id.startswith(self.id_prefix):
            return False
        if self.parts is not None and not part_types(message.content) & frozenset(self.parts):
            return False
        metadata = message.message.metadata
        return all(key in metadata and is_equal_json(metadata[key], value) for key, value in self.metadata.items())

    def of(self, messages: Iterable[RecordedMessage]) -> list[RecordedMessage]:
        """Return the messages that are wanted, in order."""
        return [message for message in messages if self.matches(message)]


def check_filter(where: Filter | None) -> Filter | None:
    if where is not None and not isinstance(where, Filter):
        raise InvalidInput("where", f"must be a Filter, not {type(where).__name__}")
    return where


def is_equal_json(one: Any, other: Any) -> bool:
    """Return True if two values are the same JSON value; unlike Python's ``==``, for which ``True`` is 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(is_equal_json(value, other[key]) for key, value in one.items())
    if _is_list(one) and _is_list(other):
        return len(one) == len(other) and all(map(is_equal_json, one, other))
    return bool(one == other)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)

"""Messages: who said what, as a bot hands it over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, Final, Self
from uuid import UUID

from letopis.store.errors import InvalidInput
from letopis.store.identifiers import check_identifier, uuid7

ROLES: Final = ("system", "user", "assistant", "tool")
STATUSES: Final = ("complete", "interrupted")
EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


def empty() -> Mapping[str, Any]:
    """Return the one empty object, which nobody can change."""
    return EMPTY


@dataclass(frozen=True, slots=True)
class Text:
    """Words for people."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A model's own thinking, kept apart from what it says."""

    kind: ClassVar[str] = "reasoning"
    text: str


@dataclass(frozen=True, slots=True)
class File:
    """A file by reference; the bytes stay where they are."""

    kind: ClassVar[str] = "file"
    uri: str
    media_type: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's request to run a tool; ``arguments`` are JSON values or the model's raw text."""

    kind: ClassVar[str] = "tool_call"
    call_id: str
    name: str
    arguments: Any = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave back for the call of the same id."""

    kind: ClassVar[str] = "tool_result"
    call_id: str
    output: Any = None
    status: str = "ok"


@dataclass(frozen=True, slots=True)
class Data:
    """Any JSON value."""

    kind: ClassVar[str] = "data"
    value: Any = None


@dataclass(frozen=True, slots=True)
class UnknownPart:
    """A part of a kind this version does not know: carried and shown, never dropped."""

    value: Mapping[str, Any]


Part = Text | Reasoning | File | ToolCall | ToolResult | Data | UnknownPart
_PARTS: Final[dict[str, type[Text | Reasoning | File | ToolCall | ToolResult | Data]]] = {
    part.kind: part for part in (Text, Reasoning, File, ToolCall, ToolResult, Data)
}
_TEXT_FIELDS: Final = {"text", "uri", "media_type", "call_id", "name", "status"}


def part_to_json(part: Part) -> dict[str, Any]:
    """Return the JSON object of a part; fields that are ``None`` are left out."""
    if isinstance(part, UnknownPart):
        return dict(part.value)
    value: dict[str, Any] = {"type": part.kind}
    for spec in fields(part):
        if (item := getattr(part, spec.name)) is not None:
            value[spec.name] = item
    return value


def part_from_json(value: Any) -> Part:
    """Return the part that a JSON object describes; what is not known becomes an :class:`UnknownPart`.

    :raises InvalidInput: ``value`` is no JSON object.
    """
    if not isinstance(value, Mapping):
        raise InvalidInput("content", f"a part must be an object, not {type(value).__name__}")
    kind = value.get("type")
    known = _PARTS.get(kind) if isinstance(kind, str) else None
    given = {key: item for key, item in value.items() if key != "type"}
    if known is None or not given.keys() <= {spec.name for spec in fields(known)}:
        return UnknownPart(dict(value))
    if any(key in _TEXT_FIELDS and not isinstance(item, str) for key, item in given.items()):
        return UnknownPart(dict(value))
    try:
        return known(**given)
    except TypeError:  # a field that the kind needs is missing
        return UnknownPart(dict(value))


Content = str | tuple[Part, ...]


def content_to_json(content: Content) -> str | list[dict[str, Any]]:
    """Return message content as JSON values: a string stays one, parts become a list of objects."""
    return content if isinstance(content, str) else [part_to_json(part) for part in content]


def content_from_json(value: Any) -> Content:
    """Return message content from JSON values.

    :raises InvalidInput: neither a string nor a list of objects.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return tuple(part_from_json(item) for item in value)
    raise InvalidInput("content", f"must be text or a list of parts, not {type(value).__name__}")


def content_text(content: Content) -> str:
    """Return the words for people in ``content``, text parts joined by a line feed."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content if isinstance(part, Text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message, before it is recorded.

    With no ``id`` a new UUIDv7 is made here, once, so that every retry of an append carries the same one. With an
    ``id`` of the caller's (unique in its conversation), appending the same content again is a no-op for ever.

    :ivar role: ``system``, ``user``, ``assistant`` or ``tool``.
    :ivar content: text, or parts.
    :ivar tokens: what the message cost, if known. ``usage`` holds the breakdown (``{"input": 12, "output": 40}``).
    :ivar status: ``complete``, or ``interrupted`` where its writer was cut off and this is as far as it came.
    :ivar external_ids: ids that other systems gave it, for example ``{"telegram": 4711}``.
    :ivar metadata: any JSON object of the caller's.

    What is *not* checked here is checked at append: text that a store would refuse, sizes, depth.

    :raises InvalidInput: the role is unknown, or an id or the content is of the wrong kind.
    """

    role: str
    content: Content
    id: str = ""
    name: str | None = None
    tokens: int | None = None
    usage: Mapping[str, Any] = field(default_factory=empty)
    external_ids: Mapping[str, Any] = field(default_factory=empty)
    metadata: Mapping[str, Any] = field(default_factory=empty)
    status: str = "complete"
    event_id: UUID | None = field(default=None, init=False, repr=False, compare=False)
    """The event id made with the message; ``None`` where the caller chose ``id`` and the event id derives from it."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidInput("role", f"must be one of {', '.join(ROLES)}")
        if self.status not in STATUSES:
            raise InvalidInput("status", f"must be one of {', '.join(STATUSES)}")
        if not isinstance(self.content, str):
            object.__setattr__(self, "content", checked_parts(self.content))
        if not (self.usage is self.external_ids is self.metadata is EMPTY):
            for name in ("usage", "external_ids", "metadata"):
                value = getattr(self, name)
                if not isinstance(value, Mapping):
                    raise InvalidInput(name, f"must be an object, not {type(value).__name__}")
        if self.id:
            check_identifier(self.id, "id")
        elif self.id == "":
            made = uuid7()
            object.__setattr__(self, "event_id", made)
            object.__setattr__(self, "id", str(made))
        else:
            raise InvalidInput("id", f"must be a string, not {type(self.id).__name__}")

    @classmethod
    def system(cls, content: str | Iterable[Part], **fields: Any) -> Self:
        """Return a message of the ``system`` role; ``fields`` as in the class."""
        return cls._of("system", content, fields)

    @classmethod
    def user(cls, content: str | Iterable[Part], **fields: Any) -> Self:
        """Return a message of the ``user`` role; ``fields`` as in the class."""
        return cls._of("user", content, fields)

    @classmethod
    def assistant(cls, content: str | Iterable[Part], **fields: Any) -> Self:
        """Return a message of the ``assistant`` role; ``fields`` as in the class."""
        return cls._of("assistant", content, fields)

    @classmethod
    def tool(cls, content: str | Iterable[Part], **fields: Any) -> Self:
        """Return a message of the ``tool`` role; ``fields`` as in the class."""
        return cls._of("tool", content, fields)

    @classmethod
    def _of(cls, role: str, content: str | Iterable[Part], fields: dict[str, Any]) -> Self:
        if cls is Message and not fields and type(content) is str:
            made = uuid7()
            return _Plain(role, content, str(made), made)  # type: ignore[return-value]
        return cls(role=role, content=content, **fields)  # type: ignore[arg-type]  # __post_init__ makes the tuple

    @property
    def text(self) -> str:
        """The words for people, text parts joined by a line feed."""
        return content_text(self.content)

    def check(self) -> None:
        """Check what is not checked when a message is made, because it costs more than it is worth there.

        :raises InvalidInput: the name or the tokens are of the wrong kind.
        """
        if self.name is not None and not isinstance(self.name, str):
            raise InvalidInput("data.name", "must be a string")
        tokens = self.tokens
        if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0):
            raise InvalidInput("data.tokens", "must be a whole number, zero or more")

    def to_data(self) -> dict[str, Any]:
        """Return the data of ``message.appended``; fields that hold nothing are left out."""
        data: dict[str, Any] = {
            "message_id": self.id,
            "role": self.role,
            "content": content_to_json(self.content),
        }
        if self.name is not None:
            data["name"] = self.name
        if self.tokens is not None:
            data["tokens"] = self.tokens
        if self.usage:
            data["usage"] = dict(self.usage)
        if self.external_ids:
            data["external_ids"] = dict(self.external_ids)
        if self.metadata:
            data["metadata"] = dict(self.metadata)
        if self.status != "complete":
            data["status"] = self.status
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Return the message that the data of ``message.appended`` holds.

        :raises InvalidInput: a field is missing or of the wrong kind.
        """
        if cls is Message and len(data) == 3 and (plain := _plain(data)) is not None:
            return plain  # type: ignore[return-value]
        message_id = data.get("message_id")
        if not isinstance(message_id, str) or not message_id:
            raise InvalidInput("data.message_id", "must be a string that is not empty")
        role = data.get("role")
        if not isinstance(role, str):
            raise InvalidInput("data.role", "must be a string")
        tokens = data.get("tokens")
        if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0):
            raise InvalidInput("data.tokens", "must be a whole number, zero or more")
        name = data.get("name")
        if name is not None and not isinstance(name, str):
            raise InvalidInput("data.name", "must be a string")
        content = data.get("content")
        for key in ("usage", "external_ids", "metadata"):
            if key in data and not isinstance(data[key], Mapping):  # absent in most, and the check is not cheap
                raise InvalidInput(f"data.{key}", "must be an object")
        return cls(
            role=role,
            content=content_from_json(content),
            id=message_id,
            name=name,
            tokens=tokens,
            usage=data.get("usage", EMPTY),
            external_ids=data.get("external_ids", EMPTY),
            metadata=data.get("metadata", EMPTY),
            status=data.get("status", "complete"),
        )


class _Plain:
    """A message of words alone while it is made: laid out like one, and one from then on.

    A frozen class sets every field by a call, which takes seven times as long; a read makes fifty of them, and nearly
    every append one.
    """

    __slots__ = tuple(spec.name for spec in fields(Message))

    def __init__(self, role: str, content: str, message_id: str, event_id: UUID | None = None) -> None:
        self.role = role
        self.content = content
        self.id = message_id
        self.name = self.tokens = None
        self.event_id = event_id
        self.usage = self.external_ids = self.metadata = EMPTY
        self.status = "complete"
        self.__class__ = Message  # type: ignore[assignment]


def _plain(data: Mapping[str, Any]) -> Message | None:
    """Return the message of data that hold what nearly all messages have, and no more; ``None`` of other data."""
    message_id, role, content = data.get("message_id"), data.get("role"), data.get("content")
    if type(message_id) is not str or not message_id or role not in ROLES or type(content) is not str:
        return None
    return _Plain(role, content, check_identifier(message_id, "id"))  # type: ignore[return-value]


def checked_parts(content: Any) -> tuple[Part, ...]:
    """Return the parts of content that is not text alone.

    :raises InvalidInput: it is neither text nor parts, or a part holds what cannot be read back.
    """
    if not isinstance(content, Iterable) or isinstance(content, Mapping | bytes):
        raise InvalidInput("content", f"must be text or parts, not {type(content).__name__}")
    parts = tuple(content)
    for part in parts:
        if not isinstance(part, Part):
            raise InvalidInput("content", f"a part must be Text, File, ToolCall ..., not {type(part).__name__}")
        if isinstance(part, UnknownPart) and not isinstance(part.value, Mapping):
            raise InvalidInput("content", f"a part must be an object, not {type(part.value).__name__}")
        for spec in fields(part):
            item = getattr(part, spec.name)
            # Stored all the same it would come back as a part of an unknown kind.
            if spec.name in _TEXT_FIELDS and not isinstance(item, str) and not (item is None and spec.default is None):
                raise InvalidInput("content", f"{spec.name} of a part must be text, not {type(item).__name__}")
    return parts

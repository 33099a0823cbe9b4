"""Describe messages as a bot hands them over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, Literal, Self, TypedDict, Unpack, cast
from uuid import UUID

import orjson

from letopis.store.errors import InvalidInput
from letopis.store.model.identifiers import MAX_ID_LENGTH, check_identifier, uuid7
from letopis.store.model.large_content import MARK, MARK_IN_JSON
from letopis.store.model.parts import (
    Content,
    Part,
    ToolResult,
    checked_parts,
    content_from_json,
    content_text,
    content_to_json,
)

Role = Literal["system", "developer", "user", "assistant", "tool"]
"""Who wrote a message."""
Status = Literal["complete", "interrupted"]
ROLES: Final[tuple[Role, ...]] = ("system", "developer", "user", "assistant", "tool")
INSTRUCTIONS: Final[tuple[Role, ...]] = ("system", "developer")
"""The roles that instruct a model rather than talk to it."""
STATUSES: Final[tuple[Status, ...]] = ("complete", "interrupted")
EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})
_MARK: Final = MARK_IN_JSON.encode()
_new: Final = object.__new__


class MessageFields(TypedDict, total=False):
    """The fields of a message besides its role and content, as the methods named after roles take them."""

    id: str
    name: str | None
    author: str | None
    tokens: int | None
    usage: Mapping[str, Any]
    external_ids: Mapping[str, Any]
    metadata: Mapping[str, Any]
    status: Status


def empty() -> Mapping[Any, Any]:
    """Return the shared, immutable empty object."""
    return EMPTY


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message, before it is recorded.

    Without an ``id``, a new UUIDv7 is made here, once, so that each retry of an append carries the same one. With your
    own ``id`` (unique in its conversation), appending the same content again has no effect.

    Write ``Message.user("What is tea?")`` rather than ``Message(role="user", content="What is tea?")``.

    :ivar role: ``system``, ``developer``, ``user``, ``assistant`` or ``tool``.
    :ivar author: the person who wrote it, by an id of yours; ``None`` if unknown. A person's messages are exported and
        erased by it, also in a conversation of several. It is an id, not content: an erasure leaves it.
    :ivar content: text, or parts. An assistant's may be ``None``, as in the message of a model that only calls tools.
    :ivar tokens: what the message cost, if known.
    :ivar usage: the breakdown of the tokens, for example ``{"input": 12, "output": 40}``.
    :ivar status: ``complete``, or ``interrupted`` where its writer was cut off and the content is incomplete.
    :ivar external_ids: ids that other systems gave it, for example ``{"telegram": 4711}``.
    :ivar metadata: any JSON object.

    JSON is kept as given, with the order of its keys. Subclasses of ``str``, ``int`` and ``float``, such as the members
    of a ``StrEnum``, are taken by value.

    Text that a store would refuse, sizes and depth are checked by the append.

    :raises InvalidInput: the role is unknown, or an id or the content is of the wrong kind.
    """

    role: Role
    content: Content | None
    id: str = ""
    name: str | None = None
    author: str | None = None
    tokens: int | None = None
    usage: Mapping[str, Any] = field(default_factory=empty)
    external_ids: Mapping[str, Any] = field(default_factory=empty)
    metadata: Mapping[str, Any] = field(default_factory=empty)
    status: Status = "complete"
    event_id: UUID | None = field(default=None, init=False, repr=False, compare=False)
    """The event id made with the message; ``None`` if you chose ``id``, from which the event id is derived then."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidInput("role", f"must be one of {', '.join(ROLES)}")
        if self.status not in STATUSES:
            raise InvalidInput("status", f"must be one of {', '.join(STATUSES)}")
        for name in ("role", "status"):
            if type(given := getattr(self, name)) is not str:
                object.__setattr__(self, name, str.__str__(given))
        if self.content is None:
            if self.role != "assistant":
                raise InvalidInput("content", f"of a {self.role} message must be text or parts, not None")
        elif not isinstance(self.content, str):
            object.__setattr__(self, "content", checked_parts(self.content))
        if self.author is not None:
            object.__setattr__(self, "author", check_identifier(self.author, "author"))
        if not (self.usage is self.external_ids is self.metadata is EMPTY):
            for name in ("usage", "external_ids", "metadata"):
                value = getattr(self, name)
                if not isinstance(value, Mapping):
                    raise InvalidInput(name, f"must be an object, not {type(value).__name__}")
        if self.id:
            object.__setattr__(self, "id", check_identifier(self.id, "id"))
        elif self.id == "":
            made = uuid7()
            object.__setattr__(self, "event_id", made)
            object.__setattr__(self, "id", str(made))
        else:
            raise InvalidInput("id", f"must be a string, not {type(self.id).__name__}")

    @classmethod
    def system(cls, content: str | Iterable[Part], **fields: Unpack[MessageFields]) -> Self:
        """Return a message of the ``system`` role; the parameters are those of the class."""
        return cls._of("system", content, fields)

    @classmethod
    def developer(cls, content: str | Iterable[Part], **fields: Unpack[MessageFields]) -> Self:
        """Return a message of the ``developer`` role, which newer models use instead of ``system``."""
        return cls._of("developer", content, fields)

    @classmethod
    def user(cls, content: str | Iterable[Part], **fields: Unpack[MessageFields]) -> Self:
        """Return a message of the ``user`` role; the parameters are those of the class."""
        return cls._of("user", content, fields)

    @classmethod
    def assistant(cls, content: str | Iterable[Part] | None, **fields: Unpack[MessageFields]) -> Self:
        """Return a message of the ``assistant`` role; the parameters are those of the class."""
        return cls._of("assistant", content, fields)

    @classmethod
    def tool(
        cls, content: ToolResult | str | Iterable[Part], *more: ToolResult, **fields: Unpack[MessageFields]
    ) -> Self:
        """Return a message of the ``tool`` role: one :class:`ToolResult`, several, or any content.

        ``Message.tool(ToolResult("call-1", {"degrees": 21}))``
        """
        given = (content, *more) if more or isinstance(content, ToolResult) else content
        return cls._of("tool", given, fields)

    @classmethod
    def _of(cls, role: Role, content: Any, fields: MessageFields) -> Self:
        if not fields and type(content) is str and cls is Message:
            made = uuid7()
            return _plain(role, content, str(made), made)  # type: ignore[no-any-return]
        return cls(role=role, content=content, **fields)

    @property
    def text(self) -> str:
        """The visible text, text parts joined by a line feed."""
        return content_text(self.content)

    def to_data(self) -> dict[str, Any]:
        """Return the data of ``message.appended``, without empty fields.

        :raises InvalidInput: the name or the tokens, which the constructor does not check, are of the wrong kind.
        """
        content, name, tokens = self.content, self.name, self.tokens
        # In the order of the digest, which is that of most messages then.
        data: dict[str, Any] = {
            "content": content if type(content) is str else content_to_json(content),
            "message_id": self.id,
            "role": self.role,
        }
        if name is not None:
            if not isinstance(name, str):
                raise InvalidInput("data.name", "must be a string")
            data["name"] = name
        if self.author is not None:
            data["author"] = self.author
        if tokens is not None:
            if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
                raise InvalidInput("data.tokens", "must be a whole number, zero or more")
            data["tokens"] = tokens
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
        if cls is Message and (plain := text_message(data)) is not None:
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
        if content is not None or "content" not in data:
            content = content_from_json(content)
        for key in ("usage", "external_ids", "metadata"):
            if key in data and not isinstance(data[key], Mapping):  # absent in most, and the check is not cheap
                raise InvalidInput(f"data.{key}", "must be an object")
        return cls(
            role=cast(Role, role),  # checked below
            content=content,
            id=message_id,
            name=name,
            author=data.get("author"),
            tokens=tokens,
            usage=data.get("usage", EMPTY),
            external_ids=data.get("external_ids", EMPTY),
            metadata=data.get("metadata", EMPTY),
            status=data.get("status", "complete"),
        )


def needs_content(message: Message) -> bool:
    """Return True if a message holds a reference, or a string that was escaped."""
    content, metadata = message.content, message.metadata
    if not metadata and type(content) is str:
        return content.startswith(MARK)
    # Written and searched at once, which is three times as fast as a walk.
    return _MARK in orjson.dumps([content, metadata or None], default=dict)


class _Plain:
    """A message of text alone while it is made: laid out like a :class:`Message`, and one from then on."""

    # A frozen class sets each field by a call of its own: a page of fifty messages would take 12 % longer (ADR 0034).
    __slots__ = tuple(spec.name for spec in fields(Message))


def _plain(role: Role, content: str, message_id: str, event_id: UUID | None = None) -> Any:
    """Return a message of text alone."""
    message: Any = _new(_Plain)
    message.role = role
    message.content = content
    message.id = message_id
    message.name = message.author = message.tokens = None
    message.event_id = event_id
    message.usage = message.external_ids = message.metadata = EMPTY
    message.status = "complete"
    message.__class__ = Message
    return message


def text_message(data: Mapping[str, Any]) -> Message | None:
    """Return the message of data of ``message.appended`` that hold only what nearly all have; ``None`` for others."""
    if len(data) != 3:
        return None
    try:
        name, role, content = data["message_id"], data["role"], data["content"]
    except KeyError:
        return None
    if (
        type(content) is not str
        or role not in ROLES
        or type(name) is not str
        or not (0 < len(name) <= MAX_ID_LENGTH and name.isprintable())
    ):
        return None
    return _plain(role, content, name)  # type: ignore[no-any-return]

"""Define the event types of a conversation, one frozen class each, with its ``schema_version``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar, Final, Self

from letopis.store.errors import InvalidInput
from letopis.store.model.identifiers import ForkPoint, check_identifier, check_whole
from letopis.store.model.messages import Message
from letopis.store.model.parts import Content, checked_parts, content_from_json, content_to_json


class Null(Enum):
    """The type of :data:`NULL`."""

    NULL = "null"


NULL: Final = Null.NULL
"""A value of an annotation that is stored as ``null``; ``None`` removes the key."""
PINNED: Final = "pinned"
"""The tag of a conversation that keeps its content from every rule of retention."""
MAX_TAGS: Final = 32
"""Tags of a conversation; what would add more stays in the log alone."""
STATE_EVENTS: Final = "conversation."
"""Begins the types that make the state of a conversation: a trim takes nothing out of such events."""


def _required(*kinds: type) -> Any:
    return field(metadata={"kinds": kinds})


def _optional(*kinds: type) -> Any:
    return field(default=None, metadata={"kinds": (*kinds, type(None))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The typed content of an event. ``type`` and ``schema_version`` name its shape; a new shape is a new version."""

    type: ClassVar[str]
    schema_version: ClassVar[int] = 1

    def to_data(self) -> dict[str, Any]:
        """Return the event's data as JSON values; fields that are ``None`` are left out."""
        return {name: item for name, _ in _shape(type(self)) if (item := getattr(self, name)) is not None}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Return the body that ``data`` holds; unknown keys are ignored.

        :raises InvalidInput: a field is missing or of the wrong kind.
        """
        values: dict[str, Any] = {}
        for name, kinds in _shape(cls):
            if name not in data:
                if type(None) not in kinds:
                    raise InvalidInput(f"data.{name}", "is missing")
                continue
            item = data[name]
            if not isinstance(item, kinds) or (isinstance(item, bool) and bool not in kinds):
                expected = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
                raise InvalidInput(f"data.{name}", f"must be {expected}, not {type(item).__name__}")
            values[name] = item
        return cls(**values)


_SHAPES: Final[dict[type[Body], tuple[tuple[str, tuple[type, ...]], ...]]] = {}


def _shape(body: type[Body]) -> tuple[tuple[str, tuple[type, ...]], ...]:
    """Return the names of a body's fields and the kinds of each, cached because every event needs them."""
    if (shape := _SHAPES.get(body)) is None:
        shape = _SHAPES[body] = tuple((spec.name, spec.metadata["kinds"]) for spec in fields(body))
    return shape


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationStarted(Body):
    """A conversation begins. A later one only fills in what is unknown (owner, title, parent).

    ``forked_from`` makes it a fork, which reads its parent's messages up to an event without copying them:
    ``{"conversation_id": ..., "version": ..., "event_id": ...}``; one of the last two is enough.
    """

    type: ClassVar[str] = "conversation.started"
    owner_id: str | None = _optional(str)
    title: str | None = _optional(str)
    forked_from: Mapping[str, Any] | None = _optional(Mapping)

    @property
    def fork(self) -> ForkPoint | None:
        """The point up to which it reads its parent; ``None`` if it is no fork."""
        return None if self.forked_from is None else ForkPoint.of(self.forked_from)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        body = super(ConversationStarted, cls).from_data(data)
        if body.forked_from is not None:
            ForkPoint.of(body.forked_from)
        return body


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationRenamed(Body):
    """A conversation has a new title, of any length."""

    type: ClassVar[str] = "conversation.renamed"
    title: str = _required(str)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationAnnotated(Body):
    """Keys of the conversation's own metadata are set; ``None`` removes a key, :data:`NULL` stores ``null``."""

    type: ClassVar[str] = "conversation.annotated"
    metadata: Mapping[str, Any] = _required(Mapping)

    def to_data(self) -> dict[str, Any]:
        """Return the event's data; ``nulls`` names the keys whose ``null`` is stored."""
        metadata = _object(self.metadata, "metadata")
        nulls = [key for key, item in metadata.items() if item is NULL]
        if not nulls:
            return {"metadata": metadata}
        return {"metadata": {key: None if item is NULL else item for key, item in metadata.items()}, "nulls": nulls}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Return the annotation that ``data`` holds, with :data:`NULL` for each key that ``nulls`` names."""
        metadata, nulls = data.get("metadata"), data.get("nulls")
        if nulls is not None and isinstance(metadata, Mapping):
            if not isinstance(nulls, list | tuple) or not all(isinstance(key, str) for key in nulls):
                raise InvalidInput("data.nulls", "must be a list of keys")
            for key in nulls:
                if metadata.get(key, NULL) is not None:
                    raise InvalidInput("data.nulls", f"names {key!a}, which is not null in the metadata")
            data = {**data, "metadata": {**metadata, **dict.fromkeys(nulls, NULL)}}
        return super(ConversationAnnotated, cls).from_data(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationTagged(Body):
    """Tags of the conversation are added and removed. The tag :data:`PINNED` keeps its content from retention."""

    type: ClassVar[str] = "conversation.tagged"
    add: Sequence[str] | None = _optional(list, tuple)
    remove: Sequence[str] | None = _optional(list, tuple)

    def __post_init__(self) -> None:
        for name in ("add", "remove"):
            tags = getattr(self, name)
            if not isinstance(tags, list | tuple | None):
                raise InvalidInput(name, f"must be a list of tags, not {type(tags).__name__}")
            for tag in tags or ():
                check_identifier(tag, name)
        if len(self.add or ()) > MAX_TAGS or (self.add is None and self.remove is None):
            raise InvalidInput("add", f"add and remove name 1 to {MAX_TAGS} tags")

    def to_data(self) -> dict[str, Any]:
        return {name: list(tags) for name, tags in (("add", self.add), ("remove", self.remove)) if tags is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationTrimmed(Body):
    """The content of all events up to a version has left by a rule of retention; title, metadata and tags stay.

    The messages up to it are redacted, also those that a fork inherits. ``upto`` is a version of the history store,
    before the event's own; ``sequence`` is the last one up to it of the outbox that appended this.
    """

    type: ClassVar[str] = "conversation.trimmed"
    upto: int = _required(int)
    rule: str = _required(str)
    sequence: int | None = _optional(int)

    def __post_init__(self) -> None:
        check_whole(self.upto, "upto", 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationActivated(Body):
    """The conversation becomes its owner's active one."""

    type: ClassVar[str] = "conversation.activated"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationArchived(Body):
    """The conversation leaves the default list; nothing of it is lost."""

    type: ClassVar[str] = "conversation.archived"
    reason: str | None = _optional(str)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationRestored(Body):
    """An archived conversation returns to the default list."""

    type: ClassVar[str] = "conversation.restored"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationRewound(Body):
    """Messages after a point leave the active path (undo, pop, clear, regenerate); the log keeps them.

    ``to_message_id`` names the last message that stays; without it none stays. If that message is off the path already
    or unknown, nothing happens. In a fork, a message of the parent ends the inherited part. Without one, it ceases to
    read its parent, unless its messages were ``undone``: taken back, so that it can still be read as it was.

    With ``erase`` it is a reset: earlier messages, title and metadata are erased as by a deletion, and the conversation
    continues empty. Later events than ``upto``, a version of the history store, stay, unless they arrived erased.
    """

    type: ClassVar[str] = "conversation.rewound"
    to_message_id: str | None = _optional(str)
    reason: str | None = _optional(str)
    erase: bool | None = _optional(bool)
    upto: int | None = _optional(int)
    undone: bool | None = _optional(bool)

    @classmethod
    def back_to(cls, message_id: str | None, reason: str | None = None) -> Self:
        """Return the rewind that takes back all messages after one; without it, all there are."""
        return cls(to_message_id=message_id, reason=reason, undone=True if message_id is None else None)

    def __post_init__(self) -> None:
        if self.erase and self.to_message_id is not None:
            raise InvalidInput("erase", "erases everything: no message can stay, so to_message_id cannot be given")
        if self.upto is not None and not (self.erase and check_whole(self.upto, "upto", 0) >= 0):
            raise InvalidInput("upto", "bounds what is erased: it is given together with erase")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationDeleted(Body):
    """The conversation is deleted; its id is never used again."""

    type: ClassVar[str] = "conversation.deleted"
    reason: str | None = _optional(str)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageAppended(Body):
    """A message was appended; that comes before it is sent."""

    type: ClassVar[str] = "message.appended"
    message: Message = field(metadata={"kinds": (Message,)})

    def __post_init__(self) -> None:
        if not isinstance(self.message, Message):
            raise InvalidInput("message", f"must be a Message, not {type(self.message).__name__}")

    def to_data(self) -> dict[str, Any]:
        return self.message.to_data()

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        return cls(message=Message.from_data(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSent(Body):
    """The platform accepted the message.

    ``platform_ids`` are its ids there, ``sent_as`` is how it was sent (``message``, ``file`` ...), ``file_path`` is the
    file that it was sent as.
    """

    type: ClassVar[str] = "message.sent"
    message_id: str = _required(str)
    platform_ids: Mapping[str, Any] | None = _optional(Mapping)
    sent_as: str | None = _optional(str)
    file_path: str | None = _optional(str)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFailed(Body):
    """The platform did not accept the message; it stays in the history."""

    type: ClassVar[str] = "message.failed"
    message_id: str = _required(str)
    reason: str | None = _optional(str)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEdited(Body):
    """A message has new content; role, name and metadata stay."""

    type: ClassVar[str] = "message.edited"
    message_id: str = _required(str)
    content: Content = field(metadata={"kinds": (str, tuple)})
    reason: str | None = _optional(str)

    def to_data(self) -> dict[str, Any]:
        """Return the event's data; parts become JSON objects."""
        data = Body.to_data(self)
        content = self.content
        data["content"] = content if isinstance(content, str) else content_to_json(checked_parts(content))
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        if "content" in data:
            data = {**data, "content": content_from_json(data["content"])}
        return super(MessageEdited, cls).from_data(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRedacted(Body):
    """A message's content is erased; its place stays."""

    type: ClassVar[str] = "message.redacted"
    message_id: str = _required(str)
    by: str | None = _optional(str)
    reason: str | None = _optional(str)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReactionAdded(Body):
    """A reaction to a message, or a rating.

    An actor has one reaction of each key; a later ``value`` (of a rating) replaces the earlier one.
    """

    type: ClassVar[str] = "reaction.added"
    message_id: str = _required(str)
    key: str = _required(str)
    actor: str | None = _optional(str)
    value: int | float | str | None = _optional(int, float, str)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReactionRemoved(Body):
    """A reaction was taken back."""

    type: ClassVar[str] = "reaction.removed"
    message_id: str = _required(str)
    key: str = _required(str)
    actor: str | None = _optional(str)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSkipped(Body):
    """A tombstone: an operator skipped an event of the outbox, for a reason, so that the gap is explicit.

    It has the sequence of the skipped event, which itself was never in the history.
    """

    type: ClassVar[str] = "event.skipped"
    skipped_event_id: str = _required(str)
    skipped_type: str = _required(str)
    digest: str = _required(str)
    reason: str = _required(str)


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomEvent(Body):
    """An event of the application's own, ``custom.<name>``: kept, ordered, subscribed to, never interpreted."""

    name: str = field(metadata={"kinds": (str,)})
    data: Mapping[str, Any] = field(default_factory=dict, metadata={"kinds": (Mapping,)})

    @property
    def type(self) -> str:  # type: ignore[override]
        """``custom.`` and the name."""
        if not isinstance(self.name, str):
            raise InvalidInput("name", f"must be a string, not {type(self.name).__name__}")
        return f"custom.{self.name}"

    def to_data(self) -> dict[str, Any]:
        return _object(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownEvent(Body):
    """An event of a type, version or shape that this version of Letopis does not know; shown unchanged.

    :ivar problem: why it was not understood.
    """

    name: str = field(metadata={"kinds": (str,)})
    version: int = field(metadata={"kinds": (int,)})
    data: Mapping[str, Any] = field(metadata={"kinds": (Mapping,)})
    problem: str = field(metadata={"kinds": (str,)})

    @property
    def type(self) -> str:  # type: ignore[override]
        return self.name

    def to_data(self) -> dict[str, Any]:
        return _object(self.data)


def _object(data: Any, field_: str = "data") -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidInput(field_, f"must be an object, not {type(data).__name__}")
    return dict(data)


VOCABULARY: Final[Mapping[str, type[Body]]] = {
    body.type: body
    for body in (
        ConversationStarted,
        ConversationRenamed,
        ConversationAnnotated,
        ConversationTagged,
        ConversationTrimmed,
        ConversationActivated,
        ConversationArchived,
        ConversationRestored,
        ConversationRewound,
        ConversationDeleted,
        MessageAppended,
        MessageSent,
        MessageFailed,
        MessageEdited,
        MessageRedacted,
        ReactionAdded,
        ReactionRemoved,
        EventSkipped,
    )
}
"""The types that Letopis interprets, by name."""


def parse(type_name: str, schema_version: int, data: Mapping[str, Any]) -> Body:
    """Return the typed body of an event, strictly; unknown types and newer versions become :class:`UnknownEvent`."""
    body = VOCABULARY.get(type_name)
    if body is None:
        if type_name.startswith("custom."):
            return CustomEvent(name=type_name.removeprefix("custom."), data=data)
        return UnknownEvent(name=type_name, version=schema_version, data=data, problem="unknown type")
    if body.schema_version != schema_version:
        problem = f"version {schema_version}, this release knows {body.schema_version}"
        return UnknownEvent(name=type_name, version=schema_version, data=data, problem=problem)
    return body.from_data(data)


def read(type_name: str, schema_version: int, data: Mapping[str, Any]) -> Body:
    """Return the typed body of a recorded event, leniently: data that does not fit becomes :class:`UnknownEvent`."""
    try:
        return parse(type_name, schema_version, data)
    except InvalidInput as error:
        return UnknownEvent(name=type_name, version=schema_version, data=data, problem=str(error))

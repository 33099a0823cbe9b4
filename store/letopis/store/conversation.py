"""What a history gives back: conversations and their messages, as they stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, Self, TypeVar, overload
from uuid import UUID

from letopis.store.messages import EMPTY, Content, Message, content_text, empty
from letopis.store.vocabulary import ForkPoint

T = TypeVar("T")


class Saved(StrEnum):
    """How far a message has got on its way into the history store."""

    SAVED = "saved"
    """The history store holds it."""
    PENDING = "pending"
    """It is safe in the outbox and on its way."""
    BLOCKED = "blocked"
    """It is safe in the outbox, and its conversation waits for a person."""


class Delivery(StrEnum):
    """What is known of a message's way to the chat platform."""

    APPENDED = "appended"
    """Said, and not yet confirmed as sent."""
    SENT = "sent"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How much of a conversation a reader has seen; give it back with what is appended in answer to that.

    :ivar sequence: of the last event in the reader's own outbox; 0 for none.
    :ivar version: of the last event in the history store; ``None`` where that was not read.
    """

    sequence: int
    version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """What somebody put to a message: a mark (``key``), or a rating with its ``value``."""

    key: str
    actor: str | None = None
    value: int | float | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedMessage:
    """One message as a history holds it.

    :ivar message: as it was appended, with the content of the latest edit.
    :ivar version: its place in the history store's conversation; ``None`` while pending.
    :ivar sequence: its place in the conversation in the outbox it came through.
    :ivar saved: saved, pending or blocked.
    :ivar edited: whether an edit has replaced the content. An edit of a message that is still unsaved shows at once.
    :ivar delivery: appended, sent or failed; ``delivery_data`` holds the platform's ids, ``sent_as``, ``file_path``, or
        the reason of the failure.
    :ivar on_path: whether it is on the active path: neither rewound over nor put aside.
    :ivar superseded: whether it was put aside by the history store, because another writer's turn came first.
    :ivar redacted: whether its content was taken away for good.
    :ivar reactions: one a key and actor, in the order in which they were first given.
    """

    conversation_id: str
    message: Message
    event_id: UUID
    origin_id: UUID
    sequence: int
    occurred_at: datetime
    version: int | None = None
    recorded_at: datetime | None = None
    saved: Saved = Saved.SAVED
    edited: bool = False
    delivery: Delivery = Delivery.APPENDED
    delivery_data: Mapping[str, Any] = field(default_factory=empty)
    on_path: bool = True
    superseded: bool = False
    redacted: bool = False
    reactions: tuple[Reaction, ...] = ()

    @property
    def interrupted(self) -> bool:
        """Whether its writer was cut off, so that this is only as far as it came."""
        return self.message.status == "interrupted"

    @property
    def id(self) -> str:
        """The message id."""
        return self.message.id

    @property
    def role(self) -> str:
        """The role of who said it."""
        return self.message.role

    @property
    def content(self) -> Content:
        """Text, or parts."""
        return self.message.content

    @property
    def text(self) -> str:
        """The words for people."""
        return content_text(self.message.content)


class PlainMessage:
    """A saved message of which nothing but its appending is recorded, while it is made; a `RecordedMessage` then.

    A frozen class sets every field by a call, which takes five times as long; a read makes fifty of them.
    """

    __slots__ = tuple(spec.name for spec in fields(RecordedMessage))

    def __init__(
        self,
        conversation_id: str,
        message: Message,
        event_id: UUID,
        origin_id: UUID,
        sequence: int,
        occurred_at: datetime,
        version: int,
        recorded_at: datetime,
    ) -> None:
        self.conversation_id = conversation_id
        self.message = message
        self.event_id = event_id
        self.origin_id = origin_id
        self.sequence = sequence
        self.occurred_at = occurred_at
        self.version = version
        self.recorded_at = recorded_at
        self.saved = _SAVED
        self.delivery = _APPENDED
        self.delivery_data = EMPTY
        self.on_path = True
        self.edited = self.superseded = self.redacted = False
        self.reactions = ()
        self.__class__ = RecordedMessage  # type: ignore[assignment]


_SAVED, _APPENDED = Saved.SAVED, Delivery.APPENDED  # looked up in an enumeration they cost more than all the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One conversation as it stands, without its messages.

    :ivar version: how many events the history store holds of it; pending events are not counted.
    :ivar number: the owner's permanent number of it, from 1, never used again; ``None`` while pending or without owner.
    :ivar state: ``active``, ``archived`` or ``deleted``.
    :ivar message_count: messages on its active path, without what a fork inherits; pending ones included where a read
        overlays them.
    :ivar tokens: the sum of what its messages cost, as far as they say; those that have left the path too.
    :ivar metadata: the conversation's own, as it was annotated.
    :ivar active: whether it is its owner's active one, as the history store has it; what is pending of that is known
        to ``History.active()`` and ``History.chats()``.
    :ivar forked_from: where it reads its parent up to; ``None`` where it is no fork.
    :ivar inherits: whether messages of the parent are on its path: not after all of it was cleared. ``inherited_to``
        is the id of the last one that is, after a rewind into them; ``None`` is all up to ``forked_from``.
    :ivar seen: what to append after, where a history read it; ``None`` elsewhere.
    :ivar pending: events of it that wait in this outbox; 0 where only the history store was read.
    """

    conversation_id: str
    owner_id: str | None = None
    number: int | None = None
    title: str | None = None
    state: str = "active"
    version: int = 0
    message_count: int = 0
    tokens: int = 0
    created_at: datetime
    updated_at: datetime
    pending: int = 0
    metadata: Mapping[str, Any] = field(default_factory=empty)
    active: bool = False
    forked_from: ForkPoint | None = None
    inherits: bool = False
    inherited_to: str | None = None
    seen: Seen | None = field(default=None, compare=False, repr=False)

    def with_changes(self, **fields: Any) -> Self:
        """Return a copy with ``fields`` changed."""
        return replace(self, **fields)


@dataclass(frozen=True, slots=True)
class Page(Generic[T], Sequence[T]):
    """Some items of a list, and where to go on.

    :ivar items: in the order of the list.
    :ivar next: give it as ``after`` (or ``before``) for the following page; ``None`` where there is none.
    :ivar complete: ``False`` where the history store could not be reached and the items come from the outbox's
        retained tail alone, so that older ones may be missing.
    :ivar seen: of a page of messages that a history read: what to append after; ``None`` elsewhere.
    """

    items: tuple[T, ...]
    next: str | None = None
    complete: bool = True
    seen: Seen | None = None

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

"""Define what reads return: conversations, messages and pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Generic, Self, TypeVar, overload
from uuid import UUID

from letopis.store.model.events import from_microseconds
from letopis.store.model.identifiers import ForkPoint, uuid_of
from letopis.store.model.large_content import MARK
from letopis.store.model.messages import EMPTY, Message, Role, empty, needs_content
from letopis.store.model.parts import Content, content_text

T = TypeVar("T")


class Saved(StrEnum):
    """How far a message has got on its way into the history store."""

    SAVED = "saved"
    """The history store holds it."""
    PENDING = "pending"
    """It is safe in the outbox and on its way."""
    BLOCKED = "blocked"
    """It is safe in the outbox, and its conversation waits for an operator."""


class Delivery(StrEnum):
    """Whether a message has reached the chat platform."""

    APPENDED = "appended"
    """Not yet confirmed as sent."""
    SENT = "sent"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How much of a conversation a reader has seen; pass it as ``after`` when appending an answer.

    :ivar sequence: that of the last event in the reader's own outbox; 0 for none.
    :ivar version: that of the last event in the history store; ``None`` if the store was not read.
    """

    sequence: int
    version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """A reaction to a message: a mark (``key``), or a rating with its ``value``."""

    key: str
    actor: str | None = None
    value: int | float | str | None = None


AppendedRow = tuple[UUID | bytes, UUID | bytes, int, int]
"""The event and origin id of a message, and when it occurred and was recorded."""


class _Row:
    """The row that those fields of a message are made from, when they are first read, that most readers leave alone."""

    __slots__ = ("_row",)
    _row: AppendedRow


_SAVED: Final = Saved.SAVED
_APPENDED: Final = Delivery.APPENDED


# Not frozen: a frozen dataclass sets each field through a call, which would be a third of the time of a page read.
@dataclass(slots=True, kw_only=True)
class RecordedMessage(_Row):
    """One message as a history holds it.

    :ivar message: as it was appended, with the content of the latest edit.
    :ivar version: its place in the history store's conversation; ``None`` while pending.
    :ivar sequence: its place in the conversation in the outbox it came through.
    :ivar saved: saved, pending or blocked.
    :ivar edited: True if an edit has replaced the content. Edits of pending messages show at once.
    :ivar delivery: appended, sent or failed.
    :ivar delivery_data: the platform's ids, ``sent_as`` and ``file_path``, or the reason of the failure.
    :ivar on_path: True if it is on the active path: neither rewound nor superseded.
    :ivar superseded: True if the history store put it aside because another writer's turn came first.
    :ivar redacted: True if its content was taken away for good.
    :ivar reactions: one for each key and actor, in the order in which they were first given.
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

    @classmethod
    def of_row(cls, conversation_id: str, message: Message, version: int, sequence: int, row: AppendedRow) -> Self:
        """Return a message that has not changed since it was appended; its other fields are made when they are read."""
        recorded = cls.__new__(cls)
        recorded.conversation_id = conversation_id
        recorded.message = message
        recorded.version = version
        recorded.sequence = sequence
        recorded.saved = _SAVED
        recorded.delivery = _APPENDED
        recorded.delivery_data = EMPTY
        recorded.on_path = True
        recorded.edited = recorded.superseded = recorded.redacted = False
        recorded.reactions = ()
        recorded._row = row  # type: ignore[misc]  # mypy does not look at the slots of the base
        return recorded

    @property
    def interrupted(self) -> bool:
        """True if its writer was cut off, so that the content ends there."""
        return self.message.status == "interrupted"

    @property
    def id(self) -> str:
        """The message id."""
        return self.message.id

    @property
    def role(self) -> Role:
        """The role of its author."""
        return self.message.role

    @property
    def content(self) -> Content | None:
        """Text, or parts; ``None`` where an assistant gave none."""
        return self.message.content

    @property
    def text(self) -> str:
        """The text parts, joined by a line feed."""
        return content if type(content := self.message.content) is str else content_text(content)


class _MadeWhenRead:
    """A field that is made from the row of its message when it is first read; a ``__getattr__`` would slow all down."""

    def __init__(self, slot: Any, make: Callable[[AppendedRow], Any]) -> None:
        self._slot = slot
        self._make = make

    def __get__(self, message: RecordedMessage | None, owner: type) -> Any:
        if message is None:
            return self
        try:
            return self._slot.__get__(message)
        except AttributeError:
            value = self._make(message._row)
        self._slot.__set__(message, value)
        return value

    def __set__(self, message: RecordedMessage, value: Any) -> None:
        self._slot.__set__(message, value)


def any_needs_content(messages: Iterable[RecordedMessage]) -> bool:
    """Return True if a message holds a reference to large content, or a string that was escaped."""
    for recorded in messages:
        said = recorded.message
        # Each read pays for it, so plain text costs no call.
        if type(content := said.content) is str and not said.metadata:
            if content.startswith(MARK):
                return True
        elif needs_content(said):
            return True
    return False


def event_ids(messages: Iterable[RecordedMessage]) -> set[bytes]:
    """Return the 16 bytes of the events that appended some messages, whose fields need not be made for it."""
    ids = set()
    for message in messages:
        row = getattr(message, "_row", None)
        event_id = message.event_id if row is None else row[0]
        ids.add(event_id if isinstance(event_id, bytes) else event_id.bytes)
    return ids


def _uuid(value: UUID | bytes) -> UUID:
    return uuid_of(value) if isinstance(value, bytes) else value


for _name, _make in {
    "event_id": lambda row: _uuid(row[0]),
    "origin_id": lambda row: _uuid(row[1]),
    "occurred_at": lambda row: from_microseconds(row[2]),
    "recorded_at": lambda row: from_microseconds(row[3]),
}.items():
    setattr(RecordedMessage, _name, _MadeWhenRead(vars(RecordedMessage)[_name], _make))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One conversation as it stands, without its messages.

    :ivar version: how many events the history store holds of it; pending events are not counted.
    :ivar number: its permanent number among the owner's, from 1; ``None`` while pending or without an owner.
    :ivar state: ``active``, ``archived`` or ``deleted``.
    :ivar message_count: messages on its active path, without those that a fork inherits; with the pending ones if a
        history read it.
    :ivar tokens: the sum of the recorded costs of its messages, on and off the path.
    :ivar metadata: its own, as it was annotated.
    :ivar tags: its tags, sorted.
    :ivar trimmed: the version up to which its content has left by a rule of retention; 0 for none.
    :ivar reset_to: the version up to which a reset or its deletion has erased everything; 0 for none.
    :ivar active: True if the history store has it as its owner's active one; pending changes show in
        ``History.active()`` and ``History.conversations(owner=)``.
    :ivar forked_from: the point up to which it reads its parent; ``None`` if it is no fork.
    :ivar inherits: True if it reads messages of its parent.
    :ivar inherited_to: the id of the last inherited message, after a rewind into them; empty if all were undone, and
        ``None`` for all up to ``forked_from``.
    :ivar seen: what to append after, if a history read it; ``None`` otherwise.
    :ivar pending: its events that are pending in this outbox; 0 if only the history store was read.
    :ivar last_message: the last one on its path, in a list that was asked for it; ``None`` otherwise.
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
    tags: tuple[str, ...] = ()
    trimmed: int = 0
    reset_to: int = 0
    active: bool = False
    forked_from: ForkPoint | None = None
    inherits: bool = False
    inherited_to: str | None = None
    seen: Seen | None = field(default=None, compare=False, repr=False)
    last_message: RecordedMessage | None = field(default=None, compare=False, repr=False)

    def with_changes(self, **fields: Any) -> Self:
        """Return a copy with ``fields`` changed."""
        return replace(self, **fields)


@dataclass(frozen=True, slots=True)
class Page(Generic[T], Sequence[T]):
    """Some items of a list, and where to continue.

    :ivar items: in the order of the list.
    :ivar next: pass it as ``after`` (or ``before``) for the following page; ``None`` on the last page.
    :ivar complete: False if the history store was unreachable and the items come from the outbox's retained tail
        alone, so that older ones may be missing; on a page of a search also while the search index is being built.
    :ivar seen: what to append after, on a page of messages that a history read; ``None`` otherwise.
    :ivar unindexed: on a page of a search, the events that were not searched because the index does not hold them yet.
    """

    items: tuple[T, ...]
    next: str | None = None
    complete: bool = True
    seen: Seen | None = None
    unindexed: int = 0

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

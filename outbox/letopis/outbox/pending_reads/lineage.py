"""Read what a fork inherits, from the history store or, before its delivery, from the outbox."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

from letopis.outbox.event_log.statements import fetch_all, fetch_one
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store.conversation_store import ConversationStore
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.event_types import MessageRedacted
from letopis.store.model.identifiers import ForkPoint
from letopis.store.read.lineage import Ancestor, PathLevel, walk_forks
from letopis.store.read.paging import Window
from letopis.store.rules.fold import redacted

T = TypeVar("T")

# The plus keeps SQLite from reading the whole conversation instead.
_SEQUENCE: Final = (
    "SELECT sequence FROM letopis_outbox_log WHERE position IN"
    " (SELECT position FROM letopis_outbox_known_ids WHERE event_id = ?) AND +conversation_id = ?"
)
_REDACTED: Final = (
    "SELECT json_extract(e.data, '$.message_id') FROM letopis_outbox_log AS e"
    " LEFT JOIN letopis_outbox_superseded AS s ON s.conversation_id = e.conversation_id AND s.sequence = e.sequence"
    " WHERE e.conversation_id = ? AND e.type = ? AND s.sequence IS NULL AND json_valid(e.data)"
)
_DELETED: Final = "SELECT 1 FROM letopis_outbox_lanes WHERE conversation_id = ? AND deleted > 0"
_PAGE_SIZE: Final = 500  # messages of a page in which a message is searched


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnMessages:
    """What was read of a conversation itself, without inherited messages."""

    page: Page[RecordedMessage]
    # at the same moment; ``None`` if it inherits nothing, or that was not asked
    conversation: Conversation | None = None
    position: int | None = None  # of the message that was searched; ``None`` if it is not on the page


class ReadOwn(Protocol):
    """Reads messages of a conversation itself, merged from the store and the file."""

    async def __call__(
        self,
        conversation_id: str,
        window: Window,
        *,
        upto: int | None = None,
        find: str | None = None,
        inherits: bool = False,
    ) -> OwnMessages: ...


class ReadStore(Protocol):
    """Asks the history store; returns ``None`` if that does not answer."""

    async def __call__(self, ask: Callable[[ConversationStore], Coroutine[Any, Any, T]]) -> T | None: ...


class Ancestry:
    """Finds the ancestors of a fork, each where its fork point is, in the store alone unless ``file``."""

    def __init__(self, read: ReadStore, outbox: OutboxFile, own: ReadOwn, *, file: bool = True) -> None:
        self._read = read
        self._outbox = outbox
        self._own = own
        self._file = file

    async def levels(self, fork: ForkPoint | None, *, known: Collection[str] = ()) -> tuple[list[PathLevel], bool]:
        """Return the levels that a fork reads, the nearest first, and whether these are all."""

        async def find(fork: ForkPoint, seen: Collection[str]) -> list[_Stored | _Pending]:
            # The file first: an event that is delivered in between is in the store, even if it is pruned here at once.
            sequence = await self._sequence(fork)
            stored = await self._stored(fork, seen)
            if stored:
                return [_Stored(self._read, self._outbox, level) for level in stored]
            return [] if sequence is None else [await self._pending(fork, sequence)]

        levels, left = await walk_forks(fork, find, known=known)
        return [*levels], left is None

    async def of(self, point: ForkPoint) -> Ancestor | int | None:
        """Return a conversation as of an event: the ancestor, or the sequence if the event is in the file alone."""
        sequence = await self._sequence(point)
        levels = await self._stored(point, ())
        return levels[0] if levels else sequence

    async def _stored(self, fork: ForkPoint, known: Collection[str]) -> list[Ancestor] | None:
        return await self._read(
            lambda store: store.outbox_access.snapshot(
                lambda lineage, connection: lineage.ancestors(connection, fork, known=known)
            )
        )

    async def _pending(self, fork: ForkPoint, sequence: int) -> _Pending:
        own = await self._own(fork.conversation_id, Window(last=1), upto=sequence, inherits=True)
        conversation = own.conversation
        return _Pending(
            outbox=self._outbox,
            own=self._own,
            conversation_id=fork.conversation_id,
            sequence=sequence,
            fork=conversation.forked_from if conversation is not None and conversation.inherits else None,
            inherited_to=None if conversation is None else conversation.inherited_to,
        )

    async def _sequence(self, point: ForkPoint) -> int | None:
        if not self._file or point.event_id is None:
            return None
        values = (point.event_id.bytes, point.conversation_id)
        row = await self._outbox.read(lambda connection: fetch_one(connection, _SEQUENCE, values))
        return None if row is None else int(row[0])


async def is_deleted(outbox: OutboxFile, conversation_id: str) -> bool:
    """Return True if a conversation was deleted here, whether or not the store knows that yet."""
    return await outbox.read(lambda connection: fetch_one(connection, _DELETED, (conversation_id,))) is not None


@dataclass(frozen=True, slots=True)
class _Stored:
    """An ancestor whose fork point is in the history store."""

    read: ReadStore
    outbox: OutboxFile
    ancestor: Ancestor

    @property
    def conversation_id(self) -> str:
        return self.ancestor.conversation_id

    @property
    def fork(self) -> ForkPoint | None:
        return self.ancestor.fork

    @property
    def inherited_to(self) -> str | None:
        return self.ancestor.inherited_to

    async def page(self, window: Window) -> Page[RecordedMessage]:
        name, version = self.ancestor.conversation_id, self.ancestor.version
        # First, because a redaction that is delivered in between shows in the page.
        hidden = await _redacted_here(self.outbox, name)
        page = await self.read(
            lambda store: store.outbox_access.snapshot(
                lambda lineage, connection: lineage.past.messages(connection, name, version, window)
            )
        )
        return Page((), complete=False) if page is None else _hide(page, hidden)

    async def find(self, message_id: str, upto: int | None) -> int | None:
        name, version = self.ancestor.conversation_id, self.ancestor.version
        return await self.read(
            lambda store: store.outbox_access.snapshot(
                lambda lineage, connection: lineage.past.find(connection, name, version, message_id, upto)
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """An ancestor whose fork point is in the outbox file, as far as is known here."""

    outbox: OutboxFile
    own: ReadOwn
    conversation_id: str
    sequence: int
    fork: ForkPoint | None
    inherited_to: str | None

    async def page(self, window: Window) -> Page[RecordedMessage]:
        hidden = await _redacted_here(self.outbox, self.conversation_id)
        own = await self.own(self.conversation_id, window, upto=self.sequence)
        return _hide(replace(own.page, seen=None), hidden)

    async def find(self, message_id: str, upto: int | None) -> int | None:
        window = Window(last=_PAGE_SIZE, before=None if upto is None else upto + 1)
        while True:
            own = await self.own(self.conversation_id, window, upto=self.sequence, find=message_id)
            if own.position is not None or own.page.next is None:
                return own.position
            window = replace(window, before=int(own.page.next))


async def _redacted_here(outbox: OutboxFile, conversation_id: str) -> frozenset[str]:
    """Return the messages that were redacted here, which a restored store may not know."""
    return await outbox.read(
        lambda connection: frozenset(
            row[0] for row in fetch_all(connection, _REDACTED, (conversation_id, MessageRedacted.type))
        )
    )


def _hide(page: Page[RecordedMessage], message_ids: Collection[str]) -> Page[RecordedMessage]:
    if not message_ids:
        return page
    return replace(page, items=tuple(redacted(message) if message.id in message_ids else message for message in page))

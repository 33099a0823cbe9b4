"""Read what a fork inherits, from the history store or, before its delivery, from the outbox."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.event_log.statements import fetch_all, fetch_one
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store.conversation_store import ConversationStore
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.event_types import MessageRedacted
from letopis.store.model.events import from_microseconds
from letopis.store.model.identifiers import ForkPoint
from letopis.store.read.lineage import Level, Lineage, walk_forks
from letopis.store.read.paging import Window
from letopis.store.rules.sight import Sight

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
_NEVER: Final = from_microseconds(0)
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

    async def __call__(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T | None: ...


class Ancestry:
    """Finds the ancestors of a fork, each where its fork point is, in the store alone unless ``file``."""

    def __init__(
        self, store: ConversationStore, read: ReadStore, outbox: OutboxFile, own: ReadOwn, *, file: bool = True
    ) -> None:
        self._store = store
        self._read = read
        self._outbox = outbox
        self._own = own
        self._file = file

    async def levels(self, fork: ForkPoint | None, *, known: Collection[str] = ()) -> tuple[list[Level], bool]:
        """Return the levels that a fork reads, the nearest first, and whether these are all."""

        async def find(fork: ForkPoint, seen: Collection[str]) -> list[Level]:
            # The file first: an event that is delivered in between is in the store, even if it is pruned here at once.
            sequence = await self._sequence(fork)
            stored = await self._stored(fork, seen)
            if stored:
                return [
                    replace(level, page=partial(self._page, level), find=partial(self._find, level)) for level in stored
                ]
            return [] if sequence is None else await self._pending(fork.conversation_id, sequence)

        levels, left = await walk_forks(fork, find, known=known)
        return levels, left is None

    async def of(self, point: ForkPoint) -> Level | int | None:
        """Return a conversation as of an event: the level, or the sequence if the event is in the file alone."""
        sequence = await self._sequence(point)
        levels = await self._stored(point, ())
        return levels[0] if levels else sequence

    async def _snapshot(self, read: Callable[[Lineage, AsyncConnection], Coroutine[Any, Any, T]]) -> T | None:
        return await self._read(lambda: self._store.runtime.snapshot(read))

    async def _stored(self, fork: ForkPoint, known: Collection[str]) -> list[Level] | None:
        return await self._snapshot(lambda lineage, connection: lineage.ancestors(connection, fork, known=known))

    async def _page(self, level: Level, window: Window) -> Page[RecordedMessage]:
        """Return messages of an ancestor whose fork point is in the history store."""
        name, version = level.conversation_id, level.version
        # First, because a redaction that is delivered in between shows in the page.
        sight = await self._sight_here(name)
        page = await self._snapshot(
            lambda lineage, connection: lineage.past.messages(connection, name, version, window)
        )
        return Page((), complete=False) if page is None else sight.page(page)

    async def _find(self, level: Level, message_id: str, upto: int | None) -> int | None:
        key = (level.conversation_id, level.version, message_id, upto)
        return await self._snapshot(lambda lineage, connection: lineage.past.find(connection, *key))

    async def _pending(self, name: str, sequence: int) -> list[Level]:
        """Return an ancestor whose fork point is in the outbox file, as far as is known here."""

        async def page(window: Window) -> Page[RecordedMessage]:
            sight = await self._sight_here(name)
            own = await self._own(name, window, upto=sequence)
            return sight.page(replace(own.page, seen=None))

        async def find(message_id: str, upto: int | None) -> int | None:
            window = Window(last=_PAGE_SIZE, before=None if upto is None else upto + 1)
            while True:
                own = await self._own(name, window, upto=sequence, find=message_id)
                if own.position is not None or own.page.next is None:
                    return own.position
                window = replace(window, before=int(own.page.next))

        own = await self._own(name, Window(last=1), upto=sequence, inherits=True)
        conversation = own.conversation or Conversation(conversation_id=name, created_at=_NEVER, updated_at=_NEVER)
        return [replace(Level.of(conversation, page), find=find)]

    async def _sight_here(self, name: str) -> Sight:
        """Return what is gone for every reader: redacted here, which a restored store may not know."""
        values = (name, MessageRedacted.type)
        rows = await self._outbox.read(lambda connection: fetch_all(connection, _REDACTED, values))
        return Sight(conversation_id=name, redacted=frozenset(row[0] for row in rows))

    async def _sequence(self, point: ForkPoint) -> int | None:
        if not self._file or point.event_id is None:
            return None
        values = (point.event_id.bytes, point.conversation_id)
        row = await self._outbox.read(lambda connection: fetch_one(connection, _SEQUENCE, values))
        return None if row is None else int(row[0])

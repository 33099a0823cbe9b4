"""Export conversations and records page by page as the lines of a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO, Final, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.history.authored import authored, conversation_of
from letopis.outbox.history.readable import ReadableHistory
from letopis.outbox.pending_reads.record_reads import stored_record
from letopis.store.conversation_store import ConversationStore
from letopis.store.errors import LetopisError, StoreUnavailable
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.records import Record, RecordRange, Scope
from letopis.store.read.lineage import Lineage
from letopis.store.read.paging import Window
from letopis.store.read.records import RecordsView
from letopis.store.transfer.jsonl import SeenKeys, render_line
from letopis.store.transfer.record_lines import render_record
from letopis.store.transfer.transcript_page import TranscriptPage

T = TypeVar("T")

PAGE: Final = 500
EXPORTED_STATES: Final = ("active", "archived")


_CHUNK_BYTES: Final = 65_536


class Incomplete(StoreUnavailable):
    """The history store cannot be read, so the export would lack older messages, or records."""

    def __init__(self, missing: str) -> None:
        LetopisError.__init__(
            self,
            f"the history store cannot be read, so {missing} would be missing: `letopis db check` says why it is so",
        )


async def export_person(history: ReadableHistory, file: BinaryIO, person: str) -> int:
    """Write the lines of a person in chunks, each in a thread; return their number."""
    exporter = Exporter(history, RecordSource(history), deliveries=True, every=True)
    chunk: list[bytes] = []
    size = 0
    async for line in exporter.of_person(person):
        chunk.append(line)
        size += len(line)
        if size >= _CHUNK_BYTES:
            await asyncio.to_thread(file.writelines, chunk)
            chunk, size = [], 0
    await asyncio.to_thread(file.writelines, chunk)
    return exporter.lines + exporter.records


@dataclass(slots=True)
class Exporter:
    """One export; memory is bounded by a page."""

    source: ReadableHistory | ConversationStore
    beside: RecordSource | None = None
    page: TranscriptPage | None = None
    deliveries: bool = False
    every: bool = False  # also messages that have left the path
    lines: int = 0
    conversations: int = 0
    records: int = 0

    async def count(self, *, owner: str | None = None) -> int:
        """Return about how many lines :meth:`of_all` yields: without what forks inherit, and what comes meanwhile."""
        total = 0
        async for conversation in self._listed(owner):
            total += conversation.message_count
        return total

    async def of_one(self, conversation_id: str) -> AsyncIterator[bytes]:
        """Yield the lines of one conversation, oldest first, and of its records; none if it does not exist."""
        conversation = await conversation_of(self.source, conversation_id)
        if conversation is not None:
            with SeenKeys() as count:
                async for line in self._lines(conversation, count):
                    yield line
        async for line in self._records(Scope.conversation(conversation_id)):
            yield line

    async def of_all(self, *, owner: str | None = None) -> AsyncIterator[bytes]:
        """Yield the lines of every conversation, or of those of ``owner``, one conversation after the other."""
        with SeenKeys() as count, SeenKeys() as done:
            fresh = True
            # A conversation with new activity moves to the front, which this pass has left behind: repeat until a pass
            # finds nothing new.
            while fresh:
                fresh = False
                async for conversation in self._listed(owner):
                    key = conversation.conversation_id.encode()
                    if done.seen(key):
                        continue
                    done.add(key)
                    fresh = True
                    async for line in self._lines(conversation, count):
                        yield line
                    async for line in self._records(Scope.conversation(conversation.conversation_id)):
                        yield line
            async for scope in self._other_scopes(owner, done):
                async for line in self._records(scope):
                    yield line

    async def of_person(self, person: str) -> AsyncIterator[bytes]:
        """Yield the lines of all that a person owns, then of what the person wrote in conversations of others."""
        async for line in self.of_all(owner=person):
            yield line
        with SeenKeys() as count:
            name, seen = "", set[str]()
            async for conversation, messages in authored(self.source, person):
                if conversation.owner_id == person:
                    continue
                for message in messages:
                    if message.redacted:
                        continue
                    if name != message.conversation_id:
                        name, seen = message.conversation_id, set()
                        self._begin(name, title=None)
                    if message.id not in seen:
                        seen.add(message.id)
                        # Neither the owner nor the title nor the reactions: they are others'.
                        yield self._line(replace(message, reactions=()), owner=None, count=count)

    async def _other_scopes(self, owner: str | None, done: SeenKeys) -> AsyncIterator[Scope]:
        """Yield the scopes of records that belong to no exported conversation."""
        if owner is not None:
            yield Scope.owner(owner)
        elif self.beside is not None:
            async for scope in self.beside.scopes():
                if (name := scope.conversation_id) is None or not done.seen(name.encode()):
                    yield scope

    async def _records(self, scope: Scope) -> AsyncIterator[bytes]:
        if self.beside is None:
            return
        try:
            async for record in self.beside.records(scope):
                yield (line := render_record(record))
                if self.page is not None:
                    self.page.record(line)
                self.records += 1
        except StoreUnavailable as error:
            raise Incomplete("records") from error

    async def _listed(self, owner: str | None) -> AsyncIterator[Conversation]:
        async def read(after: str | None) -> Page[Conversation]:
            return _whole(await self.source.conversations(owner=owner, after=after, limit=PAGE, states=EXPORTED_STATES))

        async for conversation in all_items(read):
            yield conversation

    async def _lines(self, conversation: Conversation, count: SeenKeys) -> AsyncIterator[bytes]:
        self._begin(conversation.conversation_id, title=conversation.title)

        read, contents = _reading(self.source, conversation.conversation_id, every=self.every)

        async def page(after: str | None) -> Page[RecordedMessage]:
            return _whole(await read(after))

        async for item in all_items(page):
            # One at a time: the large content of a page may be more than the memory holds.
            [message] = _whole(await contents(Page((item,))))
            # A fork is exported with what it inherits, so that the export does not depend on the parent.
            said = replace(message, conversation_id=conversation.conversation_id)
            yield self._line(said, owner=conversation.owner_id, count=count)

    def _begin(self, conversation_id: str, *, title: str | None) -> None:
        self.conversations += 1
        if self.page is not None:
            self.page.begin(conversation_id, title=title)

    def _line(self, message: RecordedMessage, *, owner: str | None, count: SeenKeys) -> bytes:
        self.lines += 1
        if self.page is not None:
            self.page.message(message)
        return render_line(message, owner=owner, count=count, with_delivery=self.deliveries)


def _reading(
    source: ReadableHistory | ConversationStore, conversation_id: str, *, every: bool
) -> tuple[
    Callable[[str | None], Awaitable[Page[RecordedMessage]]],
    Callable[[Page[RecordedMessage]], Awaitable[Page[RecordedMessage]]],
]:
    """Return what reads a page without its large content, and what puts that in place."""
    if isinstance(source, ConversationStore):
        runtime = source.runtime
        window = partial(Window.of, last=None, first=PAGE, before=None, every=every)
        return lambda after: runtime.messages(conversation_id, window(after=after)), runtime.with_contents
    reader = source._parts.reader
    read = partial(reader.messages, conversation_id, first=PAGE, every=every, whole=False)
    return lambda after: read(after=after), reader.contents.of_page


def _whole(page: Page[T]) -> Page[T]:
    if not page.complete:
        raise Incomplete("older messages")
    return page


_PAGE: Final = 200
_NO_OUTBOX: Final = UUID(int=0)


async def all_items(read: Callable[[str | None], Awaitable[Page[T]]]) -> AsyncIterator[T]:
    """Yield the items of all pages that ``read(after)`` returns."""
    after: str | None = None
    while True:
        page = await read(after)
        for item in page:
            yield item
        if (after := page.next) is None:
            return


class RecordSource:
    """The records of a history, pending ones included, or of a history store alone."""

    def __init__(self, source: ReadableHistory | ConversationStore) -> None:
        self._source = source

    async def scopes(self) -> AsyncIterator[Scope]:
        if isinstance(source := self._source, ReadableHistory):
            async for scope in all_items(lambda after: source.records.scopes(limit=_PAGE, after=after)):
                yield scope
            return
        after = ""
        while scopes := await source.runtime.snapshot(partial(_scopes, after=after)):
            for scope in scopes:
                yield scope
            after = scopes[-1].name

    async def records(self, scope: Scope) -> AsyncIterator[Record]:
        if isinstance(source := self._source, ReadableHistory):
            async for record in all_items(lambda after: source.records(scope).list(limit=_PAGE, after=after)):
                yield record
            return
        where: RecordRange | None = RecordRange()
        while where is not None:
            view = await source.runtime.snapshot(partial(_records, scope=scope, where=where))
            for stored in view.records:
                yield stored_record(stored)
            where = RecordRange(after=view.records[-1].place) if view.full else None


async def _scopes(lineage: Lineage, connection: AsyncConnection, *, after: str) -> list[Scope]:
    return await lineage.reader.records.scopes(connection, limit=_PAGE, after=after)


async def _records(lineage: Lineage, connection: AsyncConnection, *, scope: Scope, where: RecordRange) -> RecordsView:
    return await lineage.reader.records.page(connection, scope, where, limit=_PAGE, origin_id=_NO_OUTBOX)

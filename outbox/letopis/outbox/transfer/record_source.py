"""Read all records of a history, or of a history store alone, scope by scope."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.history.history import History
from letopis.outbox.pending_reads.record_reads import stored_record
from letopis.store.conversation_store import ConversationStore
from letopis.store.model.conversations import Page
from letopis.store.model.records import Record, RecordRange, Scope
from letopis.store.read.records import RecordReader, RecordsView

T = TypeVar("T")

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
    """The records of a history, with what is pending, or of a history store alone.

    Its methods raise ``StoreUnavailable`` or a ``StoreFault`` while the store does not answer.
    """

    def __init__(self, source: History | ConversationStore) -> None:
        self._source = source

    async def scopes(self) -> AsyncIterator[Scope]:
        """Yield the scopes that have records."""
        if isinstance(source := self._source, History):
            async for scope in all_items(lambda after: source.records.scopes(limit=_PAGE, after=after)):
                yield scope
            return
        after = ""
        while found := await source.outbox_access.read_records(partial(_scopes, after=after)):
            for scope in found:
                yield scope
            after = found[-1].name

    async def records(self, scope: Scope) -> AsyncIterator[Record]:
        """Yield the records of a scope with their values, in order."""
        if isinstance(source := self._source, History):
            async for record in all_items(lambda after: source.records(scope).list(limit=_PAGE, after=after)):
                yield record
            return
        where: RecordRange | None = RecordRange()
        while where is not None:
            view = await source.outbox_access.read_records(partial(_records, scope=scope, where=where))
            for found in view.records:
                yield stored_record(found)
            where = RecordRange(after=view.records[-1].place) if view.full else None


async def _scopes(reader: RecordReader, connection: AsyncConnection, *, after: str) -> list[Scope]:
    return await reader.scopes(connection, limit=_PAGE, after=after)


async def _records(
    reader: RecordReader, connection: AsyncConnection, *, scope: Scope, where: RecordRange
) -> RecordsView:
    return await reader.page(connection, scope, where, limit=_PAGE, origin_id=_NO_OUTBOX)

"""Read all records of a history, or of a history store alone, scope by scope."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, Protocol
from uuid import UUID

from letopis.outbox.history.history import History
from letopis.outbox.pending_reads.record_reads import stored_record
from letopis.store.conversation_store import ConversationStore
from letopis.store.model.records import Record, RecordRange, Scope

_PAGE: Final = 200
_NOBODY: Final = UUID(int=0)


class RecordSource(Protocol):
    """Where records are read from."""

    def scopes(self) -> AsyncIterator[Scope]:
        """Yield the scopes that have records.

        :raises StoreUnavailable: the history store does not answer.
        """
        ...

    def records(self, scope: Scope) -> AsyncIterator[Record]:
        """Yield the records of a scope with their values, in order.

        :raises StoreUnavailable: the history store does not answer.
        """
        ...


class HistoryRecords:
    """The records of a history, pending ones included."""

    def __init__(self, history: History) -> None:
        self._history = history

    async def scopes(self) -> AsyncIterator[Scope]:
        """See :class:`RecordSource`."""
        after: str | None = None
        while True:
            page = await self._history.record_scopes(limit=_PAGE, after=after)
            for scope in page:
                yield scope
            if (after := page.next) is None:
                return

    async def records(self, scope: Scope) -> AsyncIterator[Record]:
        """See :class:`RecordSource`."""
        after: str | None = None
        while True:
            page = await self._history.records(scope).list(limit=_PAGE, after=after)
            for record in page:
                yield record
            if (after := page.next) is None:
                return


class StoreRecords:
    """The records of a history store alone."""

    def __init__(self, store: ConversationStore) -> None:
        self._access = store.outbox_access

    async def scopes(self) -> AsyncIterator[Scope]:
        """See :class:`RecordSource`."""
        after = ""
        while found := await self._access.record_scopes(limit=_PAGE, after=after):
            for scope in found:
                yield scope
            after = found[-1].name

    async def records(self, scope: Scope) -> AsyncIterator[Record]:
        """See :class:`RecordSource`."""
        where = RecordRange()
        while True:
            view = await self._access.record_page(scope, where, limit=_PAGE, origin_id=_NOBODY)
            for one in view.records:
                yield stored_record(one)
            if not view.full:
                return
            where = RecordRange(after=view.records[-1].place)


def records_of(source: History | ConversationStore) -> RecordSource:
    """Return the records beside the messages of a source."""
    return HistoryRecords(source) if isinstance(source, History) else StoreRecords(source)

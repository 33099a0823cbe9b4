"""Read conversations and messages of an SQLite file, where a statement more costs less than rows that are wider."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect
from letopis.store.database.row_mapping import MARKED, plain_messages
from letopis.store.database.sqlite_file import FileConnection
from letopis.store.database.sqlite_statements import Statement, compiled
from letopis.store.model.conversations import Page, RecordedMessage
from letopis.store.model.events import Upcasters
from letopis.store.model.identifiers import partition_of
from letopis.store.read.paging import Window, page_of
from letopis.store.read.reader import EMPTY_VIEW, Reader, StoreView, ViewQuery


class FileReader(Reader):
    """Reads a file in a thread, where a further statement costs less than rows that are wider or more."""

    def __init__(self, dialect: Dialect, *, partitions: int, upcasters: Upcasters) -> None:
        super().__init__(dialect, partitions=partitions, upcasters=upcasters)
        self._head = compiled(self._statements.head)
        self._bound = lru_cache(maxsize=500)(self._bind)

    def _bind(self, window: Window) -> tuple[Statement, Mapping[str, Any]]:
        """Return the statement of a window, and the parameters that are the same in every conversation."""
        statement = compiled(self._statements.plain_window(window))
        return statement, statement.bound(window.values)[1]

    async def view_of(self, connection: AsyncConnection, query: ViewQuery) -> StoreView:
        """Return a plain view where that answers the query, and the view otherwise."""
        window, name = query.window, query.conversation_id
        if window is None or query.whole or query.names or query.bound is not None:
            return await self.view(connection, query)
        key = {"partition": partition_of(name, self._partitions), "conversation": name}
        head = cast("FileConnection", connection).fetch(
            self._head, {**self._head.defaults, **key, "origin": query.origin_id.bytes}
        )
        if not head:
            return EMPTY_VIEW
        _, delivered, version, fork = head[0]
        if fork or not (page := await self.messages(connection, name, window)).items:
            return await self.view(connection, query)
        return StoreView(
            conversation=None, messages=page.items, sequence=delivered, version=version, next=page.next, plain=True
        )

    async def messages(
        self, connection: AsyncConnection, conversation_id: str, window: Window
    ) -> Page[RecordedMessage]:
        """Return the messages of a window, in order; those that changed after they were appended are read alone."""
        if not self.reads_as_stored:
            return await super().messages(connection, conversation_id, window)
        key = {"partition": partition_of(conversation_id, self._partitions), "conversation": conversation_id}
        statement, values = self._bound(window)
        rows = cast("FileConnection", connection).fetch(statement, {**values, **key})
        if rows and rows[0][-1] == MARKED:
            return await super().messages(connection, conversation_id, window)
        found_messages = plain_messages(conversation_id, rows)
        if len(found_messages) < len(rows):
            changed = [row[0] for row in rows if row[0] not in found_messages]
            others = await connection.execute(self._statements.versions, {**key, "versions": changed})
            found_messages |= {row.m_version: self.message(row, conversation_id) for row in others}
        return page_of(found_messages, window)

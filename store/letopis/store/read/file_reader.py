"""Read conversations and messages of an SQLite file, where a statement more costs less than rows that are wider."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect
from letopis.store.database.row_mapping import plain_messages
from letopis.store.database.schema import messages
from letopis.store.model.conversations import Page, RecordedMessage
from letopis.store.model.upcasters import Upcasters
from letopis.store.read.paging import Window, page_of
from letopis.store.read.queries import head_select, whole
from letopis.store.read.reader import EMPTY_VIEW, Reader, StoreView, ViewQuery, plain_view
from letopis.store.read.task_marks import message_columns


class FileReader(Reader):
    """Reads a file in a thread, where a further statement costs less than rows that are wider or more."""

    def __init__(self, dialect: Dialect, *, partitions: int, upcasters: Upcasters) -> None:
        super().__init__(dialect, partitions=partitions, upcasters=upcasters)
        self._head = dialect.shared(_head_select)
        self._versions = dialect.shared(_versions_select)

    async def plain_or_whole_view(self, connection: AsyncConnection, query: ViewQuery) -> StoreView:
        """Return a plain view where that answers the query, and the view otherwise."""
        if query.window is not None and not (query.bounded or query.whole):
            key = {**self.key(query.conversation_id), "origin": query.origin_id}
            head = (await connection.execute(self._head, key)).first()
            if head is None:
                return EMPTY_VIEW
            if not head.fork and (page := await self.messages(connection, query.conversation_id, query.window)):
                return plain_view(page, head)
        return await self.view(connection, query)

    async def messages(
        self, connection: AsyncConnection, conversation_id: str, window: Window
    ) -> Page[RecordedMessage]:
        """Return the messages of a window, in order; those that changed after they were appended are read alone."""
        if not self.reads_as_stored:
            return await super().messages(connection, conversation_id, window)
        key = self.key(conversation_id)
        rows = (await connection.execute(self._statements.plain_window(window), {**key, **window.values})).all()
        if rows and rows[0].marked:
            return await super().messages(connection, conversation_id, window)
        found = plain_messages(conversation_id, [row[:7] for row in rows if not row[7]])
        if len(found) < len(rows):
            changed = [row.version for row in rows if row.version not in found]
            others = await connection.execute(self._versions, {**key, "versions": changed})
            found |= {row.m_version: self.message(row, conversation_id) for row in others}
        return page_of(found, window)


def _head_select(_dialect: Dialect) -> sa.Select[Any]:
    return head_select()


def _versions_select(dialect: Dialect) -> sa.Select[Any]:
    return whole(
        sa.select(*message_columns(messages)).where(
            messages.c.partition == sa.bindparam("partition"),
            messages.c.conversation_id == sa.bindparam("conversation"),
            dialect.among(messages.c.version, "versions"),
        )
    )

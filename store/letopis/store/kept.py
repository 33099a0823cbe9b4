"""Kept: small reads of an SQLite file, each in one hop, on a connection that is kept open for them."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Final, TypeVar
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from letopis.store.asking import Shape, Window
from letopis.store.conversation import Page, RecordedMessage
from letopis.store.errors import Closed
from letopis.store.faults import translated
from letopis.store.identifiers import uuid_of
from letopis.store.lineage import goes_on
from letopis.store.reads import Reader, StoreView, page_of
from letopis.store.recorded import conversation_of, plain_messages
from letopis.store.selects import messages_select, plain_select, versions_select
from letopis.store.sqlite_files import SQLiteConnection

T = TypeVar("T")
logger = logging.getLogger("letopis.store.kept")

MOST: Final = 500
"""Messages that one such read returns at most; a longer one would keep the others waiting."""
_UUIDS: Final = ("forked_from_event", "e_event_id", "e_origin_id")

_inherited: Final[list[SQLiteConnection]] = []
"""Connections of the parent process that a forked child met: closing them would wait for a thread that is not here."""


class Kept:
    """One connection to an SQLite file, in a thread of its own, opened when it is first of use.

    A transaction over the pool crosses into a thread a dozen times; here all of a read is one function in the thread.

    :param connect: opens a connection.
    """

    def __init__(self, connect: Callable[[], Awaitable[SQLiteConnection]]) -> None:
        self._connect = connect
        self._connection: SQLiteConnection | None = None
        self._opening: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._pid = os.getpid()
        self._reads: _Reads | None = None

    def use(self, reader: Reader) -> None:
        """Read as ``reader`` does."""
        self._reads = _Reads(reader)

    def fits(self, window: Window) -> bool:
        """Whether a window can be read here, now; where only the connection is missing, it is opened meanwhile."""
        if window.limit is None or window.limit > MOST or self._reads is None or self._pid != os.getpid():
            return False
        if self._connection is not None and not self._connection.in_place:
            self._drop()  # another file lies there now, and this read is of that one
        if self._connection is None and self._opening is None and not self._closed:
            self._opening = asyncio.get_running_loop().create_task(self._open(), name="letopis-kept")
        return self._connection is not None

    async def view(
        self, conversation_id: str, *, origin_id: UUID, window: Window, beside: Callable[[], T]
    ) -> tuple[StoreView, T]:
        """Return what :meth:`Reader.view` does, and then what ``beside``, run after it in the same thread, returns.

        A cancellation is heeded at once; what runs in the thread ends by itself.
        """
        reads = self._ready()

        def work(connection: sqlite3.Connection) -> tuple[StoreView, T]:
            with _Snapshot(connection):
                view = reads.view(connection, conversation_id, origin_id, window)
            return view, beside()

        return await self._run(work)

    async def own(self, conversation_id: str, window: Window) -> tuple[Page[RecordedMessage], bool]:
        """Return what :meth:`Lineage.own` does, for a window on the conversation itself."""
        reads = self._ready()

        def work(connection: sqlite3.Connection) -> tuple[Page[RecordedMessage], bool]:
            with _Snapshot(connection):
                return reads.own(connection, conversation_id, window)

        return await self._run(work)

    async def close(self) -> None:
        """Close the connection; again does nothing."""
        self._closed = True
        if self._opening is not None and self._pid == os.getpid():
            await asyncio.wait((self._opening,))
        self._drop()
        if self._closing:
            await asyncio.wait(self._closing)

    def _ready(self) -> _Reads:
        if self._reads is None or self._closed:
            raise Closed("the history store is closed")
        return self._reads

    async def _open(self) -> None:
        try:
            with translated():
                connection = await self._connect()
        except Exception as error:  # the pool meets the same, and says what it is
            logger.debug("no connection is kept for reading: %s", type(error).__name__)
        else:
            self._connection = connection
        finally:
            self._opening = None

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection
        if connection is None:
            raise Closed("the history store is closed")
        with translated():
            try:
                return await connection.run(work)
            except sqlite3.Error:
                if connection is self._connection:
                    self._drop()
                raise

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._pid != os.getpid():
            _inherited.append(connection)
            return
        task = asyncio.get_running_loop().create_task(connection.close(), name="letopis-kept-close")
        self._closing.add(task)
        task.add_done_callback(self._is_closed)

    def _is_closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("closing the connection for reading failed: %s", type(error).__name__)


class _Snapshot:
    """A transaction that only reads; all of its statements see one state of the file."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN")

    def __exit__(self, *_: object) -> None:
        if self._connection.in_transaction:  # SQLite ends it by itself after some errors
            self._connection.execute("ROLLBACK")


class _Statement:
    """A select as the driver takes it, compiled once."""

    __slots__ = ("_names", "_text", "_values")

    def __init__(self, select: sa.Select[Any]) -> None:
        compiled = select.compile(dialect=sqlite.dialect(paramstyle="named"))
        self._text = str(compiled)
        self._values: dict[str, Any] = dict(compiled.params)
        self._names = tuple(select.selected_columns.keys())

    def rows(self, connection: sqlite3.Connection, values: Mapping[str, Any]) -> list[Any]:
        """Return all rows, as tuples."""
        return connection.execute(self._text, {**self._values, **values}).fetchall()

    def mappings(self, connection: sqlite3.Connection, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return all rows by the names of their columns, ids as UUIDs."""
        found = [dict(zip(self._names, row, strict=True)) for row in self.rows(connection, values)]
        for row in found:
            for name in _UUIDS:
                if (raw := row.get(name)) is not None:
                    row[name] = uuid_of(raw)
        return found


class _Reads:
    """What is read, in the thread; the statements are made when they are first of use."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._windows: dict[Shape, _Statement] = {}
        self._origins: dict[bytes, UUID] = {}

    @cached_property
    def _view(self) -> _Statement:
        return _Statement(self._reader.view_select)

    @cached_property
    def _conversation(self) -> _Statement:
        return _Statement(self._reader.conversation_select)

    @cached_property
    def _versions(self) -> _Statement:
        return _Statement(versions_select())

    def view(self, connection: sqlite3.Connection, conversation_id: str, origin_id: UUID, window: Window) -> StoreView:
        key = self._reader.key(conversation_id)
        rows = self._view.mappings(connection, {**key, "origin": origin_id.bytes})
        if not rows:
            return StoreView(conversation=None, messages=(), sequence=0)
        page = self._page(connection, conversation_id, key, window)
        return StoreView(
            conversation=conversation_of(rows[0]),
            messages=page.items,
            sequence=rows[0]["sequence"] or 0,
            next=page.next,
        )

    def own(
        self, connection: sqlite3.Connection, conversation_id: str, window: Window
    ) -> tuple[Page[RecordedMessage], bool]:
        key = self._reader.key(conversation_id)
        page = self._page(connection, conversation_id, key, window)
        if not goes_on(window, page):
            return page, False
        rows = self._conversation.mappings(connection, key)
        return page, bool(rows) and conversation_of(rows[0]).inherits

    def _page(
        self, connection: sqlite3.Connection, conversation_id: str, key: dict[str, Any], window: Window
    ) -> Page[RecordedMessage]:
        shape = window.shape
        if (statement := self._windows.get(shape)) is None:
            made = plain_select(shape) if self._reader.plain else messages_select(shape)
            statement = self._windows[shape] = _Statement(made)
        values = {**key, **window.values}
        if self._reader.plain:
            rows = statement.rows(connection, values)
            found = plain_messages(
                conversation_id,
                [(row[0], uuid_of(row[1]), self._origin(row[2]), *row[3:7]) for row in rows if not row[7]],
            )
            if len(found) < len(rows):
                others = orjson.dumps([row[0] for row in rows if row[0] not in found]).decode()
                found |= self._whole(conversation_id, self._versions.mappings(connection, {**key, "versions": others}))
        else:
            found = self._whole(conversation_id, statement.mappings(connection, values))
        return page_of(found, window)

    def _whole(self, conversation_id: str, rows: Iterable[Mapping[str, Any]]) -> dict[int, RecordedMessage]:
        return {row["m_version"]: self._reader.message_of(row, conversation_id) for row in rows}

    def _origin(self, raw: bytes) -> UUID:
        """Return the id of an outbox; there are few, and each is asked for again and again."""
        if (found := self._origins.get(raw)) is None:
            if len(self._origins) > MOST:
                self._origins.clear()
            found = self._origins[raw] = uuid_of(raw)
        return found

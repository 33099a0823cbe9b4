"""Read an SQLite file in one step: each small read is one function in the thread of a connection of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import SQLite
from letopis.store.database.fault_classification import translated
from letopis.store.database.row_mapping import plain_messages
from letopis.store.database.schema import Uuid16, messages
from letopis.store.database.sqlite import open_for_reading
from letopis.store.database.sqlite_connection import file_id
from letopis.store.database.store_identity import check_file_identity, expected_store_id
from letopis.store.database.worker_thread import WorkerThread
from letopis.store.errors import Closed
from letopis.store.model.conversations import Page, RecordedMessage
from letopis.store.model.identifiers import uuid_of
from letopis.store.model.upcasters import Upcasters
from letopis.store.read.lineage import own_messages
from letopis.store.read.paging import Window, page_of
from letopis.store.read.queries import head_select, whole
from letopis.store.read.reader import EMPTY_VIEW, Reader, StoreView, ViewQuery, plain_view
from letopis.store.read.task_marks import message_columns

T = TypeVar("T")
logger = logging.getLogger("letopis.store.read")

MAX_MESSAGES: Final = 500
"""Messages that one such read returns; a longer read would keep the others waiting."""

_inherited: Final[list[_Connection]] = []
"""Connections of a parent process: closing them in a forked child would wait for a thread that is not there."""


class _JsonLists(SQLite):
    """Binds lists of values as JSON, so that the text of a statement does not depend on their lengths."""

    def among(self, column: sa.Column[Any], name: str) -> sa.ColumnElement[bool]:
        values = sa.func.json_each(sa.bindparam(name, type_=sa.Text)).table_valued("value")
        return column.in_(sa.select(values.c.value))


class FileReader(Reader):
    """Reads a file in a thread, where a further statement costs less than rows that are wider or more."""

    def __init__(self, *, partitions: int, upcasters: Upcasters) -> None:
        dialect = _JsonLists()
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


def _head_select(_dialect: _JsonLists) -> sa.Select[Any]:
    return head_select()


def _versions_select(dialect: _JsonLists) -> sa.Select[Any]:
    return whole(
        sa.select(*message_columns(messages)).where(
            messages.c.partition == sa.bindparam("partition"),
            messages.c.conversation_id == sa.bindparam("conversation"),
            dialect.among(messages.c.version, "versions"),
        )
    )


class _Connection:
    """A synchronous connection to an SQLite file, used in a thread of its own alone."""

    def __init__(self, path: str, lock_timeout: float) -> None:
        self._thread = WorkerThread("letopis-history-reader")
        self._path = path
        self._lock_timeout = lock_timeout
        self._file = file_id(path)
        self._driver: sqlite3.Connection | None = None

    @property
    def is_current_file(self) -> bool:
        """Whether the file that was opened is still at its path, neither removed nor replaced."""
        return self._file == file_id(self._path)

    async def open(self) -> None:
        """Open the file."""
        await self._thread.run(self._open)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return ``work(driver)``, run in the thread; cancelling the caller does not interrupt it."""

        def with_driver() -> T:
            if self._driver is None:
                raise Closed("the history store is closed")
            return work(self._driver)

        return await self._thread.run(with_driver)

    async def close(self) -> None:
        """Close the file after the reads that are queued, and end the thread."""
        with suppress(Closed):
            await self._thread.run(self._close)
        await self._thread.close()

    def _open(self) -> None:
        self._driver = open_for_reading(self._path, self._lock_timeout)

    def _close(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.close()


class SQLiteFastReader:
    """Reads an SQLite file over a connection that is opened in the background when it is first useful.

    A transaction over the pool crosses into a thread a dozen times; here a whole read is one function in the thread.
    The same reads over the pool are what the tests compare with.

    :param lock_timeout: seconds to wait for a lock.
    """

    def __init__(self, path: str, *, lock_timeout: float) -> None:
        self._path = path
        self._lock_timeout = lock_timeout
        self._connection: _Connection | None = None
        self._opening: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._pid = os.getpid()
        self._reader: FileReader | None = None

    def use(self, *, partitions: int, upcasters: Upcasters) -> None:
        """Read a log of some partitions from now on."""
        self._reader = FileReader(partitions=partitions, upcasters=upcasters)

    def supports(self, window: Window | None) -> bool:
        """Return True if a window can be read here now; open the connection meanwhile if only that is missing."""
        if window is not None and (window.limit is None or window.limit > MAX_MESSAGES):
            return False
        if self._reader is None or self._pid != os.getpid():
            return False
        if self._connection is not None and not self._connection.is_current_file:
            self._drop()  # another file is there now, and this read is of that one
        if self._connection is None and self._opening is None and not self._closed:
            self._opening = asyncio.get_running_loop().create_task(self._open(), name="letopis-fast-reader-open")
        return self._connection is not None

    async def view(self, query: ViewQuery) -> StoreView:
        """Return what :meth:`Reader.view` does; a cancelled caller does not wait for the thread."""
        return await self._run(lambda reader, connection: reader.plain_or_whole_view(connection, query))

    async def own(self, conversation_id: str, window: Window) -> tuple[Page[RecordedMessage], bool]:
        """Return what :meth:`Lineage.own` does, for a window on the conversation itself."""
        return await self._run(lambda reader, connection: own_messages(reader, connection, conversation_id, window))

    async def _run(self, read: Callable[[FileReader, AsyncConnection], Coroutine[Any, Any, T]]) -> T:
        """Return what ``read`` returns, run in one snapshot of the store that is expected.

        :param read: executes selects on the connection, and awaits nothing else.
        """
        connection, reader, store_id = self._connection, self._reader, expected_store_id()
        if connection is None or reader is None:
            raise Closed("the history store is closed")

        def in_snapshot(driver: sqlite3.Connection) -> T:
            with _snapshot(driver):
                check_file_identity(driver, store_id)
                return _completed(read(reader, cast("AsyncConnection", _ThreadConnection(driver))))

        with translated():
            try:
                return await connection.run(in_snapshot)
            except sqlite3.Error:
                if connection is self._connection:
                    self._drop()
                raise

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        self._closed = True
        if self._opening is not None and self._pid == os.getpid():
            await asyncio.wait((self._opening,))
        self._drop()
        if self._closing:
            await asyncio.wait(self._closing)

    async def _open(self) -> None:
        connection = _Connection(self._path, self._lock_timeout)
        try:
            with translated():
                await connection.open()
        except BaseException as error:  # whatever it was: nothing else knows of this connection
            await connection.close()
            if not isinstance(error, Exception):
                raise
            logger.debug("no connection for fast reads: %s", type(error).__name__)  # reads over the pool tell more
        else:
            self._connection = connection
        finally:
            self._opening = None

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._pid != os.getpid():
            _inherited.append(connection)
            return
        task = asyncio.get_running_loop().create_task(connection.close(), name="letopis-fast-reader-close")
        self._closing.add(task)
        task.add_done_callback(self._forget_closed)

    def _forget_closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("closing the connection for fast reads failed: %s", type(error).__name__)


class _ThreadConnection:
    """Executes selects as an :class:`AsyncConnection` does, at once, in the thread that calls it."""

    __slots__ = ("_driver",)

    def __init__(self, driver: sqlite3.Connection) -> None:
        self._driver = driver

    async def execute(self, select: sa.Select[Any], values: Mapping[str, Any]) -> sa.Result[Any]:
        """Return the rows of a select."""
        statement = _compiled(select)
        return statement.result(self._driver.execute(*statement.bound(values)).fetchall())


class _Statement:
    """A select, compiled once for the driver."""

    def __init__(self, select: sa.Select[Any]) -> None:
        compiled = select.compile(dialect=sqlite.dialect(paramstyle="named"))
        self._text = str(compiled)
        self._defaults = dict(compiled.params)
        columns = select.selected_columns
        self._columns = SimpleResultMetaData(columns.keys())
        self._converters: list[tuple[int, Callable[[bytes], Any]]] = [
            (index, _origin if column.name.endswith("origin_id") else uuid_of)
            for index, column in enumerate(columns)
            if isinstance(column.type, Uuid16)
        ]

    def bound(self, values: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Return the text and the parameters of the statement with some values."""
        raw = {name: value if type(value) in (str, int) else _raw(value) for name, value in values.items()}
        return self._text, {**self._defaults, **raw}

    def result(self, rows: list[Any]) -> sa.Result[Any]:
        """Return rows of the driver as a result, with ids as UUIDs."""
        if self._converters:
            rows = [list(row) for row in rows]
            for index, convert in self._converters:
                for row in rows:
                    if (raw := row[index]) is not None:
                        row[index] = convert(raw)
        return IteratorResult(self._columns, iter(rows))


_compiled = lru_cache(maxsize=200)(_Statement)


def _raw(value: Any) -> Any:
    """Return a value as the driver takes it."""
    if isinstance(value, UUID):
        return value.bytes
    return orjson.dumps(value).decode() if isinstance(value, list) else value


_origin = lru_cache(maxsize=500)(uuid_of)
"""Outboxes are few, so the id of each is converted once."""


@contextmanager
def _snapshot(driver: sqlite3.Connection) -> Iterator[None]:
    """Begin a transaction that only reads: all of its statements see one state of the file."""
    driver.execute("BEGIN")
    try:
        yield
    finally:
        if driver.in_transaction:  # SQLite rolls back on its own after some errors
            driver.execute("ROLLBACK")


def _completed(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that awaits nothing that is not there."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise RuntimeError("a read in one step must not wait for anything")

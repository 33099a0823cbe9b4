"""Run statements of an aiosqlite connection in one hop into its thread each."""

# SQLiteConnection alone reaches private attributes of aiosqlite, whose public methods do not offer it: to run functions
# in the connection's thread (_execute, _conn), to close a cursor without waiting (_tx while _running), and to let a
# process end with the thread open (_thread). SQLAlchemy's dialect takes the same names of any other connection.

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Self, TypeVar

import aiosqlite

T = TypeVar("T")

PREFETCHED_ROWS: Final = 100
"""Rows that are fetched with the statement itself; bounded because rows may be large."""


class SQLiteConnection(aiosqlite.Connection):
    """Runs whole functions in its thread, and stops the thread once."""

    # A second stop (SQLAlchemy's after a cancelled close) would wait for ever for the thread that the first one ended,
    # and keep a task and the file open.
    _stopped: asyncio.Future[Any] | None = None
    _stop_called = False

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        # As SQLAlchemy does: an unclosed connection must not keep the process alive.
        self._thread.daemon = True

    async def opened(self) -> Self:
        """Connect. If cancelled, the connection is closed as soon as it is open."""
        # If connecting fails, the thread has ended when this raises: the event loop may be closed right after, and a
        # thread that answers a closed loop prints a traceback.

        async def connect() -> None:
            await self

        connecting = asyncio.create_task(connect())
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(lambda done: self.stop())
            raise
        except Exception:  # whatever it was, the thread ends before it is raised
            if (stopped := self.stop()) is not None:
                await stopped
            raise
        return self

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of ``work`` with the driver's connection, run in its thread in one hop."""
        # A cancelled caller neither interrupts nor undoes it: the result is dropped.
        return await self._execute(work, self._conn)  # type: ignore[no-any-return, no-untyped-call]

    def post(self, work: Callable[[], None]) -> None:
        """Have ``work`` run in the thread before its next work; dropped if the thread has ended."""
        if self._running:
            self._tx.put_nowait((None, work))

    def cursor(self) -> SQLiteCursor:  # type: ignore[override]  # SQLAlchemy only enters it
        """Return a cursor that needs one hop per statement."""
        return SQLiteCursor(self)

    def stop(self) -> asyncio.Future[Any] | None:
        """Close the connection and end its thread. Return the same future each time."""
        if not self._stop_called:
            self._stop_called = True
            self._stopped = super().stop()
        return self._stopped


class SQLiteCursor(aiosqlite.Cursor):
    """A cursor that is opened, used and read in one hop, and closed without waiting."""

    # The driver's own takes four hops per statement, each as expensive as looking up a row.
    _cursor: sqlite3.Cursor | None  # type: ignore[assignment]

    def __init__(self, connection: SQLiteConnection) -> None:
        super().__init__(connection, None)  # type: ignore[arg-type]  # opened by the first statement
        self._run = connection.run
        self._post = connection.post
        self._rows: list[Any] = []
        self._has_more = False

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> Self:
        """Run a statement and fetch its first rows."""

        def work(driver: sqlite3.Connection) -> list[Any]:
            cursor = self._open(driver)
            cursor.execute(sql, () if parameters is None else parameters)  # type: ignore[arg-type]
            return cursor.fetchmany(PREFETCHED_ROWS) if cursor.description is not None else []

        self._rows, self._has_more = [], False
        self._rows = await self._run(work)
        self._has_more = len(self._rows) == PREFETCHED_ROWS
        return self

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> Self:
        """Run a statement, which returns no rows, with each of the parameters."""
        self._rows, self._has_more = [], False
        await self._run(lambda driver: self._open(driver).executemany(sql, parameters))  # type: ignore[arg-type]
        return self

    async def fetchone(self) -> Any:
        rows = await self.fetchmany(1)
        return rows[0] if rows else None

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        size = self.arraysize if size is None else size
        rows, self._rows = self._rows[:size], self._rows[size:]
        if self._has_more and len(rows) < size:
            more = await self._fetch(lambda cursor: cursor.fetchmany(size - len(rows)))
            self._has_more = bool(more)
            rows += more
        return rows

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        if self._has_more:
            self._has_more = False
            rows += await self._fetch(sqlite3.Cursor.fetchall)
        return rows

    async def close(self) -> None:
        """Have the thread close it before its next work."""
        self._rows, self._has_more = [], False
        if self._cursor is not None:
            self._post(partial(_close_cursor, self._cursor))

    @property
    def description(self) -> Any:
        return None if self._cursor is None else self._cursor.description

    def _open(self, driver: sqlite3.Connection) -> sqlite3.Cursor:
        if self._cursor is None:
            self._cursor = driver.cursor()
        return self._cursor

    async def _fetch(self, fetch: Callable[[sqlite3.Cursor], list[Any]]) -> list[Any]:
        return await self._run(lambda driver: fetch(self._open(driver)))


def _close_cursor(cursor: sqlite3.Cursor) -> None:
    with suppress(sqlite3.Error):  # the connection and its cursors were closed meanwhile
        cursor.close()


class LockReleasingConnection(sqlite3.Connection):
    """Releases its locks when it is closed."""

    # SQLite keeps a closed connection with its open transaction and locks until its last cursor is freed, and a
    # cancelled task's cursor lives as long as its traceback.
    def close(self) -> None:
        # It may be closed already, or on a failing disk: close it all the same.
        with suppress(sqlite3.Error):
            if self.in_transaction:
                self.rollback()
        super().close()


def file_id(path: str) -> tuple[int, int] | None:
    """Return device and inode of the file at a path; ``None`` if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116  # at each use of a connection; Path.stat() costs twice as much
    except OSError:
        return None
    return status.st_dev, status.st_ino

"""SQLite cursor: a statement of an aiosqlite connection is one hop into its thread, with the rows that are few."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Self, TypeVar

import aiosqlite

T = TypeVar("T")

AHEAD: Final = 100
"""Rows that come with the statement itself; there may be large ones, so it is not all of them."""


class SQLiteCursor(aiosqlite.Cursor):
    """Made, used and read in one hop, and closed without waiting for it.

    The driver's own takes four hops for a statement, each of which costs as much as looking up a row.
    """

    _cursor: sqlite3.Cursor | None  # type: ignore[assignment]

    def __init__(self, connection: aiosqlite.Connection) -> None:
        super().__init__(connection, None)  # type: ignore[arg-type]  # there is none before the first statement
        self._rows: list[Any] = []
        self._more = False

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> Self:
        """Run a statement, and fetch its first rows."""

        def work(driver: sqlite3.Connection) -> list[Any]:
            cursor = self._made(driver)
            cursor.execute(sql, () if parameters is None else parameters)  # type: ignore[arg-type]
            return cursor.fetchmany(AHEAD) if cursor.description is not None else []

        self._rows, self._more = [], False
        self._rows = await self._run(work)
        self._more = len(self._rows) == AHEAD
        return self

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> Self:
        """Run a statement with each of the parameters; it returns no rows."""
        self._rows, self._more = [], False
        await self._run(lambda driver: self._made(driver).executemany(sql, parameters))  # type: ignore[arg-type]
        return self

    async def fetchone(self) -> Any:
        """Return the next row; ``None`` where there is none."""
        rows = await self.fetchmany(1)
        return rows[0] if rows else None

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """Return the next rows, at most so many."""
        size = self.arraysize if size is None else size
        found, self._rows = self._rows[:size], self._rows[size:]
        if self._more and len(found) < size:
            more = await self._fetched(lambda cursor: cursor.fetchmany(size - len(found)))
            self._more = bool(more)
            found += more
        return found

    async def fetchall(self) -> list[Any]:
        """Return all rows that are left."""
        found, self._rows = self._rows, []
        if self._more:
            self._more = False
            found += await self._fetched(sqlite3.Cursor.fetchall)
        return found

    async def close(self) -> None:
        """Have it closed before whatever the thread does next."""
        self._rows, self._more = [], False
        if self._cursor is not None and self._conn._running:
            self._conn._tx.put_nowait((None, partial(_closed, self._cursor)))

    @property
    def description(self) -> Any:
        """The columns of the rows; ``None`` where there are none."""
        return None if self._cursor is None else self._cursor.description

    def _made(self, driver: sqlite3.Connection) -> sqlite3.Cursor:
        if self._cursor is None:
            self._cursor = driver.cursor()
        return self._cursor

    async def _fetched(self, fetch: Callable[[sqlite3.Cursor], list[Any]]) -> list[Any]:
        return await self._run(lambda driver: fetch(self._made(driver)))

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._conn._execute(work, self._conn._conn)  # type: ignore[no-any-return, no-untyped-call]


def _closed(cursor: sqlite3.Cursor) -> None:
    with suppress(sqlite3.Error):  # the connection was closed meanwhile, and its cursors with it
        cursor.close()

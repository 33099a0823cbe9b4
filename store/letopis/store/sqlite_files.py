"""SQLite files: connections whose commits are on disk and whose transactions are true, to a file in its place."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import aiosqlite
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from letopis.store.errors import ConfigurationError
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.sqlite_cursor import SQLiteCursor

T = TypeVar("T")

JOURNAL_SIZE_LIMIT: Final = 64 * 1024 * 1024
"""Bytes to which SQLite cuts its WAL back after a checkpoint."""
_BEGIN: Final[Mapping[str, str | None]] = {
    "IMMEDIATE": "BEGIN IMMEDIATE",
    "DEFERRED": "BEGIN",
    "AUTOCOMMIT": None,
}


def install_sqlite_events(sync_engine: sa.Engine, *, busy_timeout: float) -> None:
    """Make an SQLite engine durable and its transactions true, also a synchronous one.

    Each connection gets WAL, ``synchronous=FULL``, ``secure_delete`` and `busy_timeout` (seconds); each transaction
    begins as the execution option ``sqlite_begin`` says: ``IMMEDIATE`` (the default), ``DEFERRED`` or ``AUTOCOMMIT``.

    A connection attempt raises StoreFault (MISCONFIGURED) where the file system has no WAL.
    """
    event.listen(sync_engine, "connect", partial(_on_sqlite_connect, busy_timeout))
    event.listen(sync_engine, "begin", _on_sqlite_begin)


_creating = threading.Lock()


def create_private_file(path: str | os.PathLike[str]) -> bool:
    """Create an empty file that only its owner may read and write, under any umask; True if it was missing.

    The entry in the folder is on disk when this returns. A file that exists is not opened: closing it would drop the
    locks that SQLite holds on it in this process. Blocks for a disk flush. On Windows the folder's rights apply.

    :raises ConfigurationError: the folder does not exist.
    :raises OSError: the file cannot be created.
    """
    path = Path(path)
    # SQLite connections of this process open the file only after this function: the lock keeps our own close() from
    # coming after another thread's SQLite took its locks.
    with _creating:
        if not path.parent.is_dir():
            raise ConfigurationError(f"the folder of {str(path)!r} does not exist: create it, or give another path")
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except FileExistsError:
            return False
        os.close(descriptor)
        path.chmod(0o600)
        _flush_folder(path.parent)
        return True


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # a folder cannot be opened there, and NTFS journals its entries
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _SQLite(sqlite3.Connection):
    """Gives its locks back when it is closed.

    SQLite keeps a closed connection, and with it an open transaction and its locks, until its last cursor is gone; a
    cancelled task's cursor lives as long as somebody keeps the traceback.
    """

    def close(self) -> None:
        """Roll back and close."""
        # Closed a second time, or on a disk that fails: to close is what matters.
        with suppress(sqlite3.Error):
            if self.in_transaction:
                self.rollback()
        super().close()


class SQLiteConnection(aiosqlite.Connection):
    """Runs whole functions in its thread, and stops that once.

    A second ``stop`` (SQLAlchemy's after a cancelled close) would wait for ever for an answer of the thread that the
    first one ended, and keep a task and the file open.
    """

    _stopped: asyncio.Future[Any] | None = None
    _stop_called = False
    _path: str = ""
    _file: tuple[int, int] | None = None

    async def opened(self) -> Self:
        """Connect; if this is cancelled, the connection is closed as soon as it is there, and not left to be freed.

        If it fails, the thread has ended when this raises: an event loop may be closed right after, and a thread that
        answers a loop which is closed ends in a traceback.
        """

        async def connect() -> None:
            await self

        connecting = asyncio.create_task(connect())
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(lambda done: self.stop())
            raise
        except Exception:
            if (stopped := self.stop()) is not None:
                await stopped
            raise
        return self

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what ``work`` does with the driver's connection, in its thread: one hop for any number of statements.

        Cancelling the caller neither interrupts ``work`` nor takes it back: its result is dropped.
        """
        return await self._execute(work, self._conn)  # type: ignore[no-any-return, no-untyped-call]

    def cursor(self) -> SQLiteCursor:  # type: ignore[override]  # SQLAlchemy enters it, and awaits it nowhere
        """Return a cursor that hops once a statement."""
        return SQLiteCursor(self)

    def remember(self, path: str) -> None:
        """Remember the file that is open, by its path."""
        self._path, self._file = path, _file_at(path)

    @property
    def in_place(self) -> bool:
        """Whether the file that was remembered is at its path still, and neither removed nor replaced."""
        return self._file == _file_at(self._path)

    def stop(self) -> asyncio.Future[Any] | None:
        """Close the connection and end its thread; the same future each time."""
        if not self._stop_called:
            self._stop_called = True
            self._stopped = super().stop()
        return self._stopped


_FILE: Final = "letopis_sqlite_file"


def _file_at(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  # at each use of a connection; Path.stat() costs twice as much
    except OSError:
        return None
    return found.st_dev, found.st_ino


def let_go_of_what_was_removed(sync_engine: sa.Engine, path: str) -> None:
    """Take connections out of the pool whose file is not at its path any more.

    SQLite does not notice, and goes on writing into a file that nobody will find.
    """

    def on_connect(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.info[_FILE] = _file_at(path)

    def on_checkout(connection: DBAPIConnection, record: ConnectionPoolEntry, proxy: PoolProxiedConnection) -> None:
        if record.info.get(_FILE) == (now := _file_at(path)):
            return
        if now is None:
            raise DisconnectionError("the SQLite file was removed")  # what is made in its place shows by its tables
        # An outage, short as it is: after one a relay compares what it delivered with what is there.
        reason = "the SQLite file of the history was replaced: it is opened anew"
        raise StoreFault(fault_class=FaultClass.UNAVAILABLE, code="replaced", reason=reason)

    event.listen(sync_engine, "connect", on_connect)
    event.listen(sync_engine, "checkout", on_checkout)


async def connect_to_sqlite(path: str, busy_timeout: float) -> SQLiteConnection:
    if path != ":memory:" and not os.path.exists(path):  # noqa: PTH110, ASYNC240  # one stat; a Path is dearer
        try:
            await asyncio.to_thread(create_private_file, path)
        except ConfigurationError as error:
            # A volume that is not mounted yet comes back: a fault of the store, and of no event.
            raise StoreFault(fault_class=FaultClass.MISCONFIGURED, code="no-folder", reason=str(error)) from error
    opened = partial(sqlite3.connect, path, timeout=busy_timeout, isolation_level=None, factory=_SQLite)
    connection = SQLiteConnection(opened, iter_chunk_size=64)
    # As SQLAlchemy does: a connection that nobody closed must not keep the process from ending.
    connection._thread.daemon = True
    return await connection.opened()


async def connect_for_reading(engine: AsyncEngine, busy_timeout: float) -> SQLiteConnection:
    """Open a connection of one's own to the file of an SQLite engine, set like the engine's; it cannot write.

    :raises StoreFault: as a connection of the engine.
    """
    connection = await connect_to_sqlite(str(engine.url.database), busy_timeout)
    connection.remember(str(engine.url.database))

    def settle(driver: sqlite3.Connection) -> None:
        _set_sqlite(busy_timeout, driver)
        driver.execute("PRAGMA query_only=ON")

    try:
        await connection.run(settle)
    except BaseException:  # a cancellation too: nobody else knows of this connection and its thread
        await connection.close()
        raise
    return connection


def _on_sqlite_connect(busy_timeout: float, connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    _set_sqlite(busy_timeout, connection)


def _set_sqlite(busy_timeout: float, connection: Any) -> None:
    # Python's sqlite3 would else begin transactions by itself, and only before a write.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout={round(busy_timeout * 1000)}")
        mode = _enter_wal(connection, cursor, busy_timeout)
        if mode not in ("wal", "memory"):
            raise StoreFault(
                fault_class=FaultClass.MISCONFIGURED,
                code="no-wal",
                reason="the file system of the SQLite file cannot keep a write-ahead log: put the file on a local disk",
            )
        # FULL: one flush a commit. With NORMAL a power cut takes acknowledged commits away.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA fullfsync=ON")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA secure_delete=ON")
        # Temporary tables would lie outside the private file.
        cursor.execute("PRAGMA temp_store=MEMORY")
        cursor.execute(f"PRAGMA journal_size_limit={JOURNAL_SIZE_LIMIT}")
    finally:
        cursor.close()


def _enter_wal(connection: DBAPIConnection, cursor: Any, busy_timeout: float) -> str:
    """Switch to WAL and return the mode; SQLite does not wait for a lock here when several processes race."""
    deadline = time.monotonic() + busy_timeout
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return str(cursor.fetchone()[0]).lower()
        except sqlite3.OperationalError as error:
            if not str(getattr(error, "sqlite_errorname", "")).startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
        _pause(connection, 0.02)


def _pause(connection: DBAPIConnection, seconds: float) -> None:
    """Wait, and let the event loop run meanwhile if there is one."""
    if isinstance(connection, sa.engine.AdaptedConnection):
        connection.run_async(lambda driver: asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


def _on_sqlite_begin(connection: sa.Connection) -> None:
    option = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
    if option not in _BEGIN:
        raise ConfigurationError(f"sqlite_begin is one of {', '.join(_BEGIN)}")
    if (statement := _BEGIN[option]) is not None:
        connection.exec_driver_sql(statement)

"""Open SQLite connections whose commits are durable and whose transactions are real; truncate the log of a file."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing, suppress
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from letopis.store.cancellation import run_to_completion
from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.sqlite_connection import LockReleasingConnection, SQLiteConnection, file_id
from letopis.store.database.timeouts import Timeouts
from letopis.store.errors import ConfigurationError
from letopis.store.private_files import create_private_file

JOURNAL_SIZE_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""Bytes to which SQLite truncates its WAL after a checkpoint."""
BEGIN: Final[Mapping[str, str | None]] = {"IMMEDIATE": "BEGIN IMMEDIATE", "DEFERRED": "BEGIN", "AUTOCOMMIT": None}


def create_sqlite_engine(url: URL, timeouts: Timeouts, pool_size: int) -> AsyncEngine:
    """Create the engine of an SQLite file, or of a database in memory."""
    path = str(url.database)
    # A database in memory has a single connection, and its pool takes no size.
    pool = {} if path == ":memory:" else timeouts.pool_options(pool_size)
    connect = partial(connect_to_sqlite, path, timeouts.lock)
    engine = create_async_engine(url, async_creator=connect, hide_parameters=True, **pool)
    install_sqlite_events(engine.sync_engine, busy_timeout=timeouts.lock)
    event.listen(engine.sync_engine, "handle_error", _keep_trigger_text)
    if path != ":memory:":
        evict_connections_to_replaced_file(engine.sync_engine, path)
    return engine


def install_sqlite_events(sync_engine: sa.Engine, *, busy_timeout: float) -> None:
    """Make commits of an SQLite engine durable and its transactions real; for synchronous engines too."""
    event.listen(sync_engine, "connect", lambda connection, _: set_up(busy_timeout, connection))
    event.listen(sync_engine, "begin", _on_sqlite_begin)


def note_trigger_text(driver: Any, error: BaseException) -> None:
    """Note the text of a trigger's RAISE on its error, if the schema has it word for word: then no row made it."""
    if getattr(error, "sqlite_errorname", None) == "SQLITE_CONSTRAINT_TRIGGER":
        with suppress(sqlite3.Error), closing(driver.cursor()) as cursor:  # then it is not told
            cursor.execute(_TRIGGER_TEXT, (str(error),))
            if cursor.fetchone() is not None:
                error.letopis_trigger_text = str(error)  # type: ignore[attr-defined]


def _keep_trigger_text(context: ExceptionContext) -> None:
    if context.original_exception is not None and context.connection is not None:
        note_trigger_text(context.connection.connection, context.original_exception)


_TRIGGER_TEXT: Final = "SELECT 1 FROM sqlite_schema WHERE type = 'trigger' AND instr(sql, quote(?))"
_FILE: Final = "letopis_sqlite_file"


def evict_connections_to_replaced_file(sync_engine: sa.Engine, path: str) -> None:
    """Remove connections from the pool whose file is no longer at its path."""
    # SQLite does not notice, and would keep writing into an unreachable file.

    def on_connect(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.info[_FILE] = file_id(path)

    def on_checkout(connection: DBAPIConnection, record: ConnectionPoolEntry, proxy: PoolProxiedConnection) -> None:
        if record.info.get(_FILE) == (now := file_id(path)):
            return
        if now is None:
            raise DisconnectionError("the SQLite file was removed")  # a new file shows by its tables
        # Reported as an outage, after which a relay compares what it delivered with what is there.
        reason = "the SQLite file of the history was replaced: it is opened again"
        raise StoreFault(fault_class=FaultClass.UNAVAILABLE, code="replaced", reason=reason)

    event.listen(sync_engine, "connect", on_connect)
    event.listen(sync_engine, "checkout", on_checkout)


async def connect_to_sqlite(path: str, busy_timeout: float) -> SQLiteConnection:
    """Connect to a file, as :func:`open_file` does."""
    return await SQLiteConnection(partial(open_file, path, busy_timeout)).opened()


def open_file(path: str, busy_timeout: float) -> sqlite3.Connection:
    """Open a file, which is created if it is missing."""
    if path != ":memory:" and not os.path.exists(path):  # noqa: PTH110  # one stat; a Path is slower
        try:
            create_private_file(path)
        except ConfigurationError as error:
            # A volume may not be mounted yet: a fault of the store, not of an event.
            raise StoreFault(fault_class=FaultClass.MISCONFIGURED, code="no-folder", reason=str(error)) from error
    return sqlite3.connect(path, timeout=busy_timeout, isolation_level=None, factory=LockReleasingConnection)


def set_up(busy_timeout: float, connection: Any) -> None:
    """Make the commits of a connection durable."""
    # Otherwise Python's sqlite3 would begin transactions itself, and only before a write.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout={round(busy_timeout * 1000)}")
        mode = _enter_wal(connection, cursor, busy_timeout)
        if mode not in ("wal", "memory"):
            reason = "the file system of the SQLite file has no write-ahead log: move the file to a local disk"
            raise StoreFault(fault_class=FaultClass.MISCONFIGURED, code="no-wal", reason=reason)
        # FULL: one flush per commit. With NORMAL a power cut loses acknowledged commits.
        cursor.execute("PRAGMA synchronous=FULL")
        # For macOS, where fsync does not reach the medium.
        cursor.execute("PRAGMA fullfsync=ON")
        cursor.execute("PRAGMA checkpoint_fullfsync=ON")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA secure_delete=ON")
        # Temporary tables would be outside the private file.
        cursor.execute("PRAGMA temp_store=MEMORY")
        cursor.execute(f"PRAGMA journal_size_limit={JOURNAL_SIZE_LIMIT_BYTES}")
    finally:
        cursor.close()


def _enter_wal(connection: DBAPIConnection, cursor: Any, busy_timeout: float) -> str:
    """Switch to WAL and return the mode. SQLite itself does not wait for a lock here."""
    deadline = time.monotonic() + busy_timeout
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return str(cursor.fetchone()[0]).lower()
        except sqlite3.OperationalError as error:
            if not str(getattr(error, "sqlite_errorname", "")).startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
        if isinstance(connection, sa.engine.AdaptedConnection):  # over an event loop, which goes on meanwhile
            connection.run_async(lambda _: asyncio.sleep(0.02))
        else:
            time.sleep(0.02)


def _on_sqlite_begin(connection: sa.Connection) -> None:
    option = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
    if option not in BEGIN:
        raise ConfigurationError(f"sqlite_begin is one of {', '.join(BEGIN)}")
    if (statement := BEGIN[option]) is not None:
        connection.exec_driver_sql(statement)


logger = logging.getLogger("letopis.store.wal")

_BUSY_TIMEOUT_MS: Final = 50
"""Wait for readers, which appliers wait behind."""
_RETRY_SECONDS: Final = (0.1, 0.5, 2.0, 10.0)
"""Pauses while a reader still sees the erased content; the last one repeats."""


class WalTruncator:
    """Truncates a log in the background, and retries while readers keep it from it."""

    def __init__(self, truncate: Callable[[], Awaitable[bool]]) -> None:
        self._truncate = truncate  # returns True if it succeeded
        self._scheduled = False
        self._closing = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def schedule(self) -> None:
        """Truncate the log soon: content was erased."""
        self._scheduled = True
        if (self._running is None or self._running.done()) and not self._closing.is_set():
            self._running = asyncio.get_running_loop().create_task(self._run(), name="letopis-wal-truncation")

    async def close(self) -> None:
        """Wait for an attempt that is running, and start no other."""
        self._closing.set()
        if self._running is not None:
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        attempts = 0
        while self._scheduled and not self._closing.is_set():
            self._scheduled = False
            try:
                done = await run_to_completion(self._truncate())
            except StoreFault as fault:
                logger.info("the write-ahead log still holds erased content and will be truncated later: %s", fault)
                done = False
            if done:
                attempts = 0
                continue
            self._scheduled = True
            pause = _RETRY_SECONDS[min(attempts, len(_RETRY_SECONDS) - 1)]
            attempts += 1
            try:
                async with asyncio.timeout(pause):
                    await self._closing.wait()
            except TimeoutError:
                continue


async def truncate_wal(engine: AsyncEngine) -> bool:
    """Move the whole write-ahead log of a file into it and truncate it. Return False if a reader prevented it."""
    with translated():
        async with engine.execution_options(sqlite_begin="AUTOCOMMIT").connect() as connection:
            busy_timeout = (await connection.execute(sa.text("PRAGMA busy_timeout"))).scalar_one()
            await connection.exec_driver_sql(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
            try:
                busy = (await connection.execute(sa.text("PRAGMA wal_checkpoint(TRUNCATE)"))).one()[0]
            finally:
                if not connection.invalidated:  # as after a cancellation
                    await connection.exec_driver_sql(f"PRAGMA busy_timeout={busy_timeout}")
            return not busy

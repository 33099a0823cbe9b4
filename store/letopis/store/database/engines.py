"""Create the engine of a history store, with every setting that a guarantee rests on."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from typing import Any, Final, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from letopis.store.cancellation import cancel_after_grace, run_to_completion
from letopis.store.database.fault_classification import classify, translated
from letopis.store.database.mariadb import create_mariadb_engine
from letopis.store.database.postgresql import LIMITED_BY_TRANSACTION, create_postgresql_engine
from letopis.store.database.sqlite import create_sqlite_engine
from letopis.store.database.sqlite_file import SQLiteFile
from letopis.store.database.timeouts import Timeouts
from letopis.store.database.urls import MARIADB, MAX_CONNECTIONS, POSTGRESQL, normalise_url
from letopis.store.errors import ConfigurationError

T = TypeVar("T")


def create_store_engine(
    url: str | URL | os.PathLike[str],
    *,
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
    pool_size: int = 5,
) -> AsyncEngine:
    """Create the engine of a history store. Nothing is opened before the first connection."""
    # READ COMMITTED on servers. On SQLite transactions begin as the execution option sqlite_begin says: IMMEDIATE,
    # DEFERRED for readers, AUTOCOMMIT for statements outside one. SQLAlchemy's isolation_level would override that. The
    # pool does not ping: a connection that died while idle fails once.
    if not isinstance(timeouts, Timeouts):
        raise ConfigurationError(f"timeouts must be Timeouts(...), not {type(timeouts).__name__}")
    if isinstance(pool_size, bool) or not isinstance(pool_size, int) or not 1 <= pool_size <= MAX_CONNECTIONS:
        raise ConfigurationError(f"pool_size must be a whole number from 1 to {MAX_CONNECTIONS}")
    url = normalise_url(url)
    if (override := url.query.get("connect_timeout")) is not None:
        timeouts = Timeouts(connect=float(str(override)), statement=timeouts.statement, lock=timeouts.lock)
    pool_size = int(str(url.query.get("connections", pool_size)))
    if url.drivername == POSTGRESQL:
        engine = create_postgresql_engine(url, timeouts, pool_size)
    elif url.drivername == MARIADB:
        engine = create_mariadb_engine(url, timeouts, pool_size)
    else:
        engine = create_sqlite_engine(url, timeouts, pool_size)
    event.listen(engine.sync_engine, "handle_error", _invalidate_unusable_connection)
    _refuse_after_fork(engine.sync_engine)
    return engine


def open_database(url: str | URL | os.PathLike[str], *, timeouts: Timeouts, pool_size: int) -> AsyncEngine:
    """Return a server's engine, or what an SQLite file has instead; :func:`run_whole` runs transactions over it."""
    engine = create_store_engine(url, timeouts=timeouts, pool_size=pool_size)
    if engine.dialect.name != "sqlite":
        return engine
    return cast("AsyncEngine", SQLiteFile(engine.url, timeouts, pool_size=pool_size))


async def run_whole(engine: AsyncEngine, work: Coroutine[Any, Any, T], *, write: bool = True) -> T:
    """Return the result of one transaction that no cancellation tears."""
    # ``write`` also where its connection may have to be given up in the middle.
    if isinstance(file := cast("object", engine), SQLiteFile):
        with translated():  # what is raised by connecting
            return await file.run(work, write=write)
    # A torn aiosqlite call leaks its thread; a server may not answer for long, and its drivers bear one cancellation.
    return await (run_to_completion(work) if engine.dialect.name == "sqlite" else cancel_after_grace(work))


def for_single_statements(engine: AsyncEngine) -> AsyncEngine:
    """Return the engine for reads that need no common snapshot: on PostgreSQL without BEGIN and ROLLBACK."""
    # This saves two round trips. Behind PgBouncer the transaction carries the time limits.
    if engine.dialect.name != "postgresql" or engine.get_execution_options().get(LIMITED_BY_TRANSACTION):
        return engine
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def _invalidate_unusable_connection(context: ExceptionContext) -> None:
    """Take a connection out of the pool whose error SQLAlchemy does not recognise as a disconnect."""
    error = context.original_exception
    code = classify(error).code
    if isinstance(error, TimeoutError) or code in ("protocol", "cut-off"):
        # The answer may still come and be taken for another statement's; a rollback would wait as long again.
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
    elif code in ("25006", "1290", "1792", "1836", "not-connected"):
        # Read-only, as after a failover: every connection of the pool leads to the old primary. Or closed without a
        # word, as in an outage: the others of the pool are closed too.
        context.is_disconnect = True


_inherited: Final[list[DBAPIConnection]] = []
"""Connections of the parent process that a forked child found in the pool."""


def _refuse_after_fork(sync_engine: sa.Engine) -> None:
    """Refuse connections in a forked child, which shares sockets and locks with its parent and lacks its threads."""
    creator = os.getpid()

    def check() -> None:
        if os.getpid() != creator:
            raise ConfigurationError("this engine was created before a fork: create a new one in the child process")

    def on_connect(*_: Any) -> None:
        check()

    def on_checkout(connection: DBAPIConnection, record: ConnectionPoolEntry, proxy: PoolProxiedConnection) -> None:
        try:
            check()
        except ConfigurationError:
            # Not closed: that would wait for a thread that does not exist here. Not freed either: its transport would
            # leave the selector, which the parent's event loop shares.
            _inherited.append(connection)
            record.dbapi_connection = proxy.dbapi_connection = None  # type: ignore[misc]
            raise

    event.listen(sync_engine, "do_connect", on_connect)
    event.listen(sync_engine, "checkout", on_checkout)

"""Open the engine of a history store, with every setting that a guarantee rests on."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final, TypeVar
from urllib.parse import urlencode
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from letopis.store.errors import ConfigurationError
from letopis.store.faults import FaultClass, StoreFault, classify
from letopis.store.sqlite_files import connect_to_sqlite, install_sqlite_events, let_go_of_what_was_removed
from letopis.store.urls import MARIADB, POSTGRESQL, normalise_url

T = TypeVar("T")

PROGRAM: Final = "letopis"
RECYCLE: Final = 1800.0
"""Seconds after which an idle server connection is replaced: below what firewalls and servers commonly allow."""
MARGIN: Final = 5.0
"""Seconds that the client waits longer than the server's own limit, so that the server's answer comes first."""

_LIMITED_BY_TRANSACTION: Final = "letopis_limited_by_transaction"
"""The option of an engine whose sessions have no time limits of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long the store may take, in seconds, each above 0.

    Not covered: a whole transaction. A caller that must not wait longer puts its own deadline around it; a connection
    that is cancelled leaves the pool.

    :ivar connect: to connect and log in.
    :ivar statement: one statement on the server, idle time inside a transaction, and waiting for a free connection of
        the pool. SQLite does not limit a statement.
    :ivar lock: one lock that another transaction holds; on SQLite the lock of the file.
    """

    connect: float = 5.0
    statement: float = 30.0
    lock: float = 10.0

    def __post_init__(self) -> None:
        for name in ("connect", "statement", "lock"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise ConfigurationError(f"the timeout {name!r} is a number of seconds above 0")


def create_store_engine(
    url: str | URL | os.PathLike[str],
    *,
    timeouts: Timeouts = Timeouts(),  # frozen
    pool_size: int = 5,
    allow_memory: bool = False,
) -> AsyncEngine:
    """Make the engine of a history store; nothing is opened until the first connection.

    `url` is anything that `letopis.store.urls.normalise_url` takes. Transactions are READ COMMITTED on servers; on
    SQLite they begin with ``BEGIN IMMEDIATE``, or with a plain ``BEGIN`` for a reader's
    ``engine.execution_options(sqlite_begin="DEFERRED")``. SQLAlchemy's ``isolation_level`` option must not be used on
    SQLite (it undoes that): ``sqlite_begin="AUTOCOMMIT"`` is for statements that run outside a transaction. At most
    `pool_size` connections are open. A missing SQLite file is created with mode 0600 by the first connection. A
    connection raises StoreFault where the file's folder is missing or keeps no WAL, and where no database answers.

    Errors are SQLAlchemy's and the drivers' own, without parameters in their text: run SQL inside
    `letopis.store.faults.translated`. The pool does not ping: a connection that died while idle fails once.

    The engine belongs to the process that made it: after a fork it raises ConfigurationError in the child, which makes
    its own. Dispose of it (``await engine.dispose()``) in the event loop that used it.

    :raises ConfigurationError: the URL cannot be used, a TLS file cannot be read, or the driver is not installed.
    """
    if not isinstance(timeouts, Timeouts):
        raise ConfigurationError(f"timeouts must be Timeouts(...), not {type(timeouts).__name__}")
    if not isinstance(pool_size, int) or not 1 <= pool_size <= 1024:
        raise ConfigurationError("pool_size must be between 1 and 1024")
    url = normalise_url(url, allow_memory=allow_memory)
    if (override := url.query.get("connect_timeout")) is not None:
        timeouts = Timeouts(connect=float(str(override)), statement=timeouts.statement, lock=timeouts.lock)
    if url.drivername == POSTGRESQL:
        engine = _postgresql(url, timeouts, pool_size)
    elif url.drivername == MARIADB:
        engine = _mariadb(url, timeouts, pool_size)
    else:
        engine = _sqlite(url, timeouts, pool_size)
    event.listen(engine.sync_engine, "handle_error", _abandon_what_is_of_no_use)
    _refuse_after_fork(engine.sync_engine)
    return engine


def by_statement(engine: AsyncEngine) -> AsyncEngine:
    """Return the engine for reads that need no common snapshot: on PostgreSQL each statement is its own transaction.

    That saves the two round trips of BEGIN and ROLLBACK. Elsewhere, and behind PgBouncer, where a transaction carries
    the time limits, it is the engine itself.
    """
    if engine.dialect.name != "postgresql" or engine.get_execution_options().get(_LIMITED_BY_TRANSACTION):
        return engine
    return engine.execution_options(isolation_level="AUTOCOMMIT")


# --- SQLite ---------------------------------------------------------------------------------------------------------


def _sqlite(url: URL, timeouts: Timeouts, pool_size: int) -> AsyncEngine:
    path = str(url.database)
    # In memory there is one connection for all, which takes no size.
    pool = {} if path == ":memory:" else _pool(timeouts, pool_size)
    connect = partial(connect_to_sqlite, path, timeouts.lock)
    engine = create_async_engine(url, async_creator=connect, hide_parameters=True, **pool)
    install_sqlite_events(engine.sync_engine, busy_timeout=timeouts.lock)
    if path != ":memory:":
        let_go_of_what_was_removed(engine.sync_engine, path)
    return engine


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


def _postgresql(url: URL, timeouts: Timeouts, pool_size: int) -> AsyncEngine:
    query = dict(url.query)
    behind_pgbouncer = query.pop("pgbouncer", "false") == "true"
    query.pop("connect_timeout", None)
    limits = {
        "statement_timeout": _milliseconds(timeouts.statement),
        "lock_timeout": _milliseconds(timeouts.lock),
        "idle_in_transaction_session_timeout": _milliseconds(timeouts.statement),
    }
    settings = {"application_name": str(query.pop("application_name", PROGRAM))}
    arguments: dict[str, Any] = {
        "timeout": timeouts.connect,
        "command_timeout": timeouts.statement + MARGIN,
        # SQLAlchemy's name for what makes the driver's connection; all else here is handed on to it.
        "async_creator_fn": partial(_diagnosed, _connect_to_postgresql),
        # PgBouncer refuses a client that sends settings it does not track.
        "server_settings": settings if behind_pgbouncer else settings | limits,
    }
    for name in ("statement_cache_size", "prepared_statement_cache_size"):
        if name in query:
            arguments[name] = int(str(query.pop(name)))
    if behind_pgbouncer:
        # The next transaction may run on another server connection, which knows nothing that was prepared before.
        arguments |= {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        arguments["prepared_statement_name_func"] = lambda: f"{PROGRAM}_{uuid4().hex}"
    for name in ("ssl", "target_session_attrs", "passfile", "krbsrvname", "gsslib"):
        if name in query:
            arguments[name] = query.pop(name)
    hosts = {name: query.pop(name) for name in tuple(query) if name in ("host", "port")}
    if query:
        # What is left are words of libpq that asyncpg takes in a DSN only.
        arguments["dsn"] = f"postgresql://?{urlencode({name: str(value) for name, value in query.items()})}"
    engine = _server_engine(url.set(query=hosts), timeouts, pool_size, driver="asyncpg", connect_args=arguments)
    if behind_pgbouncer:
        chosen = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in limits.items())

        def limit(connection: sa.Connection) -> None:
            connection.exec_driver_sql(f"SELECT {chosen}")

        event.listen(engine.sync_engine, "begin", limit)
        engine.update_execution_options(**{_LIMITED_BY_TRANSACTION: True})
    return engine


async def _connect_to_postgresql(**arguments: Any) -> Any:
    import asyncpg

    return await asyncpg.connect(**arguments)


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))  # 0 would mean no limit


# --- MariaDB --------------------------------------------------------------------------------------------------------


def _mariadb(url: URL, timeouts: Timeouts, pool_size: int) -> AsyncEngine:
    demand = url.query.get("ssl", "require" if "ssl_ca" in url.query else "disable")
    arguments: dict[str, Any] = {
        "host": url.host or "localhost",
        "port": url.port or 3306,
        "user": url.username,
        "password": url.password or "",
        "database": url.database,
        "unix_socket": url.query.get("unix_socket"),
        "charset": "utf8mb4",
        "autocommit": False,
        "program_name": PROGRAM,
        "connect_timeout": timeouts.connect,
        "read_timeout": timeouts.statement + MARGIN,
        "ssl": None if demand == "disable" else _tls(url, str(demand)),
    }
    return _server_engine(
        url.set(query={}),
        timeouts,
        pool_size,
        driver="asyncmy",
        async_creator=partial(_diagnosed, _connect_to_mariadb, arguments, _mariadb_session(timeouts), timeouts.connect),
    )


def _mariadb_session(timeouts: Timeouts) -> tuple[str, ...]:
    """The statements that make a session strict, whatever the server's defaults are."""
    values = {
        # Without strictness MariaDB cuts text and numbers to fit, with a warning that nobody reads.
        "sql_mode": "'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'",
        "time_zone": "'+00:00'",
        "innodb_lock_wait_timeout": str(max(1, round(timeouts.lock))),
        "lock_wait_timeout": str(max(1, round(timeouts.lock))),
        "max_statement_time": f"{timeouts.statement:.3f}",
        # A client that vanished must not keep its rows locked; an idle one in the pool must not be dropped.
        "idle_transaction_timeout": str(max(1, round(timeouts.statement))),
        "wait_timeout": str(round(RECYCLE * 2)),
    }
    return (
        "SET SESSION " + ", ".join(f"{name}={value}" for name, value in values.items()),
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    )


async def _connect_to_mariadb(arguments: Mapping[str, Any], session: tuple[str, ...], deadline: float) -> Any:
    """Connect, log in and set the session, all within one deadline: the driver's own ends with the TCP connection."""
    from asyncmy.constants import CLIENT

    # FOUND_ROWS: an update counts the rows it matched, as SQLAlchemy expects, and not only those that changed.
    connection = _mariadb_connection()(client_flag=CLIENT.FOUND_ROWS, **arguments)
    connection.patience = arguments["read_timeout"]
    try:
        async with asyncio.timeout(deadline):
            await connection.connect()
            async with connection.cursor() as cursor:
                for statement in session:
                    await cursor.execute(statement)
    except BaseException:  # cancellation too: nobody else could close the socket
        connection.close()
        raise
    return connection


@cache
def _mariadb_connection() -> type[Any]:
    from asyncmy.connection import Connection

    class MariaDBConnection(Connection):
        """Waits `patience` seconds for an answer, however it comes, and says farewell for a short time only.

        The driver's own timeout begins anew with each piece of an answer, and it would wait for ever for a peer that
        reads no more.
        """

        patience: float | None = None

        async def query(self, *args: Any, **options: Any) -> Any:
            async with asyncio.timeout(self.patience):
                return await super().query(*args, **options)  # type: ignore[no-untyped-call]

        async def commit(self) -> None:
            async with asyncio.timeout(self.patience):
                await super().commit()

        async def rollback(self) -> None:
            async with asyncio.timeout(self.patience):
                await super().rollback()

        async def ensure_closed(self) -> None:
            try:
                async with asyncio.timeout(MARGIN):
                    await super().ensure_closed()
            except TimeoutError:
                self.close()

    return MariaDBConnection


def _tls(url: URL, demand: str) -> ssl.SSLContext:
    """The TLS context of the URL's options: an authority, if one is given, is always checked."""
    files = {name: str(url.query[name]) for name in ("ssl_ca", "ssl_cert", "ssl_key") if name in url.query}
    verified = demand.startswith("verify") or "ssl_ca" in files
    try:
        context = ssl.create_default_context(cafile=files.get("ssl_ca"))
        context.check_hostname = verified and (demand == "verify-full" or url.query.get("ssl_check_hostname") == "true")
        context.verify_mode = ssl.CERT_REQUIRED if verified else ssl.CERT_NONE
        if "ssl_cert" in files:
            context.load_cert_chain(files["ssl_cert"], files.get("ssl_key"))
    except (OSError, ValueError):
        reason = "a TLS file of the URL cannot be read: check ssl_ca, ssl_cert and ssl_key"
    else:
        return context
    raise ConfigurationError(reason)


# --- all of them -----------------------------------------------------------------------------------------------------


def _pool(timeouts: Timeouts, pool_size: int) -> dict[str, Any]:
    return {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": timeouts.statement}


async def _diagnosed(connect: Callable[..., Awaitable[Any]], *args: Any, **arguments: Any) -> Any:
    """Connect; whatever goes wrong is about the server, and must not be taken for the fault of an event."""
    try:
        return await connect(*args, **arguments)
    except Exception as error:  # a peer of another kind makes a driver stumble over a length, an index, an encoding
        found = classify(error)
        if found.fault_class is FaultClass.UNCLASSIFIED:
            reason = "the peer does not speak the protocol of the history store; it is tried again: check host and port"
            raise StoreFault(fault_class=FaultClass.UNAVAILABLE, code="protocol", reason=reason) from error
        if found.fault_class is FaultClass.POISON or found.code == "42704":
            reason = "the server refuses a setting of the connection: check the options of the URL"
            raise StoreFault(fault_class=FaultClass.MISCONFIGURED, code=found.code, reason=reason) from error
        raise


def _server_engine(url: URL, timeouts: Timeouts, pool_size: int, *, driver: str, **options: Any) -> AsyncEngine:
    try:
        return create_async_engine(
            url,
            **_pool(timeouts, pool_size),
            pool_recycle=int(RECYCLE),
            isolation_level="READ COMMITTED",
            hide_parameters=True,
            **options,
        )
    except ModuleNotFoundError as error:
        extra = url.get_backend_name()
        if error.name != driver:
            raise
        raise ConfigurationError(f"the driver is not installed: pip install 'letopis[{extra}]'") from None


def _abandon_what_is_of_no_use(context: ExceptionContext) -> None:
    """Take a connection out of the pool where SQLAlchemy itself would not see that it is of no use."""
    error = context.original_exception
    found = classify(error)
    if isinstance(error, TimeoutError) or found.code == "protocol":
        # The answer may still come and be taken for another statement's; a rollback would wait as long again.
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
    elif found.code in ("25006", "1290", "1792", "1836"):
        # Read-only, as after a failover: every connection of the pool is one to the old primary.
        context.is_disconnect = True


_inherited: Final[list[DBAPIConnection]] = []
"""Connections of the parent process that a forked child met."""


def _refuse_after_fork(sync_engine: sa.Engine) -> None:
    """A forked child shares sockets and locks with its parent and lacks its threads: it would hang or do harm."""
    maker = os.getpid()

    def check() -> None:
        if os.getpid() != maker:
            raise ConfigurationError("this engine was made before a fork: make a new one in the child process")

    def on_connect(*_: Any) -> None:
        check()

    def on_checkout(connection: DBAPIConnection, record: ConnectionPoolEntry, proxy: PoolProxiedConnection) -> None:
        try:
            check()
        except ConfigurationError:
            # Not closed: that would wait for a thread that is not here. Not freed either: its transport would leave
            # the selector, which the parent's event loop shares.
            _inherited.append(connection)
            record.dbapi_connection = proxy.dbapi_connection = None  # type: ignore[misc]
            raise

    event.listen(sync_engine, "do_connect", on_connect)
    event.listen(sync_engine, "checkout", on_checkout)

"""Create the engine of a MariaDB store."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store.database import failover
from letopis.store.database.failover import HostRole
from letopis.store.database.hosts import HostAddress
from letopis.store.database.timeouts import Timeouts
from letopis.store.errors import ConfigurationError


def create_mariadb_engine(url: URL, timeouts: Timeouts, pool_size: int) -> AsyncEngine:
    """Create the engine, whose sessions are strict whatever the server's defaults are."""
    demand = url.query.get("ssl", "require" if "ssl_ca" in url.query else "disable")
    arguments: dict[str, Any] = {
        "user": url.username,
        "password": url.password or "",
        "database": url.database,
        "charset": "utf8mb4",
        "autocommit": False,
        "program_name": failover.PROGRAM,
        "connect_timeout": timeouts.connect,
        "ssl": None if demand == "disable" else _tls(url, str(demand)),
    }
    connect = partial(_connect, arguments=arguments, timeouts=timeouts)
    connector = failover.HostConnector(url, connect=connect, role_of=_role_of)
    creator = partial(failover.diagnose_connecting, connector.connect)
    engine = failover.create_server_engine(url, timeouts, pool_size, driver="asyncmy", async_creator=creator)
    connector.watch(engine.sync_engine)
    return engine


def _session_statements(timeouts: Timeouts) -> tuple[str, ...]:
    """Return the statements that make a session strict, whatever the server's defaults are."""
    values = {
        # Without strictness MariaDB truncates text and numbers, with a warning only.
        "sql_mode": "'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'",
        "time_zone": "'+00:00'",
        "innodb_lock_wait_timeout": str(max(1, round(timeouts.lock))),
        "lock_wait_timeout": str(max(1, round(timeouts.lock))),
        "max_statement_time": f"{timeouts.statement:.3f}",
        # A client that vanished must not keep its rows locked; an idle one in the pool must not be dropped.
        "idle_transaction_timeout": str(max(1, round(timeouts.statement))),
        "wait_timeout": str(round(failover.RECYCLE_SECONDS * 2)),
    }
    return (
        "SET SESSION " + ", ".join(f"{name}={value}" for name, value in values.items()),
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    )


async def _connect(address: HostAddress, *, arguments: Mapping[str, Any], timeouts: Timeouts) -> Any:
    """Connect, log in and set the session, all within one deadline: the driver's own ends with the TCP connection."""
    from asyncmy.constants import CLIENT

    # FOUND_ROWS: an update counts the rows it matched, as SQLAlchemy expects, and not only those that changed.
    where = {"unix_socket": address.host} if address.is_socket else {"host": address.host, "port": address.port}
    connection = _connection_class()(client_flag=CLIENT.FOUND_ROWS, **where, **arguments)
    connection.answer_timeout = timeouts.statement + failover.ANSWER_MARGIN_SECONDS
    try:
        async with asyncio.timeout(timeouts.connect):
            await connection.connect()
            async with connection.cursor() as cursor:
                for statement in _session_statements(timeouts):
                    await cursor.execute(statement)
    except BaseException:  # cancellation too: no one else could close the socket
        connection.terminate()
        raise
    return connection


async def _role_of(connection: Any) -> HostRole:
    """Return the server's role: a replica is ``read_only``, and a Galera node outside its cluster takes no writes."""
    async with connection.cursor() as cursor:
        await cursor.execute(
            "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('read_only', 'super_read_only', 'wsrep_on')"
        )
        settings = dict(await cursor.fetchall())
        await cursor.execute("SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_ready', 'wsrep_cluster_status')")
        settings |= dict(await cursor.fetchall())
    outside_cluster = settings.get("wsrep_on") == "ON" and (
        settings.get("wsrep_ready") != "ON" or settings.get("wsrep_cluster_status") != "Primary"
    )
    read_only = outside_cluster or any(settings.get(name, "OFF") != "OFF" for name in ("read_only", "super_read_only"))
    return HostRole(read_only=read_only, standby=read_only)


@cache
def _connection_class() -> type[Any]:
    from asyncmy.connection import Connection

    class MariaDBConnection(Connection):
        """Limit the whole of each answer, and the time for closing."""

        # The driver's own timeout restarts with each piece of an answer, for each of which it makes a task, and closing
        # would wait for ever for a peer that has stopped reading.
        answer_timeout: float | None = None
        """Seconds for the whole answer to one statement."""

        def close(self) -> None:
            """Close without waiting for the peer."""
            transport = getattr(self, "_transport", None)
            if transport is not None:
                transport.abort()
            super().close()

        terminate = close  # the name that asyncpg gives it

        async def query(self, *args: Any, **options: Any) -> Any:
            async with asyncio.timeout(self.answer_timeout):
                return await super().query(*args, **options)  # type: ignore[no-untyped-call]

        async def commit(self) -> None:
            async with asyncio.timeout(self.answer_timeout):
                await super().commit()

        async def rollback(self) -> None:
            async with asyncio.timeout(self.answer_timeout):
                await super().rollback()

        async def ensure_closed(self) -> None:
            try:
                async with asyncio.timeout(failover.ANSWER_MARGIN_SECONDS):
                    await super().ensure_closed()
            except TimeoutError:
                self.close()

    return MariaDBConnection


def _tls(url: URL, demand: str) -> ssl.SSLContext:
    """Return the TLS context of the URL's options. An authority that is given is always checked."""
    files = {name: str(url.query[name]) for name in ("ssl_ca", "ssl_cert", "ssl_key") if name in url.query}
    verified = demand.startswith("verify") or "ssl_ca" in files
    for name, path in files.items():
        if (problem := failover.unreadable(path)) is not None:
            raise ConfigurationError(f"the file of the URL's {name} {problem}: correct the path, or its permissions")
    try:
        context = ssl.create_default_context(cafile=files.get("ssl_ca"))
        context.check_hostname = verified and (demand == "verify-full" or url.query.get("ssl_check_hostname") == "true")
        context.verify_mode = ssl.CERT_REQUIRED if verified else ssl.CERT_NONE
        if "ssl_cert" in files:
            context.load_cert_chain(files["ssl_cert"], files.get("ssl_key"))
    except (OSError, ValueError):
        reason = "a TLS file of the URL holds no usable PEM: check ssl_ca, ssl_cert and ssl_key"
    else:
        return context
    raise ConfigurationError(reason)

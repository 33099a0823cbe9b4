"""Create the engine of a PostgreSQL store."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store.cancellation import cancel_after_grace
from letopis.store.database import failover
from letopis.store.database.failover import HostRole
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.hosts import HostAddress
from letopis.store.database.timeouts import Timeouts

LIMITED_BY_TRANSACTION: Final = "letopis_limited_by_transaction"
"""The execution option of an engine whose sessions have no time limits of their own."""

_TLS_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_HOST_OPTIONS: Final = ("host", "port", "target_session_attrs", "load_balance_hosts")


def create_postgresql_engine(url: URL, timeouts: Timeouts, pool_size: int) -> AsyncEngine:
    """Create the engine; behind PgBouncer, transactions carry the time limits instead of sessions."""
    query = dict(url.query)
    behind_pgbouncer = query.pop("pgbouncer", "false") == "true"
    for name in ("connect_timeout", "connections"):
        query.pop(name, None)
    limits = {
        "statement_timeout": _milliseconds(timeouts.statement),
        "lock_timeout": _milliseconds(timeouts.lock),
        "idle_in_transaction_session_timeout": _milliseconds(timeouts.statement),
    }
    settings = {"application_name": str(query.pop("application_name", failover.PROGRAM))}
    files: dict[str, str] = {name: str(query[name]) for name in _TLS_FILES if name in query}
    arguments: dict[str, Any] = {
        "timeout": timeouts.connect,
        "command_timeout": timeouts.statement + failover.ANSWER_MARGIN_SECONDS,
        # PgBouncer refuses a client that sends settings it does not track.
        "server_settings": settings if behind_pgbouncer else settings | limits,
    }
    for name in ("statement_cache_size", "prepared_statement_cache_size"):
        if name in query:
            arguments[name] = int(str(query.pop(name)))
    if behind_pgbouncer:
        # The next transaction may run on another server connection, which does not know statements prepared before.
        arguments |= {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        arguments["prepared_statement_name_func"] = lambda: f"{failover.PROGRAM}_{uuid4().hex}"
    for name in ("ssl", "passfile", "krbsrvname", "gsslib"):
        if name in query:
            arguments[name] = query.pop(name)
    for name in _HOST_OPTIONS:
        query.pop(name, None)
    if query:
        # asyncpg takes the remaining options of libpq in a DSN only.
        arguments["dsn"] = f"postgresql://?{urlencode({name: str(value) for name, value in query.items()})}"
    connect = partial(_connect, files)
    connector = failover.HostConnector(url, connect=connect, role_of=_role_of)
    # SQLAlchemy's name for the function that creates the driver's connection, with the other arguments.
    creator = {"async_creator_fn": partial(failover.diagnose_connecting, connector.connect)}
    engine = failover.create_server_engine(url, timeouts, pool_size, driver="asyncpg", connect_args=arguments | creator)
    connector.watch(engine.sync_engine)
    if behind_pgbouncer:
        settings_of_transaction = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in limits.items())

        def limit(connection: sa.Connection) -> None:
            connection.exec_driver_sql(f"SELECT {settings_of_transaction}")

        event.listen(engine.sync_engine, "begin", limit)
        engine.update_execution_options(**{LIMITED_BY_TRANSACTION: True})
    return engine


async def _connect(files: Mapping[str, str], address: HostAddress | None, **arguments: Any) -> Any:
    import asyncpg

    # Read at each connection, so that they may be renewed; the driver's error would pass for an outage.
    for name, path in files.items():
        if (problem := failover.unreadable(path)) is not None:
            reason = f"the file of the URL's {name} {problem}: correct the path, or its permissions"
            raise StoreFault(fault_class=FaultClass.MISCONFIGURED, code="tls-file", reason=reason)
    where = {} if address is None else {"host": address.host, "port": address.port}
    return await _log_in(asyncpg.connect(**arguments | where))


async def _log_in(connecting: Coroutine[Any, Any, Any]) -> Any:
    """Log in, or close what was opened: a caller that is cancelled waits for that."""
    login = _Login(connecting)
    try:
        return await cancel_after_grace(login, grace=0)
    except asyncio.CancelledError:
        if not login.cancelled() and login.exception() is None:
            login.result().terminate()
        raise


class _Login(asyncio.Task[Any]):
    """A login that no cancellation interrupts while asyncio hands its socket over to asyncpg.

    Cancelled there, asyncpg leaves a future whose error is never retrieved. A shield is not enough: an event loop that
    ends, and asyncpg's own timeout, cancel the task itself.
    """

    _fut_waiter: asyncio.Future[Any] | None  # asyncio's own: what the task awaits

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel once the task has awaited the same thing for two iterations of the loop: a hand-over takes one."""
        if self.done():
            return False
        loop = self.get_loop()
        loop.call_soon(loop.call_soon, self._cancel_unless_moved, self._fut_waiter, msg)
        return True

    def _cancel_unless_moved(self, awaited: asyncio.Future[Any] | None, msg: Any | None) -> None:
        if awaited is None or awaited.done() or awaited is not self._fut_waiter:
            self.cancel(msg)
        else:
            super().cancel(msg)


async def _role_of(connection: Any) -> HostRole:
    async with connection.transaction():  # behind PgBouncer, which may change the server between two transactions
        standby, read_only = await connection.fetchrow(
            "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'"
        )
    return HostRole(read_only=read_only, standby=standby)


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))  # 0 would mean no limit

"""Read and write one of the two stores of a move in short transactions, whatever the state of its log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.cancellation import run_to_completion
from letopis.store.database.citus import dialect_of
from letopis.store.database.dialects import dialect_for, reading
from letopis.store.database.engines import open_database, run_whole
from letopis.store.database.faults import StoreFault
from letopis.store.database.schema import store
from letopis.store.database.timeouts import Timeouts
from letopis.store.database.urls import safe_url
from letopis.store.errors import MoveFailed

T = TypeVar("T")

_TIMEOUTS: Final = Timeouts(statement=86_400.0, lock=60.0)
"""One statement migrates or counts a large table; the locks are those of a busy counter."""
_ADDRESS_OPTIONS: Final = ("host", "port", "unix_socket", "socket")
"""Options that say where a server is; the others say how to connect."""


def address_of(url: URL) -> str:
    """Return where a store is, to show and to compare: kind, host, port and database, without user or secret."""
    query = {name: value for name, value in url.query.items() if name in _ADDRESS_OPTIONS}
    return safe_url(URL.create(url.drivername, host=url.host, port=url.port, database=url.database, query=query))


class Endpoint:
    """One of the two stores, its ``role`` in the move. A cancellation waits for the end of a transaction."""

    def __init__(self, url: URL, role: str) -> None:
        self.url = url
        self._role = role
        self.address = address_of(url)
        self.engine = open_database(url, timeouts=_TIMEOUTS, pool_size=2)
        self.dialect = dialect_for(self.engine.dialect.name)
        self.embedded = self.engine.dialect.name == "sqlite"
        self.row_ranges = self.engine.dialect.name not in ("mysql", "mariadb")
        """True if the database reads a comparison of several columns at once as a range of an index."""
        self.fence: int | None = None
        """The run of the move that may write to the target. Each run takes a higher one."""
        self._select_fence: Any = self.dialect.locked(sa.select(store.c.moved_at))

    async def __aenter__(self) -> Self:
        if not self.embedded:
            self.dialect = await self._uninterrupted(dialect_of(self.engine), write=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await run_to_completion(self.engine.dispose())

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Return the result of ``work``, which reads in a transaction of its own."""

        async def transaction() -> T:
            async with reading(self.engine) as connection:
                return await work(connection)

        return await self._uninterrupted(transaction(), write=False)

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Commit the writes of ``work``, and return its result."""

        async def transaction() -> T:
            async with self.dialect.transaction(self.engine) as connection:
                if self.fence is not None and (await connection.execute(self._select_fence)).scalar() != self.fence:
                    raise MoveFailed("another run of the move has taken over: this one stops")
                return await work(connection)

        return await self._uninterrupted(transaction())

    async def rows(self, statement: sa.Executable, **parameters: Any) -> list[tuple[Any, ...]]:
        async def read(connection: AsyncConnection) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in await connection.execute(statement, parameters)]

        return await self.read(read)

    async def _uninterrupted(self, work: Coroutine[Any, Any, T], *, write: bool = True) -> T:
        try:
            return await run_whole(self.engine, work, write=write)
        except StoreFault as fault:
            reason = f"the history store {self.address}, the {self._role} of the move: {fault.reason}"
            raise StoreFault(fault_class=fault.fault_class, code=fault.code, reason=reason) from fault

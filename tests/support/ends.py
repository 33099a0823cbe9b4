"""End event loops, logins and pools in the middle of their work, and count what is left.

The garbage collector stands still meanwhile: what is left to it is not closed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from letopis import History, Message
from letopis.store.database import failover, postgresql
from letopis.store.database.engines import create_store_engine
from letopis.store.database.timeouts import Timeouts
from tests.support.servers.base import Server
from tests.support.servers.mariadb import MariaDBServer
from tests.support.servers.postgresql import PostgresServer

_CONNECTED: Final[dict[type[Server], str]] = {
    PostgresServer: "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'",
    MariaDBServer: "SELECT COUNT(*) FROM information_schema.processlist WHERE db = %s",
}
_CLOSE_SECONDS: Final = 5.0
"""Time in which a server notices that its client has closed a connection."""
_MAX_STEPS: Final = 30


def end_all(url: str, ends: int, seed: int, without: str | None = None) -> dict[str, Any]:
    """End ``ends`` times, each way in turn, and return how reads ended and what is left.

    :param without: as a control, what keeps things from being left: the ``pool`` or the ``login``.
    """
    if without == "pool":
        setattr(failover, "ServerPool", AsyncAdaptedQueuePool)  # noqa: B010 - it is imported there
    elif without == "login":
        setattr(postgresql, "_Login", asyncio.Task)  # noqa: B010
    logging.disable(logging.NOTSET)
    gc.collect()
    gc.disable()
    try:
        before = {kind: len(alive) for kind, alive in _alive().items()}
        with tempfile.TemporaryDirectory() as folder:
            work = Ends(url, Path(folder), random.Random(seed))
            ways = work.ways()
            for number in range(ends):
                with suppress(asyncio.CancelledError):
                    asyncio.run(ways[number % len(ways)]())
        left = {kind: len(alive) - before[kind] for kind, alive in _alive().items()}
        left["connections"] = _connections(url)
    finally:
        gc.enable()
    gc.collect()
    return {"reads": work.outcomes, "left": left}


class Ends:
    """One end after the other, each in an event loop of its own."""

    def __init__(self, url: str, folder: Path, rng: random.Random) -> None:
        self.outcomes: Counter[str] = Counter()
        self._url = url
        self._folder = folder
        self._rng = rng
        self._reading: list[asyncio.Task[None]] = []  # the event loop holds its tasks weakly

    def ways(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        return [
            self.loop_ends,
            self.loop_ends_with_an_open_pool,
            self.connect_is_cancelled,
            self.connect_times_out,
            self.pool_is_disposed,
            self.history_loses_its_loop,
        ]

    async def loop_ends(self) -> None:
        self._read(self._engine())
        await self._some_steps()

    async def loop_ends_with_an_open_pool(self) -> None:
        engine = self._engine()
        self._read(engine)
        await asyncio.wait(self._reading)
        self._read(engine)
        await self._some_steps()

    async def connect_is_cancelled(self) -> None:
        engine = self._engine()
        self._read(engine)
        await self._some_steps()
        self._reading[0].cancel()
        await asyncio.wait(self._reading)
        await engine.dispose()

    async def connect_times_out(self) -> None:
        engine = self._engine(connect_seconds=self._rng.uniform(0.0001, 0.012))
        self._read(engine)
        await asyncio.wait(self._reading)
        await engine.dispose()

    async def pool_is_disposed(self) -> None:
        engine = self._engine()
        self._read(engine, times=3)  # one of them waits for a connection
        await self._some_steps()
        await engine.dispose()
        await asyncio.wait(self._reading)

    async def history_loses_its_loop(self) -> None:
        history = History(self._folder / f"{sum(self.outcomes.values())}.db", store=self._url)
        if self._rng.random() < 0.5:
            await history.append("chat", Message.user("Hi"), owner="1")
        else:
            self._start(history.messages("chat"))
        await self._some_steps()

    def _engine(self, *, connect_seconds: float = 5.0) -> AsyncEngine:
        timeouts = Timeouts(connect=connect_seconds, statement=20.0, lock=2.0)
        return create_store_engine(self._url, timeouts=timeouts, pool_size=2)

    def _read(self, engine: AsyncEngine, *, times: int = 1) -> None:
        async def read() -> None:
            async with engine.connect() as connection:
                await connection.exec_driver_sql("SELECT 1")

        self._start(*(read() for _ in range(times)))

    def _start(self, *reads: Coroutine[Any, Any, Any]) -> None:
        self._reading = [asyncio.ensure_future(read) for read in reads]
        for task in self._reading:
            task.add_done_callback(self._note)

    def _note(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        self.outcomes["cancelled" if task.cancelled() else "read" if error is None else type(error).__name__] += 1

    async def _some_steps(self) -> None:
        for _ in range(self._rng.randrange(_MAX_STEPS)):
            await asyncio.sleep(0 if self._rng.random() < 0.7 else 0.0005)


def _alive() -> dict[str, list[object]]:
    objects = gc.get_objects()
    return {
        "sockets": [value for value in objects if isinstance(value, socket.socket) and value.fileno() != -1],
        "tasks": [value for value in objects if isinstance(value, asyncio.Task) and not value.done()],
    }


def _connections(url: str) -> int:
    """Return how many connections the server has to a database, once it has noticed which ones are closed."""
    address = make_url(url)
    kind: type[Server] = PostgresServer if address.get_backend_name() == "postgresql" else MariaDBServer
    server = kind(address.set(drivername=kind.local.drivername, database=kind.local.database))
    until = time.monotonic() + _CLOSE_SECONDS
    while True:
        ((connections,),) = server.rows(_CONNECTED[kind], address.database)
        if not connections or time.monotonic() > until:
            return int(connections)
        time.sleep(0.05)

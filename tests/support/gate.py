"""Forward connections to a real server until the gate is shut: then cut them and refuse new ones."""

import asyncio
import sqlite3
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from sqlalchemy.engine import make_url

from tests.support.peers import Wire, listening

_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


class Gate:
    """Forwards a free port of 127.0.0.1 to a server's port while it is open."""

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        port = self._target.port or _PORTS[self._target.get_backend_name()]
        self._wire = Wire(port, host=self._target.host or "127.0.0.1")
        self._port = 0
        self._listener: AbstractAsyncContextManager[int] | None = None

    @property
    def url(self) -> str:
        """How the server is reached through it, once it was opened."""
        return self._target.set(host="127.0.0.1", port=self._port).render_as_string(hide_password=False)

    async def open(self) -> None:
        """Let connections through; on the same port each time."""
        if self._listener is None:
            self._listener = listening(self._wire.talk, self._port)
            self._port = await self._listener.__aenter__()

    async def shut(self) -> None:
        """Cut what is connected and refuse what comes."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.__aexit__(None, None, None)


class FileDoor:
    """The way to an SQLite file: no process can write to it while it is shut."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._path = Path(url.removeprefix("sqlite:///"))
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Let the lock go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def shut(self) -> None:
        """Take the lock of writers, and keep it."""
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=0)
        while self._connection is None:
            try:
                connection.execute("BEGIN IMMEDIATE")
                self._connection = connection
            except sqlite3.OperationalError:
                await asyncio.sleep(0.05)


def door_to(kind: str, url: str) -> Gate | FileDoor:
    return FileDoor(url) if kind == "sqlite" else Gate(url)

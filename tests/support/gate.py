"""Forward connections to a real server until the gate is shut: then cut them and refuse new ones."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url

from tests.support.accepted import Accepted

_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


class Gate:
    """Forwards a free port of 127.0.0.1 to a server's port while it is open."""

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._accepted = Accepted(self._carry)

    @property
    def url(self) -> str:
        """How the server is reached through it, once it was opened."""
        return self._target.set(host="127.0.0.1", port=self._port).render_as_string(hide_password=False)

    async def open(self) -> None:
        """Let connections through; on the same port each time."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Cut what is connected and refuse what comes."""
        if self._server is not None:
            server, self._server = self._server, None
            await self._accepted.close(server)
            await self._accepted.cut()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = self._target.port or _PORTS[self._target.get_backend_name()]
        with contextlib.suppress(OSError):
            back, there = await asyncio.open_connection(self._target.host, port)
            ways = [asyncio.create_task(_pump(reader, there)), asyncio.create_task(_pump(back, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                there.transport.abort()  # first: this may be cancelled while it waits below
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


_PAUSE: Final = 0.05


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
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError:
                await asyncio.sleep(_PAUSE)
        self._connection = connection


def door_to(kind: str, url: str) -> Gate | FileDoor:
    return FileDoor(url) if kind == "sqlite" else Gate(url)

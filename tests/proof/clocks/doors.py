"""Doors: the way to a history store, which can be shut and opened again, for each kind of store."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url

_PAUSE: Final = 0.05


class Door:
    """The way to a server: connections are cut and refused while it is shut."""

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """How the store is reached through it."""
        return self._target.set(host="127.0.0.1", port=self._port).render_as_string(hide_password=False)

    async def open(self) -> None:
        """Let connections through."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Cut all connections, and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def close(self) -> None:
        """Leave nothing behind."""
        await self.shut()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(self._target.host or "127.0.0.1", self._target.port)
        except OSError:
            writer.transport.abort()
            return
        both = (writer, there[1])
        self._writers.update(both)
        try:
            await asyncio.wait(
                [asyncio.ensure_future(one) for one in (_pump(reader, there[1]), _pump(there[0], writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for one in both:
                one.transport.abort()
                self._writers.discard(one)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


class FileDoor:
    """The way to an SQLite file: nobody can write to it while it is shut."""

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

    async def close(self) -> None:
        """Leave nothing behind."""
        await self.open()


def door_to(kind: str, url: str) -> Door | FileDoor:
    """Return the door of a store."""
    return FileDoor(url) if kind == "sqlite" else Door(url)

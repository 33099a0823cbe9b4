"""Run TCP peers that misbehave, and ways to a real server or file that can be stalled or shut."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Accepted:
    """Calls ``serve`` for each connection, in a task of its own; its instance is what `asyncio.start_server` takes.

    The connection is cut when ``serve`` ends, also where it never began: a task that is cancelled before its first
    step runs no ``finally``, and its socket would be found unclosed in whatever test comes next.
    """

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            writer.transport.abort()

        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(end)

    @staticmethod
    async def close(server: asyncio.Server) -> None:
        """Close the listener once what it is about to accept is accepted.

        Python before 3.12 leaves the socket of a connection unclosed whose listener closes in that very moment:
        https://github.com/python/cpython/issues/109564.
        """
        for listener in server.sockets:
            asyncio.get_running_loop().remove_reader(listener.fileno())
        await asyncio.sleep(0)
        server.close()

    async def cut(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def listening(talk: Serve, port: int = 0) -> AsyncIterator[int]:
    """Serve `talk` on a port of 127.0.0.1, and yield that; every connection is cut at the end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await talk(reader, writer)

    accepted = Accepted(serve)
    server = await asyncio.start_server(accepted, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        await accepted.close(server)
        await accepted.cut()


def silent() -> AbstractAsyncContextManager[int]:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass

    return listening(talk)


def closing() -> AbstractAsyncContextManager[int]:
    return babbling(b"", listens=0)


def babbling(words: bytes, *, listens: float = 0.2) -> AbstractAsyncContextManager[int]:
    """A peer that says `words`, whatever it is sent in some seconds, and hangs up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)
        await writer.drain()
        await asyncio.wait_for(reader.read(65536), listens)

    return listening(talk)


async def refused_port() -> int:
    """A port of 127.0.0.1 without a listener."""
    async with silent() as port:
        return port


class Wire:
    """A way to a real server, and what can happen to it.

    :ivar flowing: while cleared, no byte goes either way, and none is read: a black hole.
    :ivar cut_at: a word that the client says; the connection is reset when it comes by, once, and then forgotten.
    :ivar heard: whether the server still hears that word (its answer is lost), or does not.
    :ivar pace: seconds between two bytes of the server's answers.
    :ivar cuts: connections that were reset so far; ``openings``: when each was made, by the event loop's clock.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1") -> None:
        self._host, self._port = host, port
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.cut_at: bytes | None = None
        self.heard = False
        self.pace: float | None = None
        self.cuts = 0
        self.openings: list[float] = []

    def open(self) -> AbstractAsyncContextManager[int]:
        """Listen, and yield the port that leads to the server."""
        return listening(self.talk)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until a side hangs up: then the other one is cut too."""
        self.openings.append(asyncio.get_running_loop().time())
        deaf = asyncio.Event()
        with contextlib.suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._carry(reader, there_writer, deaf, asks=True))
                    group.create_task(self._carry(there_reader, writer, deaf, asks=False))
            except* OSError:
                pass
            finally:
                there_writer.transport.abort()

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, deaf: asyncio.Event, *, asks: bool
    ) -> None:
        while True:
            await self.flowing.wait()
            data = await source.read(65536)
            if not data:
                raise ConnectionError("end")
            await self.flowing.wait()
            if asks and self.cut_at is not None and self.cut_at in data:
                self.cut_at = None
                self.cuts += 1
                if not self.heard:
                    raise ConnectionError("cut")
                deaf.set()
            if not asks and deaf.is_set():
                raise ConnectionError("cut")  # the server has answered, so it has executed the request
            if asks or self.pace is None:
                target.write(data)
                await target.drain()
                continue
            for byte in data:
                target.write(bytes((byte,)))
                await target.drain()
                await asyncio.sleep(self.pace)


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

"""Hold the connections that a listener of the tests has accepted, and cut them all."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Accepted:
    """Calls ``serve`` for each connection, in a task of its own; its instance is what `asyncio.start_server` takes.

    The connection is cut when ``serve`` ends, also where it never began: a task that is cancelled before its first
    step runs no ``finally``, and its socket would be found unclosed in whatever test comes next.
    """

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def serve() -> None:
            await self._serve(reader, writer)

        def end(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            writer.transport.abort()

        task = asyncio.create_task(serve())
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

"""Pool the connections to a server, and leave none open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, cast
from weakref import WeakSet

from sqlalchemy.pool import AsyncAdaptedQueuePool


class ServerPool(AsyncAdaptedQueuePool):
    """A pool that closes what is returned after its disposal, and aborts what is open when the event loop ends."""

    # SQLAlchemy leaves both to the garbage collector, which warns and may be too late to close. What is open when a
    # loop ends may be in use, too: the task that would return it was cancelled before its first step.
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._records: WeakSet[Any] = WeakSet()
        self._disposed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._at_shutdown: AsyncGenerator[None] | None = None

    def recreate(self) -> ServerPool:
        pool = cast("ServerPool", super().recreate())
        pool._disposed = self._disposed
        return pool

    def dispose(self) -> None:
        self._disposed = True
        super().dispose()
        self._release_loop()

    def _do_get(self) -> Any:
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._loop, self._at_shutdown = loop, self._abort_all()
            with suppress(StopIteration):
                self._at_shutdown.__anext__().send(None)  # the loop closes the generators that have begun in it
        record = super()._do_get()
        self._records.add(record)
        return record

    def _do_return_conn(self, record: Any) -> None:
        try:
            if self._disposed:
                record.close()
        finally:
            super()._do_return_conn(record)  # without a connection: the next one in line opens its own
            self._release_loop()

    async def _abort_all(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._loop = None
            for record in list(self._records):
                if record.dbapi_connection is not None:
                    record.invalidate()

    def _release_loop(self) -> None:
        """End the generator of a disposed pool once nothing is open."""
        if (
            self._disposed
            and self._at_shutdown is not None
            and not any(record.dbapi_connection for record in self._records)
        ):
            with suppress(StopIteration):
                self._at_shutdown.aclose().send(None)
            self._at_shutdown = None

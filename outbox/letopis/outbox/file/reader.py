"""Read snapshots of an outbox file in a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa

from letopis.outbox.file.sqlite_errors import is_busy, is_full, sqlite_error, translate
from letopis.outbox.file.write_gate import LOCK_TIMEOUT_SECONDS, WriteGate
from letopis.store.database.worker_thread import WorkerThread

T = TypeVar("T")


class OutboxReader:
    """The reading connection of an outbox file: it waits for no writer, and no writer waits for it."""

    def __init__(self, engine: sa.Engine, gate: WriteGate, *, thread: WorkerThread | None = None) -> None:
        """Prepare to read; ``thread`` is another's, which is not closed here, or ``None`` for one of its own."""
        self._engine = engine.execution_options(sqlite_begin="DEFERRED")
        self._gate = gate
        self._own_thread = thread is None
        self._thread = thread or WorkerThread("letopis-outbox-reader")
        self._connection: sa.Connection | None = None  # the reading thread's alone

    async def run(self, fn: Callable[[sa.Connection], T]) -> T:
        """Run ``fn(connection)`` over one snapshot and return its result.

        :raises OutboxUnavailable: the file cannot be read.
        """
        return await self._thread.run(lambda: self._run(fn))

    async def disconnect(self) -> None:
        """Close the connection, after the reads that were submitted."""
        await self._thread.run(self._disconnect)

    async def close(self) -> None:
        """End the thread, if it is its own."""
        if self._own_thread:
            await self._thread.close()

    def _run(self, fn: Callable[[sa.Connection], T]) -> T:
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while True:
            try:
                if self._connection is None:
                    self._gate.verify_file()  # SQLite would create a missing file
                    self._connection = self._engine.connect()
                with self._connection.begin():
                    return fn(self._connection)
            except Exception as error:
                if sqlite_error(error) is None:
                    raise  # an error of fn
                self._disconnect()
                if is_full(error) and self._gate.reserve.release():
                    continue
                if not is_busy(error) or time.monotonic() > deadline:
                    raise translate(error) or error from error

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

"""Notice within milliseconds that another process has committed to the outbox file, or replaced it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Final, Self

from letopis.outbox.file.identity import FileId, file_id_of


class Signal:
    """Wakes any number of tasks: read ``generation``, check the condition, then wait for a later one."""

    __slots__ = ("_waiters", "generation")

    def __init__(self) -> None:
        self.generation = 0  # how often :meth:`notify` was called
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake all waiters. Call it from the event loop's thread only."""
        self.generation += 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait(self, *, after: int | None = None) -> None:
        """Wait for a notification later than generation ``after`` (default: the current one)."""
        if after is not None and after != self.generation:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)


POLL_MIN_SECONDS: Final = 0.005
POLL_MAX_SECONDS: Final = 0.25
QUIET_FRACTION: Final = 0.01  # the pause between two polls, as a fraction of the time since the last change


class FileWatcher:
    """A thread that polls ``data_version`` and notifies a signal when another connection has committed."""

    def __init__(
        self,
        path: Path,
        signal: Signal,
        *,
        file_id: FileId,
        poll_min_seconds: float = POLL_MIN_SECONDS,
        poll_max_seconds: float = POLL_MAX_SECONDS,
    ) -> None:
        self.eager = True
        self.commits = 0
        self.replaced = False
        self._path = path
        self._file_id = file_id
        self._signal = signal
        self._poll_min_seconds = poll_min_seconds
        self._poll_max_seconds = poll_max_seconds
        self._stop = Event()
        self._thread: Thread | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        self._thread = Thread(target=self._watch, args=(loop, ready), name="letopis-wake", daemon=True)
        self._thread.start()
        # Commits before the first poll are not noticed: the caller reads the file after this.
        await ready
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()  # it wakes at once and at most closes its connection

    # In the thread.

    def _watch(self, loop: asyncio.AbstractEventLoop, ready: asyncio.Future[None]) -> None:
        connection: sqlite3.Connection | None = None
        version: int | None = None
        changed_at = time.monotonic()
        try:
            while not self._stop.is_set():
                in_place = self._is_in_place()
                before = version
                try:
                    if connection is None and in_place:  # to open and close another file moves the WAL into that one
                        connection = self._connect()
                    if connection is not None:
                        version = connection.execute("PRAGMA data_version").fetchone()[0]
                except sqlite3.Error:
                    version = before  # the waiter's own timeout takes over until the file can be read again
                just_replaced = not in_place and not self.replaced
                self.replaced = self.replaced or just_replaced
                if just_replaced or before != version:
                    changed_at = time.monotonic()
                    if just_replaced or before is not None:
                        self.commits += 1
                        loop.call_soon_threadsafe(self._signal.notify)
                if not ready.done():
                    loop.call_soon_threadsafe(_resolve, ready)
                self._stop.wait(self._pause(time.monotonic() - changed_at))
        except RuntimeError:
            return  # the event loop was closed: no task waits any more
        finally:
            if connection is not None:
                connection.close()

    def _pause(self, quiet: float) -> float:
        if not self.eager:
            return self._poll_max_seconds
        return min(self._poll_max_seconds, max(self._poll_min_seconds, quiet * QUIET_FRACTION))

    def _connect(self) -> sqlite3.Connection:
        # Mode "rw": a watcher must not create the file that it is to watch.
        return sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=0)

    def _is_in_place(self) -> bool:
        try:
            return file_id_of(self._path) == self._file_id
        except OSError:
            return False


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)

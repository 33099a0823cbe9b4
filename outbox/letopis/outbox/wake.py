"""Wake: notice within milliseconds that another process has committed to the outbox file, or replaced it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Final, Self

from letopis.outbox.bell import Bell
from letopis.outbox.identity import place_of

FASTEST: Final = 0.005
SLOWEST: Final = 0.25
SHARE: Final = 0.01
"""The pause between two looks, as a share of the time since something last happened."""


class FileWatch:
    """A thread that looks at ``PRAGMA data_version`` and rings a bell when another connection has committed.

    It looks every 5 ms while the file is busy and backs off to 250 ms: the pause is a hundredth of the time since the
    last commit, so that a wake-up is late by 1 % of the time that nothing happened. One look costs some microseconds
    and never touches the event loop. The connection is its own: a ``data_version`` does not change by one's own
    commits, so those of this process are noticed too, which costs one needless look.

    Not promised: a ring for each commit. A ring is lost where the file cannot be read; whoever waits needs a floor.

    :param bell: rung in the event loop that entered the watch.
    :param place: device and inode of the file that is meant.
    :param slowest: the longest pause between two looks, in seconds.
    """

    def __init__(
        self, path: Path, bell: Bell, *, place: tuple[int, int], fastest: float = FASTEST, slowest: float = SLOWEST
    ) -> None:
        self._path = path
        self._was = place
        self._bell = bell
        self._fastest = fastest
        self._slowest = slowest
        self._stop = Event()
        self._thread: Thread | None = None
        self.commits = 0
        """How often a look found that something had been committed."""
        self.replaced = False
        """Whether another file lies at the path now, or none; this watch still looks at the old one."""

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        self._thread = Thread(target=self._watch, args=(loop, ready), name="letopis-wake", daemon=True)
        self._thread.start()
        # What is committed before the first look is no news to the watch: the caller reads the file after this.
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
        changed = time.monotonic()
        try:
            while not self._stop.is_set():
                in_place = self._place() == self._was
                before = version
                try:
                    if connection is None and in_place:  # to open and close another file moves the WAL into that one
                        connection = self._connect()
                    if connection is not None:
                        version = connection.execute("PRAGMA data_version").fetchone()[0]
                except sqlite3.Error:
                    version = before  # the floor of whoever waits takes over until it can be read again
                turned = not in_place and not self.replaced
                self.replaced = self.replaced or turned
                if turned or before != version:
                    changed = time.monotonic()
                    if turned or before is not None:
                        self.commits += 1
                        loop.call_soon_threadsafe(self._bell.ring)
                if not ready.done():
                    loop.call_soon_threadsafe(_settle, ready)
                self._stop.wait(self._pause(time.monotonic() - changed))
        except RuntimeError:
            return  # the event loop was closed: nobody waits any more
        finally:
            if connection is not None:
                connection.close()

    def _pause(self, quiet: float) -> float:
        return min(self._slowest, max(self._fastest, quiet * SHARE))

    def _connect(self) -> sqlite3.Connection:
        # "rw": a watch must not create the file that it is to watch.
        return sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=0)

    def _place(self) -> tuple[int, int] | None:
        try:
            return place_of(self._path)
        except OSError:
            return None


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)

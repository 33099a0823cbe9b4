"""A bell: tells every task that waits that something has happened, and loses no ring between look and wait."""

from __future__ import annotations

import asyncio


class Bell:
    """Rung in one event loop, heard by any number of its tasks.

    To lose no ring, remember :attr:`rings` *before* looking at what the bell is about, then wait for more::

        rings = bell.rings
        if not look():
            await bell.wait(rings)

    Not promised: one wake-up a ring. A ring says "look again", no more; waiters must expect to find nothing.
    """

    __slots__ = ("_waiting", "rings")

    def __init__(self) -> None:
        self.rings = 0
        """How often it was rung."""
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Wake everything that waits. Only to be called in the event loop's thread."""
        self.rings += 1
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    async def wait(self, rings: int | None = None) -> None:
        """Wait until the bell has been rung more often than ``rings`` times, by default: than up to now."""
        if rings is not None and rings != self.rings:
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)

"""Wake tasks of one event loop without losing a notification between checking and waiting."""

from __future__ import annotations

import asyncio


class Signal:
    """A notification that any number of tasks can wait for.

    Read :attr:`generation` before checking the condition, then wait for a later one::

        seen = signal.generation
        if not condition():
            await signal.wait(after=seen)

    Wake-ups may be spurious or coalesced: check the condition again after each.
    """

    __slots__ = ("_waiters", "generation")

    def __init__(self) -> None:
        self.generation = 0
        """How often :meth:`notify` was called."""
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

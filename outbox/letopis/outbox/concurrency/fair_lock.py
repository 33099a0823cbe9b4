"""Order the writers of one event loop, strictly first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from letopis.store.errors import OutboxUnavailable

TRANSACTION_TOKEN: Final[ContextVar[object]] = ContextVar("letopis_transaction_token", default=None)
"""Names the transaction block that a thread of the synchronous API is in, whichever task runs its calls."""


def current_caller() -> object:
    """Return what the lock knows a caller by: the token of its transaction block, or the current task."""
    return TRANSACTION_TOKEN.get() or asyncio.current_task()


class FairLock:
    """A lock of one process's writers, which so never meet in SQLite's unfair busy wait."""

    def __init__(self) -> None:
        self.taken = False
        self.holder: object = None
        self._callbacks: deque[Callable[[], bool]] = deque()
        self._waiters: set[asyncio.Future[None]] = set()

    def call_when_free(self, begin: Callable[[], bool]) -> None:
        """Call ``begin`` with the lock held, now or from a later ``release``; it returns True to keep it."""
        if self.taken:
            self._callbacks.append(begin)
        else:
            self.taken = True
            if not begin():
                self.release()

    def release(self) -> None:
        """Give the lock back; the next in the queue begins."""
        self.holder = None
        while self._callbacks:
            if self._callbacks.popleft()():
                return
        self.taken = False

    async def acquire(self) -> None:
        """Wait for the lock and take it for this task. A cancelled wait leaves it as it was."""
        self.refuse_holder("this task holds a transaction on the outbox already: use that one")
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin() -> bool:
            if granted.done():
                return False  # cancelled or refused meanwhile: pass the lock on
            granted.set_result(None)
            return True

        self.call_when_free(begin)
        self._waiters.add(granted)
        try:
            await granted
        except asyncio.CancelledError:
            # Granted and cancelled in the same turn of the loop: the lock has to be given back.
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self.release()
            raise
        finally:
            self._waiters.discard(granted)
        self.holder = current_caller()

    def refuse_holder(self, reason: str) -> None:
        """Refuse a task that holds the lock and is about to wait for it: it would wait for itself."""
        if self.holder is not None and self.holder is current_caller():
            raise OutboxUnavailable(reason)

    def reject_waiters(self, reason: str) -> None:
        """Refuse all who wait in :meth:`acquire`; callbacks of :meth:`call_when_free` keep their place."""
        for granted in self._waiters:
            if not granted.done():
                granted.set_exception(OutboxUnavailable(reason))

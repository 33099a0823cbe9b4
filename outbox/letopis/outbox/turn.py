"""Whose turn it is to write: among the tasks of one event loop, strictly first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from letopis.store.errors import OutboxUnavailable


class Turn:
    """One writer at a time, so that the writers of one process never meet in SQLite's unfair busy wait.

    Processes, and connections that do not ask for the turn, still meet there; that is safe, only slower.
    """

    __slots__ = ("_asking", "_waiting", "holder", "taken")

    def __init__(self) -> None:
        self.taken = False
        self.holder: asyncio.Task[object] | None = None
        """The task that holds the turn; ``None`` when free, or held by no task."""
        self._asking: deque[Callable[[], bool]] = deque()
        self._waiting: set[asyncio.Future[None]] = set()

    def ask(self, begin: Callable[[], bool]) -> None:
        """Call ``begin`` when it is the caller's turn: now, or later, from whoever gives the turn back.

        ``begin`` returns whether the turn is taken; it must then be given back with :meth:`give`.
        """
        if self.taken:
            self._asking.append(begin)
        else:
            self.taken = True
            if not begin():
                self.give()

    def give(self) -> None:
        """Give the turn back; the next that asked begins."""
        self.holder = None
        while self._asking:
            if self._asking.popleft()():
                return
        self.taken = False

    async def take(self) -> None:
        """Wait for the turn and take it for this task. A cancelled wait leaves nothing taken.

        :raises OutboxUnavailable: this task holds it already, or :meth:`give_up_waiting` was called meanwhile.
        """
        if self.holder is not None and self.holder is asyncio.current_task():
            # It would wait for itself.
            raise OutboxUnavailable("this task holds a transaction on the outbox already: use that one")
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin() -> bool:
            if granted.done():
                return False  # cancelled or refused meanwhile: pass the turn on
            granted.set_result(None)
            return True

        self.ask(begin)
        self._waiting.add(granted)
        try:
            await granted
        except asyncio.CancelledError:
            # Granted and cancelled in the same turn of the loop: the grant is ours to give back.
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self.give()
            raise
        finally:
            self._waiting.discard(granted)
        self.holder = asyncio.current_task()

    def give_up_waiting(self, reason: str) -> None:
        """Refuse all who wait in :meth:`take`; who asked otherwise goes on waiting."""
        for granted in self._waiting:
            if not granted.done():
                granted.set_exception(OutboxUnavailable(reason))

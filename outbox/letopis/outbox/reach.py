"""Reach: whether the history store answers at present, so that reads do not wait for one that does not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from letopis.outbox.breaker import Breaker
from letopis.store.errors import Closed
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.history import ConversationStore

T = TypeVar("T")
logger = logging.getLogger("letopis.outbox.history")

AWAY: Final = frozenset(
    {
        FaultClass.UNAVAILABLE,
        FaultClass.MISCONFIGURED,
        FaultClass.UNKNOWN_OUTCOME,
        FaultClass.UNCLASSIFIED,
        FaultClass.CONFLICT,
    }
)
"""Faults of the store, as against faults of what was asked."""
PROBES: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds between two tries to reach a store that was away; the last one repeats."""


class Reach:
    """Reads the history store while it answers; while it does not, says so at once and asks for it in the background.

    :param breaker: the relay's in this process; a store that it waits for is not asked by reads either.
    :param deadline: seconds that one read may take before the store counts as away.
    """

    def __init__(
        self,
        store: ConversationStore,
        *,
        breaker: Callable[[], Breaker | None],
        deadline: float = 3.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._breaker = breaker
        self._deadline = deadline
        self._monotonic = monotonic
        self._probing: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def away(self) -> bool:
        """Whether the store did not answer when it was last asked."""
        return self._probing is not None and not self._probing.done()

    async def read(self, ask: Callable[[ConversationStore], Coroutine[Any, Any, T]]) -> T | None:
        """Return what ``ask(store)`` returns; ``None`` where the store is away.

        :raises LetopisError: what was asked is wrong.
        """
        return await self._unless_away(lambda: self._in_time(ask(self._store)))

    async def read_at_once(self, ask: Callable[[ConversationStore], Coroutine[Any, Any, T] | None]) -> T | None:
        """As :meth:`read`, for what heeds a cancellation; ``None`` also where ``ask`` finds that it cannot be asked."""

        async def in_time() -> T | None:
            if (asking := ask(self._store)) is None:
                return None
            async with asyncio.timeout(self._deadline):
                return await asking

        return await self._unless_away(in_time)

    async def _unless_away(self, asking: Callable[[], Coroutine[Any, Any, T | None]]) -> T | None:
        breaker = self._breaker()
        if breaker is not None and not breaker.closed:
            self._probe()
        if self.away:
            return None
        try:
            return await asking()
        except StoreFault as fault:
            if fault.fault_class not in AWAY:
                raise
            self._say(str(fault))
        except TimeoutError:
            self._say(f"no answer in {self._deadline:g} s")
        self._probe()
        return None

    async def close(self) -> None:
        """Stop asking; what still runs is cancelled."""
        running = [task for task in (self._probing, *self._running) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _in_time(self, asking: Coroutine[Any, Any, T]) -> T:
        # In a task of its own: a driver that does not heed a cancellation must not hold up the caller.
        task = asyncio.get_running_loop().create_task(asking)
        self._running.add(task)
        task.add_done_callback(self._done)
        try:
            await asyncio.wait((task,), timeout=self._deadline)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done():
            task.cancel()
            raise TimeoutError
        return task.result()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it a second time

    def _say(self, reason: str) -> None:
        if not self.away:
            logger.warning("the history store cannot be read, reads come from the outbox alone: %s", reason)

    def _probe(self) -> None:
        if not self.away:
            self._probing = asyncio.get_running_loop().create_task(self._ask_again(), name="letopis-reach")

    async def _ask_again(self) -> None:
        tries = 0
        while True:
            await asyncio.sleep(PROBES[min(tries, len(PROBES) - 1)])
            tries += 1
            breaker = self._breaker()
            try:
                await self._in_time(_sign_of_life(self._store))
            except Closed:
                return
            except Exception as error:  # of whatever kind: the store is still away
                logger.debug("the history store is still away: %s", type(error).__name__)
                continue
            if breaker is None or breaker.closed or tries >= len(PROBES):
                # A relay that still waits for its next probe does not keep readers from a store that is back.
                logger.info("the history store can be read again")
                return


async def _sign_of_life(store: ConversationStore) -> None:
    """Look at a table too: a server may answer long before the history is there."""
    await store.prepare()
    await store.ping()

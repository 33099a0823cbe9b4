"""Read the history store while it answers, so that reads do not wait for one that does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Final, TypeVar
from uuid import UUID

from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.store_identity import expect_store
from letopis.store.errors import Closed, ReadTimeout

T = TypeVar("T")
logger = logging.getLogger("letopis.outbox.history")

UNAVAILABLE_CLASSES: Final = frozenset(
    {
        FaultClass.UNAVAILABLE,
        FaultClass.MISCONFIGURED,
        FaultClass.WRONG_STORE,
        FaultClass.UNKNOWN_OUTCOME,
        FaultClass.UNCLASSIFIED,
        FaultClass.CONFLICT,
    }
)
"""Faults of the store, as opposed to faults of the request."""
SINGLE_REQUEST_CLASSES: Final = frozenset({FaultClass.CONFLICT, FaultClass.UNCLASSIFIED})
"""Faults that may concern one request alone: another request checks whether the store answers at all."""
TIMEOUT_CODES: Final = frozenset(
    {"57014", "25P04", "1317", "1969", "3024", "SQLITE_INTERRUPT", "timeout", "pool-timeout"}
)
"""Codes of faults that say that a request took too long, which may concern that request alone, too."""
HEALTH_CHECK_TIMEOUT_SECONDS: Final = 1.0
"""Seconds that the store has for a health check after a request that it did not answer."""
PROBE_PAUSES: Final = RetryPolicy(base=0.25, factor=2.0, cap=4.0, jitter="none")  # between probes of the store
_PROBES_FOR_A_RELAY: Final = 5  # that answer while the relay's breaker is open, before reads go on without it
_SLICE_SECONDS: Final = 0.01


class StoreGateway:
    """Reads the history store while it answers; otherwise returns at once and probes it in the background."""

    def __init__(
        self,
        store: ConversationStore,
        *,
        breaker: Callable[[], Breaker | None],
        bound_to: Callable[[], UUID | None] = lambda: None,
        deadline: float = 3.0,
    ) -> None:
        self.store = store
        self._breaker = breaker
        self.bound_to = bound_to
        self._deadline = deadline
        self._probing: asyncio.Task[None] | None = None
        self._health_check: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def unavailable(self) -> bool:
        """Whether the store did not answer the last request."""
        return self._probing is not None and not self._probing.done()

    async def read(
        self,
        ask: Callable[[], Coroutine[Any, Any, T]],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - a driver that ignores it is left behind, not awaited
        needed: bool = False,
    ) -> T | None:
        """Return what ``ask()`` returns of the store; ``None`` if that is unavailable or takes too long."""
        breaker = self._breaker()
        if breaker is not None and not breaker.readable:
            self._probe()
        if self._health_check is not None:
            await asyncio.wait((self._health_check,))
        if self._probing is not None and not self._probing.done():
            return None
        limit = self._deadline if timeout is None else timeout
        try:
            with expect_store(self.bound_to()):
                if self.store.runtime.heeds_cancellation:
                    async with asyncio.timeout(limit):
                        return await ask()
                return await self._in_time(ask(), limit)
        except StoreFault as fault:
            if fault.fault_class not in UNAVAILABLE_CLASSES:
                raise
            reason = str(fault)
            if fault.code not in TIMEOUT_CODES:
                if fault.fault_class not in SINGLE_REQUEST_CLASSES:
                    self._log_outage(reason)
                    self._probe()
                    return None
                self._start_health_check(reason)
                if needed:
                    raise
                return None
        except TimeoutError:
            reason = f"no answer in {limit:g} s"
        self._start_health_check(reason)
        if needed:
            raise ReadTimeout(reason)
        return None

    async def close(self) -> None:
        """Stop probing, and cancel what still runs."""
        running = [task for task in (self._probing, self._health_check, *self._running) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _in_time(self, asking: Coroutine[Any, Any, T], limit: float) -> T:
        runtime, left = self.store.runtime, limit
        # In a task of its own: a driver that ignores a cancellation must not block the caller.
        task = asyncio.get_running_loop().create_task(asking)
        self._running.add(task)
        task.add_done_callback(self._done)
        try:
            # In short slices, each counted as it was meant: in a process that gets little processor time, the store is
            # not what takes longer. Nor is a store that is being created one that is down.
            while not task.done() and left > 0:
                seconds, before = min(left, _SLICE_SECONDS), runtime.setup_seconds
                await asyncio.wait((task,), timeout=seconds)
                left -= max(0.0, seconds - (runtime.setup_seconds - before))
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
            task.exception()  # retrieved, so that asyncio does not report it again

    def _log_outage(self, reason: str) -> None:
        if not self.unavailable:
            logger.warning("the history store cannot be read, reads come from the outbox alone: %s", reason)

    def _start_health_check(self, reason: str) -> None:
        if self._health_check is None and not self.unavailable:
            logger.warning("the history store did not answer a request: %s", reason)
            self._health_check = asyncio.get_running_loop().create_task(
                self._check_health(reason), name="letopis-store-check"
            )

    async def _check_health(self, reason: str) -> None:
        """Find out whether the store is unavailable, or one request was too much for it."""
        try:
            with expect_store(self.bound_to()):
                await self._in_time(is_reachable(self.store), min(HEALTH_CHECK_TIMEOUT_SECONDS, self._deadline))
        except Closed:
            return
        except Exception as error:  # of any kind: the store does not answer
            logger.debug("the history store fails its health check: %s", type(error).__name__)
            self._log_outage(reason)
            self._probe()
        finally:
            self._health_check = None

    def _probe(self) -> None:
        if not self.unavailable:
            self._probing = asyncio.get_running_loop().create_task(
                self._probe_until_available(), name="letopis-store-probe"
            )

    async def _probe_until_available(self) -> None:
        for tries in count(1):
            await asyncio.sleep(PROBE_PAUSES.bound(tries))
            breaker = self._breaker()
            try:
                with expect_store(self.bound_to()):
                    await self._in_time(is_reachable(self.store), self._deadline)
            except Closed:
                return
            except Exception as error:  # of any kind: the store is still unavailable
                logger.debug("the history store is still unavailable: %s", type(error).__name__)
                continue
            if breaker is None or breaker.readable or tries >= _PROBES_FOR_A_RELAY:
                # A relay that waits for its next probe does not keep readers from a store that is back.
                logger.info("the history store can be read again")
                return


async def is_reachable(store: ConversationStore) -> bool:
    """Return True once the store has answered from a table: a server may answer before the history is there."""
    await store.prepare()
    await store.identity()
    return True

"""Run deliveries from one outbox file to a history store until told to stop."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import PurePath
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

import anyio
import sqlalchemy as sa

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.lanes import MAX_EVENTS
from letopis.outbox.file.change_watcher import POLL_MAX_SECONDS, FileWatcher
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.dispatcher import ApplyBatches, Dispatcher, RelayMemory
from letopis.outbox.relay.lease import SILENCE_SECONDS, Lease, LeaseLock, OutboxIdentityChanged
from letopis.outbox.relay.outcome import RelayStats, StepResult, log_context, logger
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.conversation_store import ConversationStore
from letopis.store.database import open_files
from letopis.store.errors import Closed, InvalidInput, OutboxUnavailable
from letopis.store.model.events import utc_now
from letopis.store.rules.retention import ContentRetention

T = TypeVar("T")

STANDBY_INTERVAL_SECONDS: Final = 0.5  # time between two tries to acquire a lease that another relay holds
MAX_IDLE_SECONDS: Final = 1.0  # longest time between two steps, even if nothing wakes the relay
CANCEL_CLEANUP_SECONDS: Final = 5.0  # time that a cancelled delivery gets to clean up
_DEFAULT_POLICY: Final = RetryPolicy()
_ERROR_POLICY: Final = RetryPolicy(base=0.5, factor=2.0, cap=30.0)


class Watch(Protocol):
    """Notices commits of other processes, as :class:`~letopis.outbox.file.change_watcher.FileWatcher` does."""

    eager: bool
    replaced: bool

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Relay:
    """Delivers the events of an outbox file to the history store: in order in each conversation, each event once.

    Any number of relays may run on one file, in any processes: one works, the others stand by and take over when it
    ends, however it ends. Two that work at once, by whatever accident, do no harm.

    An unavailable store is waited for without limit, and charged to no event. An event that the store refuses is
    retried by ``policy``, on its own, and then blocks its own conversation until an operator acts; all others continue.
    Nothing is ever dropped, skipped or expired.

    :param policy: for refused events; see :class:`~letopis.outbox.retry.policy.RetryPolicy`.
    :param holder: name of this relay in ``letopis status``.
    :param breaker: shared by the relays of one process that deliver to one store.
    :param batch: events delivered in one transaction at most.
    :param deadline: seconds for one delivery; longer than the store's own timeouts.
    :param stop_timeout: seconds that a cancelled :meth:`run` gives the batch in flight.
    :param idle_poll: seconds between two looks at the file, at most, while other processes write nothing to it.
    :param silence: seconds without a heartbeat after which a holder that was stopped, not ended, is taken over.
    :param chores: run in a write transaction in idle moments; each returns True if it has more to do at once.
    :param retention: takes content out of the history store, in idle moments; by default none.
    :param apply: hands batches to the store; default its own ``apply``.
    :param locked: only for tests: ``False`` runs without the lease's lock.
    :param lock: the lease's lock, where it outlives this relay: see :meth:`rest`.
    :param watch: watches the file; default a :class:`FileWatcher`.
    :param memory: of an earlier relay of this process on the same file.
    :param on_pause: called each time that it begins to wait.
    """

    def __init__(
        self,
        outbox: OutboxFile,
        store: ConversationStore,
        *,
        policy: RetryPolicy = _DEFAULT_POLICY,
        holder: str = "relay",
        breaker: Breaker | None = None,
        batch: int = MAX_EVENTS,
        deadline: float = 60.0,
        stop_timeout: float = 8.0,
        idle_poll: float = POLL_MAX_SECONDS,
        silence: float = SILENCE_SECONDS,
        chores: Sequence[Callable[[sa.Connection], bool]] = (),
        retention: ContentRetention | None = None,
        apply: ApplyBatches | None = None,
        locked: bool = True,
        lock: LeaseLock | None = None,
        watch: Watch | None = None,
        memory: RelayMemory | None = None,
        on_pause: Callable[[], None] = lambda: None,
        now: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        random: random.Random = random.Random(),  # noqa: B008, S311 - one source a process is enough, and no secret
    ) -> None:
        if not 1 <= batch <= 10_000:
            raise InvalidInput("batch", "must be between 1 and 10000")
        clock = Clock(now=now, monotonic=monotonic)
        self._outbox = outbox
        self._uniform = random.uniform
        self._stop_timeout = stop_timeout
        self._watch = watch or FileWatcher(
            outbox.path, outbox.appended, file_id=outbox.file_id, poll_max_seconds=idle_poll
        )
        self._on_pause = on_pause
        self._resting = False
        self._stop = asyncio.Event()
        self._errors = 0
        self._standby_logged = False
        self._monotonic = monotonic
        self.last_loop_at = monotonic()
        """When :meth:`run` last began its loop, by the monotonic clock: at least every few seconds, unless a delivery
        takes longer or an error is waited out (30 s at most)."""
        self.standing_by = False
        """Whether another relay holds the lease."""
        self.pausing_until: float | None = None
        """Until when :meth:`run` waits if nothing is appended, by the monotonic clock; ``None`` while it works."""
        self.idle_since: float | None = None
        """Since when it has nothing to deliver, by the monotonic clock; ``None`` while it has."""
        self.lease = Lease(outbox, clock=clock, holder=holder, silence=silence, locked=locked, lock=lock)
        self._dispatcher = Dispatcher(
            outbox,
            store,
            self.lease,
            policy=policy,
            clock=clock,
            uniform=self._uniform,
            breaker=breaker or Breaker(clock=clock, uniform=self._uniform),
            batch=batch,
            deadline=deadline,
            apply=apply,
            chores=chores,
            memory=memory,
            retention=retention,
        )

    @property
    def failing(self) -> bool:
        """Whether the last step ended in an error."""
        return self._errors > 0

    @property
    def memory(self) -> RelayMemory:
        """What the next relay of this process on the same file is to know."""
        return self._dispatcher.memory

    @property
    def breaker(self) -> Breaker:
        """Whether deliveries are allowed, and why not."""
        return self._dispatcher.breaker

    @property
    def route(self) -> str:
        """Which outbox is delivered where, for operators: name, identity and destination, without secrets."""
        return self._dispatcher.binding.route

    @property
    def wrong_store_reason(self) -> str | None:
        """Why it does not deliver to this store, which is not the outbox's; ``None`` if it may."""
        return self._dispatcher.breakers.wrong_store_reason

    @property
    def stats(self) -> RelayStats:
        """What this relay has done so far."""
        return self._dispatcher.stats

    @property
    def policy(self) -> RetryPolicy:
        """How refused events are retried; may be set while the relay runs."""
        return self._dispatcher.retries.policy

    @policy.setter
    def policy(self, policy: RetryPolicy) -> None:
        self._dispatcher.retries.policy = policy

    @property
    def retention(self) -> ContentRetention | None:
        """How long content stays in the history store; may be set while the relay runs."""
        return self._dispatcher.retention.rules

    @retention.setter
    def retention(self, retention: ContentRetention | None) -> None:
        self._dispatcher.retention.rules = retention

    def stop(self) -> None:
        """Ask :meth:`run` to return after the batch in flight. From the event loop's thread."""
        self._stop.set()
        self._outbox.appended.notify()

    def rest(self) -> None:
        """As :meth:`stop`, but keep the lease's lock: there is no delivery until another relay is given the lock."""
        self._resting = True
        self.stop()

    async def run(self) -> None:
        """Hold the lease and deliver until cancelled or told to stop; stand by while another relay holds it.

        No error of a delivery ends it: it is logged, counted and waited out. When cancelled, the batch in flight is
        finished first, for at most ``stop_timeout`` seconds; a second cancellation, or one after :meth:`stop`, drops
        it, which loses nothing.

        :raises OutboxUnavailable: the outbox file was replaced or given a new identity: open it again.
        :raises Closed: the outbox or the store was closed.
        """
        self._dispatcher.retention.rests = True
        async with self._watch as watch:
            try:
                while not self._stop.is_set():
                    self.last_loop_at = self._monotonic()
                    if watch.replaced:
                        logger.error(
                            "the outbox file was replaced, or is gone: the relay ends here, open the file again"
                        )
                        raise OutboxUnavailable("the outbox file was replaced, or is gone: open it again")
                    seen = self._outbox.appended.generation
                    step = await self._step_or_wait_out_error()
                    # While the store is unavailable an append is no reason to do anything.
                    watch.eager = self.breaker.closed
                    if step.delivered or step.more:
                        self.idle_since = None
                    if not step.more:
                        self.idle_since = self._monotonic() if self.idle_since is None else self.idle_since
                        due = math.inf if step.wait is None else step.wait
                        wait = min(MAX_IDLE_SECONDS, due)
                        with self._pausing(due):
                            await (self._wait_for_append(seen, wait) if watch.eager else self._sleep(wait))
            finally:
                if self._resting and self.wrong_store_reason is None:
                    self.lease.suspend()
                await self._release()

    async def drain(self) -> int:
        """Acquire the lease, deliver until no more can be delivered now, and release it; return the number of events.

        Stops where the rest has to wait: the store is unavailable, or refused it. Returns 0 if another relay holds the
        lease. Cancelling works as for :meth:`run`.

        :raises OutboxUnavailable: the outbox file cannot be read or written.
        """
        delivered = 0
        try:
            if await self._acquire():
                more = True
                while more and not self._stop.is_set():
                    step = await self._finish_if_cancelled(self._dispatcher.run_batches())
                    delivered += step.delivered
                    more = step.more
        finally:
            await self._release()
        return delivered

    async def drain_once(self) -> int:
        """Deliver one batch of what is due now; return how many events were delivered.

        Takes no lease: beside a running relay it does no harm, and little good.

        :raises OutboxUnavailable: the outbox file cannot be read or written.
        """
        return (await self._finish_if_cancelled(self._dispatcher.run_batches(limit=1))).delivered

    async def _step_or_wait_out_error(self) -> StepResult:
        try:
            step = await self._step()
        except (Closed, OutboxIdentityChanged):
            raise
        except Exception as error:  # a loop that dies of one bad step is the worst failure a relay can have
            self._errors += 1
            self.stats.loop_errors += 1
            wait = _ERROR_POLICY.delay(self._errors, uniform=self._uniform)
            if open_files.is_exhausted(error):
                logger.warning(
                    "the relay cannot continue, next try in %.1f s: %s", wait, open_files.describe_exhaustion()
                )
            elif isinstance(error, OutboxUnavailable):
                logger.warning(
                    "the outbox file cannot be used, next try in %.1f s: %s", wait, error, extra=log_context()
                )
            else:
                frames = traceback.extract_tb(error.__traceback__)
                place = f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
                # Type and place, no text: a message of a driver or a codec may quote the data.
                logger.error(
                    "the relay met an error it does not know, next try in %.1f s: %s at %s",
                    wait,
                    type(error).__name__,
                    place,
                    extra=log_context(),
                )
            await self._sleep(wait)
            return StepResult(more=True)
        self._errors = 0
        return step

    async def _step(self) -> StepResult:
        """Deliver if this relay holds the lease or can acquire it; otherwise stand by."""
        if self.wrong_store_reason is not None and not self.lease.held and (left := self.breaker.remaining()) > 0:
            await self._sleep(min(left, STANDBY_INTERVAL_SECONDS))
            return StepResult(more=True)
        if not await self._acquire():
            self._dispatcher.breakers.release_wrong_store()
            await self._sleep(STANDBY_INTERVAL_SECONDS * self._uniform(0.8, 1.2))
            return StepResult(more=True)
        step = await self._finish_if_cancelled(self._dispatcher.run_batches())
        if step.fenced:
            # Time for the present holder to work before this relay acquires the lease again.
            await self._release()
            await self._sleep(STANDBY_INTERVAL_SECONDS * self._uniform(1.0, 3.0))
            return StepResult(more=True)
        if self.wrong_store_reason is not None:
            await self._release()  # a standby may have the right store
        return step

    async def _acquire(self) -> bool:
        if self.lease.held:
            return True
        self.standing_by = not await self._finish_if_cancelled(self.lease.acquire())
        if self.standing_by:
            if not self._standby_logged:
                self._standby_logged = True
                logger.info("another relay works on this outbox; this one stands by", extra=log_context())
            return False
        self._standby_logged = False
        self._dispatcher.schedule_reconcile()
        logger.log(
            logging.INFO if self.wrong_store_reason is None else logging.DEBUG,
            "this relay works on the outbox, as number %d: %s",
            self.lease.incarnation,
            self.route,
            extra=log_context(),
        )
        return True

    async def _release(self) -> None:
        with anyio.CancelScope(shield=True):
            for chore in self._dispatcher.idle_chores:
                await chore.close()
            try:
                await self.lease.release()
            except (OutboxUnavailable, Closed) as error:
                logger.debug("the lease was released, but its row could not be written: %s", error)

    async def _wait_for_append(self, seen: int, seconds: float) -> None:
        """Wait until something is appended after generation ``seen``, at most ``seconds``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._outbox.appended.wait(after=seen)

    async def _sleep(self, seconds: float) -> None:
        """Wait, whatever is appended, unless told to stop."""
        with self._pausing(seconds), suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    @contextmanager
    def _pausing(self, seconds: float) -> Iterator[None]:
        outer = self.pausing_until
        if outer is None:
            self.pausing_until = self._monotonic() + seconds
            self._on_pause()
        try:
            yield
        finally:
            self.pausing_until = outer

    async def _finish_if_cancelled(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` so that a cancellation does not tear it, and is not delayed without limit either."""
        task = asyncio.create_task(work)
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            await self._finish(task)
            raise
        return task.result()

    async def _finish(self, task: asyncio.Task[Any]) -> None:
        with anyio.CancelScope(shield=True):
            # A cancellation after stop(), which waited already, is the second request: drop what is in flight.
            for seconds in (0.0 if self._stop.is_set() else self._stop_timeout, CANCEL_CLEANUP_SECONDS):
                try:
                    await asyncio.wait((task,), timeout=seconds)
                except asyncio.CancelledError:
                    logger.debug("cancelled again: the batch in flight is dropped, and sent again by the next relay")
                if task.done():
                    break
                task.cancel()
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("the last step ended in %s", type(error).__name__)

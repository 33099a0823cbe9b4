"""The relay: drains one outbox file into a history store until it is told to stop."""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Any, Final, TypeVar

import anyio
import sqlalchemy as sa

from letopis.outbox.account import RelayStats, context, logger
from letopis.outbox.backoff import RetryPolicy
from letopis.outbox.breaker import Breaker
from letopis.outbox.clock import Clock
from letopis.outbox.drain import Drain, Step
from letopis.outbox.file import OutboxFile
from letopis.outbox.lanes import MAX_EVENTS
from letopis.outbox.lease import SILENCE, AnotherOutbox, Lease
from letopis.outbox.wake import SLOWEST, FileWatch
from letopis.store.errors import Closed, InvalidInput, OutboxUnavailable
from letopis.store.events import utc_now
from letopis.store.history import ConversationStore

T = TypeVar("T")

STANDBY: Final = 0.5
"""Seconds between two tries to take a lease that another relay holds."""
FLOOR: Final = 1.0
"""Seconds after which a relay looks again even if nothing woke it."""
LAST_PATIENCE: Final = 5.0
"""Seconds that a delivery which was cancelled gets to clean up."""
_POLICY: Final = RetryPolicy()
_AFTER_ERRORS: Final = RetryPolicy(base=0.5, factor=2.0, cap=30.0)


class Relay:
    """Delivers what an outbox file holds to the history store, in order in each conversation, each event once.

    Any number of relays may run on one file, in any processes: one works, the others stand by and take over when it
    ends, however it ends. Two that work at once, by whatever accident, do no harm.

    A store that is away is waited for without limit, and nothing is charged to any event. An event that the store
    refuses is tried again by ``policy``, on its own, and then blocks its own conversation for a person to look at;
    all others go on. Nothing is ever dropped, skipped or expired.

    :param policy: for refused events; see :class:`~letopis.outbox.backoff.RetryPolicy`.
    :param holder: what this relay calls itself in ``letopis status``.
    :param breaker: shared by the relays of one process that deliver to one store.
    :param batch: events delivered in one transaction at most.
    :param deadline: seconds for one delivery, longer than the store's own timeouts.
    :param stop_timeout: seconds that a cancelled :meth:`run` gives the batch in flight.
    :param idle_poll: seconds between two looks at the file, at most, while other processes write nothing to it.
    :param silence: seconds without a sign of life after which a holder that was stopped, not ended, is taken over.
    :param chores: run in a write transaction in quiet moments; each returns whether it has more to do at once.
    :param locked: only for tests: ``False`` runs without the lease's lock.
    """

    def __init__(
        self,
        outbox: OutboxFile,
        store: ConversationStore,
        *,
        policy: RetryPolicy = _POLICY,
        holder: str = "relay",
        breaker: Breaker | None = None,
        batch: int = MAX_EVENTS,
        deadline: float = 60.0,
        stop_timeout: float = 8.0,
        idle_poll: float = SLOWEST,
        silence: float = SILENCE,
        chores: Sequence[Callable[[sa.Connection], bool]] = (),
        locked: bool = True,
        now: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        random: random.Random = random.Random(),  # noqa: B008, S311 - one source a process is enough, and it is no secret
    ) -> None:
        if not 1 <= batch <= 10_000:
            raise InvalidInput("batch", "must be between 1 and 10000")
        clock = Clock(now=now, monotonic=monotonic)
        self._outbox = outbox
        self._uniform = random.uniform
        self._stop_timeout = stop_timeout
        self._idle_poll = idle_poll
        self._stop = asyncio.Event()
        self._errors = 0
        self._standby_said = False
        self._monotonic = monotonic
        self.turned_at = monotonic()
        """When :meth:`run` last came round its loop, by the monotonic clock: at least every few seconds, unless a
        delivery takes longer, or an error is waited out (30 s at most)."""
        self.lease = Lease(outbox, clock=clock, holder=holder, silence=silence, locked=locked)
        self._drain = Drain(
            outbox,
            store,
            self.lease,
            policy=policy,
            clock=clock,
            uniform=self._uniform,
            breaker=breaker or Breaker(clock=clock, uniform=self._uniform),
            batch=batch,
            deadline=deadline,
            chores=chores,
        )

    @property
    def breaker(self) -> Breaker:
        """Whether the store is being delivered to, and why not."""
        return self._drain.breaker

    @property
    def stats(self) -> RelayStats:
        """What this relay has done so far."""
        return self._drain.stats

    @property
    def policy(self) -> RetryPolicy:
        """How refused events are tried again; may be set while the relay runs."""
        return self._drain.policy

    @policy.setter
    def policy(self, policy: RetryPolicy) -> None:
        self._drain.policy = policy

    def stop(self) -> None:
        """Ask :meth:`run` to return after the batch in flight. From the event loop's thread."""
        self._stop.set()
        self._outbox.appended.ring()

    async def run(self) -> None:
        """Hold the lease and deliver until cancelled or told to stop; stand by while another relay holds it.

        No error of a delivery ends it: it is logged, counted and waited out. When cancelled, the batch in flight is
        finished first, for at most ``stop_timeout`` seconds; a second cancellation, or one after :meth:`stop`, drops
        it, which loses nothing.

        :raises OutboxUnavailable: another file lies at the outbox's path by now, or this one was given a new identity:
            open it anew.
        :raises Closed: the outbox or the store was closed.
        """
        watch = FileWatch(self._outbox.path, self._outbox.appended, place=self._outbox.place, slowest=self._idle_poll)
        async with watch:
            try:
                while not self._stop.is_set():
                    self.turned_at = self._monotonic()
                    _check(watch)
                    rings = self._outbox.appended.rings
                    step = await self._survive()
                    if not step.more:
                        await self._pause(rings, FLOOR if step.wait is None else min(FLOOR, step.wait))
            finally:
                await self._let_go()

    async def drain(self) -> int:
        """Take the lease, deliver until nothing more can be delivered now, let go; return how many events it was.

        Stops where the rest has to wait: the store is away, or what is left was refused. 0 where another relay holds
        the lease. Cancelling works as for :meth:`run`.

        :raises OutboxUnavailable: the outbox file cannot be read or written.
        """
        delivered = 0
        try:
            if await self._take():
                more = True
                while more and not self._stop.is_set():
                    step = await self._whole(self._drain.stretch())
                    delivered += step.delivered
                    more = step.more
        finally:
            await self._let_go()
        return delivered

    async def drain_once(self) -> int:
        """Deliver one batch of what is due now; return how many events were delivered, 0 where nothing could be.

        Takes no lease: beside a relay that runs it does no harm, and little good.

        :raises OutboxUnavailable: the outbox file cannot be read or written.
        """
        return (await self._whole(self._drain.step())).delivered

    async def _survive(self) -> Step:
        """Make one step, and outlive whatever goes wrong with it: the next may go well."""
        try:
            step = await self._one()
        except (Closed, AnotherOutbox):
            raise
        except Exception as error:  # a loop that dies of one bad step is the worst failure a relay can have
            self._errors += 1
            self.stats.loop_errors += 1
            wait = _AFTER_ERRORS.delay(self._errors, uniform=self._uniform)
            if isinstance(error, OutboxUnavailable):
                logger.warning(
                    "the outbox file cannot be used, next try in %.1f s: %s", wait, error, extra=context(None)
                )
            else:
                # Type and place, no text: what a driver or a codec says may quote the data.
                logger.error(
                    "the relay met an error it does not know, next try in %.1f s: %s at %s",
                    wait,
                    type(error).__name__,
                    _place(error),
                    extra=context(None),
                )
            await self._sleep(wait)
            return Step(more=True)
        self._errors = 0
        return step

    async def _one(self) -> Step:
        """Make one step if the lease is ours, or can be."""
        if not await self._take():
            await self._sleep(STANDBY * self._uniform(0.8, 1.2))
            return Step(more=True)
        step = await self._whole(self._drain.stretch())
        if step.fenced:
            # Whoever holds the lease now shall get on with it before this one takes it back.
            await self._let_go()
            await self._sleep(STANDBY * self._uniform(1.0, 3.0))
            return Step(more=True)
        return step

    async def _take(self) -> bool:
        if self.lease.held:
            return True
        if not await self._whole(self.lease.take()):
            if not self._standby_said:
                self._standby_said = True
                logger.info("another relay works on this outbox; this one stands by", extra=context(None))
            return False
        self._standby_said = False
        self._drain.compare_again()
        logger.info("this relay works on the outbox, as number %d", self.lease.incarnation, extra=context(None))
        return True

    async def _let_go(self) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await self.lease.release()
            except (OutboxUnavailable, Closed) as error:
                logger.debug("the lease was given up, but the row about it could not be written: %s", error)

    async def _pause(self, rings: int, seconds: float) -> None:
        """Wait for the bell, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._outbox.appended.wait(rings)
        except TimeoutError:
            return

    async def _sleep(self, seconds: float) -> None:
        """Wait so long, whatever happens, unless told to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` so that a cancellation does not tear it, but does not wait for it for ever either."""
        task = asyncio.create_task(work)
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            await self._finish(task)
            raise
        return task.result()

    async def _finish(self, task: asyncio.Task[Any]) -> None:
        with anyio.CancelScope(shield=True):
            # Cancelled after stop(), which waited already, is the second request: drop what is under way.
            for patience in (0.0 if self._stop.is_set() else self._stop_timeout, LAST_PATIENCE):
                try:
                    await asyncio.wait((task,), timeout=patience)
                except asyncio.CancelledError:
                    logger.debug("cancelled again: the batch in flight is dropped, and sent again by the next relay")
                if task.done():
                    break
                task.cancel()
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("the last step ended in %s", type(error).__name__)


def _check(watch: FileWatch) -> None:
    if watch.replaced:
        logger.error("the outbox file was replaced, or is gone: the relay ends here, open the file anew")
        raise OutboxUnavailable("the outbox file was replaced, or is gone: open it anew")


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"

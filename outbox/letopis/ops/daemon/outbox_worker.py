"""Serve one outbox file in a daemon, a turn at a time: open while there is something to do, and closed otherwise."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from letopis.ops.daemon.discovery import OutboxMatch
from letopis.ops.daemon.health import FileCondition, OutboxMetrics, add_stats, read_metrics
from letopis.ops.daemon.store_pool import StoreHandle
from letopis.ops.daemon.timetable import FileState, PolledWatch, Timetable, settled_state, state_of
from letopis.outbox.alerting.incidents import Memory
from letopis.outbox.alerting.monitor import AlertMonitor
from letopis.outbox.event_log.lanes import DueBatches, next_batch
from letopis.outbox.file.inspection import read_file
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.file.wal_checkpoint import wal_size
from letopis.outbox.operations.delivery import Deliverer, DeliveryOptions
from letopis.outbox.relay.dispatcher import RelayMemory
from letopis.outbox.relay.lease import SILENCE_SECONDS, LeaseLock
from letopis.outbox.relay.outcome import RelayStats
from letopis.outbox.relay.relay import Relay
from letopis.outbox.relay.store_binding import find_refusal
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.cancellation import run_to_completion
from letopis.store.database import open_files
from letopis.store.errors import Closed, ConfigurationError, LetopisError, OutboxUnavailable
from letopis.store.model.events import to_microseconds, utc_now

logger: Final = logging.getLogger("letopis.ops.daemon")

HOLDER: Final = "letopis relay"
REOPEN_POLICY: Final = RetryPolicy(base=0.5, factor=2.0, cap=15.0)  # waits before an unusable file is reopened
STABLE_AFTER_SECONDS: Final = 60.0  # time of work after which the next failure counts as the first
METRICS_TIMEOUT_SECONDS: Final = 2.0  # time to read the metrics of a file before it counts as unusable
RECHECK_SILENCE_SECONDS: Final = 15.0  # a silent holder is observed this long, with the file open, before a takeover


class OutboxWorker:
    """Delivers from one outbox file, and watches it; between its turns it holds nothing but the lease's lock."""

    def __init__(
        self,
        match: OutboxMatch,
        destination: StoreHandle,
        options: DeliveryOptions,
        *,
        polled: set[PolledWatch] | None = None,
        on_pause: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = match.path
        self.matched = match.matched
        self.destination = destination
        self.problem: str | None = None
        self.lock = LeaseLock(match.path)
        self.timetable = Timetable(monotonic=monotonic)
        self.turn_began = monotonic()
        self._past_relays = RelayStats()
        self._options = options
        self._polled = set() if polled is None else polled
        self._on_pause = on_pause
        self._monotonic = monotonic
        self._outbox: OutboxFile | None = None
        self._delivery: Deliverer | None = None
        self._notified = self._failed = 0
        self._failures = 0
        self._stopping = asyncio.Event()
        self._progress_at = monotonic()
        # Between two turns.
        self._memory: RelayMemory | None = None
        self._observed: Memory | None = None
        self._last: OutboxMetrics | None = None
        self._seen: FileState | None = None
        self.read_at = -math.inf
        self._wrong_store = False
        self._holder_sign: tuple[int | None, float] = (None, monotonic())

    @property
    def _relay(self) -> Relay | None:
        return None if self._delivery is None else self._delivery.relay

    @property
    def _watch(self) -> AlertMonitor | None:
        return None if self._delivery is None else self._delivery.monitor

    # Reports about the file.

    @property
    def condition(self) -> FileCondition:
        """How the file is served at present."""
        if self._relay is not None:
            if self._relay.wrong_store_reason is not None:
                return FileCondition.WRONG_STORE
            return FileCondition.WORKING if self._relay.lease.held or self.lock.held else FileCondition.STANDBY
        if self.problem is not None:
            return FileCondition.UNUSABLE
        if self._wrong_store:
            return FileCondition.WRONG_STORE
        return FileCondition.WORKING if self.lock.held or self._outbox is not None else FileCondition.STANDBY

    @property
    def stats(self) -> RelayStats:
        total = RelayStats()
        add_stats(total, self._past_relays)
        if self._relay is not None:
            add_stats(total, self._relay.stats)
        return total

    @property
    def alerts(self) -> dict[str, int]:
        """How many notifications of operators arrived, and how many calls failed."""
        watch = self._watch
        return {
            "sent": self._notified + (0 if watch is None else watch.sent),
            "failed": self._failed + (0 if watch is None else watch.failed),
        }

    @property
    def owes(self) -> bool:
        """Whether something was pending when the file was last looked at."""
        return self._last is not None and self._last.pending > 0

    def seconds_since_progress(self) -> float:
        """Return the seconds since the relay's loop last turned, or a delivery began or ended; 0 between two turns."""
        if self._relay is None and self._outbox is None:
            return 0.0
        latest = self._progress_at
        if self._relay is not None:
            latest = max(latest, self._relay.last_loop_at)
        if self._outbox is not None:
            latest = max(latest, self.destination.instrumented.progress_at.get(self._outbox.origin.origin_id, latest))
        return self._monotonic() - latest

    def known_metrics(self) -> OutboxMetrics | None:
        """Return the metrics without reading the file; ``None`` if something may have been committed since."""
        condition = self.condition
        if condition is FileCondition.UNUSABLE:
            return OutboxMetrics(condition=condition, name=self.path.name)
        if self._last is None or self._relay is not None or self.changed():
            return None
        return replace(self._last, condition=condition, wal_bytes=wal_size(self.path))

    @property
    def last_metrics(self) -> OutboxMetrics:
        """The metrics as they were last read; without figures if they never were."""
        if self._last is None:
            return OutboxMetrics(condition=self.condition, name=self.path.name)
        return replace(self._last, condition=self.condition)

    async def metrics(self) -> OutboxMetrics:
        """Return the metrics of the file; never raises: a file that cannot be read in time is unusable."""
        if (known := self.known_metrics()) is not None:
            return known
        self.read_at = self._monotonic()
        try:
            async with asyncio.timeout(METRICS_TIMEOUT_SECONDS):
                # Not by the open file's thread, which may wait for a writer.
                metrics = await asyncio.to_thread(read_file, self.path, partial(read_metrics, path=self.path))
        except (LetopisError, TimeoutError, SQLAlchemyError, OSError):
            return OutboxMetrics(condition=FileCondition.UNUSABLE, name=self.path.name)
        self._last = metrics
        return replace(metrics, condition=self.condition)

    # Between two turns.

    def changed(self) -> bool:
        """Return True if something may have been committed, or the file replaced, since its last turn."""
        state = state_of(self.path)
        return self._seen is None or state is None or state.holds_more_than(self._seen)

    def wants_turn(self) -> bool:
        """Return True if the file has to be opened: something was committed, a retry is due, or another relay ended."""
        if self.timetable.failed:
            return self.timetable.due
        if self.timetable.due or self.timetable.pending:
            return self._may_serve()
        return not self._wrong_store and (self.changed() if self.lock.held else self._may_serve())

    def _may_serve(self) -> bool:
        """Take the lock if it is free, now and then; return False if another relay is at work on the file."""
        if self.lock.held or not self.timetable.may_try_lock():
            return self.lock.held
        try:
            if state_of(self.path) is None or self.lock.try_acquire():
                self.timetable.hurry()
                return True
        except OSError:
            self.timetable.hurry()  # opening the file tells why
            return True
        if changed := self.changed():
            self.timetable.look_later()  # the holder delivers; this process watches, too
        if (sign := self.lock.last_sign_of_life()) != self._holder_sign[0]:
            self._holder_sign = (sign, self._monotonic())
        return (changed or self.owes) and self._holder_is_silent

    @property
    def _holder_is_silent(self) -> bool:
        return not self.lock.held and self._monotonic() - self._holder_sign[1] >= SILENCE_SECONDS

    def give_sign_of_life(self) -> None:
        """Show others that the file is served though it is closed."""
        if self._relay is None and not self.lock.give_sign_of_life(to_microseconds(utc_now())):
            self.lock.release()  # the lock file was removed: create it and lock it again

    # A turn.

    async def open(self) -> None:
        """Open the file; raise ConfigurationError or OutboxUnavailable if it cannot be used."""
        try:
            self._outbox = await OutboxFile.open(self.path, create=False, one_thread=True)
        except (ConfigurationError, OutboxUnavailable) as error:
            self.problem = str(error)
            raise
        self.problem = None

    async def probe(self) -> None:
        """Check that this file may be delivered to its store, and create missing tables; raise StoreFault otherwise."""
        if self._outbox is None:
            return
        store = self.destination.store
        with suppress(OutboxUnavailable):  # logged already, and retried
            if (refused := await find_refusal(self._outbox, store)) is not None:
                raise refused
            await store.prepare()

    def change(self, options: DeliveryOptions) -> None:
        self._options = options
        if self._delivery is not None:
            self._delivery.change(options)

    def stop(self) -> None:
        """Ask :meth:`serve` to return after the batch in flight, and have no further turn."""
        self._stopping.set()
        if self._relay is not None:
            self._relay.stop()

    @property
    def quiet_for(self) -> float:
        """Seconds for which an open file has had nothing to do; 0 while it has, or may not be closed."""
        relay = self._relay
        if relay is None or relay.pausing_until is None or not self.may_rest:
            return 0.0
        if relay.standing_by or relay.idle_since is None:  # another relay works on it, or it waits out an error
            return math.inf
        now = self._monotonic()
        return now - relay.idle_since if relay.pausing_until - now > 1.0 else 0.0

    @property
    def may_rest(self) -> bool:
        """Whether the turn may end as soon as the batch in flight is done."""
        relay, watch = self._relay, self._watch
        # A silent holder is observed for some seconds before it is taken over from.
        takes_over = relay is not None and relay.standing_by and self._holder_is_silent
        return watch is not None and watch.looks > 0 and not watch.sending and not takes_over

    def rest(self) -> None:
        """Ask :meth:`serve` to return after the batch in flight, and keep the lease's lock."""
        if self._relay is not None:
            self._relay.rest()

    async def serve(self) -> None:
        """Serve for one turn: until asked to rest or to stop, or until the file cannot be used."""
        self.turn_began = self._progress_at = self._monotonic()
        if self._stopping.is_set():
            return
        try:
            if self._outbox is None:
                await self.open()
            self.timetable.begin_turn()
            await self._deliver()
        except Closed:
            raise
        except (ConfigurationError, OutboxUnavailable) as error:
            self._fail(str(error))
        except Exception as error:  # no error may disturb the other files or a later turn
            known = open_files.describe_exhaustion() if open_files.is_exhausted(error) else None
            self._fail(known or f"an error that is not known: {type(error).__name__}")
        finally:
            await run_to_completion(self._close())
            if self._stopping.is_set():
                self.lock.release()

    def _fail(self, reason: str) -> None:
        """Report why the turn failed, and retry later."""
        new = self._failures == 0 or reason != self.problem
        self.problem = reason
        level = logging.WARNING if new else logging.DEBUG
        logger.log(level, "the outbox %r cannot be used, and is retried: %s", self.path.name, reason)
        self.lock.release()
        lasted = self._monotonic() - self.turn_began
        self._failures = 1 if lasted > STABLE_AFTER_SECONDS else self._failures + 1
        self.timetable.fail(REOPEN_POLICY.delay(self._failures, uniform=random.uniform))

    async def _deliver(self) -> None:
        outbox = self._outbox
        assert outbox is not None  # noqa: S101 - opened by the caller
        delivery = self._delivery = Deliverer(outbox, self._options)
        relay = delivery.add_relay(
            self.destination.store,
            apply=self.destination.instrumented.apply,
            holder=HOLDER,
            breaker=self.destination.breaker,
            stop_timeout=0.0,  # the daemon has waited already
            silence=RECHECK_SILENCE_SECONDS if self._holder_is_silent else SILENCE_SECONDS,
            lock=self.lock,
            watch=PolledWatch(
                outbox.path, outbox.appended, file_id=outbox.file_id, polled=self._polled, monotonic=self._monotonic
            ),
            memory=self._memory or RelayMemory(task_look=self.destination.task_look),
            on_pause=self._on_pause,
            monotonic=self._monotonic,
        )
        monitor = delivery.add_monitor(
            memory=self._observed, outages=self.destination.outages, monotonic=self._monotonic
        )
        watching = asyncio.create_task(monitor.run(), name="letopis-watch")
        try:
            await relay.run()
            if not self._stopping.is_set():
                await self._plan_next_turn(outbox, relay)
        finally:
            await run_to_completion(self._end(watching))

    async def _plan_next_turn(self, outbox: OutboxFile, relay: Relay) -> None:
        """Read how the file is left, so that the times of its files tell later whether that still holds."""
        if self.lock.held:
            # Leaves nothing to checkpoint to the last one to close the file, so that closing it changes no time.
            with suppress(LetopisError):
                await outbox.maintain()
        state = await settled_state(self.path)
        last, due = await outbox.read(partial(_look, outbox=outbox, memory=relay.memory))
        self._last = last
        self._seen = state if state is not None and state.file_id == outbox.file_id else None
        self._wrong_store = relay.wrong_store_reason is not None
        self._failures = self._failures + 1 if relay.failing else 0
        wait = due.wait
        if self._wrong_store:
            wait = relay.breaker.remaining()
        elif self._failures:
            wait = REOPEN_POLICY.delay(self._failures, uniform=random.uniform)
        elif not relay.breaker.closed:
            wait = None  # the fleet gives turns to probe, and to all once the store is back
        # The end of an outage is announced once the other files are well too.
        recovering = self._watch is not None and bool(self._watch.waiting)
        self.timetable.end_turn(
            more=bool(due.batches or due.broken) and wait is None and relay.breaker.closed and self.lock.held,
            wait=wait,
            troubled=last.pending > 0 or last.lanes["blocked"] > 0 or any(last.incidents.values()) or recovering,
            moved=relay.stats.delivered > 0,
        )

    async def _end(self, watching: asyncio.Task[None]) -> None:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        relay, watch = self._relay, self._watch
        self._past_relays, self._delivery = self.stats, None
        if relay is not None and watch is not None:
            self._memory, self._observed = relay.memory, watch.memory
            self._notified += watch.sent
            self._failed += watch.failed
        await self._close()

    async def _close(self) -> None:
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            self.destination.instrumented.progress_at.pop(outbox.origin.origin_id, None)
            await outbox.close()

    async def close(self) -> None:
        """Close what :meth:`open` opened, and release the lock, if the file has no turn at present."""
        await self._close()
        self.lock.release()


def _look(connection: sa.Connection, outbox: OutboxFile, memory: RelayMemory) -> tuple[OutboxMetrics, DueBatches]:
    with closing(connection.connection.cursor()) as cursor:
        metrics = read_metrics(cursor, outbox.path)
    assert memory.retries is not None  # noqa: S101 - of a relay that ran
    return metrics, next_batch(connection, waits=memory.retries.timers, max_events=1)

"""Serve one outbox file in a daemon: open it, run its relay and its watch, and reopen it after errors."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from letopis.outbox.alerting import texts
from letopis.outbox.alerting.channels import Channel
from letopis.outbox.alerting.incidents import BreakerView, Rules
from letopis.outbox.alerting.monitor import AlertMonitor, breaker_view
from letopis.outbox.daemon import health
from letopis.outbox.daemon.discovery import OutboxMatch
from letopis.outbox.daemon.health import Condition, OutboxMetrics, add_stats
from letopis.outbox.daemon.store_pool import StoreHandle
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.outbox.relay.stats import RelayStats
from letopis.outbox.relay.store_binding import find_refusal
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.cancellation import run_to_completion
from letopis.store.database import open_files
from letopis.store.errors import Closed, ConfigurationError, LetopisError, OutboxUnavailable

logger: Final = logging.getLogger("letopis.outbox.daemon")

HOLDER: Final = "letopis relay"
REOPEN_POLICY: Final = RetryPolicy(base=0.5, factor=2.0, cap=15.0)
"""Waits before a file that cannot be used is reopened."""
STABLE_AFTER_SECONDS: Final = 60.0
"""Time of work after which the next failure counts as the first."""
METRICS_TIMEOUT_SECONDS: Final = 2.0
"""Time that reading the metrics of a file may take before the file counts as unusable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How outboxes are served, as far as a reload may change it.

    :ivar rules: of the watch.
    :ivar locale: of its notifications.
    :ivar style: of its notifications.
    """

    policy: RetryPolicy
    retention: Retention
    channels: tuple[Channel, ...]
    rules: Rules
    locale: str
    style: texts.Style


class OutboxWorker:
    """Delivers from one outbox file while it exists, and watches it for lasting problems.

    A file that is replaced, or cannot be used for a time, is reopened. No error of it ends the daemon or disturbs the
    other files.

    :ivar problem: why the file cannot be used at present, in a sentence; ``None`` while it can.
    """

    def __init__(
        self,
        match: OutboxMatch,
        destination: StoreHandle,
        options: WorkerOptions,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = match.path
        self.matched = match.matched
        self.destination = destination
        self.problem: str | None = None
        self._past_relays = RelayStats()
        self._options = options
        self._monotonic = monotonic
        self._outbox: OutboxFile | None = None
        self._relay: Relay | None = None
        self._watch: AlertMonitor | None = None
        self._pruner: Pruner | None = None
        self._notified = self._failed = 0
        self._stopping = asyncio.Event()
        self._progress_at = monotonic()

    @property
    def condition(self) -> Condition:
        """How the file is served at present."""
        if self._relay is None:
            return Condition.UNUSABLE
        if self._relay.wrong_store_reason is not None:
            return Condition.WRONG_STORE
        return Condition.WORKING if self._relay.lease.held else Condition.STANDBY

    @property
    def stats(self) -> RelayStats:
        """What the relays of this file have done in this process."""
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
            "told": self._notified + (0 if watch is None else watch.told),
            "failed": self._failed + (0 if watch is None else watch.failed),
        }

    def seconds_since_progress(self) -> float:
        """Return the seconds since the relay's loop last turned, or a delivery began or ended."""
        latest = self._progress_at
        if self._relay is not None:
            latest = max(latest, self._relay.last_loop_at)
        if self._outbox is not None:
            latest = max(latest, self.destination.instrumented.progress_at.get(self._outbox.origin.origin_id, latest))
        return self._monotonic() - latest

    async def metrics(self) -> OutboxMetrics:
        """Return the metrics of the file; never raises: a file that cannot be read in time is unusable."""
        outbox, condition = self._outbox, self.condition
        if outbox is None or condition is Condition.UNUSABLE:
            return OutboxMetrics(condition=Condition.UNUSABLE, name=self.path.name)
        try:
            async with asyncio.timeout(METRICS_TIMEOUT_SECONDS):
                return await outbox.read(lambda connection: health.read_metrics(connection, outbox.path, condition))
        except (LetopisError, TimeoutError, SQLAlchemyError):
            return OutboxMetrics(condition=Condition.UNUSABLE, name=self.path.name)

    async def open(self) -> None:
        """Open the file.

        :raises ConfigurationError: it does not exist, or cannot be an outbox.
        :raises OutboxUnavailable: it cannot be used at present.
        """
        try:
            self._outbox = await OutboxFile.open(self.path, create=False)
        except (ConfigurationError, OutboxUnavailable) as error:
            self.problem = str(error)
            raise
        self.problem = None

    async def probe(self) -> None:
        """Check once whether this file may be delivered to its store, and create missing tables.

        :raises StoreFault: it may not, or the store cannot be asked.
        """
        if self._outbox is None:
            return
        store = self.destination.store
        with suppress(OutboxUnavailable):  # logged already, and retried
            if (refused := await find_refusal(self._outbox, store)) is not None:
                raise refused
            await store.prepare()

    def change(self, options: WorkerOptions) -> None:
        """Apply options that changed."""
        self._options = options
        if self._relay is not None:
            self._relay.policy = options.policy
        if self._outbox is not None:
            self._pruner = Pruner(options.retention, self._outbox.now_us)
        if self._watch is not None:
            self._watch.change(
                channels=options.channels, rules=options.rules, locale=options.locale, style=options.style
            )

    def stop(self) -> None:
        """Ask :meth:`run` to return after the batch in flight."""
        self._stopping.set()
        if self._relay is not None:
            self._relay.stop()

    async def run(self) -> None:
        """Serve until stopped or cancelled; a file that a pattern matched only until it is gone.

        When cancelled, the batch in flight is dropped: it is on disk, and sent again by the next relay.
        """
        failures = 0
        try:
            while not self._stopping.is_set():
                began = self._progress_at = self._monotonic()
                try:
                    if self._outbox is None:
                        await self.open()
                    await self._deliver()
                    continue
                except Closed:
                    raise
                except (ConfigurationError, OutboxUnavailable) as error:
                    self._report(str(error), first=failures == 0)
                except Exception as error:  # no error may disturb the other files or a later try
                    known = open_files.describe_exhaustion() if open_files.is_exhausted(error) else None
                    self._report(known or f"an error that is not known: {type(error).__name__}", first=failures == 0)
                if self.matched and not self.path.exists():
                    return
                failures = 1 if self._monotonic() - began > STABLE_AFTER_SECONDS else failures + 1
                await self._sleep(REOPEN_POLICY.delay(failures, uniform=random.uniform))
        finally:
            await run_to_completion(self._close())

    async def _deliver(self) -> None:
        outbox = self._outbox
        assert outbox is not None  # noqa: S101 - opened by the caller
        options = self._options
        self._pruner = Pruner(options.retention, outbox.now_us)
        self._relay = Relay(
            outbox,
            self.destination.store,
            apply=self.destination.instrumented.apply,
            policy=options.policy,
            holder=HOLDER,
            breaker=self.destination.breaker,
            chores=(self._prune,),
            stop_timeout=0.0,  # the daemon has waited already
            monotonic=self._monotonic,
        )
        self._watch = AlertMonitor(
            outbox,
            channels=options.channels,
            rules=options.rules,
            breaker=self._breaker_view,
            locale=options.locale,
            style=options.style,
            monotonic=self._monotonic,
        )
        watching = asyncio.create_task(self._watch.run(), name="letopis-watch")
        try:
            await self._relay.run()
        finally:
            await run_to_completion(self._end(watching))

    async def _end(self, watching: asyncio.Task[None]) -> None:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        self._past_relays, self._relay = self.stats, None
        if self._watch is not None:
            self._notified += self._watch.told
            self._failed += self._watch.failed
            self._watch = None
        await self._close()

    async def _close(self) -> None:
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            self.destination.instrumented.progress_at.pop(outbox.origin.origin_id, None)
            await outbox.close()

    def _prune(self, connection: sa.Connection) -> bool:
        return self._pruner is not None and self._pruner(connection)

    def _breaker_view(self) -> BreakerView | None:
        relay = self._relay
        at_work = relay is not None and (relay.lease.held or relay.wrong_store_reason is not None)
        return breaker_view(relay.breaker) if relay is not None and at_work else None

    def _report(self, reason: str, *, first: bool) -> None:
        level = logging.WARNING if first or reason != self.problem else logging.DEBUG
        self.problem = reason
        logger.log(level, "the outbox %r cannot be used, and is retried: %s", self.path.name, reason)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

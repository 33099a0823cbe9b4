"""Serve any number of outbox files until a signal, and report to the service manager."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy.engine import URL

from letopis.ops.config.settings import AlertSettings
from letopis.ops.daemon.discovery import OutboxScanner, is_pattern, may_be_outbox
from letopis.ops.daemon.fleet import Fleet
from letopis.ops.daemon.health import FAILED_CONDITIONS, HealthSnapshot, add_stats, aggregate
from letopis.ops.daemon.http import App, ListenAddress, serve_http
from letopis.ops.daemon.outbox_worker import OutboxWorker
from letopis.ops.daemon.store_pool import StorePool, probe_all
from letopis.ops.daemon.systemd import Notifier
from letopis.outbox.alerting.channels import open_channels
from letopis.outbox.alerting.incidents import Rules
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.retention import Retention
from letopis.outbox.operations.delivery import DeliveryOptions
from letopis.outbox.relay.outcome import RelayStats
from letopis.outbox.retry.policy import RetryPolicy
from letopis.outbox.telemetry.logging import configure_logging
from letopis.store.database import open_files
from letopis.store.database.faults import StoreFault
from letopis.store.errors import ConfigurationError, LetopisError, OutboxUnavailable
from letopis.store.projections.base import read_lags

logger: Final = logging.getLogger("letopis.ops.daemon")

SCAN_INTERVAL_SECONDS: Final = 2.0  # time between two scans for files that match a pattern
SCAN_PAUSE_FACTOR: Final = 200  # a scan of very many files starts again after this many times its duration
STATUS_INTERVAL_SECONDS: Final = 5.0  # time between two lines for systemctl status
STALL_TIMEOUT_SECONDS: Final = 120.0  # a relay is stuck after this: longer than a delivery and any wait after an error
SNAPSHOT_MAX_AGE_SECONDS: Final = 1.0  # age up to which a snapshot is returned again instead of being read
LAG_INTERVAL_SECONDS: Final = 15.0  # time between two questions to a store how far its followers have got
LAG_TIMEOUT_SECONDS: Final = 5.0
UNAVAILABLE_STOP_TIMEOUT_SECONDS: Final = 0.5  # time to finish the batches in flight if no store is available anyway
CANCEL_CLEANUP_SECONDS: Final = 15.0  # time that cancelled relays have to clean up


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSettings:
    outboxes: tuple[str, ...]
    store: str | None = field(default=None, repr=False)
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    retention: Retention = field(default_factory=Retention)
    alerts: AlertSettings = field(default_factory=AlertSettings)
    listen: ListenAddress | None = None
    console: Callable[[DaemonSettings], AbstractAsyncContextManager[App]] | None = None
    stop_timeout: float = 8.0
    log_level: str = "INFO"
    log_format: str = "auto"
    trace_conversations: bool = False


class Daemon:
    """Delivers from outbox files until told to stop. A file that cannot be used disturbs no other.

    The watchdog of the service manager is fed only while the loop of every relay turns, or its delivery is within its
    deadline: a blocked event loop or a stuck relay feeds it no more. An unavailable store is neither.
    """

    def __init__(
        self,
        configure: Callable[[], DaemonSettings],
        *,
        notifier: Notifier | None = None,
        clock: Clock | None = None,
        scan_interval: float = SCAN_INTERVAL_SECONDS,
        stall_timeout: float = STALL_TIMEOUT_SECONDS,
        fleet: Fleet | None = None,
    ) -> None:
        self._configure = configure
        self._notifier = notifier or Notifier()
        self._clock = clock or Clock(monotonic=time.monotonic)
        self._scan_interval = scan_interval
        self._stall_timeout = stall_timeout
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()
        self._fleet = fleet or Fleet(monotonic=self._clock.monotonic)
        self._scanner = OutboxScanner(monotonic=self._clock.monotonic)
        self._retired = RelayStats()
        self._retired_alerts = Counter(sent=0, failed=0)
        self._reloads: set[asyncio.Task[None]] = set()
        self._reload_lock = asyncio.Lock()
        self._reload_failed = False
        self._lags: dict[URL, dict[str, int]] = {}
        self._ready = False
        self._snapshot: HealthSnapshot | None = None
        self._snapshot_at = float("-inf")
        self._snapshot_lock = asyncio.Lock()
        self.address: ListenAddress | None = None  # where it serves HTTP

    @property
    def workers(self) -> tuple[OutboxWorker, ...]:
        """The workers, one for each outbox file that it serves."""
        return self._fleet.workers

    # For signals, in the thread of the event loop.

    def stop(self) -> None:
        """End after the batches in flight, or at once when called again. Neither loses anything."""
        if self._stopping.is_set():
            self._forced.set()
            return
        logger.info("finishing the batches in flight; another signal ends it at once")
        self._stopping.set()

    def reload(self) -> None:
        """Read the settings again: log level and format, retry policy, retention, alerts."""
        task = asyncio.get_running_loop().create_task(self._reload(), name="letopis-reload")
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def run(self) -> None:
        """Serve until :meth:`stop`."""
        settings = self._settings = await asyncio.to_thread(self._configure)
        configure_logging(level=settings.log_level, style=settings.log_format)
        self._stores = StorePool(settings.store, clock=self._clock, trace_conversations=settings.trace_conversations)
        open_files.raise_limit()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._stores.close)
            stack.push_async_callback(self._end)
            background: list[asyncio.Task[None]] = []
            stack.callback(lambda: _cancel(background))
            if not await self._finish_unless_stopped(self._start(stack)):
                return
            self._ready = True
            endless = [self._feed_watchdog(), self._scan_forever()]
            if self.address is not None:
                endless.append(self._read_lags())
            background += map(asyncio.create_task, endless)
            self._notifier.ready()
            await self._stopping.wait()
            self._ready = False
            self._notifier.stopping()

    # Start and end.

    async def _finish_unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run ``work`` until it ends or the daemon is stopped; return True if it ended."""
        task, stop = asyncio.create_task(work), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if task.cancelled():
            return False
        task.result()
        return True

    async def _start(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        self._options = await asyncio.to_thread(_worker_options, settings)
        console = None if settings.console is None else await stack.enter_async_context(settings.console(settings))
        if settings.listen is not None:
            self.address = await stack.enter_async_context(
                serve_http(settings.listen, live=self.is_live, snapshot=self.snapshot, console=console)
            )
        await self._scan(first=True)
        await self._open_some()
        await self._probe_stores()
        turns = asyncio.create_task(self._fleet.run(), name="letopis-fleet")
        stack.callback(turns.cancel)

    async def _open_some(self) -> None:
        """Open as many files as may be open at once, or the first that can be opened."""
        errors: list[LetopisError] = []
        opened = 0
        for worker in self.workers:
            if opened == self._fleet.max_open:
                return
            try:
                await worker.open()
                opened += 1
            except (ConfigurationError, OutboxUnavailable) as error:
                errors.append(error)
        if errors and not opened and not any(map(is_pattern, self._settings.outboxes)):
            raise errors[0]

    async def _probe_stores(self) -> None:
        """Ask the stores of the files, a few files at a time, until one file has a store that may be delivered to."""
        workers = self.workers
        first: StoreFault | None = None
        for start in range(0, len(workers), self._fleet.max_open):
            some = workers[start : start + self._fleet.max_open]
            try:
                await probe_all([worker.probe() for worker in some])
            except StoreFault as fault:
                first = first or fault
                continue
            return
        if first is not None:
            raise first

    async def _end(self) -> None:
        _cancel(tuple(self._reloads))
        for worker in self.workers:
            worker.stop()
        tasks = list(self._fleet.active.values())
        if tasks:
            available = any(handle.breaker.closed for handle in self._stores.all)
            timeout = self._settings.stop_timeout if available else UNAVAILABLE_STOP_TIMEOUT_SECONDS
            # Until the time is over or a second signal arrives.
            all_done = asyncio.gather(*tasks, return_exceptions=True)
            forced = asyncio.ensure_future(self._forced.wait())
            await asyncio.wait((all_done, forced), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            forced.cancel()
            if not all_done.done():
                logger.warning("the batches in flight are dropped; they are on disk, and sent again at the next start")
            _cancel(tasks)
            await asyncio.wait(tasks, timeout=CANCEL_CLEANUP_SECONDS)
        await self._fleet.close()
        logger.info("ended: %d events delivered since the start", self._totals().delivered)

    # Files that come and go.

    async def _scan_forever(self) -> None:
        took = 0.0
        while True:
            await asyncio.sleep(max(self._scan_interval, SCAN_PAUSE_FACTOR * took))
            try:
                began = self._clock.monotonic()
                await self._scan()
                took = self._clock.monotonic() - began
            except Exception as error:  # a scan that fails is repeated
                logger.warning("could not look for outboxes: %s", type(error).__name__)

    async def _scan(self, *, first: bool = False) -> None:
        """Serve new files, and retire those that a pattern matched and that are gone, or hold no outbox after all."""
        for worker in self.workers:
            if worker.matched and (
                not worker.path.exists()
                or (worker.problem is not None and not await asyncio.to_thread(may_be_outbox, worker.path))
            ):
                await self._fleet.remove(worker)
                worker.destination.outages.paths.discard(worker.path)
                add_stats(self._retired, worker.stats)
                self._retired_alerts.update(worker.alerts)
                logger.info("the outbox %r is gone, and no longer served", worker.path.name)
        names = self._settings.outboxes
        known = [worker.path for worker in self.workers]
        matches = await asyncio.to_thread(self._scanner.scan, names, known)
        for match in matches:
            try:
                store = self._stores.get(match.path)
            except ConfigurationError as error:
                if not match.matched:
                    raise
                self._scanner.exclude(match.path)
                logger.error("the outbox %r is not served: %s", match.path.name, error)  # noqa: TRY400 - no traceback
                continue
            if not first:
                logger.info("the outbox %r is served from now on", match.path.name)
            store.outages.paths.add(match.path)
            self._fleet.add(
                OutboxWorker(
                    match,
                    store,
                    self._options,
                    polled=self._fleet.polled,
                    on_pause=self._fleet.wake,
                    monotonic=self._clock.monotonic,
                )
            )
        if first and not self.workers:
            logger.info("no outbox is there yet; one that comes is served")

    def is_live(self) -> bool:
        """Return True if the loop of every relay turns."""
        return all(worker.seconds_since_progress() < self._stall_timeout for worker in self._fleet.active)

    async def snapshot(self) -> HealthSnapshot:
        """Return the state of everything, at most a second old."""
        async with self._snapshot_lock:
            now = self._clock.monotonic()
            if self._snapshot is None or now - self._snapshot_at >= SNAPSHOT_MAX_AGE_SECONDS:
                self._snapshot = await self._read_snapshot()
                self._snapshot_at = self._clock.monotonic()
            return self._snapshot

    async def _read_snapshot(self) -> HealthSnapshot:
        workers = self.workers
        files = await self._fleet.metrics()
        alerts = Counter(self._retired_alerts)
        for worker in workers:
            alerts.update(worker.alerts)
        return aggregate(
            files,
            now_us=self._clock.now_us(),
            ready=self._ready,
            sound=all(
                worker.matched or file.condition not in FAILED_CONDITIONS
                for worker, file in zip(workers, files, strict=True)
            ),
            breakers=[handle.breaker for handle in self._stores.all],
            relay=self._totals(),
            alerts=alerts,
            deliveries=[handle.instrumented.deliveries for handle in self._stores.all],
            lags=self._lags.values(),
        )

    async def _read_lags(self) -> None:
        """Periodically ask the stores how far their followers have got; a store that fails has no such metric."""
        while True:
            for handle in self._stores.all:
                self._lags.pop(handle.url, None)
                # An embedded store may not exist yet, or is closed between the turns of many files.
                resting = handle.embedded and (self._fleet.crowded or not handle.instrumented.deliveries)
                if handle.breaker.closed and not resting:
                    with suppress(StoreFault, TimeoutError):
                        async with asyncio.timeout(LAG_TIMEOUT_SECONDS):
                            await handle.store.prepare()
                            self._lags[handle.url] = await handle.store.runtime.connected(read_lags)
            await asyncio.sleep(LAG_INTERVAL_SECONDS)

    def _totals(self) -> RelayStats:
        total = RelayStats()
        for stats in (self._retired, *(worker.stats for worker in self.workers)):
            add_stats(total, stats)
        return total

    async def _feed_watchdog(self) -> None:
        """Feed the watchdog while every loop turns, and report the status."""
        interval = self._notifier.watchdog_interval
        pause = STATUS_INTERVAL_SECONDS if interval is None else min(STATUS_INTERVAL_SECONDS, interval / 2)
        was_live = True
        status_due = 0.0
        while True:
            live = self.is_live()
            if live:
                self._notifier.alive()
            elif was_live:
                logger.critical(
                    "the loop of a relay has not turned for %.0f s: the watchdog is no longer fed", self._stall_timeout
                )
            was_live = live
            if self._notifier.listening and self._clock.monotonic() >= status_due:
                status_due = self._clock.monotonic() + STATUS_INTERVAL_SECONDS
                try:
                    status = (await self.snapshot()).summary()
                except Exception as error:  # the watchdog must not depend on the status
                    status = f"no status: {type(error).__name__}"
                self._notifier.status(("the last reload failed; " if self._reload_failed else "") + status)
            await asyncio.sleep(pause)

    async def _reload(self) -> None:
        async with self._reload_lock:
            if not self._ready:
                return  # the settings were read just now, or no longer matter
            self._notifier.reloading()
            try:
                settings = await asyncio.to_thread(self._configure)
                options = await asyncio.to_thread(_worker_options, settings)
                configure_logging(level=settings.log_level, style=settings.log_format)
            except Exception as error:  # a typing error in a file must not end a daemon
                self._reload_failed = True
                problem = str(error) if isinstance(error, LetopisError) else type(error).__name__
                logger.error("the configuration is left as it was: %s", problem)  # noqa: TRY400 - no traceback
            else:
                self._reload_failed = False
                before, self._options = self._settings, options
                self._settings = replace(
                    settings, outboxes=before.outboxes, store=before.store, listen=before.listen, console=before.console
                )
                for worker in self.workers:
                    worker.change(options)
                logger.info("the configuration was read again")
                lasting = ("outboxes", "store", "listen")
                fixed = [name for name in lasting if getattr(before, name) != getattr(settings, name)]
                if fixed:
                    logger.warning("a change of %s takes a restart", " and ".join(fixed))
            finally:
                self._notifier.ready()


def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


def _worker_options(settings: DaemonSettings) -> DeliveryOptions:
    """Return how outboxes are served; opening channels may take a second."""
    alerts = settings.alerts
    return DeliveryOptions(
        policy=settings.policy,
        retention=settings.retention,
        channels=open_channels(alerts.channels, private=alerts.private),
        rules=Rules(stuck_after=alerts.stuck_after, watch_relay=False),
        locale=alerts.language,
        style=alerts.style,
    )

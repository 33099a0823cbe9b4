"""The daemon: serves any number of outbox files until a signal, and tells the service manager how it is."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from letopis.outbox.account import RelayStats
from letopis.outbox.alert_settings import AlertSettings
from letopis.outbox.alerts import open_channels
from letopis.outbox.backoff import RetryPolicy
from letopis.outbox.clock import Clock
from letopis.outbox.figures import Figures, add_stats, sum_up
from letopis.outbox.incidents import Rules
from letopis.outbox.listening import Address, listening
from letopis.outbox.logs import set_up
from letopis.outbox.notify import Notifier
from letopis.outbox.outboxes import find, holds_outbox, is_pattern
from letopis.outbox.served import Served, Ways
from letopis.outbox.stores import Stores
from letopis.outbox.tail import Retention
from letopis.store.errors import ConfigurationError, LetopisError, OutboxUnavailable

logger: Final = logging.getLogger("letopis.outbox.daemon")

SWEEP: Final = 2.0
"""Seconds between two looks for files that a pattern matches."""
STATUS: Final = 5.0
"""Seconds between two lines for ``systemctl status``."""
STALL: Final = 120.0
"""Seconds after which a relay that does not come round its loop is stuck: longer than any delivery's own deadline, and
any wait after an error."""
FRESH: Final = 1.0
"""Seconds for which figures are shown again instead of being read anew."""
PASSED_OVER: Final = 30.0
"""Seconds for which a file that was no outbox is not looked at again."""
ABRUPT: Final = 0.5
"""Seconds to finish a batch where no store answers anyway."""
LAST: Final = 15.0
"""Seconds that cancelled relays have to clean up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSettings:
    """What a daemon is told.

    :ivar outboxes: paths and patterns.
    :ivar store: of all of them, as given, so perhaps with a password in it; ``None`` for the SQLite file beside each.
    :ivar listen: where to answer over HTTP; ``None`` for nowhere.
    :ivar stop_timeout: seconds that the batches in flight have after the first signal.
    """

    outboxes: tuple[str, ...]
    store: str | None = field(default=None, repr=False)
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    retention: Retention = field(default_factory=Retention)
    alerts: AlertSettings = field(default_factory=AlertSettings)
    listen: Address | None = None
    stop_timeout: float = 8.0
    log_level: str = "INFO"
    log_format: str = "auto"


class Daemon:
    """Delivers from outbox files until it is told to stop.

    Each file has its own lease, relay and watch; files that deliver to one store share its breaker and a pool of two
    connections. One that cannot be used disturbs no other.

    The watchdog of the service manager is fed only while every relay comes round its loop, or is within the deadline
    of what it does: an event loop that is blocked, or a relay that hangs, feeds it no more. A store that does not
    answer is none of that.

    :param configure: reads the settings; called again by :meth:`reload`, in a thread.
    """

    def __init__(
        self,
        configure: Callable[[], DaemonSettings],
        *,
        notifier: Notifier | None = None,
        clock: Clock | None = None,
        sweep: float = SWEEP,
        stall: float = STALL,
    ) -> None:
        self._configure = configure
        self._notifier = notifier or Notifier()
        self._clock = clock or Clock(monotonic=time.monotonic)
        self._sweep_every = sweep
        self._stall = stall
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()
        self._serving: dict[Served, asyncio.Task[None]] = {}
        self._passed_over: dict[Path, tuple[tuple[int, int], float]] = {}
        self._retired = RelayStats()
        self._retired_alerts = {"told": 0, "failed": 0}
        self._reloading = asyncio.Lock()
        self._reload_failed = False
        self._ready = False
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._figures: Figures | None = None
        self._later: set[asyncio.Task[None]] = set()
        self.address: Address | None = None
        """Where it answers over HTTP."""

    @property
    def served(self) -> tuple[Served, ...]:
        """The outbox files that it serves."""
        return tuple(self._serving)

    # What signals do; all to be called in the event loop's thread.

    def stop(self) -> None:
        """End after the batches in flight, or, when called again, at once. Neither loses anything."""
        if self._stopping.is_set():
            self._forced.set()
            return
        logger.info("finishing the batches in flight; another signal ends it at once")
        self._stopping.set()

    def reload(self) -> None:
        """Read the settings again: log level and format, retry policy, retention, alerts."""
        task = asyncio.get_running_loop().create_task(self._reload(), name="letopis-reload")
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def run(self) -> None:
        """Serve until :meth:`stop`.

        :raises ConfigurationError: nothing can be served until a person changes something; so does a ``StoreFault`` of
            class ``MISCONFIGURED``, of every store there is.
        :raises OutboxUnavailable: none of the files can be used at present.
        :raises OSError: something else listens at the address.
        """
        settings = self._settings = await asyncio.to_thread(self._configure)
        set_up(level=settings.log_level, style=settings.log_format)
        self._stores = Stores(settings.store, clock=self._clock)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._stores.close)
            stack.push_async_callback(self._end)
            background: list[asyncio.Task[None]] = []
            stack.callback(lambda: _cancel(background))
            if not await self._unless_stopped(self._start(stack)):
                return
            self._ready = True
            background += [asyncio.create_task(one) for one in (self._pulse(), self._sweep())]
            self._notifier.ready()
            await self._stopping.wait()
            self._ready = False
            self._notifier.stopping()

    # Start and end.

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run ``work`` to its end, or until told to stop; whether it came to its end."""
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
        self._ways = await asyncio.to_thread(_ways, settings)
        if settings.listen is not None:
            self.address = await stack.enter_async_context(
                listening(settings.listen, live=self.turning, figures=self.figures)
            )
        await self._pick_up(first=True)
        await self._stores.probe()

    async def _end(self) -> None:
        _cancel(tuple(self._later))
        for served in self._serving:
            served.stop()
        tasks = list(self._serving.values())
        if tasks:
            answering = any(one.breaker.closed for one in self._stores.all)
            await self._in_time(tasks, self._settings.stop_timeout if answering else ABRUPT)
            _cancel(tasks)
            await asyncio.wait(tasks, timeout=LAST)
        logger.info("ended: %d events delivered since the start", self._total().delivered)

    async def _in_time(self, tasks: list[asyncio.Task[None]], seconds: float) -> None:
        """Wait for all tasks, at most so long, and no longer once a second signal has come."""
        whole = asyncio.gather(*tasks, return_exceptions=True)
        forced = asyncio.ensure_future(self._forced.wait())
        await asyncio.wait((whole, forced), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if not whole.done():
            logger.warning("the batches in flight are dropped; they are on disk, and sent again at the next start")

    # Files that come and go.

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_every)
            try:
                await self._pick_up()
            except Exception as error:  # a look that fails is made again
                logger.warning("could not look for outboxes: %s", type(error).__name__)

    async def _pick_up(self, *, first: bool = False) -> None:
        """Serve what is there and not served yet; let go of what a pattern matched and is gone."""
        for served, task in list(self._serving.items()):
            if task.done():
                self._retire(served)
            elif served.matched and not served.path.exists():
                served.stop()
        names = self._settings.outboxes
        found = await asyncio.to_thread(find, names)
        known = {served.path for served in self._serving}
        new: list[Served] = []
        errors: list[LetopisError] = []
        for named in found:
            if named.path in known or (named.matched and not await asyncio.to_thread(self._is_outbox, named.path)):
                continue
            try:
                destination = self._stores.of(named.path)
            except ConfigurationError as error:
                if not named.matched:
                    raise
                self._pass_over(named.path)
                logger.error("the outbox %r is not served: %s", named.path.name, error)  # noqa: TRY400 - no traceback
                continue
            served = Served(named, destination, self._ways, monotonic=self._clock.monotonic)
            if first:
                try:
                    await served.open()
                except (ConfigurationError, OutboxUnavailable) as error:
                    errors.append(error)
            else:
                logger.info("the outbox %r is served from now on", named.path.name)
            new.append(served)
        if errors and len(errors) == len(new) and not any(map(is_pattern, names)):
            raise errors[0]
        for served in new:
            self._serving[served] = asyncio.create_task(served.run(), name=f"letopis-{served.path.name}")
        if first and not new:
            logger.info("no outbox is there yet; one that comes is served")

    def _is_outbox(self, path: Path) -> bool:
        """Whether a file that a pattern matched is an outbox; one that is none is left alone while it is the same."""
        if (passed := self._passed_over.get(path)) is not None:
            mark, until = passed
            if mark == _mark(path) and self._clock.monotonic() < until:
                return False
        if holds_outbox(path):
            self._passed_over.pop(path, None)
            return True
        self._pass_over(path)
        return False

    def _pass_over(self, path: Path) -> None:
        # For a time only: what another process writes to the file may be in its write-ahead log alone.
        self._passed_over[path] = (_mark(path), self._clock.monotonic() + PASSED_OVER)

    def _retire(self, served: Served) -> None:
        task = self._serving.pop(served)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the relay of %r ended in %s", served.path.name, type(error).__name__)
        add_stats(self._retired, served.stats)
        for outcome, count in served.alerts.items():
            self._retired_alerts[outcome] += count
        logger.info("the outbox %r is gone, and served no more", served.path.name)

    # What it says of itself.

    def turning(self) -> bool:
        """Whether every relay comes round its loop."""
        return all(served.still_for() < self._stall for served in self._serving)

    async def figures(self) -> Figures:
        """Return how everything is, at most a second old."""
        async with self._reading:
            if self._figures is None or self._clock.monotonic() - self._read_at >= FRESH:
                self._figures = await self._read_figures()
                self._read_at = self._clock.monotonic()
            return self._figures

    async def _read_figures(self) -> Figures:
        served = self.served
        files = await asyncio.gather(*(one.look() for one in served))
        alerts = dict(self._retired_alerts)
        for one in served:
            for outcome, count in one.alerts.items():
                alerts[outcome] += count
        return sum_up(
            files,
            now_us=self._clock.now_us(),
            ready=self._ready,
            sound=all(one.matched or file.condition != "unusable" for one, file in zip(served, files, strict=True)),
            breakers=[one.breaker for one in self._stores.all],
            relay=self._total(),
            alerts=alerts,
            deliveries=[one.store.deliveries for one in self._stores.all],
        )

    def _total(self) -> RelayStats:
        total = RelayStats()
        for stats in (self._retired, *(served.stats for served in self._serving)):
            add_stats(total, stats)
        return total

    async def _pulse(self) -> None:
        """Feed the watchdog while all is turning, and say how it is."""
        interval = self._notifier.watchdog_interval
        pause = STATUS if interval is None else min(STATUS, interval / 2)
        said_stuck = False
        status_due = 0.0
        while True:
            turning = self.turning()
            if turning:
                self._notifier.alive()
            elif not said_stuck:
                logger.critical(
                    "a relay has not come round its loop for %.0f s: the watchdog is fed no more", self._stall
                )
            said_stuck = not turning
            if self._notifier.listening and self._clock.monotonic() >= status_due:
                status_due = self._clock.monotonic() + STATUS
                try:
                    said = (await self.figures()).told()
                except Exception as error:  # what cannot be said now is said next time; the watchdog must not suffer
                    said = f"no figures: {type(error).__name__}"
                self._notifier.status(("the last reload failed; " if self._reload_failed else "") + said)
            await asyncio.sleep(pause)

    # Reload.

    async def _reload(self) -> None:
        async with self._reloading:
            if not self._ready:
                return  # the settings were read just now, or do not matter any more
            self._notifier.reloading()
            try:
                settings = await asyncio.to_thread(self._configure)
                ways = await asyncio.to_thread(_ways, settings)
                set_up(level=settings.log_level, style=settings.log_format)
            except Exception as error:  # a daemon must not end because somebody made a typing error
                self._reload_failed = True
                what = str(error) if isinstance(error, LetopisError) else type(error).__name__
                logger.error("the configuration is left as it was: %s", what)  # noqa: TRY400 - no traceback
            else:
                self._reload_failed = False
                self._take(settings, ways)
            finally:
                self._notifier.ready()

    def _take(self, settings: DaemonSettings, ways: Ways) -> None:
        before, self._ways = self._settings, ways
        self._settings = replace(settings, outboxes=before.outboxes, store=before.store, listen=before.listen)
        for served in self._serving:
            served.change(ways)
        logger.info("the configuration was read again")
        fixed = [name for name in ("outboxes", "store", "listen") if getattr(before, name) != getattr(settings, name)]
        if fixed:
            logger.warning("a change of %s takes a restart", " and ".join(fixed))


def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


def _mark(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_ino, stat.st_mtime_ns


def _ways(settings: DaemonSettings) -> Ways:
    """Return how outboxes are served; opening channels may take a second."""
    alerts = settings.alerts
    return Ways(
        policy=settings.policy,
        retention=settings.retention,
        channels=open_channels(alerts.channels, private=alerts.private),
        rules=Rules(stuck_after=alerts.stuck_after, watch_relay=False),
        locale=alerts.language,
        style=alerts.style,
    )


@contextmanager
def on_signals(acts: Mapping[str, Callable[[], None]]) -> Iterator[None]:
    """Call a function in the event loop at each of some signals, by their names, instead of what they do otherwise.

    A signal that the system does not have is left out.
    """
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Any] = {}

    def install(one: signal.Signals, act: Callable[[], None]) -> None:
        # Not loop.add_signal_handler: Windows has none.
        before[one] = signal.signal(one, lambda *_: loop.call_soon_threadsafe(act))

    for name, act in acts.items():
        if (one := getattr(signal, name, None)) is not None:
            install(one, act)
    try:
        yield
    finally:
        for one, old in before.items():
            signal.signal(one, old)

"""Served: one outbox file of a daemon, from opening it to letting it go: its relay, its watch, and what went wrong."""

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

from letopis.outbox import figures, texts
from letopis.outbox.account import RelayStats
from letopis.outbox.alerts import Channel
from letopis.outbox.backoff import RetryPolicy
from letopis.outbox.figures import Condition, FileFigures, add_stats
from letopis.outbox.file import OutboxFile
from letopis.outbox.incidents import BreakerView, Rules
from letopis.outbox.outboxes import Named
from letopis.outbox.relay import Relay
from letopis.outbox.stores import Destination
from letopis.outbox.tail import Pruner, Retention
from letopis.outbox.watch import Watch, breaker_view
from letopis.store.errors import Closed, ConfigurationError, LetopisError, OutboxUnavailable
from letopis.store.shield import uninterrupted

logger: Final = logging.getLogger("letopis.outbox.daemon")

HOLDER: Final = "letopis relay"
AGAIN: Final = RetryPolicy(base=0.5, factor=2.0, cap=15.0)
"""When a file that cannot be used is tried again."""
LASTING: Final = 60.0
"""Seconds of work after which the next failure is the first of a new row."""
LOOKING: Final = 2.0
"""Seconds that a look at a file may take before the file counts as unusable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """How outboxes are served; what a reload may change.

    :ivar rules: of the watch; ``locale`` and ``style``: of what it says.
    """

    policy: RetryPolicy
    retention: Retention
    channels: tuple[Channel, ...]
    rules: Rules
    locale: str
    style: texts.Style


class Served:
    """Delivers from one outbox file for as long as there is one, and watches it for what stays stuck.

    A file that is replaced, or that cannot be used for a time, is opened anew. Nothing that goes wrong with it ends the
    daemon or disturbs the other files.

    :ivar trouble: why the file cannot be used at present, in a sentence of ours; ``None`` while it can.
    :ivar retired: what relays of this file did that are no more.
    """

    def __init__(
        self, named: Named, destination: Destination, ways: Ways, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.path = named.path
        self.matched = named.matched
        self.destination = destination
        self.trouble: str | None = None
        self.retired = RelayStats()
        self._ways = ways
        self._monotonic = monotonic
        self._outbox: OutboxFile | None = None
        self._relay: Relay | None = None
        self._watch: Watch | None = None
        self._pruner: Pruner | None = None
        self._told = self._failed = 0
        self._stopping = asyncio.Event()
        self._moved_at = monotonic()

    # What it is and was.

    @property
    def condition(self) -> Condition:
        """How the file is served at present."""
        if self._relay is None:
            return Condition.UNUSABLE
        return Condition.WORKING if self._relay.lease.held else Condition.STANDBY

    @property
    def stats(self) -> RelayStats:
        """What the relays of this file have done in this process."""
        total = RelayStats()
        add_stats(total, self.retired)
        if self._relay is not None:
            add_stats(total, self._relay.stats)
        return total

    @property
    def alerts(self) -> dict[str, int]:
        """How many notices to operators arrived, and how many calls failed."""
        watch = self._watch
        return {
            "told": self._told + (0 if watch is None else watch.told),
            "failed": self._failed + (0 if watch is None else watch.failed),
        }

    def still_for(self) -> float:
        """Return the seconds since the loop last came round, or a delivery began or ended."""
        moved = self._moved_at
        if self._relay is not None:
            moved = max(moved, self._relay.turned_at)
        if self._outbox is not None:
            moved = max(moved, self.destination.store.moved.get(self._outbox.origin.origin_id, moved))
        return self._monotonic() - moved

    async def look(self) -> FileFigures:
        """Return the file in figures; never raises: a file that cannot be read in time is unusable."""
        outbox, condition = self._outbox, self.condition
        if outbox is None or condition is Condition.UNUSABLE:
            return FileFigures(condition=Condition.UNUSABLE)
        try:
            async with asyncio.timeout(LOOKING):
                return await outbox.read(lambda connection: figures.look(connection, outbox.path, condition))
        except (LetopisError, TimeoutError, SQLAlchemyError):
            return FileFigures(condition=Condition.UNUSABLE)

    # What it does.

    async def open(self) -> None:
        """Open the file.

        :raises ConfigurationError: it is none, or cannot be an outbox.
        :raises OutboxUnavailable: it cannot be used at present.
        """
        try:
            self._outbox = await OutboxFile.open(self.path, create=False)
        except (ConfigurationError, OutboxUnavailable) as error:
            self.trouble = str(error)
            raise
        self.trouble = None

    def change(self, ways: Ways) -> None:
        """Serve the file in other ways from now on."""
        self._ways = ways
        if self._relay is not None:
            self._relay.policy = ways.policy
        if self._outbox is not None:
            self._pruner = Pruner(ways.retention, self._outbox.now_us)
        if self._watch is not None:
            self._watch.change(channels=ways.channels, rules=ways.rules, locale=ways.locale, style=ways.style)

    def stop(self) -> None:
        """Ask :meth:`run` to return after the batch in flight."""
        self._stopping.set()
        if self._relay is not None:
            self._relay.stop()

    async def run(self) -> None:
        """Serve until stopped or cancelled; a file that a pattern matched also until it is gone.

        When cancelled, the batch in flight is dropped: it is on disk, and sent again by the next relay.
        """
        failures = 0
        try:
            while not self._stopping.is_set():
                began = self._moved_at = self._monotonic()
                try:
                    if self._outbox is None:
                        await self.open()
                    await self._deliver()
                    continue
                except Closed:
                    raise
                except (ConfigurationError, OutboxUnavailable) as error:
                    self._say(str(error), first=failures == 0)
                except Exception as error:  # whatever it was, the other files and a later try are no worse for it
                    self._say(f"an error that is not known: {type(error).__name__}", first=failures == 0)
                if self.matched and not self.path.exists():
                    return
                failures = 1 if self._monotonic() - began > LASTING else failures + 1
                await self._sleep(AGAIN.delay(failures, uniform=random.uniform))
        finally:
            await uninterrupted(self._close())

    async def _deliver(self) -> None:
        outbox = self._outbox
        assert outbox is not None  # noqa: S101 - opened by the caller
        ways = self._ways
        self._pruner = Pruner(ways.retention, outbox.now_us)
        self._relay = Relay(
            outbox,
            self.destination.store,
            policy=ways.policy,
            holder=HOLDER,
            breaker=self.destination.breaker,
            chores=(self._prune,),
            stop_timeout=0.0,  # the daemon has waited already
            monotonic=self._monotonic,
        )
        self._watch = Watch(
            outbox,
            channels=ways.channels,
            rules=ways.rules,
            breaker=self._breaker_view,
            locale=ways.locale,
            style=ways.style,
            monotonic=self._monotonic,
        )
        watching = asyncio.create_task(self._watch.run(), name="letopis-watch")
        try:
            await self._relay.run()
        finally:
            await uninterrupted(self._end(watching))

    async def _end(self, watching: asyncio.Task[None]) -> None:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        self.retired, self._relay = self.stats, None
        if self._watch is not None:
            self._told += self._watch.told
            self._failed += self._watch.failed
            self._watch = None
        await self._close()

    async def _close(self) -> None:
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            self.destination.store.moved.pop(outbox.origin.origin_id, None)
            await outbox.close()

    def _prune(self, connection: sa.Connection) -> bool:
        return self._pruner is not None and self._pruner(connection)

    def _breaker_view(self) -> BreakerView | None:
        held = self._relay is not None and self._relay.lease.held
        return breaker_view(self.destination.breaker) if held else None

    def _say(self, reason: str, *, first: bool) -> None:
        level = logging.WARNING if first or reason != self.trouble else logging.DEBUG
        self.trouble = reason
        logger.log(level, "the outbox %r cannot be used, and is tried again: %s", self.path.name, reason)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

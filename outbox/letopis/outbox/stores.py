"""Stores: the history stores of a process that serves several outboxes, each with one small pool and one breaker."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from letopis.outbox.breaker import Breaker
from letopis.outbox.clock import Clock
from letopis.outbox.history import check_apart, store_beside
from letopis.outbox.measured import MeasuredStore
from letopis.outbox.tracing import Spans
from letopis.store.errors import LetopisError
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.urls import normalise_url

logger: Final = logging.getLogger("letopis.outbox.daemon")

POOL: Final = 2
"""Connections to one store, for all outboxes that deliver to it."""
PROBE: Final = 5.0
"""Seconds that start-up waits for the first answer of a store; one that is away is no failed start."""
CLOSING: Final = 5.0
"""Seconds that a store has to close its connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A history store, and whether it is being delivered to."""

    store: MeasuredStore
    breaker: Breaker


class Stores:
    """Opens each history store once, however many outboxes deliver to it.

    :param given: what names the store of all outboxes; ``None`` for an SQLite file beside each.
    """

    def __init__(self, given: str | os.PathLike[str] | None, *, clock: Clock) -> None:
        self._given = given
        self._clock = clock
        self._spans = Spans()
        self._found: dict[str, Destination] = {}

    @property
    def all(self) -> list[Destination]:
        """Every store that an outbox has asked for."""
        return list(self._found.values())

    def of(self, outbox: Path) -> Destination:
        """Return where an outbox delivers to; connects to nothing yet.

        :raises ConfigurationError: the URL is wrong, or names the outbox itself.
        """
        url = normalise_url(store_beside(outbox) if self._given is None else self._given)
        check_apart(outbox, url)
        key = url.render_as_string(hide_password=False)
        if key not in self._found:
            self._found[key] = Destination(
                store=MeasuredStore(url, pool_size=POOL, spans=self._spans, monotonic=self._clock.monotonic),
                breaker=Breaker(clock=self._clock, uniform=random.uniform),
            )
        return self._found[key]

    async def probe(self) -> None:
        """Try each store once, and wait some seconds at most for its answer.

        :raises StoreFault: of class ``MISCONFIGURED``, where that is true of every store: waiting mends nothing.
        """
        tasks = [asyncio.create_task(one.store.prepare()) for one in self.all]
        if not tasks:
            return
        try:
            await asyncio.wait(tasks, timeout=PROBE)
        finally:
            for task in tasks:
                task.add_done_callback(_look_at)
                task.cancel()
        faults = [fault for task in tasks if (fault := _fault(task)) is not None]
        wrong = [fault for fault in faults if fault.fault_class is FaultClass.MISCONFIGURED]
        if len(wrong) == len(tasks):
            raise wrong[0]
        for fault in faults:
            level = logging.ERROR if fault in wrong else logging.WARNING
            logger.log(level, "a history store cannot be used yet; it is asked again: %s", fault)

    async def close(self) -> None:
        """Close all connections, for some seconds at most."""
        await asyncio.gather(*(_in_time(one.store.close()) for one in self.all))


async def _in_time(closing: Awaitable[None]) -> None:
    task = asyncio.ensure_future(closing)
    task.add_done_callback(_look_at)
    done, _ = await asyncio.wait((task,), timeout=CLOSING)
    if not done:
        logger.warning("a history store did not let go of its connections in %g s", CLOSING)


def _fault(task: asyncio.Task[None]) -> StoreFault | None:
    if not task.done() or task.cancelled():
        return None
    error = task.exception()
    if error is None or isinstance(error, StoreFault):
        return error
    if isinstance(error, LetopisError):
        raise error
    return StoreFault(
        fault_class=FaultClass.UNCLASSIFIED, code=type(error).__name__, reason="an error that Letopis does not know"
    )


def _look_at(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio does not report it a second time

"""Share history stores among the outboxes of one process: each has a small pool, a breaker and measured deliveries."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from sqlalchemy.engine import URL

from letopis.outbox.alerting.outage_group import OutageGroup
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.file.inspection import check_apart, store_beside
from letopis.outbox.relay.idle_work import TaskLook
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.outbox.telemetry.tracing import Spans
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.urls import normalise_url
from letopis.store.errors import LetopisError
from letopis.store.rules.apply_plan import ApplyResult, LaneBatch, Origin

logger: Final = logging.getLogger("letopis.ops.daemon")

POOL_SIZE: Final = 2  # connections to one store for all outboxes that deliver to it, unless its URL says another number
PROBE_TIMEOUT_SECONDS: Final = 5.0  # time that start-up waits for a store; one that is unavailable does not fail it
CLOSE_TIMEOUT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHandle:
    """A history store, and what the outboxes that deliver to it share."""

    url: URL
    instrumented: InstrumentedStore
    breaker: Breaker
    task_look: TaskLook
    outages: OutageGroup = field(default_factory=OutageGroup)

    @property
    def store(self) -> ConversationStore:
        return self.instrumented.store

    async def rest(self) -> None:
        """Close the connections to the store; the next use opens others. Only while no file is delivered to it."""
        before = self.instrumented.store
        self.instrumented.store = ConversationStore(self.url, pool_size=POOL_SIZE)
        await before.close()

    @property
    def embedded(self) -> bool:
        """Whether the store is a file of this machine."""
        return self.store.url.get_backend_name() == "sqlite"


class StorePool:
    """Opens each history store once, however many outboxes deliver to it."""

    def __init__(
        self, given: str | os.PathLike[str] | None, *, clock: Clock, trace_conversations: bool = False
    ) -> None:
        self._given = given
        self._clock = clock
        self._spans = Spans(conversations=trace_conversations)
        self._handles: dict[str, StoreHandle] = {}

    @property
    def all(self) -> list[StoreHandle]:
        return list(self._handles.values())

    def get(self, outbox: Path) -> StoreHandle:
        """Return the store that an outbox delivers to, without connecting."""
        url = normalise_url(store_beside(outbox) if self._given is None else self._given)
        check_apart(outbox, url)
        key = url.render_as_string(hide_password=False)
        if key not in self._handles:
            store = ConversationStore(url, pool_size=POOL_SIZE)
            self._handles[key] = StoreHandle(
                url=url,
                instrumented=InstrumentedStore(store, spans=self._spans, monotonic=self._clock.monotonic),
                breaker=Breaker(clock=self._clock, uniform=random.uniform),
                task_look=TaskLook(self._clock),
            )
        return self._handles[key]

    async def close(self) -> None:
        """Close all connections, within a few seconds."""
        await asyncio.gather(*(_close_in_time(handle.store.close()) for handle in self.all))


async def probe_all(probes: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Probe the store of each outbox once, and wait a few seconds for the answers."""
    tasks = [asyncio.create_task(probe) for probe in probes]
    if not tasks:
        return
    try:
        await asyncio.wait(tasks, timeout=PROBE_TIMEOUT_SECONDS)
    finally:
        for task in tasks:
            task.add_done_callback(_retrieve)
            task.cancel()
    faults = [fault for task in tasks if (fault := _fault(task)) is not None]
    wrong = [fault for fault in faults if fault.fault_class in (FaultClass.MISCONFIGURED, FaultClass.WRONG_STORE)]
    if len(wrong) == len(tasks):
        raise wrong[0]
    for text, fault in {str(fault): fault for fault in faults}.items():
        level = logging.ERROR if fault in wrong else logging.WARNING
        logger.log(level, "a history store cannot be used yet; it is probed again: %s", text)


async def _close_in_time(closing: Awaitable[None]) -> None:
    task = asyncio.ensure_future(closing)
    task.add_done_callback(_retrieve)
    done, _ = await asyncio.wait((task,), timeout=CLOSE_TIMEOUT_SECONDS)
    if not done:
        logger.warning("a history store did not close its connections in %g s", CLOSE_TIMEOUT_SECONDS)


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


def _retrieve(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        task.exception()  # retrieved, so that asyncio does not report it a second time


BUCKET_BOUNDS_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histogram's buckets."""


class Durations:
    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKET_BOUNDS_SECONDS) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def add(self, seconds: float) -> None:
        self.buckets[bisect_left(BUCKET_BOUNDS_SECONDS, seconds)] += 1
        self.total += seconds

    def join(self, other: Durations) -> None:
        self.buckets = [mine + theirs for mine, theirs in zip(self.buckets, other.buckets, strict=True)]
        self.total += other.total


class InstrumentedStore:
    """A wrapper around a :class:`ConversationStore` that measures deliveries and, with OpenTelemetry, traces them."""

    def __init__(
        self, store: ConversationStore, *, spans: Spans | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.store = store
        self._spans = spans or Spans()
        self._monotonic = monotonic
        self.deliveries: dict[str, Durations] = {}
        self.progress_at: dict[UUID, float] = {}

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch], /) -> ApplyResult:
        """Apply as :meth:`ConversationStore.apply` does, and measure it."""
        started = self.progress_at[origin.origin_id] = self._monotonic()
        outcome = "error"
        events = sum(len(lane.deliveries) for lane in batch)
        try:
            names = [lane.conversation_id for lane in batch]
            metadata = (
                (lane.conversation_id, delivery.event.metadata) for lane in batch for delivery in lane.deliveries
            )
            with self._spans.delivery(events=events, conversations=names, metadata=metadata) as failed:
                try:
                    result = await self.store.apply(origin, batch)
                    outcome = "ok"
                except StoreFault as fault:
                    outcome = str(fault.fault_class)
                    raise
                except asyncio.CancelledError:
                    outcome = "given_up"
                    raise
                finally:
                    if outcome != "ok":
                        failed(outcome)
        finally:
            now = self.progress_at[origin.origin_id] = self._monotonic()
            self.deliveries.setdefault(outcome, Durations()).add(now - started)
        return result

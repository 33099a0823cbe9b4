"""Measure and trace the deliveries to a history store."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from letopis.outbox.telemetry.tracing import Spans
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import StoreFault
from letopis.store.rules.apply_plan import ApplyResult, LaneBatch, Origin

BUCKET_BOUNDS_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histogram's buckets."""


class Durations:
    """A histogram of durations.

    :ivar buckets: counts by bucket, not cumulative; the last bucket has no bound.
    :ivar total: sum of all durations in seconds.
    """

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKET_BOUNDS_SECONDS) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        """The number of durations."""
        return sum(self.buckets)

    def add(self, seconds: float) -> None:
        """Add one duration."""
        self.buckets[bisect_left(BUCKET_BOUNDS_SECONDS, seconds)] += 1
        self.total += seconds

    def join(self, other: Durations) -> None:
        """Add all durations of another histogram."""
        self.buckets = [mine + theirs for mine, theirs in zip(self.buckets, other.buckets, strict=True)]
        self.total += other.total


class InstrumentedStore:
    """A wrapper around a :class:`ConversationStore` that measures deliveries and, with OpenTelemetry, traces them.

    :ivar store: the wrapped store.
    :ivar deliveries: durations by outcome: ``ok``, the class of a fault, ``given_up`` (the deadline passed) or
        ``error``.
    :ivar progress_at: when the last delivery of an origin began or ended, by the monotonic clock.
    """

    def __init__(
        self,
        store: ConversationStore,
        *,
        spans: Spans | None = None,
        monotonic: Callable[[], float] = time.monotonic,
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
            metadata = ((lane.conversation_id, one.event.metadata) for lane in batch for one in lane.deliveries)
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

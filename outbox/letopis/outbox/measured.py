"""A history store that measures its deliveries: how long they take, what comes of them, and when the last one moved."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID

from letopis.outbox.tracing import Spans
from letopis.store.faults import StoreFault
from letopis.store.history import ConversationStore
from letopis.store.plan import ApplyResult, LaneBatch, Origin

BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets, in seconds."""


class Durations:
    """How many deliveries took how long."""

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        """Deliveries by bucket, not cumulated; the last bucket has no bound."""
        self.total = 0.0

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.buckets)

    def add(self, seconds: float) -> None:
        """Count one."""
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def join(self, other: Durations) -> None:
        """Add those of another."""
        self.buckets = [mine + theirs for mine, theirs in zip(self.buckets, other.buckets, strict=True)]
        self.total += other.total


class MeasuredStore(ConversationStore):
    """A :class:`ConversationStore` whose deliveries are measured and, with OpenTelemetry, spanned.

    :ivar deliveries: by outcome: ``ok``, the class of a fault, ``given_up`` (the deadline came first) or ``error``.
    :ivar moved: when the last delivery of an origin began or ended, by the monotonic clock.
    """

    def __init__(
        self,
        url: Any,
        *,
        spans: Spans | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        super().__init__(url, **options)
        self._spans = spans or Spans()
        self._monotonic = monotonic
        self.deliveries: dict[str, Durations] = {}
        self.moved: dict[UUID, float] = {}

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        """Apply, as :meth:`ConversationStore.apply` does, and note how it went."""
        started = self.moved[origin.origin_id] = self._monotonic()
        outcome = "error"
        events = sum(len(lane.deliveries) for lane in batch)
        try:
            stored = (delivery.event.metadata for lane in batch for delivery in lane.deliveries)
            with self._spans.delivery(events=events, conversations=len(batch), metadata=stored) as failed:
                try:
                    result = await super().apply(origin, batch)
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
            now = self.moved[origin.origin_id] = self._monotonic()
            self.deliveries.setdefault(outcome, Durations()).add(now - started)
        return result

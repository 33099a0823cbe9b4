"""Read the data of the overview, once for all concurrent viewers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from letopis.console.insight import Activity, Insight
from letopis.outbox.operations.status import Status

MINUTES: Final = 60
MAX_AGE_SECONDS: Final = 1.0
"""Age up to which a reading is shared with other viewers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The data of the overview.

    :ivar stale_since: since when the history store has not answered; ``None`` while it does.
    """

    status: Status
    activity: Activity
    stale_since: datetime | None = None


class Pulse:
    """Reads status and throughput, at most once a second for any number of viewers.

    While the history store is unavailable, its last known figures are shown, with their age.
    """

    def __init__(
        self,
        insight: Insight,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._insight = insight
        self._monotonic = monotonic
        self._now = now
        self._lock = asyncio.Lock()
        self._reading: Reading | None = None
        self._read_at = float("-inf")
        self._saved: dict[datetime, int] = {}
        self._seen_at: datetime | None = None

    async def read(self) -> Reading:
        """Return a reading at most a second old.

        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        async with self._lock:
            if self._reading is None or self._monotonic() - self._read_at >= MAX_AGE_SECONDS:
                self._reading = await self._read()
                self._read_at = self._monotonic()
            return self._reading

    async def _read(self) -> Reading:
        now = self._now()
        edges = minute_edges(now)
        status, activity = await asyncio.gather(self._insight.history.status(), self._insight.activity(edges))
        if activity.saved is not None:
            self._saved = dict(zip(edges, activity.saved, strict=False))
            self._seen_at = now
            return Reading(status=status, activity=activity)
        if self._seen_at is None:
            return Reading(status=status, activity=activity, stale_since=None)
        kept = tuple(self._saved.get(edge, 0) for edge in edges[:-1])
        shown = Activity(edges=activity.edges, appended=activity.appended, saved=kept)
        return Reading(status=status, activity=shown, stale_since=self._seen_at)


def minute_edges(now: datetime) -> list[datetime]:
    """Return the boundaries of the last 60 clock minutes, the current one included."""
    last = now.replace(second=0, microsecond=0) + timedelta(minutes=1)
    return [last - timedelta(minutes=MINUTES - step) for step in range(MINUTES + 1)]

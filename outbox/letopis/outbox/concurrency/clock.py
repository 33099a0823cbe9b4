"""Measure waits that neither a stepped wall clock nor a suspended machine can prolong."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from letopis.store.model.events import to_microseconds, utc_now

MICROSECONDS_PER_SECOND = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """A moment in both clocks, reached once either has passed it: one may be set, the other stops in sleep."""

    monotonic: float
    wall_us: int
    span: float

    def remaining(self, clock: Clock) -> float:
        """Return the seconds left, between 0 and ``span``."""
        by_wall = (self.wall_us - clock.now_us()) / MICROSECONDS_PER_SECOND
        return max(0.0, min(self.monotonic - clock.monotonic(), by_wall, self.span))


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The machine's wall and monotonic clocks, injected so that tests can set them."""

    now: Callable[[], datetime] = utc_now
    monotonic: Callable[[], float] = time.monotonic

    def now_us(self) -> int:
        """Return UTC microseconds since 1970."""
        return to_microseconds(self.now())

    def after(self, seconds: float) -> Deadline:
        """Return the deadline ``seconds`` from now."""
        return Deadline(
            monotonic=self.monotonic() + seconds,
            wall_us=self.now_us() + round(seconds * MICROSECONDS_PER_SECOND),
            span=seconds,
        )


class RetryTimers:
    """When lanes are due: by both clocks if the timer was set here, otherwise by the stored time."""

    def __init__(self, clock: Clock, *, longest: float) -> None:
        self._clock = clock
        self.longest = longest
        self._deadlines: dict[str, Deadline] = {}

    def set(self, conversation_id: str, seconds: float) -> int:
        """Start a lane's timer; return the time to store, in UTC microseconds."""
        deadline = self._clock.after(seconds)
        self._deadlines[conversation_id] = deadline
        return deadline.wall_us

    def forget(self, conversation_id: str) -> None:
        self._deadlines.pop(conversation_id, None)

    def remaining(self, conversation_id: str, due_at_us: int) -> float:
        """Return the seconds until a lane is due; 0 if it is. A stored time not set here counts as it is."""
        deadline = self._deadlines.get(conversation_id)
        if deadline is not None and deadline.wall_us == due_at_us:
            return deadline.remaining(self._clock)
        # Further away than any wait can be, it comes from a clock that was set.
        left = due_at_us - self._clock.now_us()
        return left / MICROSECONDS_PER_SECOND if 0 < left <= self.longest * MICROSECONDS_PER_SECOND else 0.0

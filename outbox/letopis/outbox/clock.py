"""Clocks: waits that neither a stepped wall clock nor a suspended machine can stretch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from letopis.store.events import to_microseconds, utc_now

SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """A moment in both clocks: it has come as soon as *either* clock says so.

    The wall clock may be set, the monotonic one stands still while the machine sleeps; each covers for the other.
    """

    monotonic: float
    wall_us: int
    span: float

    def remaining(self, clock: Clock) -> float:
        """Return the seconds left, never more than were asked for and never less than 0."""
        by_wall = (self.wall_us - clock.now_us()) / SECOND_US
        return max(0.0, min(self.monotonic - clock.monotonic(), by_wall, self.span))


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The two clocks of the machine, injected so that tests can set them.

    :ivar now: the wall clock, for what is stored and shown.
    :ivar monotonic: seconds from an arbitrary start, for waits.
    """

    now: Callable[[], datetime] = utc_now
    monotonic: Callable[[], float] = time.monotonic

    def now_us(self) -> int:
        """Return UTC microseconds since 1970."""
        return to_microseconds(self.now())

    def after(self, seconds: float) -> Deadline:
        """Return the deadline ``seconds`` from now."""
        return Deadline(
            monotonic=self.monotonic() + seconds, wall_us=self.now_us() + round(seconds * SECOND_US), span=seconds
        )


class Waits:
    """Until when lanes wait: by both clocks where this process said so, by the stored moment alone otherwise.

    The stored moment is a hint. Where another process wrote it, or this one before a restart, a lane waits until then,
    but a moment further away than any wait can be comes from a clock that was set: then the lane is due.

    :ivar longest: seconds that no wait exceeds.
    """

    def __init__(self, clock: Clock, *, longest: float) -> None:
        self._clock = clock
        self.longest = longest
        self._set: dict[str, Deadline] = {}

    def set(self, conversation_id: str, seconds: float) -> int:
        """Have a lane wait; return the moment to store, in UTC microseconds."""
        deadline = self._clock.after(seconds)
        self._set[conversation_id] = deadline
        return deadline.wall_us

    def forget(self, conversation_id: str) -> None:
        """Let a lane wait no longer."""
        self._set.pop(conversation_id, None)

    def remaining(self, conversation_id: str, due_at_us: int) -> float:
        """Return the seconds that a lane still waits, 0 when it is due.

        :param due_at_us: the moment stored with the lane. Where it is not the one set here, it was changed meanwhile,
            for example by a person who asked for another try, and counts.
        """
        deadline = self._set.get(conversation_id)
        if deadline is not None and deadline.wall_us == due_at_us:
            return deadline.remaining(self._clock)
        left = due_at_us - self._clock.now_us()
        return left / SECOND_US if 0 < left <= self.longest * SECOND_US else 0.0

"""Breaker: whether the history store is to be asked at all; pure, and no event is charged for the store's faults."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from letopis.outbox.backoff import PROBES, RetryPolicy
from letopis.outbox.clock import Clock, Deadline
from letopis.store.faults import StoreFault

RAMP_START: Final = 8
"""Events in the first batch after an outage; each batch that gets through doubles it."""

FIRST_WAIT: Final = 1.0
"""Seconds that a probe may be waited for beyond the time that the store has been away."""

YOUNG: Final = 30.0
YOUNG_WAIT: Final = 5.0
"""Seconds that a probe is waited for at most while an outage is younger than ``YOUNG``.

What lasts less than these 30 seconds alerts nobody: its end must not be noticed so late that it seems to have lasted.
"""


class BreakerState(StrEnum):
    """Whether deliveries go on."""

    CLOSED = "closed"
    """They do."""
    OPEN = "open"
    """The store failed; nothing is sent until the next probe."""
    HALF_OPEN = "half_open"
    """A probe is under way: one small delivery that decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What the store answered when the breaker opened, without driver text.

    :ivar since_us: when the outage began, UTC microseconds; later probes that fail do not move it.
    """

    fault_class: str
    code: str
    reason: str
    since_us: int

    def __str__(self) -> str:
        return f"{self.reason} [{self.fault_class} {self.code}]"


class Breaker:
    """Stands between the relay and one history store.

    It opens on a fault of the store, lets one probe through after a wait that grows with full jitter up to a cap and
    is never longer than the outage so far and a second, nor than 5 seconds in its first 30, and closes when a probe
    gets through. It never gives up, and it charges no attempt to any event. After an outage the batches start small and
    double, so that a store that just came back is not knocked over.

    A delivery may itself be what cuts the connection, so a probe shall use another conversation than those in
    :attr:`suspects`, where any other is owed. Several relays of one process that deliver to the same store share one.
    """

    def __init__(self, *, clock: Clock, uniform: Callable[[float, float], float], probes: RetryPolicy = PROBES) -> None:
        self._clock = clock
        self._uniform = uniform
        self._probes = probes
        self._failures = 0
        self._next: Deadline | None = None
        self._away_at = clock.monotonic()
        self._ramp: int | None = None
        self.state = BreakerState.CLOSED
        self.since_us = clock.now_us()
        """When the state last went between closed and not closed, UTC microseconds."""
        self.trouble: Trouble | None = None
        self.suspects: frozenset[str] = frozenset()
        self.trips = 0
        """How often it went from closed to open."""

    @property
    def closed(self) -> bool:
        """Whether deliveries go on at full freedom."""
        return self.state is BreakerState.CLOSED

    def remaining(self) -> float:
        """Return the seconds until the next probe, 0 when it is due or the breaker is closed."""
        return 0.0 if self._next is None else self._next.remaining(self._clock)

    @property
    def reason(self) -> str | None:
        """Why it is not closed: fault class and code, in two words; ``None`` while it is."""
        return None if self.trouble is None else f"{self.trouble.fault_class} {self.trouble.code}"

    def probe(self) -> bool:
        """Begin a probe, if it is time and nobody else makes one; what is delivered next decides."""
        if self.state is not BreakerState.OPEN or self.remaining() > 0:
            return False
        self.state = BreakerState.HALF_OPEN
        return True

    def trip(self, fault: StoreFault, conversation_ids: Collection[str]) -> None:
        """Open, or stay open after a probe that failed.

        :param conversation_ids: what was being delivered, so may have been the cause.
        """
        if self.state is BreakerState.OPEN:
            return  # what was under way when it opened, in another relay, tells nothing new
        if self.closed:
            self.trips += 1
            self.since_us = self._clock.now_us()
            self._away_at = self._clock.monotonic()
            self.suspects = frozenset(conversation_ids)
        self.trouble = Trouble(
            fault_class=str(fault.fault_class), code=fault.code, reason=fault.reason, since_us=self.since_us
        )
        self.state = BreakerState.OPEN
        self._ramp = None
        self._failures += 1
        # Chance may have made the first waits short, and the next one many times as long as all of them together: then
        # an outage of seconds would hold a relay up for a minute.
        away = self._clock.monotonic() - self._away_at
        longest = YOUNG_WAIT if FIRST_WAIT + away > YOUNG_WAIT and away < YOUNG else FIRST_WAIT + away
        self._next = self._clock.after(min(self._probes.delay(self._failures, uniform=self._uniform), longest))

    def hold(self) -> None:
        """End a probe that came to nothing, neither way; the next may be made at once."""
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.OPEN

    def succeed(self) -> float | None:
        """Note that the store took a delivery; return how many seconds it had been away, if it had."""
        if self._ramp is not None:
            self._ramp *= 2
        if self.closed:
            return None
        away = max(0.0, (self._clock.now_us() - self.since_us) / 1_000_000)
        self.state = BreakerState.CLOSED
        self.since_us = self._clock.now_us()
        self.trouble = None
        self.suspects = frozenset()
        self._failures = 0
        self._next = None
        self._ramp = RAMP_START
        return away

    def limit(self, most: int) -> int:
        """Return how many events the next batch may hold, out of ``most``."""
        if not self.closed:
            return 1
        if self._ramp is not None and self._ramp >= most:
            self._ramp = None
        return most if self._ramp is None else self._ramp

    @property
    def ramping(self) -> bool:
        """Whether batches are still kept small after an outage."""
        return self._ramp is not None

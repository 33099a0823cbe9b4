"""Open on faults of a history store, probe it until it answers, and close again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from letopis.outbox.concurrency.clock import Clock, Deadline
from letopis.outbox.retry.fault_attribution import STORE_FAULT_AFTER_CONVERSATIONS
from letopis.outbox.retry.policy import PROBE_POLICY, RetryPolicy
from letopis.store.database.faults import FaultClass, StoreFault

RAMP_START_EVENTS: Final = 8  # events in the first batch after an outage; each delivered batch doubles it
FIRST_PROBE_WAIT_SECONDS: Final = 1.0  # what a wait for a probe may exceed the length of the outage by
RECENT_OUTAGE_SECONDS: Final = 30.0
# Outages shorter than that raise no alert, so their end must not be noticed so late that they seem longer.
RECENT_OUTAGE_PROBE_WAIT_SECONDS: Final = 5.0
UNCERTAIN_PROBE_WAIT_SECONDS: Final = 10.0
"""Longest wait for a probe while few conversations have failed, so that the fault may be theirs, or while the store
answers and refuses: the next conversation may be the one that succeeds."""

REFUSAL_CLASSES: Final = frozenset({FaultClass.POISON, FaultClass.UNCLASSIFIED, FaultClass.CONFLICT})
"""Classes of faults with which the store answers: the breaker opens on them when no conversation succeeds."""
OPERATOR_CLASSES: Final = frozenset({FaultClass.MISCONFIGURED, FaultClass.WRONG_STORE, FaultClass.POISON})
"""Classes of faults that only an operator can fix."""


class BreakerState(StrEnum):
    """Whether deliveries are allowed."""

    CLOSED = "closed"  # they are
    OPEN = "open"  # the store failed; nothing is sent until the next probe
    HALF_OPEN = "half_open"  # a probe is in progress: one small delivery decides


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageReason:
    """What the store answered when the breaker opened, without driver text."""

    fault_class: str
    code: str
    reason: str
    since_us: int  # when the outage began; later failed probes do not move it

    def __str__(self) -> str:
        return f"{self.reason} [{self.fault_class} {self.code}]"


class Breaker:
    """Decides whether the relay may deliver to one history store.

    It opens on a fault of the store and admits one probe after each wait. Waits grow with full jitter up to a cap, and
    never exceed the outage so far plus a second, 5 seconds in the first 30, or 10 seconds while the conversations that
    failed may be at fault. It closes when a probe succeeds, never gives up, and charges no attempt to any event. After
    an outage batches start small and double, so that a store that just came back is not overloaded.

    A delivery may itself cut the connection, so probes take one conversation after the other, those in
    :attr:`suspects` last: see :meth:`probe_exclusions`. The relays of one process that deliver to the same store share
    one breaker.
    """

    def __init__(
        self, *, clock: Clock, uniform: Callable[[float, float], float], probes: RetryPolicy = PROBE_POLICY
    ) -> None:
        self._clock = clock
        self._uniform = uniform
        self._probes = probes
        self._failures = 0
        self._next: Deadline | None = None
        self._opened_at = clock.monotonic()
        self._ramp: int | None = None
        self.state = BreakerState.CLOSED
        self.closed = True
        """Whether deliveries are allowed."""
        self.since_us = clock.now_us()
        """When the state last changed between closed and not closed, UTC microseconds."""
        self.outage: OutageReason | None = None
        self.suspects: frozenset[str] = frozenset()
        """The conversations of the delivery that opened it."""
        self._probed: frozenset[str] = frozenset()
        self.trips = 0
        """How often it went from closed to open."""

    @property
    def readable(self) -> bool:
        """Whether the store answers, so that it can be read even if it accepts no delivery."""
        return self.outage is None or self.outage.fault_class in REFUSAL_CLASSES

    def remaining(self) -> float:
        """Return the seconds until the next probe, 0 when it is due or the breaker is closed."""
        return 0.0 if self._next is None else self._next.remaining(self._clock)

    @property
    def reason(self) -> str | None:
        """Fault class and code of the outage; ``None`` while closed."""
        return None if self.outage is None else f"{self.outage.fault_class} {self.outage.code}"

    @property
    def next_attempt_us(self) -> int | None:
        """When the next probe is due, in UTC microseconds; ``None`` while closed."""
        return None if self.closed else self._clock.now_us() + int(self.remaining() * 1_000_000)

    def begin_probe(self) -> bool:
        """Begin a probe if one is due and none is in progress; the next delivery decides."""
        if self.state is not BreakerState.OPEN or self.remaining() > 0:
            return False
        self.state = BreakerState.HALF_OPEN
        return True

    def probe_exclusions(self) -> Iterator[frozenset[str]]:
        """Yield the conversations that a probe leaves out; take the next set where no other conversation is due."""
        yield self.suspects | self._probed
        yield self._probed
        self._probed = frozenset()
        yield self.suspects
        yield frozenset()

    def trip(self, fault: StoreFault, conversation_ids: Collection[str]) -> None:
        """Open, or stay open after a failed probe."""
        if self.state is BreakerState.OPEN:
            return  # what another relay had in flight when it opened reveals nothing new
        if self.closed:
            self.trips += 1
            self.since_us = self._clock.now_us()
            self._opened_at = self._clock.monotonic()
            self.suspects = frozenset(conversation_ids)
        else:
            self._probed |= frozenset(conversation_ids)
        self.outage = OutageReason(
            fault_class=str(fault.fault_class), code=fault.code, reason=fault.reason, since_us=self.since_us
        )
        self.state, self.closed = BreakerState.OPEN, False
        self._ramp = None
        self._failures += 1
        delay = self._probes.delay(self._failures, uniform=self._uniform)
        self._next = self._clock.after(min(delay, self._longest_wait(fault)))

    def _longest_wait(self, fault: StoreFault) -> float:
        # Jitter may have made the first waits short and the next one many times their sum: without a bound an outage
        # of seconds could keep a relay waiting for a minute.
        outage = self._clock.monotonic() - self._opened_at
        longest = FIRST_PROBE_WAIT_SECONDS + outage
        if outage < RECENT_OUTAGE_SECONDS:
            longest = min(longest, RECENT_OUTAGE_PROBE_WAIT_SECONDS)
        few = 0 < len(self.suspects | self._probed) < STORE_FAULT_AFTER_CONVERSATIONS
        if few or fault.fault_class in REFUSAL_CLASSES:
            longest = min(longest, UNCERTAIN_PROBE_WAIT_SECONDS)
        return longest

    def end_probe(self) -> None:
        """End a probe that decided nothing; the next one may begin at once."""
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.OPEN

    def record_success(self) -> float | None:
        """Record that the store accepted a delivery; return the length of the outage that this ends, in seconds."""
        if self._ramp is not None:
            self._ramp *= 2
        if self.closed:
            return None
        outage = max(0.0, (self._clock.now_us() - self.since_us) / 1_000_000)
        self.state, self.closed = BreakerState.CLOSED, True
        self.since_us = self._clock.now_us()
        self.outage = None
        self.suspects = self._probed = frozenset()
        self._failures = 0
        self._next = None
        self._ramp = RAMP_START_EVENTS
        return outage

    def batch_limit(self, largest: int) -> int:
        """Return how many events the next batch may hold, at most ``largest``."""
        if not self.closed:
            return 1
        if self._ramp is not None and self._ramp >= largest:
            self._ramp = None
        return largest if self._ramp is None else self._ramp

    @property
    def ramping(self) -> bool:
        """Whether batches are still kept small after an outage."""
        return self._ramp is not None

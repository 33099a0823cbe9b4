"""Hold what comes of a delivery: its outcome, the waits that follow from it, the totals, and what is logged of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from letopis.outbox.concurrency.clock import Clock, RetryTimers
from letopis.outbox.event_log.acknowledge import Rewound
from letopis.outbox.event_log.lanes import DueBatches, Lane
from letopis.outbox.retry.circuit_breaker import OPERATOR_CLASSES, Breaker
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.database.faults import POOL_TIMEOUT_CODE, FaultClass, StoreFault
from letopis.store.model.codec import EncodedEvent, decode
from letopis.store.rules.preconditions import Conflict

logger: Final = logging.getLogger("letopis.outbox.relay")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One event that the history store refused; the earlier events of its conversation were accepted."""

    conversation_id: str
    sequence: int
    event: EncodedEvent
    fault_class: str
    fault: str  # a sentence of Letopis with class and code, without driver text
    charged: bool = True  # as an attempt of the event; not where the event may not be at fault
    final: bool = False  # retrying is pointless


@dataclass(slots=True)
class SendResult:
    """The outcome of sending one batch, by conversation."""

    delivered: dict[str, int] = field(default_factory=dict)  # the last sequence that the store holds for certain
    superseded: dict[str, dict[int, Conflict]] = field(default_factory=dict)  # found in delivered events, by sequence
    gaps: dict[str, int] = field(default_factory=dict)  # how far the store holds a lane that it lacks events of
    refusals: list[Refusal] = field(default_factory=list)
    undecided: list[tuple[Refusal, StoreFault]] = field(default_factory=list)  # not charged to event or store yet
    fault: StoreFault | None = None  # of the store as a whole; what had not been sent by then was not tried
    suspects: tuple[str, ...] = ()  # that met the fault
    cleared: tuple[str, ...] = ()  # refused, but not for what they hold: they are charged with nothing
    faults: Counter[str] = field(default_factory=Counter)  # by class, including faults that a retry overcame
    inserted: int = 0
    duplicates: int = 0

    @property
    def answered(self) -> bool:
        """Whether the store works: it accepted something, or refused something for what it is."""
        return bool(
            self.delivered
            or self.gaps
            or any(refusal.final or refusal.fault_class == FaultClass.POISON for refusal in self.refusals)
        )

    @property
    def any_succeeded(self) -> bool:
        """Whether a whole conversation was accepted; the good events before a refused one do not count."""
        return not self.delivered.keys() <= {refusal.conversation_id for refusal, _ in self.undecided}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The result of one step of the dispatcher."""

    delivered: int = 0
    more: bool = False  # another step is worth taking at once
    wait: float | None = None  # seconds until a waiting lane, or the store, is due again
    fenced: bool = False

    def and_then(self, other: StepResult) -> StepResult:
        """Return the result of this step and the next one together."""
        waits = [wait for wait in (self.wait, other.wait) if wait is not None]
        return StepResult(
            delivered=self.delivered + other.delivered,
            more=self.more and other.more,
            wait=min(waits, default=None),
            fenced=self.fenced or other.fenced,
        )


@dataclass(slots=True)
class RelayStats:
    """What a relay has done since it was made.

    :ivar delivered: events that the history store accepted and that were acknowledged here.
    :ivar duplicates: events that the store already held: sent again after a lost acknowledgement. No cause for alarm.
    :ivar faults: by fault class, including faults that a retry overcame.
    :ivar blocked: times that a conversation was blocked.
    :ivar rewound: events sent again because the store had lost them.
    :ivar acks_fenced: results not written back because another relay had taken over the lease.
    :ivar acks_lost: results not written back because the outbox file could not be written.
    :ivar trimmed: conversations that retention took content of.
    :ivar checkpoints: checkpoints that retention deleted.
    :ivar loop_errors: times that the loop continued after an unexpected error.
    """

    delivered: int = 0
    duplicates: int = 0
    batches: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    blocked: int = 0
    rewound: int = 0
    acks_fenced: int = 0
    acks_lost: int = 0
    trimmed: int = 0
    checkpoints: int = 0
    loop_errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneFailure:
    """What to write back about a lane whose next event was refused."""

    lane: Lane
    attempts: int
    fault_class: str
    fault: str
    event: EncodedEvent | None = None
    due_at_us: int | None = None  # when the event is retried; None if the lane is blocked
    delay: float = 0.0

    @property
    def blocks(self) -> bool:
        return self.due_at_us is None


class LaneRetries:
    """Applies a retry policy to refused events."""

    def __init__(self, policy: RetryPolicy, *, clock: Clock, uniform: Callable[[float, float], float]) -> None:
        self._policy = policy
        self._uniform = uniform
        self._uncharged: Counter[str] = Counter()
        self.timers = RetryTimers(clock, longest=policy.cap)

    @property
    def policy(self) -> RetryPolicy:
        """How refused events are retried; may be set at any time."""
        return self._policy

    @policy.setter
    def policy(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self.timers.longest = policy.cap

    def refused(self, lane: Lane, refusal: Refusal) -> LaneFailure:
        """Schedule the retry of a refused event, or have its lane blocked if the policy allows no more."""
        if refusal.sequence - 1 != lane.delivered:
            lane = replace(lane, delivered=refusal.sequence - 1, attempts=0)
        attempts = lane.attempts + (refusal.charged or refusal.final)
        failure = LaneFailure(
            lane=lane, attempts=attempts, fault_class=refusal.fault_class, fault=refusal.fault, event=refusal.event
        )
        if refusal.final or attempts > self._policy.attempts:
            return failure
        self._uncharged[lane.conversation_id] += not refusal.charged
        retry = attempts if refusal.charged else self._uncharged[lane.conversation_id]
        delay = self._policy.delay(retry, uniform=self._uniform)
        return replace(failure, due_at_us=self.timers.set(lane.conversation_id, delay), delay=delay)

    def forget(self, conversation_id: str) -> None:
        """Forget the wait of a lane that was delivered, cleared or blocked."""
        self._uncharged.pop(conversation_id, None)
        self.timers.forget(conversation_id)


def damaged(lane: Lane) -> LaneFailure:
    """Return the failure of a lane whose next event is missing from the outbox file."""
    return LaneFailure(
        lane=lane,
        attempts=lane.attempts,
        fault_class="damaged",
        fault=f"event {lane.delivered + 1} is pending, but the outbox file does not hold it: the file was damaged",
    )


class Breakers:
    """The two breakers of one relay: one that all outboxes of the store share, and its own for a wrong store."""

    def __init__(
        self,
        shared: Breaker,
        *,
        clock: Clock,
        uniform: Callable[[float, float], float],
        wrong_store: Breaker | None = None,
    ) -> None:
        self._shared = shared
        self._wrong_store = wrong_store or Breaker(clock=clock, uniform=uniform)

    @property
    def current(self) -> Breaker:
        """The breaker that decides: the shared one, unless the store is the wrong one."""
        return self._shared if self._wrong_store.closed else self._wrong_store

    @property
    def wrong_store(self) -> Breaker:
        return self._wrong_store

    @property
    def wrong_store_reason(self) -> str | None:
        """Why nothing is delivered to this store; ``None`` if it is not the wrong one."""
        return None if self._wrong_store.closed else str(self._wrong_store.outage)

    def release_wrong_store(self) -> None:
        """Forget that this is the wrong store: another relay works on the outbox and reports about its own."""
        self._wrong_store.record_success()

    def record_success(self) -> bool:
        """Record that the store accepted a delivery; return True if that ends an outage."""
        shared, wrong_store = self._shared.record_success(), self._wrong_store.record_success()
        outage = wrong_store if shared is None else shared
        if outage is None:
            return False
        logger.info("the history store is back after %.1f s", outage, extra=log_context())
        return True

    def trip(self, fault: StoreFault, conversation_ids: Collection[str]) -> None:
        """Open the breaker that a fault concerns, and log it; none if this process has no connection free."""
        if fault.code == POOL_TIMEOUT_CODE:
            logger.info("a delivery waits for a connection of this process: %s", fault, extra=log_context())
            return
        before = None if self.current.outage is None else self.current.outage.code
        wrong_store = fault.fault_class is FaultClass.WRONG_STORE
        if not wrong_store:
            self._shared.trip(fault, conversation_ids)
        if wrong_store or not self._wrong_store.closed:
            self._wrong_store.trip(fault, conversation_ids)
        new = fault.fault_class in OPERATOR_CLASSES and before != fault.code
        logger.log(
            logging.ERROR if new else logging.WARNING,
            "the history store cannot be delivered to, next try in %.1f s: %s",
            self.current.remaining(),
            fault,
            extra=log_context(),
        )


def log_context(lane: Lane | None = None, event: EncodedEvent | None = None) -> dict[str, Any]:
    """Return the fields that every log record of the relay has; ``None`` where there is no lane or event."""
    message_id = None
    if event is not None:
        try:
            message_id = decode(event.data).get("message_id")
        except ValueError:
            message_id = None  # damaged data is no reason to report less
    return {
        "conversation_id": None if lane is None else lane.conversation_id,
        "owner_id": None if lane is None else lane.owner_id,
        "message_id": message_id,
        "event_id": None if event is None else str(event.event_id),
    }


def log_delivery(due: DueBatches, sent: SendResult, failures: Sequence[LaneFailure]) -> None:
    """Log what a delivery overcame: passing faults, refused conversations that are delivered, and conflicts."""
    if sent.faults and sent.delivered and not (failures or sent.fault):
        passed = ", ".join(f"{count} {fault_class}" for fault_class, count in sent.faults.items())
        logger.info("delivered after faults that passed: %s", passed, extra=log_context())
    failed = [failure.lane.conversation_id for failure in failures] if failures else ()
    for conversation_id in sent.delivered:
        lane = due.lanes[conversation_id]
        if lane.state == "retrying" and conversation_id not in failed:
            logger.info(
                "conversation %r is delivered again after %d refusals",
                conversation_id,
                lane.attempts,
                extra=log_context(lane),
            )
    for conversation_id, conflicts in sent.superseded.items():
        logger.info(
            "%d events of conversation %r came after another writer's turn: kept, and put aside",
            len(conflicts),
            conversation_id,
            extra=log_context(due.lanes[conversation_id]),
        )


def log_lane_failure(failure: LaneFailure, *, attempts: int) -> None:
    """Log that a lane waits for a retry, or is blocked."""
    lane = failure.lane
    if failure.blocks:
        logger.error(
            "conversation %r is blocked at event %d and waits for an operator; nothing was dropped: %s",
            lane.conversation_id,
            lane.delivered + 1,
            failure.fault,
            extra=log_context(lane, failure.event),
        )
        return
    logger.warning(
        "conversation %r: event %d was refused (%d of %d retries used up), next try in %.1f s: %s",
        lane.conversation_id,
        lane.delivered + 1,
        max(0, failure.attempts - 1),
        attempts,
        failure.delay,
        failure.fault,
        extra=log_context(lane, failure.event),
    )


def log_rewind(rewound: Mapping[str, Rewound]) -> None:
    """Log what is sent again and what cannot be, in one record each: a store that was replaced has lost everything."""
    again = {name: lane.events for name, lane in rewound.items() if lane.events and not lane.lost}
    lost = {name: lane.lost for name, lane in rewound.items() if lane.lost}
    if again:
        logger.warning(
            "the history store lost %d events that it had, of %d conversations; they are sent again",
            sum(again.values()),
            len(again),
            extra=log_context() | {"conversation_id": next(iter(again)) if len(again) == 1 else None},
        )
    if lost:
        logger.error(
            "%d conversations are blocked: the history store lost %d of their events, which are pruned here too",
            len(lost),
            sum(lost.values()),
            extra=log_context() | {"conversation_id": next(iter(lost)) if len(lost) == 1 else None},
        )

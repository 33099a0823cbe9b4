"""Decide when the refused event of a lane is retried, and when the lane is blocked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from letopis.outbox.concurrency.clock import Clock, RetryTimers
from letopis.outbox.event_log.lanes import Lane
from letopis.outbox.relay.send_result import Refusal
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.model.codec import EncodedEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneFailure:
    """What to write back about a lane whose next event was refused.

    :ivar due_at_us: when the event is retried, UTC microseconds; ``None`` if the lane is blocked.
    :ivar delay: seconds until then.
    """

    lane: Lane
    attempts: int
    fault_class: str
    fault: str
    event: EncodedEvent | None = None
    due_at_us: int | None = None
    delay: float = 0.0

    @property
    def blocks(self) -> bool:
        """Whether the lane waits for an operator."""
        return self.due_at_us is None


class LaneRetries:
    """Applies a retry policy to refused events.

    :ivar timers: until when lanes wait.
    """

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
        moved = refusal.sequence - 1 != lane.delivered
        attempts = (0 if moved else lane.attempts) + (refusal.charged or refusal.final)
        failure = LaneFailure(
            lane=replace(lane, delivered=refusal.sequence - 1),
            attempts=attempts,
            fault_class=refusal.fault_class,
            fault=refusal.fault,
            event=refusal.event,
        )
        if refusal.final or attempts > self._policy.attempts:
            return failure
        if not refusal.charged:
            self._uncharged[lane.conversation_id] += 1
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

"""Hold what a relay did: the result of one step, and the totals since it was made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The result of one step of the dispatcher.

    :ivar delivered: events that the history store accepted and that were acknowledged.
    :ivar more: whether another step is worth taking at once.
    :ivar wait: seconds until a waiting lane, or the store, is due again; ``None`` if there is nothing to wait for.
    :ivar fenced: whether another relay has taken over.
    """

    delivered: int = 0
    more: bool = False
    wait: float | None = None
    fenced: bool = False

    def and_then(self, other: StepResult) -> StepResult:
        """Return the result of this step and the next one together."""
        waits = [one for one in (self.wait, other.wait) if one is not None]
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
    loop_errors: int = 0

"""Compute waits between retries: exponential, capped, with jitter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from letopis.store.errors import InvalidInput
from letopis.store.model.identifiers import check_number

MIN_DELAY_SHARE: Final = 0.1
"""Share of ``base`` that a wait has at least under full jitter, so that chance never makes a hot loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, and after which waits, an event that the history store refuses is retried.

    Before retry 1, 2, 3 ... the relay waits ``base``, ``base * factor``, ``base * factor**2`` ... seconds, at most
    ``cap``. With ``jitter="full"`` each wait is drawn evenly from almost nothing up to that bound, so that many relays
    do not retry at once; with ``"none"`` it is exactly the bound.

    Attempts are charged to an *event* that is refused, never to a history store that is unavailable: the relay waits
    for it without limit, whatever is set here.

    :ivar base: seconds.
    :ivar cap: seconds.
    :ivar attempts: retries after the first refusal. ``RetryPolicy(base=1, factor=2, jitter="none", attempts=3)`` tries
        four times in all, with waits of 1, 2 and 4 s in between, and then blocks the conversation for an operator.
        With 0 the first refusal blocks.
    """

    base: float = 1.0
    factor: float = 2.0
    cap: float = 60.0
    jitter: Literal["full", "none"] = "full"
    attempts: int = 3

    def __post_init__(self) -> None:
        for name in ("base", "factor", "cap"):
            check_number(getattr(self, name), name)
        check_number(self.attempts, "attempts", whole=True)
        if not 0 < self.base < math.inf:
            raise InvalidInput("base", "must be more than 0 seconds")
        if not 1 <= self.factor < math.inf:
            raise InvalidInput("factor", "must be at least 1")
        if not self.base <= self.cap < math.inf:
            raise InvalidInput("cap", "must be at least base")
        if self.jitter not in ("full", "none"):
            raise InvalidInput("jitter", "must be 'full' or 'none'")
        if self.attempts < 0:
            raise InvalidInput("attempts", "must not be negative")

    def bound(self, retry: int) -> float:
        """Return the longest wait before retry number ``retry``, counted from 1, in seconds."""
        steps = max(0, retry - 1)
        # Beyond the cap the power may be too large for a float; its logarithm never is.
        if steps * math.log(self.factor) > math.log(self.cap / self.base):
            return self.cap
        return min(self.cap, self.base * self.factor**steps)

    def delay(self, retry: int, *, uniform: Callable[[float, float], float]) -> float:
        """Return the wait before retry number ``retry``, counted from 1, in seconds.

        :param uniform: draws evenly between its two arguments, as :func:`random.uniform` does.
        """
        bound = self.bound(retry)
        return bound if self.jitter == "none" else uniform(min(MIN_DELAY_SHARE * self.base, bound), bound)


PROBE_POLICY: Final = RetryPolicy(base=1.0, factor=2.0, cap=60.0, jitter="full")
"""When an unavailable history store is probed: after 1 s, 2 s ... up to 60 s, without end."""

"""Draw how often relays ask an unavailable store, by the circuit breaker's own rules and without waiting.

    python -m tests.campaigns.herd                      # 20,000 outages of three minutes
    python -m tests.campaigns.herd --draws 500 --outage 20

The bound of `tests.campaigns.outage`, which asks a real server, rests on this.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.store.database.faults import FaultClass, StoreFault

BOTS: Final = 8
HERD: Final = 4 * BOTS  # connection attempts in one second that a herd makes and independent relays do not: see `draw`
ATTEMPTS: Final = 2  # connections of one probe: one may have been cut while idle, and is retried
HERDED: Final = 5 * ATTEMPTS  # connections of a relay whose whole pool asks
AT_FIRST: Final = 2.0  # seconds of an outage that are not looked at: all relays meet its beginning at the same moment
_FAULT: Final = StoreFault(fault_class=FaultClass.UNAVAILABLE, code="away", reason="the store is away")
_BEGUN: Final = datetime(2026, 1, 1, tzinfo=UTC)


def peak(moments: Sequence[float]) -> int:
    """Return the most moments within one second."""
    return max((sum(start <= one < start + 1 for one in moments) for start in moments), default=0)


def draw(chance: random.Random, *, outage: float, attempts: int = ATTEMPTS) -> int:
    """Return the most connection attempts that eight relays make in one second of an outage of this many seconds."""
    return attempts * peak([one for _ in range(BOTS) for one in _asked(chance, outage) if one > AT_FIRST])


def _asked(chance: random.Random, outage: float) -> Iterator[float]:
    """Yield the moments at which one relay asks."""
    now = 0.0
    clock = Clock(monotonic=lambda: now, now=lambda: _BEGUN + timedelta(seconds=now))
    breaker = Breaker(clock=clock, uniform=chance.uniform)
    breaker.trip(_FAULT, ())
    while (now := now + breaker.remaining()) < outage:
        if breaker.begin_probe():
            yield now
            breaker.trip(_FAULT, ())
        else:
            now += 0.001  # by the wall clock, which counts whole microseconds, it is not quite time


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--outage", type=float, default=180.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    peaks = Counter(draw(chance, outage=given.outage) for _ in range(given.draws))
    print(f"{given.draws:,} outages of {given.outage:g} s, {BOTS} relays: the most connection attempts in one second")
    for attempts, count in sorted(peaks.items()):
        print(f"{attempts:4} {100 * count / given.draws:6.2f} %")
    print(f"the bound is {HERD}; where whole pools ask: {draw(chance, outage=given.outage, attempts=HERDED)}")
    return int(max(peaks) > HERD)


if __name__ == "__main__":
    raise SystemExit(main())

"""Decide whether what was sampled over time has stopped growing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LEAST: Final = 9  # samples from which on something can be said


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What still counts as flat.

    :ivar share: how much the last third's median may exceed the second third's, as a share of it.
    :ivar more: and how much in any case, in the unit of the samples.
    :ivar most: what no sample may exceed.
    """

    share: float = 0.0
    more: float = 0.0
    most: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found of one series."""

    before: float
    after: float
    most: float
    problem: str


def judge(samples: Sequence[float], limit: Limit) -> Verdict:
    """Compare the last third of a series with the one before; the first is for warming up."""
    third = len(samples) // 3
    if len(samples) < LEAST:
        return Verdict(before=0, after=0, most=max(samples, default=0), problem=f"only {len(samples)} samples")
    before = statistics.median(samples[third:-third])
    after = statistics.median(samples[-third:])
    most = max(samples)
    problem = ""
    if after > before + max(before * limit.share, limit.more):
        problem = f"grew from {before:,.0f} to {after:,.0f}"
    elif limit.most is not None and most > limit.most:
        problem = f"reached {most:,.0f}, more than {limit.most:,.0f}"
    return Verdict(before=before, after=after, most=most, problem=problem)

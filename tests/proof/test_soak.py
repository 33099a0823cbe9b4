"""The judgement of the soak: what has stopped to grow is flat, and what leaks slowly is not."""

from __future__ import annotations

import os

import pytest

from tests.proof.soak.sampling import DESCRIPTORS, LIMITS, RSS, Limit, Samples, judge
from tests.support.platforms import linux_only

WARM = [float(60 + min(number, 40)) for number in range(120)]


@pytest.mark.parametrize(
    ("samples", "limit", "flat"),
    [
        (WARM, Limit(), True),
        ([float(number % 7) for number in range(300)], Limit(), True),
        ([float(number) for number in range(90)], Limit(share=0.05), False),
        ([1_000 + number * 1.0 for number in range(90)], Limit(share=0.05), True),
        ([1_000 + number * 4.0 for number in range(90)], Limit(share=0.05), False),
        ([*WARM, 10_000], Limit(), True),
        ([*WARM, 10_000], Limit(most=9_999), False),
        ([20.0] * 60 + [21.0] * 60, Limit(), False),
        ([20.0] * 60 + [21.0] * 60, Limit(more=1), True),
        ([20.0] * 8, Limit(), False),
        ([], Limit(), False),
    ],
)
def test_what_is_flat(samples: list[float], limit: Limit, flat: bool) -> None:
    assert (judge(samples, limit).problem == "") is flat


@linux_only("descriptors are counted in /proc")
def test_a_descriptor_that_is_kept_is_seen() -> None:
    samples, kept = Samples(), []
    for number in range(30):
        if number > 15:
            kept.append(open("/proc/self/status", "rb"))  # noqa: PTH123, SIM115 - that is the leak
        samples.process("this one", os.getpid())
    for one in kept:
        one.close()
    judged = samples.judged(LIMITS)

    assert judged["this one", DESCRIPTORS].problem
    assert judged["this one", RSS].most > 1_000

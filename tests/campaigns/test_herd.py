"""The bound of the outage campaign is far from what chance does, and below what a herd does."""

from __future__ import annotations

import random

import pytest

from tests.campaigns.herd import HERD, HERDED, draw, peak


def test_a_peak_is_what_falls_within_one_second() -> None:
    assert peak([]) == 0
    assert peak([0.0, 0.5, 0.999, 1.0, 1.4]) == 4


@pytest.mark.parametrize("outage", [20.0, 180.0])
def test_relays_that_ask_by_themselves_stay_well_below_the_bound(outage: float) -> None:
    chance = random.Random(1)
    assert 4 <= max(draw(chance, outage=outage) for _ in range(200)) <= HERD * 3 // 4


def test_relays_whose_whole_pools_ask_are_above_it() -> None:
    chance = random.Random(1)
    assert min(draw(chance, outage=60.0, attempts=HERDED) for _ in range(100)) > HERD

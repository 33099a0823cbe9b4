"""Positions of moments are found in as many steps as the logarithm of the log."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import pytest

from letopis.console.store_log import Bisection


def searched(recorded: Mapping[int, int], moments: Sequence[int], *, low: int, high: int) -> tuple[list[int], int]:
    """Return the positions found, and how often was asked."""
    search, steps = Bisection(moments, low=low, high=high), 0
    while wanted := search.wanted():
        assert wanted == sorted(set(wanted)) and low < wanted[0] and wanted[-1] <= high
        search.learn({place: recorded[place] for place in wanted if place in recorded})
        steps += 1
        assert steps < 20
    return search.found(), steps


@pytest.mark.parametrize("low", [0, 40])
def test_bisection_finds_the_last_position_before_each_moment(low: int) -> None:
    recorded = {place: place * 10 for place in range(1, 101)}
    moments = [405, 410, 411, 700, 10**6]
    found, steps = searched(recorded, moments, low=low, high=100)

    assert found == [bisect_left(list(recorded.values()), moment) for moment in moments] == [40, 40, 41, 69, 100]
    assert steps <= 7


def test_bisection_takes_a_position_that_is_not_there_for_an_earlier_one() -> None:
    assert searched({1: 10, 4: 40}, [35], low=0, high=4)[0] == [3]


def test_bisection_of_an_empty_range_asks_nothing() -> None:
    assert searched({}, [5, 6], low=7, high=3) == ([3, 3], 0)

"""Positions of moments are found in as many steps as the logarithm of the log."""

from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from letopis.console.store_log import Bisection


def searched(recorded: Mapping[int, int], moments: Sequence[int], *, low: int, high: int) -> list[int]:
    """Return the positions found, in few steps, each of which asks in order and within the range."""
    search, steps = Bisection(moments, low=low, high=high), 0
    while wanted := search.wanted():
        assert wanted == sorted(set(wanted)) and low < wanted[0] and wanted[-1] <= high
        search.learn({place: recorded[place] for place in wanted if place in recorded})
        steps += 1
    assert steps <= max(0, high - low).bit_length() + 1
    return search.found()


MOMENTS = st.lists(st.integers(-5, 60), min_size=1, max_size=12)


@given(st.lists(st.integers(0, 50), max_size=80), MOMENTS, st.integers(0, 80))
def test_bisection_finds_what_counting_finds(recorded: list[int], moments: list[int], low: int) -> None:
    log = dict(enumerate(sorted(recorded), 1))
    low = min(low, len(log))
    expected = [max(low, sum(one < moment for one in log.values())) for moment in moments]
    assert searched(log, moments, low=low, high=len(log)) == expected


@given(st.sets(st.integers(1, 100)))
def test_bisection_takes_a_position_that_is_not_there_for_an_earlier_one(there: set[int]) -> None:
    assert searched({1: 10, 4: 40}, [35], low=0, high=4) == [3]
    assert 0 <= searched({place: place for place in there}, [50], low=0, high=100)[0] <= 100


def test_bisection_of_an_empty_range_asks_nothing() -> None:
    assert searched({}, [5, 6], low=7, high=3) == [3, 3]

"""How long to wait before the next attempt."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letopis.outbox.retry.policy import MIN_DELAY_SHARE, RetryPolicy
from letopis.store.errors import InvalidInput

UNIFORM = random.Random(1).uniform


def test_full_jitter_draws_from_the_floor_to_the_bound() -> None:
    asked: list[tuple[float, float]] = []

    def lowest(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    waits = [RetryPolicy(base=1, factor=2, cap=3).delay(retry, uniform=lowest) for retry in (1, 2, 3)]

    assert asked == [(MIN_DELAY_SHARE, 1.0), (MIN_DELAY_SHARE, 2.0), (MIN_DELAY_SHARE, 3.0)]
    assert waits == [MIN_DELAY_SHARE] * 3


def test_full_jitter_uses_its_whole_range() -> None:
    drawn = [RetryPolicy().delay(4, uniform=UNIFORM) for _ in range(2_000)]
    assert min(drawn) < 1.0
    assert max(drawn) > 7.0
    assert 3.5 < sum(drawn) / len(drawn) < 4.6


@given(retry=st.integers(-5, 10**9), base=st.floats(1e-3, 1e3), factor=st.floats(1, 1e6), over=st.floats(1, 1e6))
def test_a_wait_is_never_above_the_cap_and_never_shrinks(retry: int, base: float, factor: float, over: float) -> None:
    policy = RetryPolicy(base=base, factor=factor, cap=base * over)
    assert 0 < policy.bound(retry) <= policy.cap
    assert policy.bound(retry) <= policy.bound(retry + 1)


NAN, ENDLESS = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("base", value) for value in (0, -1, NAN, ENDLESS, "1")),
        *(("factor", value) for value in (0.5, ENDLESS, None)),
        *(("cap", value) for value in (0.5, ENDLESS, "60")),
        *(("attempts", value) for value in (-1, 1.5)),
        ("jitter", "some"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidInput) as refused:
        RetryPolicy(**{field: value})  # type: ignore[arg-type]
    assert refused.value.field == field

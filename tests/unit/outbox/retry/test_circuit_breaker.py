"""Decide whether the history store is contacted at all."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.retry.circuit_breaker import (
    RAMP_START_EVENTS,
    UNCERTAIN_PROBE_WAIT_SECONDS,
    Breaker,
)
from letopis.outbox.retry.policy import MIN_DELAY_SHARE, RetryPolicy
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.errors import InvalidInput
from tests.support.relays import DOWN, Hands, fault


def upper(low: float, high: float) -> float:
    """Chance at its longest."""
    return high


def made(uniform: object = upper) -> tuple[Hands, Breaker]:
    hands = Hands()
    return hands, Breaker(clock=Clock(now=hands.now, monotonic=hands.monotonic), uniform=uniform)  # type: ignore[arg-type]


def probe(hands: Hands, breaker: Breaker, *, after: float | None = None) -> float:
    """Begin a probe, when it is due or after some seconds; return how long it was waited for."""
    wait = breaker.remaining()
    hands.advance(wait if after is None else after)
    assert breaker.begin_probe()
    return wait


def test_probes_come_after_one_two_four_seconds_up_to_a_minute_and_never_end() -> None:
    hands, breaker = made()
    breaker.trip(DOWN, ["a", "b", "c"])
    waits = []
    for _ in range(1_000):
        assert not breaker.begin_probe()
        waits.append(probe(hands, breaker))
        assert not breaker.begin_probe(), "one at a time"
        breaker.end_probe()
        assert breaker.begin_probe()
        breaker.trip(DOWN, ["d"])

    assert waits[:10] == [1, 2, 4, 5, 5, 5, 5, 5, 33, 60]
    assert (waits[-1], breaker.trips, breaker.suspects) == (60, 1, {"a", "b", "c"})


@pytest.mark.parametrize(
    ("conversation_ids", "error", "longest"),
    [
        ((), DOWN, 60),  # asked without a delivery: it is the store for certain
        (("a",), DOWN, UNCERTAIN_PROBE_WAIT_SECONDS),
        (("a", "b"), DOWN, UNCERTAIN_PROBE_WAIT_SECONDS),
        (("a", "b", "c"), DOWN, 60),
        (("a", "b", "c"), fault(FaultClass.POISON, "23502"), UNCERTAIN_PROBE_WAIT_SECONDS),
    ],
)
def test_while_it_may_be_the_conversations_no_probe_is_far_away(
    conversation_ids: tuple[str, ...], error: StoreFault, longest: float
) -> None:
    """One that comes along then waits for that probe."""
    hands, breaker = made()
    breaker.trip(error, conversation_ids)
    waits = []
    for _ in range(20):
        waits.append(probe(hands, breaker))
        breaker.trip(error, conversation_ids[:1])

    assert max(waits) == longest


def test_probes_go_round_the_conversations_those_that_failed_first_after_all_others() -> None:
    hands, breaker = made()
    owed = ["a", "b", "c", "d"]
    breaker.trip(DOWN, ["a", "b"])
    probed = []
    for _ in range(9):
        probe(hands, breaker, after=100)
        left = next(left for tried in breaker.probe_exclusions() if (left := [one for one in owed if one not in tried]))
        probed.append(left[0])
        breaker.trip(DOWN, left[:1])

    assert probed == ["c", "d", "a", "b", "c", "d", "a", "b", "c"]


def test_a_store_that_refuses_can_be_read_and_says_what_refused() -> None:
    hands, breaker = made()
    assert breaker.readable
    breaker.trip(DOWN, ["a"])
    assert not breaker.readable
    probe(hands, breaker, after=1)
    breaker.trip(fault(FaultClass.POISON, "23502"), ["a"])

    assert breaker.readable and not breaker.closed
    assert (breaker.reason, str(breaker.outage)) == ("poison 23502", "a fault of the test [poison 23502]")


def test_chance_spreads_the_probes_of_many_relays() -> None:
    first = []
    for seed in range(200):
        _, breaker = made(random.Random(seed).uniform)
        breaker.trip(DOWN, [])
        first.append(breaker.remaining())

    assert min(first) < 0.2 and max(first) > 0.9
    assert len({round(one, 3) for one in first}) > 150


@pytest.mark.parametrize(("lasts", "least", "most"), [(20, 4, 5), (60, 30, 61)])
def test_no_wait_is_longer_than_the_outage_so_far_and_a_second(lasts: float, least: float, most: float) -> None:
    """Chance may make five waits short and the sixth half a minute: then an outage of seconds would last a minute.

    And an outage that is too short to alert anybody is over for the relay before it would.
    """
    longest = 0.0
    for seed in range(300):
        hands, breaker = made(random.Random(seed).uniform)
        begun = hands.ticks
        breaker.trip(DOWN, [])
        while hands.ticks < begun + lasts:
            assert breaker.remaining() <= hands.ticks - begun + 1
            probe(hands, breaker)
            breaker.trip(DOWN, [])
        longest = max(longest, hands.ticks - begun - lasts)

    assert least < longest <= most


def test_faults_of_what_was_under_way_when_it_opened_do_not_count_as_probes() -> None:
    hands, breaker = made(lambda low, high: high / 10)
    for name in "abcdef":
        breaker.trip(DOWN, [name])

    assert breaker.remaining() == pytest.approx(0.1)
    assert (breaker.suspects, next(breaker.probe_exclusions())) == ({"a"}, {"a"})
    probe(hands, breaker)
    breaker.trip(DOWN, ["g"])
    assert breaker.remaining() == pytest.approx(0.2)


def test_a_success_closes_it_and_says_how_long_the_store_was_away() -> None:
    hands, breaker = made()
    breaker.trip(DOWN, ["a"])
    for seconds in (30, 60):
        probe(hands, breaker, after=seconds)
        if seconds == 30:
            breaker.trip(fault(FaultClass.MISCONFIGURED, "42P01"), ["c"])
            assert breaker.reason == "misconfigured 42P01", "what the store says last"
    assert breaker.record_success() == 90
    assert (breaker.closed, breaker.reason, breaker.remaining(), breaker.suspects) == (True, None, 0, frozenset())
    assert breaker.record_success() is None
    breaker.end_probe()  # of the probe that closed it
    breaker.trip(DOWN, ["b"])
    assert (breaker.closed, breaker.trips, breaker.suspects) == (False, 2, {"b"})
    assert next(breaker.probe_exclusions()) == {"b"}, "nor is it known who was asked before"


def test_the_waits_of_the_next_outage_begin_anew() -> None:
    hands, breaker = made(lambda low, high: high / 10)
    for _ in range(2):
        breaker.trip(DOWN, [])
        assert breaker.remaining() == pytest.approx(0.1)
        for _ in range(3):
            probe(hands, breaker)
            breaker.trip(DOWN, [])
        assert breaker.remaining() == pytest.approx(0.8)
        probe(hands, breaker)
        breaker.record_success()


@pytest.mark.parametrize("largest", [500, 4 * RAMP_START_EVENTS])
def test_after_an_outage_the_batches_grow_from_small_to_full(largest: int) -> None:
    hands, breaker = made()
    assert breaker.batch_limit(largest) == largest
    breaker.trip(DOWN, [])
    assert breaker.batch_limit(largest) == 1
    probe(hands, breaker)
    assert breaker.batch_limit(largest) == 1
    breaker.record_success()
    limits = []
    while breaker.ramping:
        limits.append(breaker.batch_limit(largest))
        breaker.record_success()

    assert limits[:3] == [RAMP_START_EVENTS, 2 * RAMP_START_EVENTS, 4 * RAMP_START_EVENTS]
    assert (limits[-1], limits) == (largest, sorted(set(limits)))


def test_next_attempt_is_when_the_wait_ends() -> None:
    hands, breaker = made()
    assert breaker.next_attempt_us is None
    breaker.trip(DOWN, [])
    due = breaker.next_attempt_us
    hands.advance(breaker.remaining())
    assert due == breaker.next_attempt_us == int(hands.wall.timestamp()) * 1_000_000


UNIFORM = random.Random(1).uniform


def test_full_jitter_draws_from_the_floor_to_the_bound() -> None:
    asked: list[tuple[float, float]] = []

    def lowest(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    waits = [RetryPolicy(base=1, factor=2, cap=3).delay(retry, uniform=lowest) for retry in (1, 2, 3)]

    assert asked == [(MIN_DELAY_SHARE, 1.0), (MIN_DELAY_SHARE, 2.0), (MIN_DELAY_SHARE, 3.0)]
    assert waits == [MIN_DELAY_SHARE] * 3


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

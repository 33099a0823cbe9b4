"""Waits under clocks that jump and stand still."""

import pytest

from letopis.outbox.concurrency.clock import Clock, RetryTimers
from tests.support.relays import Hands


def made() -> tuple[Hands, Clock]:
    hands = Hands()
    return hands, Clock(now=hands.now, monotonic=hands.monotonic)


@pytest.mark.parametrize(
    ("jump", "seconds", "remaining"),
    [
        (0, 0, 10),
        (0, 4, 6),
        (0, 11, 0),
        (-3_600, 4, 6),  # a clock set back an hour does not stretch a wait
        (24 * 3_600, 0, 0),  # the monotonic clock stands still in suspend; the wall clock tells
    ],
)
def test_a_deadline_comes_when_its_time_has_passed_by_either_clock(
    jump: float, seconds: float, remaining: float
) -> None:
    hands, clock = made()
    deadline = clock.after(10)
    hands.jump(jump)
    hands.advance(seconds)
    assert deadline.remaining(clock) == remaining


@pytest.mark.parametrize(
    ("after", "jump", "seconds", "remaining"),
    [
        ("", -3_600, 3, 47),  # by both clocks, where this process set the wait
        ("a restart", 0, 20, 30),
        ("a restart", -3_600, 0, 0),  # further off than any wait: it comes from a wrong clock
        ("it is forgotten", -3_600, 0, 0),
    ],
)
def test_a_lane_waits_by_the_stored_moment_where_nothing_else_is_known(
    after: str, jump: float, seconds: float, remaining: float
) -> None:
    hands, clock = made()
    waits = RetryTimers(clock, longest=60)
    due_at = waits.set("c", 50)
    hands.jump(jump)
    hands.advance(seconds)
    if after == "a restart":
        waits = RetryTimers(clock, longest=60)
    elif after:
        waits.forget("c")

    assert waits.remaining("c", due_at) == remaining


def test_a_moment_that_somebody_else_stored_counts_instead() -> None:
    """An operator's retry sets the stored time; the wait in memory must not delay it."""
    _, clock = made()
    waits = RetryTimers(clock, longest=60)
    due_at = waits.set("c", 50)
    assert waits.remaining("c", due_at) == 50
    assert waits.remaining("c", 0) == 0

"""Waits under clocks that jump and stand still."""

from __future__ import annotations

from letopis.outbox.concurrency.clock import Clock, RetryTimers
from tests.support.relays import Hands


def made() -> tuple[Hands, Clock]:
    hands = Hands()
    return hands, Clock(now=hands.now, monotonic=hands.monotonic)


def test_a_deadline_comes_when_its_time_has_passed() -> None:
    hands, clock = made()
    deadline = clock.after(10)

    assert deadline.remaining(clock) == 10
    hands.advance(4)
    assert deadline.remaining(clock) == 6
    hands.advance(7)
    assert deadline.remaining(clock) == 0


def test_a_clock_set_back_an_hour_does_not_stretch_a_wait() -> None:
    hands, clock = made()
    deadline = clock.after(10)
    hands.jump(-3_600)
    hands.advance(4)

    assert deadline.remaining(clock) == 6


def test_a_machine_that_slept_finds_its_waits_over() -> None:
    """The monotonic clock stands still in suspend; the wall clock tells."""
    hands, clock = made()
    deadline = clock.after(10)
    hands.jump(24 * 3_600)

    assert deadline.remaining(clock) == 0


def test_a_lane_waits_by_both_clocks_where_this_process_set_the_wait() -> None:
    hands, clock = made()
    waits = RetryTimers(clock, longest=60)
    due_at = waits.set("c", 5)
    hands.jump(-3_600)
    hands.advance(3)

    assert waits.remaining("c", due_at) == 2


def test_a_moment_that_somebody_else_stored_counts_instead() -> None:
    """An operator's retry sets the stored time; the wait in memory must not delay it."""
    _, clock = made()
    waits = RetryTimers(clock, longest=60)
    due_at = waits.set("c", 50)

    assert waits.remaining("c", due_at) == 50
    assert waits.remaining("c", 0) == 0


def test_after_a_restart_the_stored_moment_counts() -> None:
    hands, clock = made()
    due_at = RetryTimers(clock, longest=60).set("c", 50)
    hands.advance(20)

    assert RetryTimers(clock, longest=60).remaining("c", due_at) == 30


def test_after_a_restart_a_moment_further_off_than_any_wait_comes_from_a_wrong_clock() -> None:
    hands, clock = made()
    due_at = RetryTimers(clock, longest=60).set("c", 50)
    hands.jump(-3_600)

    assert RetryTimers(clock, longest=60).remaining("c", due_at) == 0


def test_a_lane_that_is_forgotten_waits_by_the_stored_moment() -> None:
    hands, clock = made()
    waits = RetryTimers(clock, longest=60)
    due_at = waits.set("c", 50)
    hands.jump(-30)
    waits.forget("c")

    assert waits.remaining("c", due_at) == 0

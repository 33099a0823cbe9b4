"""Whether the event or the history store is to blame."""

from __future__ import annotations

from letopis.outbox.diversity import Diversity


def test_one_conversation_alone_proves_nothing() -> None:
    diversity = Diversity()
    for _ in range(100):
        diversity.failed(["a"])

    assert diversity.blame("a") == 0
    assert diversity.failing == 1


def test_a_conversation_is_blamed_when_another_gets_through_after_it_failed() -> None:
    diversity = Diversity()
    for _ in range(3):
        diversity.failed(["a"])
        diversity.succeeded(["b"])

    assert diversity.blame("a") == 3
    assert diversity.blame("b") == 0
    assert diversity.failing == 0


def test_a_success_before_the_failure_blames_nobody() -> None:
    diversity = Diversity()
    diversity.succeeded(["b"])
    diversity.failed(["a"])

    assert diversity.blame("a") == 0


def test_its_own_success_acquits_it() -> None:
    diversity = Diversity()
    diversity.failed(["a"])
    diversity.succeeded(["b"])
    diversity.succeeded(["a"])

    assert diversity.blame("a") == 0


def test_whoever_got_through_with_the_others_is_not_blamed() -> None:
    diversity = Diversity()
    diversity.failed(["a", "b", "c"])
    diversity.succeeded(["a", "b"])

    assert (diversity.blame("a"), diversity.blame("b"), diversity.blame("c")) == (0, 0, 1)


def test_different_ones_that_fail_in_a_row_are_counted_once_each() -> None:
    diversity = Diversity()
    diversity.failed(["a"])
    diversity.failed(["a", "b"])
    diversity.failed(["c"])

    assert diversity.failing == 3


def test_nothing_got_through_is_no_success() -> None:
    diversity = Diversity()
    diversity.failed(["a"])
    diversity.succeeded([])

    assert diversity.failing == 1


def test_what_is_forgotten_starts_anew() -> None:
    diversity = Diversity()
    diversity.failed(["a"])
    diversity.succeeded(["b"])
    diversity.forget("a")

    assert diversity.blame("a") == 0


def test_memory_is_bounded() -> None:
    diversity = Diversity()
    for start in range(0, 50_000, 10_000):
        diversity.failed([f"c{number}" for number in range(start, start + 10_000)])
        diversity.succeeded(["other"])

    assert sum(diversity.blame(f"c{number}") > 0 for number in range(50_000)) == 10_000

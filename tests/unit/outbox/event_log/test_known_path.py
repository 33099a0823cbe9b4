"""What is on the path, as far as an outbox file tells."""

import pytest

from letopis.outbox.event_log.known_path import KnownPath, PathStep

A, B, Z = PathStep("a", 1), PathStep("b", 2), PathStep("z", 9)


def back(to: str | None = None) -> PathStep:
    return PathStep(None, target=to)


def test_a_reset_erases_what_came_before_it() -> None:
    path = KnownPath([A, back(), B, PathStep(None, erase=True), PathStep("c", 3)])
    assert [path.erased(one) for one in (1, 2, 3, 4)] == [True, True, False, False]
    assert path.copy().erased(1)


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([], False),
        ([A], False),
        ([A, back()], True),
        ([A, B, back("a")], False),
        ([Z, A, back("z")], True),
        ([A, back("pruned")], True),
        ([B, back()], False),  # put aside by the store: its receipt says so
        ([Z, A, back("z"), back("a")], True),
        ([Z, A, B, back("a"), back("b")], False),
        ([A, back(), A], False),
        ([A, back(), A, back()], True),
        ([A, B, back(), B, back("a")], True),
    ],
)
def test_what_has_left_the_path(steps: list[PathStep], *, left: bool) -> None:
    path = KnownPath(steps)
    copy = path.copy()
    assert path.left(1) is left
    copy.add(back())
    assert path.left(1) is left


def test_what_is_put_back_after_an_unknown_rewind_may_have_kept_its_place() -> None:
    path = KnownPath([A, back("theirs"), B, A, back("b"), PathStep(None, target="a", doubtful=True)])
    assert path.stays_unless(B.first) == {"a"}

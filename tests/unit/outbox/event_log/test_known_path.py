"""What is on the path, as far as an outbox file tells."""

from __future__ import annotations

import pytest

from letopis.outbox.event_log.known_path import KnownPath, PathStep


def test_a_reset_erases_what_came_before_it() -> None:
    path = KnownPath([PathStep("a", 1), PathStep(None), PathStep("b", 2), PathStep(None, erase=True), PathStep("c", 3)])
    assert [path.erased(one) for one in (1, 2, 3, 4)] == [True, True, False, False]
    assert path.copy().erased(1)


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([], False),
        ([PathStep("a", 1)], False),
        ([PathStep("a", 1), PathStep(None)], True),
        ([PathStep("a", 1), PathStep("b", 2), PathStep(None, target="a")], False),
        ([PathStep("z", 9), PathStep("a", 1), PathStep(None, target="z")], True),
        ([PathStep("a", 1), PathStep(None, target="pruned")], True),
        ([PathStep("b", 2), PathStep(None)], False),  # put aside by the store: its receipt says so
        ([PathStep("z", 9), PathStep("a", 1), PathStep(None, target="z"), PathStep(None, target="a")], True),
        (
            [
                PathStep("z", 9),
                PathStep("a", 1),
                PathStep("b", 2),
                PathStep(None, target="a"),
                PathStep(None, target="b"),
            ],
            False,
        ),
        ([PathStep("a", 1), PathStep(None), PathStep("a", 1)], False),
        ([PathStep("a", 1), PathStep(None), PathStep("a", 1), PathStep(None)], True),
        ([PathStep("a", 1), PathStep("b", 2), PathStep(None), PathStep("b", 2), PathStep(None, target="a")], True),
    ],
)
def test_what_has_left_the_path(steps: list[PathStep], *, left: bool) -> None:
    path = KnownPath(steps)
    copy = path.copy()
    assert path.left(1) is left
    copy.add(PathStep(None))
    assert path.left(1) is left

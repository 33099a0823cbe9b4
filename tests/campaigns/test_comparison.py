"""The comparison tells apart what can go wrong with a history."""

from __future__ import annotations

from typing import Any

import pytest

from tests.campaigns.comparison import Comparison, canonical, compare, gather


def line(number: int, **fields: Any) -> dict[str, Any]:
    return {"conversation_id": "a", "role": "user", "content": f"words {number}", "id": str(number), **fields}


LINES = [line(1), line(2), line(3), line(4)]


def compared(*exported: dict[str, Any]) -> Comparison:
    return compare(gather(LINES), gather(exported))


def test_equal_histories_are_equal_whatever_the_order_between_conversations() -> None:
    other = {**line(1), "conversation_id": "b"}

    found = compare(gather([*LINES, other]), gather([other, *LINES]))

    assert found.equal
    assert (found.conversations, found.messages) == (2, 5)
    assert found.digest == compare(gather([other, *LINES]), gather([*LINES, other])).digest


@pytest.mark.parametrize(
    ("exported", "expected"),
    [
        ([line(1), line(2), line(4)], {"lost": 1}),
        ([], {"lost": 4}),
        ([*LINES, line(4)], {"doubled": 1}),
        ([*LINES, line(5)], {"foreign": 1}),
        ([line(2), line(1), line(3), line(4)], {"reordered": 1}),
        ([line(1), line(2, content="other words"), line(3), line(4)], {"changed": 1}),
        ([line(1), line(2), line(3), line(4, role="assistant")], {"changed": 1}),
        ([line(1), line(2), line(3), line(4, metadata={"a": 1})], {"changed": 1}),
        ([line(1), line(2), line(4), line(4)], {"lost": 1, "doubled": 1}),
    ],
)
def test_each_difference_is_told_by_its_name(exported: list[dict[str, Any]], expected: dict[str, int]) -> None:
    found = compared(*exported)

    assert not found.equal
    names = ("lost", "doubled", "foreign", "changed", "reordered")
    assert {name: getattr(found, name) for name in names if getattr(found, name)} == expected
    assert len(found.problems) == 1


def test_a_whole_conversation_that_is_missing_or_foreign_is_noticed() -> None:
    assert compare(gather(LINES), {}).lost == 4
    assert compare({}, gather(LINES)).foreign == 4


def test_lines_without_an_id_are_compared_by_all_that_they_say() -> None:
    bare = [{"conversation_id": "a", "role": "user", "content": words} for words in ("yes", "no", "yes")]

    assert compare(gather(bare), gather(bare)).equal
    assert compare(gather(bare), gather([bare[0], bare[1]])).lost == 1
    assert compare(gather(bare), gather([bare[0], bare[2], bare[1]])).problems


def test_a_moment_counts_and_not_how_it_is_written() -> None:
    one = canonical({"occurred_at": "2018-05-02T19:38:15Z", "metadata": {}, "content": "x"})

    assert one == canonical({"content": "x", "occurred_at": "2018-05-02T21:38:15.000000+02:00"})
    assert one != canonical({"content": "x", "occurred_at": "2018-05-02T19:38:15.000001Z"})

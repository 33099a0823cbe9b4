"""Every row of the fault table happens on a real server, and comes out in its class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.campaigns.faults import KINDS, ROWS, Outcome, produce, render
from tests.support.required import missing
from tests.support.servers import ServerUnavailable


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_every_row_of_the_fault_table_comes_out_in_its_class(kind: str, tmp_path: Path) -> None:
    try:
        outcomes = await produce(kind, tmp_path)
    except ServerUnavailable as reason:
        missing(kind, reason)
    wrong = [one for one in outcomes if not one.ok]

    assert not wrong, render(wrong)
    assert len(outcomes) == sum(kind in one.kinds for one in ROWS)
    for one in outcomes:
        if one.found in {"unavailable", "misconfigured"}:
            assert "breaker opened" in one.reaction, one
        if one.found == "conflict":
            assert "sent the batch again" in one.reaction, one
        assert ("blocked" in one.reaction) is (one.found == "poison"), one
        if one.found != "poison":
            assert "no attempt charged; all delivered" in one.reaction, one


def test_a_row_in_another_class_is_told() -> None:
    wrong = Outcome(
        name="x", kind="sqlite", driver_error="E", code="c", expected="poison", found="conflict", reaction="r"
    )

    assert not wrong.ok
    assert "NOT poison" in render([wrong])


def test_a_row_with_another_code_is_told() -> None:
    right = Outcome(
        name="x", kind="sqlite", driver_error="E", code="c", expected="poison", found="poison", reaction="r"
    )

    assert right.ok and replace(right, expected_code="c").ok
    assert not replace(right, expected_code="d").ok

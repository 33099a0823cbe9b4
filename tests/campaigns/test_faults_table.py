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

    assert not (wrong := [one for one in outcomes if not one.ok]), render(wrong)
    assert len(outcomes) == sum(kind in one.kinds for one in ROWS)


def test_a_row_that_comes_out_otherwise_is_told() -> None:
    right = Outcome(
        name="x",
        kind="sqlite",
        expected="conflict",
        found="conflict",
        code="c",
        reaction="sent the batch again; no attempt charged; all delivered",
    )
    others: tuple[dict[str, str], ...] = (
        {"found": "poison"},
        {"expected_code": "d"},
        {"reaction": "sent the batch again; 1 attempts charged; all delivered"},
        {"reaction": "breaker opened; no attempt charged; all delivered"},
        {"reaction": f"{right.reaction}; blocked its conversation"},
    )

    assert right.ok and replace(right, expected_code="c").ok
    assert not any(replace(right, **other).ok for other in others)
    assert "NOT conflict" in render([replace(right, found="poison")])

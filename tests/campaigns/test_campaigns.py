"""The table of faults holds on real servers, and a row that comes out otherwise is told."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tests.campaigns import faults
from tests.proof.options import Options
from tests.support.required import missing


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_fault_table_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "disable", lambda: None)

    rows = list(faults.prove(Options(short=True, seed=3, folder=tmp_path)))

    assert not [row for row in rows if not row.ok(short=True)]
    for row in rows:
        if row.missing:
            missing(row.where, row.missing)


def test_a_row_of_the_fault_table_that_comes_out_otherwise_is_told() -> None:
    right = faults.Outcome(name="x", kind="sqlite", expected="conflict", found="conflict", code="c")

    assert right.ok and replace(right, expected_code="c").ok
    assert not replace(right, expected_code="d").ok
    assert "NOT conflict" in str(replace(right, found="poison"))

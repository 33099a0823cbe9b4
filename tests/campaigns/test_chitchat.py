"""The campaign runs from end to end, and notices a store that was damaged behind its back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.campaigns.controls import CONTROLS

ROOT = Path(__file__).parents[2]


def campaign(report: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Run a small campaign on a SQLite store; return its exit code and its figures."""
    small = ("--sample", "0.001", "--outages", "0", "--timeout", "60", "--json", str(report))
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaigns.chitchat", *small, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert report.exists(), done.stderr
    return done.returncode, json.loads(report.read_text())


@pytest.mark.slow
def test_a_small_campaign_finds_everything_equal_and_catches_its_controls(tmp_path: Path) -> None:
    code, figures = campaign(tmp_path / "report.json", "--kills", "3", "--cuts", "3")

    (outcome,) = figures["stores"]
    assert (code, figures["ok"], outcome["problems"]) == (0, True, [])
    assert outcome["fired"] == {"kill": 3, "cut": 3, "outage": 0}
    assert (outcome["conversations"], outcome["messages"]) == (7, figures["dataset"]["messages"])
    assert [outcome["controls"][control] for control in CONTROLS] == ["caught"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("control", CONTROLS)
def test_a_damaged_store_fails_the_campaign(control: str, tmp_path: Path) -> None:
    code, figures = campaign(tmp_path / "report.json", "--kills", "0", "--cuts", "0", "--control", control)

    (outcome,) = figures["stores"]
    assert (code, figures["ok"]) == (1, False)
    assert any(problem.startswith("the export differs from the import") for problem in outcome["problems"])
    assert any(problem.startswith("the logs break their invariants") for problem in outcome["problems"])

"""The campaign runs from end to end, and notices a store that was damaged behind its back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("chitchat_dataset", reason="needs chitchat-dataset: the group pages")

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
def test_a_campaign_fires_its_faults_and_fails_for_a_damaged_store(tmp_path: Path) -> None:
    """That an undamaged one passes, and catches its own controls, is what the sample in `.ci/run` shows."""
    code, figures = campaign(tmp_path / "report.json", "--kills", "2", "--cuts", "2", "--control", "swap")

    (outcome,) = figures["stores"]
    assert outcome["fired"] == {"kill": 2, "cut": 2, "outage": 0}
    assert (outcome["conversations"], outcome["messages"]) == (7, figures["dataset"]["messages"])
    assert (code, figures["ok"]) == (1, False)
    assert [problem.split(":")[0] for problem in outcome["problems"]] == [
        "the export differs from the import",
        "the logs break their invariants",
    ]

"""Kills of a bot that keeps large content lose nothing and leave nothing; a planted defect is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(folder: Path, *more: str) -> dict[str, Any]:
    store = f"sqlite:///{folder / 'store.db'}"
    arguments = ["--store", store, "--folder", str(folder), "--kills", "8", *more]
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaigns.content_kills", *arguments], check=False, capture_output=True, text=True
    )
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_no_kill_loses_content_or_leaves_an_orphan(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result["problems"] == [] and result["appended"]


def test_a_store_that_does_not_sweep_is_found(tmp_path: Path) -> None:
    assert any("belong to no event" in problem for problem in run(tmp_path, "--defect", "orphans")["problems"])

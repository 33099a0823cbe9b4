"""Relays fight for one file, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns.fight import run
from tests.support.platforms import posix_only


@pytest.mark.slow
@posix_only("Windows has no SIGSTOP")
async def test_relays_that_fight_for_one_file_lose_double_and_reorder_nothing(tmp_path: Path) -> None:
    report = await run(tmp_path, seconds=20, seed=5)

    assert not report.problems, str(report)
    assert report.fired["SIGKILL"] >= 2 and report.fired["SIGSTOP"] >= 3, str(report)
    assert report.incarnations >= 4, str(report)
    assert report.stored > 500

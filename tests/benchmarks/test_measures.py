"""The start on a large backlog and the wake-up across processes, in small, with room for a machine that is busy."""

import statistics
from pathlib import Path

import pytest

from benchmarks import large_backlog as backlog
from benchmarks import listening as wake


@pytest.mark.slow
def test_a_relay_starts_at_once_on_a_hundred_thousand_pending_events(tmp_path: Path) -> None:
    report = backlog.measure(tmp_path, events=100_000, watch=4.0)

    assert report.delivered > 0, str(report)
    assert 0 < report.first_delivery < 5 * backlog.MAX_START_SECONDS, str(report)
    assert report.peak_rss < backlog.MAX_RSS_BYTES, str(report)


@pytest.mark.slow
def test_a_commit_elsewhere_is_heard_soon_and_listening_costs_little(tmp_path: Path) -> None:
    report = wake.measure(tmp_path, wakes=60, idle=5.0, longest=0.2, quiet=1.0, quiet_wakes=2)

    assert statistics.median(report.delays) < wake.MAX_WAKE_P99_SECONDS, str(report)
    assert report.idle_cpu < 3 * wake.MAX_IDLE_CPU, str(report)

"""A real outage, in small: who is notified, and how the backlog drains."""

from __future__ import annotations

from pathlib import Path

import pytest

from letopis.outbox.alerting.incidents import Rules
from tests.campaigns.outage import run
from tests.support.required import missing
from tests.support.servers import ServerUnavailable


@pytest.mark.slow
@pytest.mark.parametrize(
    ("outage", "rules", "expect"),
    [
        pytest.param(20.0, Rules(), 0, id="20 s: nobody hears of it"),
        # Stuck after less than the outage, which is not to count, and after two looks of the watch: a backlog that long
        # may take afterwards that a slow machine delivers.
        pytest.param(14.0, Rules(hold=3, resolve_after=3, stuck_after=10), 1, id="beyond the hold: told once"),
    ],
)
async def test_a_real_outage_of_eight_relays(tmp_path: Path, outage: float, rules: Rules, expect: int) -> None:
    try:
        report = await run(tmp_path, outage=outage, rules=rules, expect=expect, pace=0.25)
    except ServerUnavailable as reason:
        missing("postgresql", reason)

    assert not report.problems, str(report)
    assert report.pending_at_the_end > 100
    assert bool(report.users_told) is bool(expect)

"""A real outage, in small: who is notified, and how the backlog drains; and the bound of the probes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from letopis.outbox.alerting.incidents import Rules
from tests.campaigns.outage import HERD, HERDED, draw, peak, run
from tests.support.required import missing
from tests.support.servers import ServerUnavailable


@pytest.mark.slow
@pytest.mark.parametrize(
    ("outage", "rules", "expect"),
    [
        pytest.param(20.0, Rules(), 0, id="20 s: nobody hears of it"),
        pytest.param(14.0, Rules(hold=3, resolve_after=3, stuck_after=10), 1, id="beyond the hold: told once"),
    ],
)
async def test_a_real_outage_of_eight_relays(tmp_path: Path, outage: float, rules: Rules, expect: int) -> None:
    try:
        tally = await run(tmp_path, outage=outage, rules=rules, expect=expect, pace=0.25)
    except ServerUnavailable as reason:
        missing("postgresql", reason)

    assert not tally.problems
    assert tally.figures["pending when it ended"] > 100
    assert bool(tally.figures["users told"]) is bool(expect)


def test_relays_that_ask_by_themselves_stay_below_the_bound_and_whole_pools_do_not() -> None:
    chance = random.Random(1)

    assert peak([]) == 0 and peak([0.0, 0.5, 0.999, 1.0, 1.4]) == 4
    for outage in (20.0, 180.0):
        assert 4 <= max(draw(chance, outage=outage) for _ in range(200)) <= HERD * 3 // 4
    assert min(draw(chance, outage=60.0, attempts=HERDED) for _ in range(100)) > HERD

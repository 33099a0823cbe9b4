"""A bot and its relay are killed at random, one or both: what was acknowledged is never missed, nothing is doubled."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.campaigns.victims import fork_server
from tests.proof.crash.at_random import kill

KILLS: Final = 20
SEED: Final = 20260501


@pytest.mark.slow
async def test_twenty_kills_lose_nothing_double_nothing_and_keep_the_order(tmp_path: Path) -> None:
    """Examined in the middle too: with the relay's last acknowledgement lost, or events still on their way."""
    outbox, store = tmp_path / "bot.outbox.db", f"sqlite:///{(tmp_path / 'history.db').as_posix()}"

    outcome = await kill(outbox, store, fork_server("tests.support.victim"), kills=KILLS, promises=KILLS, seed=SEED)

    assert outcome.wrong == ()
    assert all(one.ok for one in outcome.verdicts), outcome.verdicts
    assert outcome.kills >= KILLS and outcome.looks > 0
    assert outcome.last.stored >= outcome.last.acknowledged >= KILLS

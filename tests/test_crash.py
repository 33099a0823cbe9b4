"""A bot and its relay are killed at random, one or both: what was acknowledged is never missed, nothing is doubled."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Final

import pytest

from letopis.outbox import History
from letopis.store import ConversationStore
from tests.campaigns.invariants import check
from tests.campaigns.victims import Victims

KILLS: Final = 20
SEED: Final = 20260501


@pytest.mark.slow
async def test_twenty_kills_lose_nothing_double_nothing_and_keep_the_order(tmp_path: Path) -> None:
    outbox, store = tmp_path / "bot.outbox.db", f"sqlite:///{(tmp_path / 'history.db').as_posix()}"
    chance, kills, checks = random.Random(SEED), 0, 0
    async with ConversationStore.open(store):
        pass  # its tables are there before anybody is killed
    victims = Victims(outbox, store)
    try:
        while kills < KILLS:
            victims.ensure()
            await victims.until_promised(len(victims.acks) + chance.randrange(1, 40))
            await asyncio.sleep(chance.uniform(0, 0.1))
            for name in chance.choice((("bot",), ("relay",), ("bot", "relay"), ("relay", "bot"))):
                victims.kill(name)
                kills += 1
            if not victims.alive:
                # Also in the middle: with the relay's last acknowledgement lost, or events still on their way.
                verdict = await check([outbox], store, acknowledged=list(victims.acks))
                assert verdict.ok, verdict
                checks += 1
    finally:
        victims.close()

    async with History.open(outbox, store=store) as history:
        assert await history.drained(timeout=30)
    verdict = await check([outbox], store, acknowledged=victims.acks, drained=True)

    assert verdict.ok, verdict
    assert checks > 0
    assert verdict.acknowledged >= KILLS
    assert verdict.stored >= verdict.acknowledged

"""A bot on uvloop, killed again and again: what it acknowledged is in the history, once."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest

from letopis.outbox import History
from tests.campaigns.invariants import Ack, check

pytest.importorskip("uvloop", reason="needs uvloop: pip install --group adapters")

KILLS: Final = 10
BOT: Final = """
import asyncio, sys
import uvloop
from letopis import History, Message

async def main(outbox, store):
    print(type(asyncio.get_running_loop()).__module__, flush=True)
    async with History(outbox, store=store) as history:
        number = 0
        while True:
            number += 1
            receipt = await history.append(f"chat-{number % 3}", Message.user(str(number)), owner="owner")
            print(f"chat-{number % 3}", *receipt.event_ids, flush=True)

uvloop.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
def test_what_a_killed_bot_acknowledged_is_there_once(tmp_path: Path) -> None:
    outbox, store = tmp_path / "bot.outbox.db", f"sqlite:///{(tmp_path / 'history.db').as_posix()}"
    chance = random.Random(20261129)
    acks: list[Ack] = []
    for _ in range(KILLS):
        words = [sys.executable, "-c", BOT, str(outbox), store]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as bot:
            assert bot.stdout is not None
            assert bot.stdout.readline() == "uvloop\n"
            lines = [bot.stdout.readline() for _ in range(chance.randrange(1, 40))]
            bot.kill()
            lines += bot.stdout.readlines()
        whole = [line.split() for line in lines if line.endswith("\n")]
        acks += [Ack(name, UUID(event_id)) for name, *event_ids in whole for event_id in event_ids]

    async def delivered() -> bool:
        async with History(outbox, store=store) as history:
            return await history.drained(30)

    assert asyncio.run(delivered())
    verdict = asyncio.run(check([outbox], store, acknowledged=acks, drained=True))
    assert len(acks) > KILLS
    assert verdict.ok, str(verdict)

"""A move whose process is killed again and again loses nothing."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

import pytest

from tests.support.moves import Writer, fill, held, open_ones, sound, states

KILLS: Final = 10
SEED: Final = 20261126
_CHILD: Final = """
import sys, anyio
from letopis.store import move
from letopis.store.relocation import copier, endpoint
copier.PAGE_ROWS = 20  # many pages, so that there are many moments to be killed at

def told(real):
    async def transaction(self, work):
        print(".", flush=True)
        return await real(self, work)
    return transaction

Endpoint = endpoint.Endpoint
Endpoint.read, Endpoint.write = told(Endpoint.read), told(Endpoint.write)

async def run():
    await move(sys.argv[1], sys.argv[2])
anyio.run(run)
"""
_TRANSACTIONS: Final = 200
"""Of an unbroken move of what these tests fill a store with, about."""


@pytest.mark.parametrize("other", ["sqlite", "postgresql", "mariadb"])
async def test_ten_kills_lose_nothing_double_nothing_and_keep_the_order(
    other: str, new_store_url: Callable[[str], str]
) -> None:
    """Moves are killed at random moments until each is through, ten times in all; bots write all the time."""
    chance, kills, seen = random.Random(f"{SEED} {other}"), 0, set[tuple[int, ...]]()
    while kills < KILLS:
        source, target = new_store_url("sqlite"), new_store_url(other)
        await fill(source, talks=1, each=10)
        before = await held(source, "talk 0", "big", "fork")
        async with Writer(source, target).running() as writer:
            while await asyncio.to_thread(_killed, source, target, chance if kills < KILLS else None):
                kills += 1
                seen.add(tuple(sorted(await states(source))))

        said = writer.said()
        assert await held(target, *said) == said
        assert await held(target, *before) == before
        assert await sound(target) == [] and await open_ones(source, target) == [target]
    assert seen, "no move was killed"


def _killed(source: str, target: str, chance: random.Random | None) -> bool:
    """Run a move in a process of its own, and kill that after some of its transactions; whether it was not through."""
    words = [sys.executable, "-c", _CHILD, source, target]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        left = chance.randrange(1, _TRANSACTIONS) if chance else -1
        for _ in child.stdout:
            left -= 1
            if chance and not left:
                time.sleep(chance.uniform(0, 0.01))
                child.send_signal(signal.SIGKILL)
                break
        child.stdout.read()
        code = child.wait(60)
    assert code in (0, -signal.SIGKILL), code
    return code != 0

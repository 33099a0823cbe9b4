"""A bot that is to be killed while it streams: it says after each chunk how much it has said, and how much is kept."""

from __future__ import annotations

import asyncio
import logging
import random
from multiprocessing.connection import Connection
from pathlib import Path

from letopis.outbox import History


def chunks(seed: int, count: int) -> list[str]:
    """What the bot says: the same for the same seed."""
    chance = random.Random(seed)
    return [f"{number}{'ж' * chance.randrange(12)} " for number in range(count)]


def speak(outbox: str, store: str, report: Connection, *, seed: int, count: int, every: float | None) -> None:
    """Stream one reply, and send ``(message id, chunks said, characters kept)`` before the first chunk and after each.

    Waits to be killed then, so that the reply is never finished.
    """
    logging.disable()
    asyncio.run(_speak(Path(outbox), store, report, seed=seed, count=count, every=every))


async def _speak(outbox: Path, store: str, report: Connection, *, seed: int, count: int, every: float | None) -> None:
    chance = random.Random(-seed)
    async with (
        History.open(outbox, store=store, relay=False) as history,
        history.reply("chat", owner="42", every=every) as reply,
    ):
        report.send((reply.message_id, 0, 0))
        for number, chunk in enumerate(chunks(seed, count), start=1):
            await reply.add(chunk)
            report.send((reply.message_id, number, reply.kept))
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.004)))
        await asyncio.Event().wait()

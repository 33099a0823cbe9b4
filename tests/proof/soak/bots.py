"""Talk at a bounded rate for long and report what was promised; one bot leaks on purpose."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

from letopis.outbox import History
from tests.support.promises import SentPromises
from tests.support.victim import Bot, Talk

CONVERSATIONS: Final = 20
REPORT_INTERVAL_SECONDS: Final = 1.0  # seconds between two reports of the tasks that run, and between two reads


@dataclass(frozen=True, slots=True)
class Tasks:
    """How many tasks run in a bot."""

    count: int


def talk(outbox: str, store: str, says: Connection, ended: Event, rate: float, seed: str, leaks: int) -> None:
    """Append at a rate until asked to end, and send what is promised."""
    logging.disable()
    asyncio.run(_talk(Path(outbox), store, says, ended, rate=rate, seed=seed, leaks=leaks))


async def _talk(
    outbox: Path, store: str, says: Connection, ended: Event, *, rate: float, seed: str, leaks: int
) -> None:
    loop = asyncio.get_running_loop()
    leaked: list[Any] = []
    async with History(outbox, store=store, relay=False) as history:
        talk = Talk(prefix=outbox.stem, conversations=CONVERSATIONS)
        bot = Bot(history, SentPromises(says), seed=seed, talk=talk)
        begun, number = loop.time(), 0
        next_look = begun
        while not ended.is_set():
            number += 1
            receipt = await bot.append(number, most=1)
            bot.keep(receipt)
            if leaks:
                leaked.append((receipt, bytearray(1_024)))
                if number % leaks == 0:
                    leaked.append(outbox.with_suffix(".leak").open("a"))
            if loop.time() >= next_look:
                next_look = loop.time() + REPORT_INTERVAL_SECONDS
                says.send(Tasks(len(asyncio.all_tasks())))
                await history.messages(receipt.conversation_id, last=20)
            # What was slow is not made up for: the rate is a bound.
            begun = max(begun, loop.time() - 1 - number / rate)
            await asyncio.sleep(max(0.0, begun + number / rate - loop.time()))

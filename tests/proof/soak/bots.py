"""Bots: processes that talk at a bounded rate and report what they were promised; one of them leaks on purpose."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

from letopis.outbox import History
from letopis.store import Message
from tests.campaigns.invariants import Ack

CONVERSATIONS: Final = 20
LOOK: Final = 1.0
"""Seconds between two reports of the tasks that run, and between two reads."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """How many tasks run in a bot."""

    count: int


def talk(outbox: str, store: str, says: Connection, ended: Event, rate: float, seed: str, leaks: int) -> None:
    """Append at a rate until told to end, and send what is promised.

    :param leaks: keep every receipt, and at each so many appends a descriptor; 0 for a bot that lets go.
    """
    logging.disable()
    asyncio.run(_talk(Path(outbox), store, says, ended, rate=rate, chance=random.Random(seed), leaks=leaks))


async def _talk(
    outbox: Path, store: str, says: Connection, ended: Event, *, rate: float, chance: random.Random, leaks: int
) -> None:
    loop = asyncio.get_running_loop()
    kept: list[Any] = []
    async with History.open(outbox, store=store, relay=False) as history:
        begun, number = loop.time(), 0
        next_look = begun
        while not ended.is_set():
            number += 1
            name = f"{outbox.stem}-{chance.randrange(CONVERSATIONS)}"
            message = Message.user(f"{number} {'ж' * chance.randrange(200)}")
            receipt = await history.append(name, message, owner=f"owner of {name}")
            for event_id in receipt.event_ids[:-1]:
                says.send(Ack(name, event_id))
            says.send(Ack(name, receipt.event_ids[-1], receipt.sequence))
            if leaks:
                kept.append((receipt, bytearray(1_024)))
                if number % leaks == 0:
                    kept.append(outbox.with_suffix(".leak").open("a"))
            if loop.time() >= next_look:
                next_look = loop.time() + LOOK
                says.send(Tasks(len(asyncio.all_tasks())))
                await history.messages(name, last=20)
            # What was slow is not made up for: the rate is a bound.
            begun = max(begun, loop.time() - 1 - number / rate)
            await asyncio.sleep(max(0.0, begun + number / rate - loop.time()))

"""A bot and a relay to be killed: each runs in a process of its own and reports what it was promised."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from multiprocessing.connection import Connection
from pathlib import Path

from letopis.outbox import History, Relay
from letopis.outbox.file import OutboxFile
from letopis.store import ConversationStore, Message
from tests.campaigns.invariants import Ack


def talk(outbox: str, store: str, acks: Connection, *, seed: int, conversations: int = 8, talkers: int = 4) -> None:
    """Append without end, several at once, and send an :class:`Ack` for each append that has returned."""
    logging.disable()
    asyncio.run(_talk(Path(outbox), store, acks, seed=seed, conversations=conversations, talkers=talkers))


async def _talk(outbox: Path, store: str, acks: Connection, *, seed: int, conversations: int, talkers: int) -> None:
    chance = random.Random(seed)

    async def talker() -> None:
        for number in itertools.count():
            name = f"chat-{chance.randrange(conversations)}"
            said = [
                Message.user(f"{seed} {number} {'ж' * chance.randrange(200)}") for _ in range(chance.choice((1, 1, 3)))
            ]
            receipt = await history.append(name, *said, owner=f"owner of {name}")
            # Each event of it was promised, and the last one's place.
            for event_id in receipt.event_ids[:-1]:
                acks.send(Ack(name, event_id))
            acks.send(Ack(name, receipt.event_ids[-1], receipt.sequence))

    async with History.open(outbox, store=store, relay=False) as history, asyncio.TaskGroup() as group:
        for _ in range(talkers):
            group.create_task(talker())


def relay(outbox: str, store: str) -> None:
    """Deliver without end."""
    logging.disable()
    asyncio.run(_relay(Path(outbox), store))


async def _relay(outbox: Path, store: str) -> None:
    async with ConversationStore.open(store) as history_store:
        file = await OutboxFile.open(outbox)
        await Relay(file, history_store).run()

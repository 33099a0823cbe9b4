"""Mortals: real bots, relays and watches in processes of their own, with a death planted in them."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import nullcontext
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from letopis.outbox import History, Receipt, Relay
from letopis.outbox.alerts import WebhookChannel
from letopis.outbox.file import OutboxFile
from letopis.outbox.incidents import Rules
from letopis.outbox.tail import Pruner, Retention
from letopis.outbox.watch import Watch
from letopis.store import ConversationStore, Message
from tests.campaigns.invariants import Ack
from tests.proof.crash.books import BOOKS, ENTER, entry
from tests.proof.crash.broken import unchecked
from tests.proof.crash.gate import NET_CALLS, enter
from tests.proof.crash.moments import ROUNDS
from tests.proof.crash.planted import plant

RULES: Final = Rules(silent_after=0.1, repeat=(0.4, 3600.0), resolve_after=0.1)
"""People who are told soon and reminded soon, so that nobody has to wait for an hour."""
BATCH: Final = 4
LOOK: Final = 0.02


def bot(outbox: str, store: str, acks: Connection, *, moment: str, number: int) -> None:
    """Say some things, with and without the bot's own books, and send an ``Ack`` for each."""
    logging.disable()
    plant(moment, number)
    asyncio.run(_bot(Path(outbox), store, acks))


async def _bot(outbox: Path, store: str, acks: Connection) -> None:
    def done(receipt: Receipt) -> None:
        acks.send(Ack(receipt.conversation_id, receipt.event_ids[-1], receipt.sequence))

    async with History.open(outbox, store=store, relay=False, watch=False) as history:
        for number in range(ROUNDS):
            done(await history.append("chat", Message.user(f"question {number}")))
            async with history.transaction() as own:
                receipt = await own.append(f"{BOOKS}-1", Message.assistant(f"answer {number}"))
                await own.execute(ENTER, entry(receipt))
            done(receipt)
            async with history.outbox.engine.connect() as connection:
                receipt = await history.append_in(connection, f"{BOOKS}-2", Message.assistant(f"notice {number}"))
                await connection.execute(ENTER, entry(receipt))
                await connection.commit()
            done(receipt)


def relay(outbox: str, store: str, *, moment: str, number: int, leave: bool = False, without: bool = False) -> None:
    """Deliver, in small batches, and prune.

    :param leave: end once all is delivered.
    :param without: for a control, apply without a look at what the store holds already.
    """
    logging.disable()
    plant(moment, number)
    with unchecked() if without else nullcontext():
        asyncio.run(_relay(Path(outbox), store, leave=leave))


def deliver(outbox: str, store: str, way: Connection) -> None:
    """Deliver all there is to a server, through a gate."""
    logging.disable()
    enter(way, NET_CALLS)
    asyncio.run(_relay(Path(outbox), store, leave=True))


async def _relay(outbox: Path, store: str, *, leave: bool) -> None:
    async with ConversationStore.open(store) as history_store:
        file = await OutboxFile.open(outbox)
        pruner = Pruner(Retention(keep_last=1, keep_for=timedelta(0)), file.now_us)
        working = Relay(file, history_store, batch=BATCH, chores=(pruner,), random=random.Random(1))
        await (working.drain() if leave else working.run())
        await file.close()


def watch(outbox: str, hook: str, *, moment: str, number: int) -> None:
    """Look at the outbox and tell the operator."""
    logging.disable()
    plant(moment, number)
    asyncio.run(_watch(Path(outbox), hook))


async def _watch(outbox: Path, hook: str) -> None:
    file = await OutboxFile.open(outbox)
    watching = Watch(file, channels=(WebhookChannel(hook, private=True),), rules=RULES)
    while True:
        await watching.observe_once()
        await asyncio.sleep(LOOK)

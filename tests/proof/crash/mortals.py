"""Start bots, relays and watches with a death planted in them, or behind a gate that kills them at a call."""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from letopis.outbox.alerting.channels import AppriseChannel
from letopis.outbox.alerting.incidents import Rules
from letopis.outbox.alerting.monitor import AlertMonitor
from letopis.outbox.file.outbox_file import OutboxFile
from tests.proof.crash.gate import FILE_CALLS, NET_CALLS, enter
from tests.proof.crash.moments import ROUNDS
from tests.proof.crash.planted import plant
from tests.support import victim
from tests.support.defects import DUPLICATES_TAKEN, planted

RULES: Final = Rules(silent_after=0.1, repeat_interval=0.4, resolve_after=0.1)
"""Operators who are alerted and reminded soon, so that a test need not wait for a day."""
REMINDED_ALREADY: Final = replace(RULES, repeat_interval=3600.0)
"""No further reminder is due, however slow the machine is."""
BATCH_EVENTS: Final = 4
LOOK_INTERVAL_SECONDS: Final = 0.02


def bot(outbox: str, store: str, acks: Connection, *, moment: str, number: int) -> None:
    """Say some things, with and without the bot's own books, and send an ``Ack`` for each."""
    victim.say_all(outbox, store, acks, rounds=ROUNDS, prepare_process=partial(plant, moment, number))


def relay(outbox: str, store: str, *, moment: str, number: int, leave: bool = False, without: bool = False) -> None:
    """Deliver, in small batches, and prune."""
    logging.disable()
    plant(moment, number)
    with planted(DUPLICATES_TAKEN) if without else nullcontext():
        asyncio.run(victim.deliver(Path(outbox), store, leave=leave, batch=BATCH_EVENTS, prune=True))


def deliver(outbox: str, store: str, way: Connection) -> None:
    """Deliver all there is to a server, through a gate."""
    logging.disable()
    enter(way, NET_CALLS)
    asyncio.run(victim.deliver(Path(outbox), store, leave=True, batch=BATCH_EVENTS, prune=True))


def say(folder: str, way: Connection, *, without: str = "") -> None:
    """Say and deliver, through a gate."""
    logging.disable()
    enter(way, FILE_CALLS)
    asyncio.run(victim.say_and_deliver(Path(folder), without=without))


def erase(folder: str, way: Connection, *, without: str = "") -> None:
    """Take a message's content away and deliver that, through a gate."""
    logging.disable()
    enter(way, FILE_CALLS)
    asyncio.run(victim.erase_and_deliver(Path(folder), without=without))


def watch(outbox: str, hook: str, *, moment: str, number: int) -> None:
    """Look at the outbox and tell the operator."""
    logging.disable()
    plant(moment, number)
    asyncio.run(_watch(Path(outbox), hook))


async def _watch(outbox: Path, hook: str) -> None:
    file = await OutboxFile.open(outbox)
    watching = AlertMonitor(file, channels=(AppriseChannel(hook, private=True),), rules=RULES)
    while True:
        await watching.observe_once()
        await asyncio.sleep(LOOK_INTERVAL_SECONDS)

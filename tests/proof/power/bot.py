"""The bot whose power is cut: it appends, delivers and checkpoints, and writes down what it was promised.

python -m tests.proof.power.bot FOLDER ACKS --appends 80          # once, to be recorded
python -m tests.proof.power.bot FOLDER ACKS --pace 0.002          # without end, to be cut off
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import os
import random
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox import History
from letopis.outbox.receipts import Receipt
from letopis.store import Message, sqlite_files
from tests.proof.power.promises import OUTBOX, STORE, TILL, told

CONVERSATIONS: Final = 5
TALKERS: Final = 3


def weaken(*pragmas: str) -> None:
    """Have every connection to an outbox file set these too, after the library's own settings."""
    ours = sqlite_files._set_sqlite

    def set_sqlite(busy_timeout: float, connection: Any) -> None:
        ours(busy_timeout, connection)
        cursor = connection.cursor()
        try:
            cursor.execute("PRAGMA database_list")
            if str(cursor.fetchone()[2]).endswith(OUTBOX):
                for pragma in pragmas:
                    cursor.execute(f"PRAGMA {pragma}")
        finally:
            cursor.close()

    sqlite_files._set_sqlite = set_sqlite


class Bot:
    """Talks in a few conversations at once, sometimes with rows of its own in the same transaction."""

    def __init__(self, history: History, acks: int, *, pace: float, seed: int) -> None:
        self._history = history
        self._acks = acks
        self._pace = pace
        self._chance = random.Random(seed)
        self._numbers = itertools.count()

    async def prepare(self) -> None:
        """Make the bot's own table, in the outbox file."""
        async with self._history.transaction() as transaction:
            await transaction.execute(
                sa.text("CREATE TABLE IF NOT EXISTS credits (event_id BLOB PRIMARY KEY, number INTEGER)")
            )

    async def talk(self, *, until: int | None) -> None:
        """Append until so many appends were made, by anybody."""
        for number in self._numbers:
            if until is not None and number >= until:
                return
            if number % 7 == 3:
                self._tell(await self._credit(number))
            else:
                self._tell(await self._say(number))
            if number % 20 == 19:
                await self._history.outbox.tidy()
            if self._pace:
                await asyncio.sleep(self._pace)

    async def follow(self, receipt: Receipt) -> None:
        """Write down that the history store has an event, once it is said to."""
        if await receipt.saved(timeout=20):
            os.write(self._acks, told(receipt.conversation_id, receipt.event_ids[-1], None, saved=True))

    async def _say(self, number: int) -> Receipt:
        said = [
            Message.user(f"{number} {'слово ' * self._chance.randrange(30)}")
            for _ in range(self._chance.choice((1, 2)))
        ]
        return await self._history.append(f"chat-{number % CONVERSATIONS}", *said)

    async def _credit(self, number: int) -> Receipt:
        async with self._history.transaction() as transaction:
            receipt = await transaction.append(f"{TILL}{number % 2}", Message.assistant(f"credit {number}"))
            await transaction.execute(
                sa.text("INSERT INTO credits VALUES (:event_id, :number)"),
                {"event_id": receipt.event_ids[-1].bytes, "number": number},
            )
        return receipt

    def _tell(self, receipt: Receipt) -> None:
        lines = [told(receipt.conversation_id, event_id, None) for event_id in receipt.event_ids[:-1]]
        os.write(self._acks, b"".join((*lines, told(receipt.conversation_id, receipt.event_ids[-1], receipt.sequence))))


async def live(folder: Path, acks: Path, *, appends: int | None, pace: float, seed: int) -> None:
    """Open the history in the folder and talk."""
    descriptor = os.open(acks, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        async with History.open(folder / OUTBOX, store=folder / STORE, min_free_bytes=None) as history:
            bot = Bot(history, descriptor, pace=pace, seed=seed)
            await bot.prepare()
            async with asyncio.TaskGroup() as group:
                for _ in range(TALKERS):
                    group.create_task(bot.talk(until=appends))
                followed = await history.append("followed", Message.user("is this one saved?"))
                bot._tell(followed)
                group.create_task(bot.follow(followed))
            await history.drained(20)
    finally:
        os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("acks", type=Path)
    parser.add_argument("--appends", type=int, help="how many, without end by default")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds between two appends of a talker")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pragma", action="append", default=[], help="set on the outbox after the library's own")
    given = parser.parse_args()
    logging.disable()
    weaken(*given.pragma)
    asyncio.run(live(given.folder, given.acks, appends=given.appends, pace=given.pace, seed=given.seed))


if __name__ == "__main__":
    main()

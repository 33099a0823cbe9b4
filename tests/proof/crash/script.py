"""The scripts that are killed at every step: a bot that says some things and delivers them, and one that erases."""

from __future__ import annotations

import asyncio
import logging
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final
from uuid import UUID

from letopis.outbox import History, Receipt, Relay
from letopis.outbox.append import prepare
from letopis.store import Message
from letopis.store.vocabulary import MessageRedacted
from tests.campaigns.invariants import Ack
from tests.proof.crash.books import BOOKS, ENTER, MAKE, entry
from tests.proof.crash.gate import FILE_CALLS, enter

OUTBOX: Final = "bot.outbox.db"
HISTORY: Final = "history.db"
ACKS: Final = "acks"
PRIVATE: Final = "private"
"""The conversation with something in it that is to be erased, and the id of that message."""
SECRET: Final = "quetzalcoatlus"

EARLY: Final = "early"
"""A control: what is said is promised before it is written."""
APART: Final = "apart"
"""A control: the books are kept in a transaction of their own."""


def run(folder: str, way: Connection, *, without: str = "") -> None:
    """Say and deliver, through a gate; each promise is written to the file of acknowledgements.

    :param without: the promise to break, for a control.
    """
    logging.disable()
    enter(way, FILE_CALLS)
    asyncio.run(_run(Path(folder), without))


def erase(folder: str, way: Connection, *, without: str = "") -> None:
    """Take a message's content away, and deliver that, through a gate; the promise is written too."""
    logging.disable()
    enter(way, FILE_CALLS)
    asyncio.run(_erase(Path(folder), without))


class Promises:
    """The file of what was promised: one write for each, so that a line is there or not."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / ACKS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def early(self, conversation_id: str, event_id: UUID) -> None:
        """Promise what is not written yet."""
        os.write(self._file, f"{conversation_id} {event_id.hex} \n".encode())

    def done(self, receipt: Receipt) -> None:
        """Promise what is written."""
        line = f"{receipt.conversation_id} {receipt.event_ids[-1].hex} {receipt.sequence}\n"
        os.write(self._file, line.encode())


async def _run(folder: Path, without: str) -> None:
    promises = Promises(folder)
    async with History.open(folder / OUTBOX, store=url_of(folder), relay=False, watch=False) as history:
        async with history.transaction() as own:
            await own.execute(MAKE)
        if without == EARLY:
            prepared = prepare("chat", [Message.user("question")])
            promises.early("chat", prepared.events[-1].event_id)
            await history.outbox.append(prepared)
        else:
            promises.done(await history.append("chat", Message.user("question")))
        async with history.transaction() as own:
            receipt = await own.append(f"{BOOKS}-1", Message.assistant("answer"))
            if without != APART:
                await own.execute(ENTER, entry(receipt))
        if without == APART:
            async with history.transaction() as own:
                await own.execute(ENTER, entry(receipt))
        promises.done(receipt)
        async with history.outbox.engine.connect() as connection:
            receipt = await history.append_in(connection, f"{BOOKS}-2", Message.assistant("notice"))
            await connection.execute(ENTER, entry(receipt))
            await connection.commit()
        promises.done(receipt)
        group = (history.append(f"group-{place}", Message.user("at once"), Message.user("with it")) for place in (1, 2))
        for receipt in await asyncio.gather(*group):
            promises.done(receipt)
        await Relay(history.outbox, history.store).drain()


async def _erase(folder: Path, without: str) -> None:
    promises = Promises(folder)
    async with History.open(folder / OUTBOX, store=url_of(folder), relay=False, watch=False) as history:
        if without == EARLY:
            prepared = prepare(PRIVATE, [MessageRedacted(message_id=PRIVATE)])
            promises.early(PRIVATE, prepared.events[-1].event_id)
            await history.outbox.append(prepared)
        else:
            promises.done(await history.redact(PRIVATE, PRIVATE))
        await Relay(history.outbox, history.store).drain()


async def tell_secret(folder: Path) -> None:
    """Say and deliver what is to be erased."""
    async with History.open(folder / OUTBOX, store=url_of(folder), watch=False) as history:
        await history.append(PRIVATE, Message.user("about something else"))
        receipt = await history.append(PRIVATE, Message.user(f"{SECRET} " * 40, id=PRIVATE))
        await history.append(PRIVATE, Message.user("and that was it"))
        assert await receipt.saved(20)
        assert await history.drained(20)


def url_of(folder: Path) -> str:
    """Return the history store of a folder."""
    return f"sqlite:///{(folder / HISTORY).as_posix()}"


def read_acks(path: Path) -> list[Ack]:
    """Return what was promised; a line that was not finished is none."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="ascii").split("\n")[:-1]
    words = [line.split(" ") for line in lines]
    return [Ack(name, UUID(event_id), int(sequence) if sequence else None) for name, event_id, sequence in words]

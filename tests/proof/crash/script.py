"""The script that is killed at every step: a bot that says some things, keeps its own books, and delivers all of it."""

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
from tests.campaigns.invariants import Ack
from tests.proof.crash.books import BOOKS, ENTER, MAKE, entry
from tests.proof.crash.gate import FILE_CALLS, enter

OUTBOX: Final = "bot.outbox.db"
HISTORY: Final = "history.db"
ACKS: Final = "acks"
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


async def _run(folder: Path, without: str) -> None:
    acks = os.open(folder / ACKS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def promised(conversation_id: str, event_id: UUID, sequence: int | str = "") -> None:
        os.write(acks, f"{conversation_id} {event_id.hex} {sequence}\n".encode())

    def done(receipt: Receipt) -> None:
        promised(receipt.conversation_id, receipt.event_ids[-1], receipt.sequence)

    async with History.open(folder / OUTBOX, store=url_of(folder), relay=False, watch=False) as history:
        async with history.transaction() as own:
            await own.execute(MAKE)
        if without == EARLY:
            prepared = prepare("chat", [Message.user("question")])
            promised("chat", prepared.events[-1].event_id)
            await history.outbox.append(prepared)
        else:
            done(await history.append("chat", Message.user("question")))
        async with history.transaction() as own:
            receipt = await own.append(f"{BOOKS}-1", Message.assistant("answer"))
            if without != APART:
                await own.execute(ENTER, entry(receipt))
        if without == APART:
            async with history.transaction() as own:
                await own.execute(ENTER, entry(receipt))
        done(receipt)
        async with history.outbox.engine.connect() as connection:
            receipt = await history.append_in(connection, f"{BOOKS}-2", Message.assistant("notice"))
            await connection.execute(ENTER, entry(receipt))
            await connection.commit()
        done(receipt)
        group = (history.append(f"group-{place}", Message.user("at once"), Message.user("with it")) for place in (1, 2))
        for receipt in await asyncio.gather(*group):
            done(receipt)
        await Relay(history.outbox, history.store).drain()


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

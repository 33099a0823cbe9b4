"""Promises: what a bot was told, as lines of a file, and whether a disk that it left behind keeps them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from letopis.outbox import History
from letopis.store import Message
from tests.campaigns.invariants import check, examine_outbox, read_outbox, read_store
from tests.campaigns.states import Ack, OutboxState

OUTBOX: Final = "bot.outbox.db"
STORE: Final = "history.db"
TILL: Final = "till-"
"""Conversations whose every message has a row of the bot's own, from the same transaction."""
PATIENCE: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Promises:
    """What appends have returned, and what receipts said is in the history store."""

    acks: Sequence[Ack] = ()
    saved: Sequence[UUID] = ()


def told(conversation_id: str, event_id: UUID, sequence: int | None, *, saved: bool = False) -> bytes:
    """Return one promise as a line."""
    return (json.dumps([conversation_id, event_id.hex, sequence, saved]) + "\n").encode()


def read_promises(lines: bytes) -> Promises:
    """Return the promises in these lines; the last one may still be unfinished, and was not made then."""
    acks: list[Ack] = []
    saved: list[UUID] = []
    whole, _, _ = lines.rpartition(b"\n")
    for line in whole.splitlines():
        conversation_id, event_id, sequence, is_saved = json.loads(line)
        if is_saved:
            saved.append(UUID(hex=event_id))
        else:
            acks.append(Ack(conversation_id, UUID(hex=event_id), sequence))
    return Promises(acks=acks, saved=saved)


def broken(folder: Path, promises: Promises) -> list[str]:
    """Look into the files that were left, after SQLite has recovered them, and return which promises are broken."""
    problems: list[str] = []
    for name in (OUTBOX, STORE):
        path = folder / name
        if not path.exists():
            if name == OUTBOX and promises.acks:
                problems.append(f"{name} is not there, with {len(promises.acks)} appends acknowledged")
            continue
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            try:
                connection.execute("PRAGMA synchronous=OFF")  # nobody cuts the power of what is only looked into
                tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                if name == OUTBOX:
                    problems += _outbox(connection, tables, path, promises)
                ((integrity,),) = connection.execute("PRAGMA integrity_check(1)").fetchall()
            except sqlite3.Error as error:
                integrity = getattr(error, "sqlite_errorname", None) or type(error).__name__
        if integrity != "ok":
            problems.append(f"{name}: integrity check says {integrity}")
    return problems


def _outbox(connection: sqlite3.Connection, tables: set[str], path: Path, promises: Promises) -> list[str]:
    if "letopis_outbox_events" not in tables:
        return [f"no tables, with {len(promises.acks)} appends acknowledged"] if promises.acks else []
    if not connection.execute("SELECT 1 FROM letopis_outbox_origin").fetchall():
        return [f"no identity, with {len(promises.acks)} appends acknowledged"] if promises.acks else []
    state = read_outbox(path)
    problems = list(examine_outbox(state, acknowledged=promises.acks).problems)
    if "credits" in tables:
        problems += _halves(connection, state)
    return problems


def _halves(connection: sqlite3.Connection, state: OutboxState) -> list[str]:
    rows = {UUID(bytes=row[0]) for row in connection.execute("SELECT event_id FROM credits")}
    said = {
        event.event_id
        for event in state.events
        if event.conversation_id.startswith(TILL) and event.type == "message.appended"
    }
    return [f"half a transaction: {one}" for one in rows ^ said]


async def broken_for_the_library(folder: Path, promises: Promises) -> list[str]:
    """Have the library open what was left and deliver the rest; return which promises are broken, before and after."""
    outbox, store = folder / OUTBOX, f"sqlite:///{(folder / STORE).as_posix()}"
    problems: list[str] = []
    if _holds(folder / STORE, "letopis_events") and _holds(outbox, "letopis_outbox_superseded"):
        problems += (await check([outbox], store, acknowledged=promises.acks)).problems
        stored = {event.event_id for event in (await read_store(store)).events}
        problems += [f"event {one} was said to be saved, and is LOST" for one in promises.saved if one not in stored]
    async with History.open(outbox, store=store, min_free_bytes=None) as history:
        await history.append("afterwards", Message.user("and on it goes"))
        if not await history.drained(PATIENCE):
            problems.append(f"what is pending was not delivered within {PATIENCE:g} s")
    problems += (await check([outbox], store, acknowledged=promises.acks, drained=True)).problems
    return problems


def _holds(path: Path, table: str) -> bool:
    if not path.exists():
        return False
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchall()
    return bool(found)

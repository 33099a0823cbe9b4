"""Look whether a disk that a bot left behind keeps what the bot was promised."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from letopis.outbox import History
from letopis.store import Message
from tests.campaigns.invariants import check, examine_outbox, read_outbox, read_store
from tests.support.promises import BOOKS, KeptPromises, halves
from tests.support.victim import HISTORY, OUTBOX

TIMEOUT_SECONDS: Final = 30.0


def broken(folder: Path, promises: KeptPromises) -> list[str]:
    """Look into the files that were left, after SQLite has recovered them, and return which promises are broken."""
    problems: list[str] = []
    for name in (OUTBOX, HISTORY):
        path = folder / name
        if not path.exists():
            if name == OUTBOX and promises.acks:
                problems.append(f"{name} is not there, with {len(promises.acks)} appends acknowledged")
            continue
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            try:
                connection.execute("PRAGMA synchronous=OFF")  # no power cut on what is only inspected
                tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                if name == OUTBOX:
                    problems += _outbox(connection, tables, path, promises)
                ((integrity,),) = connection.execute("PRAGMA integrity_check(1)").fetchall()
            except sqlite3.Error as error:
                integrity = getattr(error, "sqlite_errorname", None) or type(error).__name__
        if integrity != "ok":
            problems.append(f"{name}: integrity check says {integrity}")
    return problems


def _outbox(connection: sqlite3.Connection, tables: set[str], path: Path, promises: KeptPromises) -> list[str]:
    if "letopis_outbox_events" not in tables:
        return [f"no tables, with {len(promises.acks)} appends acknowledged"] if promises.acks else []
    if not connection.execute("SELECT 1 FROM letopis_outbox_origin").fetchall():
        return [f"no identity, with {len(promises.acks)} appends acknowledged"] if promises.acks else []
    state = read_outbox(path)
    problems = list(examine_outbox(state, acknowledged=promises.acks).problems)
    if BOOKS in tables:
        problems += halves(connection, state.events)
    return problems


async def broken_for_the_library(folder: Path, promises: KeptPromises) -> list[str]:
    outbox, store = folder / OUTBOX, f"sqlite:///{(folder / HISTORY).as_posix()}"
    problems: list[str] = []
    if _holds(folder / HISTORY, "letopis_events") and _holds(outbox, "letopis_outbox_superseded"):
        problems += (await check([outbox], store, acknowledged=promises.acks)).problems
        stored = {event.event_id for event in (await read_store(store)).events}
        problems += [f"event {one} was said to be saved, and is LOST" for one in promises.saved if one not in stored]
    async with History(outbox, store=store, min_free_bytes=None) as history:
        await history.append("afterwards", Message.user("and on it goes"))
        if not await history.drained(TIMEOUT_SECONDS):
            problems.append(f"what is pending was not delivered within {TIMEOUT_SECONDS:g} s")
    problems += (await check([outbox], store, acknowledged=promises.acks, drained=True)).problems
    return problems


def _holds(path: Path, table: str) -> bool:
    if not path.exists():
        return False
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchall()
    return bool(found)

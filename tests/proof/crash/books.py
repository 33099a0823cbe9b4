"""Books: the bot's own table in the outbox file, with an entry for each message of some conversations, made with it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from letopis.outbox import Receipt
from tests.campaigns.states import StoreState

BOOKS: Final = "books"
"""The table, and the prefix of the conversations that are entered in it."""
MAKE: Final = sa.text(f"CREATE TABLE IF NOT EXISTS {BOOKS} (event_id BLOB PRIMARY KEY)")
ENTER: Final = sa.text(f"INSERT INTO {BOOKS} VALUES (:event_id)")


def entry(receipt: Receipt) -> dict[str, object]:
    """Return what the bot notes of an append."""
    return {"event_id": receipt.event_ids[-1].bytes}


def half_kept(outbox: Path, store: StoreState) -> list[str]:
    """Return each message without its entry, and each entry without its message, where all is delivered."""
    with closing(sqlite3.connect(outbox)) as connection:
        there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (BOOKS,)).fetchone()
        entries = {row[0] for row in connection.execute(f"SELECT event_id FROM {BOOKS}")} if there else set[bytes]()
    said = {
        event.event_id.bytes
        for event in store.events
        if event.type == "message.appended" and event.conversation_id.startswith(BOOKS)
    }
    return [
        *(f"half: {one.hex()} is in the history, and not in the bot's books" for one in said - entries),
        *(f"half: {one.hex()} is in the bot's books, and not in the history" for one in entries - said),
    ]

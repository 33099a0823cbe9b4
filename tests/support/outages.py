"""Take a history store away from a history that is on the same SQLite file as others."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from letopis.outbox import History


@asynccontextmanager
async def locked_out(path: Path, store: Path) -> AsyncIterator[History]:
    """Give a history, delivered by hand, whose store is locked by another program; nobody else may have it open."""
    with closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        async with History(path, store=store, relay=False, watch=False, read_timeout=0.2) as history:
            yield history

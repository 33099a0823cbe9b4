"""Prune an outbox, look at its incidents, export and import it, and open one as another process would."""

import io
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from letopis.ops.transfer.importer import ImportCounts, Importer
from letopis.outbox import History, Retention
from letopis.outbox.alerting.incident_table import open_incidents_of
from letopis.outbox.alerting.incidents import IncidentRecord
from letopis.outbox.event_log.retention import Pruner
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.history.exporter import Exporter, RecordSource
from letopis.outbox.history.sharing import Registry
from letopis.store import ConversationStore
from letopis.store.transfer.jsonl import Refused, SeenKeys, read_lines


async def prune(history: History, *, keep_last: int) -> None:
    """Prune what is delivered but for the newest events of each lane, as an outbox does in quiet moments."""
    retention = Retention(keep_last=keep_last, keep_for=timedelta(0))
    await history.outbox.write(Pruner(retention, lambda: history.outbox.now_us() + 10**9))


def open_incidents(connection: sa.Connection) -> tuple[IncidentRecord, ...]:
    with closing(connection.connection.cursor()) as cursor:
        return open_incidents_of(cursor)


def open_apart(path: str | os.PathLike[str], **options: Any) -> History:
    """Return a history that does not share the outbox, the relay and the tasks that this process has open."""
    history = History(path, **options)
    history._home.registry = Registry()
    return history


@asynccontextmanager
async def locked_out(path: Path, store: Path) -> AsyncIterator[History]:
    """Give a history, delivered by hand, whose store is locked by another program; nobody else may have it open."""
    with closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        async with History(path, store=store, relay=False, watch=False, read_timeout=0.2) as history:
            yield history


async def exported(source: Any, *, records: bool = True, one: str | None = None, owner: str | None = None) -> bytes:
    """Return the lines of a history or a store: all, or those of a conversation or an owner."""
    flow = Exporter(source, RecordSource(source) if records else None)
    return b"".join([line async for line in (flow.of_all(owner=owner) if one is None else flow.of_one(one))])


async def imported(outbox: OutboxFile, store: ConversationStore, raw: bytes) -> tuple[ImportCounts, list[Refused]]:
    refused: list[Refused] = []
    with SeenKeys() as count, Importer(outbox, store, tell=refused.append) as intake:
        return await intake.take(read_lines(io.BytesIO(raw), count=count)), refused

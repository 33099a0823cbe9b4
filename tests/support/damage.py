"""Damage a store or an outbox on purpose, so that a check can show that it sees it.

A check that finds nothing proves something only if it finds what is there. Each kind of damage does to one conversation
what a faulty relay would do.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Final
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.schema import conversations, events, messages
from tests.campaigns.invariants import open_engine

CONTROLS: Final = ("drop-one", "swap", "double")
DROP_EVENT_ID_INDEX: Final = "DROP INDEX uq_letopis_events_event_id"
"""The index of a store that refuses an event a second time, whatever the code does."""


def leaf_pages(path: Path, table: str) -> list[int]:
    """Return the numbers of the pages that hold the rows of a table of a SQLite file, in the order of its keys."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path", (table,)
        ).fetchall()
    return [number for (number,) in rows]


def with_noise(data: bytes, pages: Collection[int], chance: Random) -> bytes:
    size, damaged = 4096, bytearray(data)
    for number in pages:
        damaged[(number - 1) * size : number * size] = chance.randbytes(size)
    return bytes(damaged)


async def drop_event_id_index(url: str) -> None:
    """Take the store's index away that would refuse an event a second time."""
    engine = open_engine(url)
    on = " ON letopis_events" if engine.dialect.name in ("mysql", "mariadb") else ""
    try:
        async with engine.begin() as connection:
            await connection.execute(sa.text(f"{DROP_EVENT_ID_INDEX}{on}"))
    finally:
        await engine.dispose()


async def damage(url: str, control: str, conversation_id: str) -> None:
    """Lose a message of the conversation, or let two change places, or store one twice."""
    engine = open_engine(url)
    try:
        async with engine.begin() as connection:
            found = await connection.execute(
                sa.select(events)
                .where(events.c.conversation_id == conversation_id, events.c.type == "message.appended")
                .order_by(events.c.version)
            )
            rows = found.mappings().all()
            middle = len(rows) // 2
            if control == "drop-one":
                await _drop(connection, rows[middle])
            elif control == "swap":
                await _swap(connection, rows[middle - 1], rows[middle])
            else:
                await _double(connection, rows[middle])
    finally:
        await engine.dispose()


async def _drop(connection: AsyncConnection, row: sa.RowMapping) -> None:
    for table in (messages, events):
        await connection.execute(
            sa.delete(table).where(table.c.conversation_id == row["conversation_id"], table.c.version == row["version"])
        )


async def _swap(connection: AsyncConnection, one: sa.RowMapping, other: sa.RowMapping) -> None:
    for row, source in ((one, other), (other, one)):
        await connection.execute(
            sa.update(events)
            .where(events.c.conversation_id == row["conversation_id"], events.c.version == row["version"])
            .values({name: source[name] for name in ("data", "metadata", "digest", "salt", "occurred_at")})
        )


async def _double(connection: AsyncConnection, row: sa.RowMapping) -> None:
    same = events.c.conversation_id == row["conversation_id"]
    version = (await connection.execute(sa.select(sa.func.max(events.c.version)).where(same))).scalar_one() + 1
    position = (await connection.execute(sa.select(sa.func.max(events.c.position)))).scalar_one() + 1
    await connection.execute(
        sa.insert(events).values({**row, "version": version, "position": position, "event_id": uuid4()})
    )
    message = (
        await connection.execute(
            sa.select(messages).where(
                messages.c.conversation_id == row["conversation_id"], messages.c.version == row["version"]
            )
        )
    ).mappings()
    await connection.execute(
        sa.insert(messages).values({**message.one(), "version": version, "content_version": version})
    )
    await connection.execute(
        sa.update(conversations)
        .where(conversations.c.conversation_id == row["conversation_id"])
        .values(version=version, message_count=conversations.c.message_count + 1)
    )

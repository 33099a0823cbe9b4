"""Damage a store or an outbox on purpose, so that a check can show that it sees it.

A check that finds nothing proves something only if it finds what is there. Each kind of damage does to one conversation
what a faulty relay would do.
"""

from collections.abc import Collection
from pathlib import Path
from random import Random
from typing import Final
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.schema import conversations, events, messages
from tests.support.sqlite_rows import rows as rows_of
from tests.support.store_changes import run_there, transaction_on

CONTROLS: Final = ("drop-one", "swap", "double")
DROP_EVENT_ID_INDEX: Final = "DROP INDEX uq_letopis_events_event_id"
"""The index of a store that refuses an event a second time, whatever the code does."""


def leaf_pages(path: Path, table: str) -> list[int]:
    """Return the numbers of the pages that hold the rows of a table of a SQLite file, in the order of its keys."""
    pages = rows_of(path, f"SELECT pageno FROM dbstat WHERE name = '{table}' AND pagetype = 'leaf' ORDER BY path")
    return [number for (number,) in pages]


def with_noise(data: bytes, pages: Collection[int], chance: Random) -> bytes:
    size, damaged = 4096, bytearray(data)
    for number in pages:
        damaged[(number - 1) * size : number * size] = chance.randbytes(size)
    return bytes(damaged)


async def drop_event_id_index(url: str) -> None:
    on = "" if url.startswith(("sqlite", "postgresql")) else " ON letopis_events"
    await run_there(url, f"{DROP_EVENT_ID_INDEX}{on}")


async def damage(url: str, control: str, conversation_id: str) -> None:
    """Lose a message of the conversation, or let two change places, or store one twice."""
    said = (events.c.conversation_id == conversation_id, events.c.type == "message.appended")
    async with transaction_on(url) as connection:
        rows = (await connection.execute(sa.select(events).where(*said).order_by(events.c.version))).mappings().all()
        middle = len(rows) // 2
        if control == "drop-one":
            for table in (messages, events):
                await connection.execute(sa.delete(table).where(*_place(table, rows[middle])))
        elif control == "swap":
            one, other = rows[middle - 1 : middle + 1]
            for row, source in ((one, other), (other, one)):
                content = {name: source[name] for name in ("data", "metadata", "digest", "salt", "occurred_at")}
                await connection.execute(sa.update(events).where(*_place(events, row)).values(content))
        else:
            await _double(connection, rows[middle])


def _place(table: sa.Table, row: sa.RowMapping) -> tuple[sa.ColumnElement[bool], ...]:
    return table.c.conversation_id == row["conversation_id"], table.c.version == row["version"]


async def _double(connection: AsyncConnection, row: sa.RowMapping) -> None:
    same = events.c.conversation_id == row["conversation_id"]
    version = (await connection.execute(sa.select(sa.func.max(events.c.version)).where(same))).scalar_one() + 1
    position = (await connection.execute(sa.select(sa.func.max(events.c.position)))).scalar_one() + 1
    again = {"version": version, "position": position, "event_id": uuid4()}
    await connection.execute(sa.insert(events).values({**row, **again}))
    [message] = (await connection.execute(sa.select(messages).where(*_place(messages, row)))).mappings()
    await connection.execute(sa.insert(messages).values({**message, "version": version, "content_version": version}))
    counted = {"version": version, "message_count": conversations.c.message_count + 1}
    same = conversations.c.conversation_id == row["conversation_id"]
    await connection.execute(sa.update(conversations).where(same).values(counted))

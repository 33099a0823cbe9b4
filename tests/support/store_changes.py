"""Change a history store's database behind its back: run statements, swallow rows, copy it and put it back."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from letopis.store.database.schema import conversations, events, messages, metadata
from letopis.store.database.urls import normalise_url
from tests.support.sqlite_rows import rows as rows_of


@asynccontextmanager
async def transaction_on(url: str) -> AsyncIterator[AsyncConnection]:
    """Give a transaction on the store's database, as its operator would have one."""
    engine = create_async_engine(normalise_url(url))
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


async def run_there(url: str, *statements: str | sa.Executable) -> list[Any]:
    rows: list[Any] = []
    async with transaction_on(url) as connection:
        for statement in statements:
            run = connection.exec_driver_sql if isinstance(statement, str) else connection.execute
            done: Any = await run(statement)  # type: ignore[operator]
            rows = list(done.all()) if done.returns_rows else []
    return rows


def swallow(kind: str, table: str, what: str) -> tuple[str, ...]:
    """Return the statements that have a table swallow what is inserted or updated, without an error."""
    if kind == "sqlite":
        return (f"CREATE TRIGGER swallow BEFORE {what} ON letopis_{table} BEGIN SELECT RAISE(IGNORE); END",)
    return (
        "CREATE OR REPLACE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        f"CREATE TRIGGER swallow BEFORE {what} ON letopis_{table} FOR EACH ROW EXECUTE FUNCTION swallow()",
    )


def refuse(kind: str, condition: str, code: str) -> tuple[str, ...]:
    """Return the statements that have a store refuse an event for a condition on ``new``, with a state or number."""
    before = "CREATE TRIGGER refuse BEFORE INSERT ON letopis_events"
    if kind == "sqlite":
        return (f"{before} WHEN {condition} BEGIN SELECT RAISE(ABORT, 'refused'); END",)
    if kind == "mariadb":
        state = f"'{code}'" if len(code) == 5 else f"'45000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'refused'"
        return (f"{before} FOR EACH ROW IF {condition} THEN SIGNAL SQLSTATE {state}; END IF",)
    function = (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'"
        f" USING ERRCODE = '{code}'; END $$"
    )
    return function, f"{before} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse()"


def let_through(kind: str, table: str, trigger: str = "swallow") -> tuple[str, ...]:
    return (f"DROP TRIGGER {trigger}{f' ON letopis_{table}' if kind == 'postgresql' else ''}",)


_LEFT_OUT = frozenset({"letopis_search", "letopis_checkpoints"})
Copy = Mapping[str, Sequence[Any]]


async def copied(url: str) -> Copy:
    """Return all rows of a store in one snapshot: a backup."""
    async with transaction_on(url) as connection:
        if connection.dialect.name == "sqlite":
            await connection.exec_driver_sql("BEGIN")
        else:
            await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        return {
            table.name: [tuple(row) for row in (await connection.execute(sa.select(table))).all()]
            for table in metadata.sorted_tables
        }


async def put_back(url: str, copy: Copy) -> None:
    """Give a store the rows of a backup, in one transaction, with an empty search index; no connection is cut."""
    async with transaction_on(url) as connection:
        if connection.dialect.name == "postgresql":  # a DELETE there sees nothing of what is just being written
            await connection.exec_driver_sql(f"LOCK TABLE {', '.join(metadata.tables)} IN ACCESS EXCLUSIVE MODE")
        for table in metadata.sorted_tables:
            await connection.execute(sa.delete(table))
            names = list(table.columns.keys())
            if rows := [] if table.name in _LEFT_OUT else copy[table.name]:
                await connection.execute(sa.insert(table), [dict(zip(names, row, strict=True)) for row in rows])


async def put_back_beside(url: str, copy: Copy, *, tries: int) -> bool:
    """Try that beside deliveries, as an operator would; return False if each try met one."""
    for _ in range(tries):
        try:
            await put_back(url, copy)
        except DBAPIError:
            await asyncio.sleep(0.05)
        else:
            return True
    return False


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

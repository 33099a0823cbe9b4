"""Change a history store's database behind its back: run statements, swallow rows, copy it and put it back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from letopis.store.database.schema import metadata
from letopis.store.database.urls import normalise_url


async def run_there(url: str, *statements: str) -> None:
    """Run statements on the store's database, as its operator would."""
    engine = create_async_engine(normalise_url(url))
    try:
        async with engine.begin() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)
    finally:
        await engine.dispose()


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
    """Return the statements that end it."""
    return (f"DROP TRIGGER {trigger}{f' ON letopis_{table}' if kind == 'postgresql' else ''}",)


_LEFT_OUT = frozenset({"letopis_search", "letopis_checkpoints"})
Copy = Mapping[str, Sequence[Any]]


async def copied(url: str) -> Copy:
    """Return all rows of a store in one snapshot: a backup."""
    engine = create_async_engine(normalise_url(url))
    try:
        async with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                await connection.exec_driver_sql("BEGIN")
            else:
                await connection.execution_options(isolation_level="REPEATABLE READ")
            return {
                table.name: [tuple(row) for row in (await connection.execute(sa.select(table))).all()]
                for table in metadata.sorted_tables
            }
    finally:
        await engine.dispose()


async def put_back(url: str, copy: Copy) -> None:
    """Give a store the rows of a backup, in one transaction, with an empty search index; no connection is cut."""
    engine = create_async_engine(normalise_url(url))
    try:
        async with engine.begin() as connection:
            if engine.dialect.name == "postgresql":  # a DELETE there sees nothing of what is just being written
                await connection.exec_driver_sql(f"LOCK TABLE {', '.join(metadata.tables)} IN ACCESS EXCLUSIVE MODE")
            for table in metadata.sorted_tables:
                await connection.execute(sa.delete(table))
                names = list(table.columns.keys())
                if rows := [] if table.name in _LEFT_OUT else copy[table.name]:
                    await connection.execute(sa.insert(table), [dict(zip(names, row, strict=True)) for row in rows])
    finally:
        await engine.dispose()


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

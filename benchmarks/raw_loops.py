"""Write the rows of an apply with a bare driver, one transaction per batch, and nothing else."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from benchmarks.bare_reads import connect_asyncmy
from benchmarks.figures import Durability
from benchmarks.raw_rows import HEAD, REWRITTEN, TABLES, Batch, keys_of, names_of, values_of, with_bytes
from letopis.store import ConversationStore


class RawLoop(ABC):
    """Writes batches into a store that has its tables and no other user."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)

    async def open(self) -> None:
        """Make the tables, and connect."""
        store = ConversationStore(self._url, migrate=True)
        await store.prepare()
        await store.close()
        await self._connect()

    def ready(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Return the batches with the values that the driver takes; not a part of what is measured."""
        return batches

    async def write(self, batches: Sequence[Batch]) -> float:
        """Write all batches and return the seconds that it took."""
        begun = time.perf_counter()
        for batch in batches:
            await self._write(batch)
        return time.perf_counter() - begun

    @abstractmethod
    async def _connect(self) -> None: ...

    @abstractmethod
    async def _write(self, batch: Batch) -> None: ...

    @abstractmethod
    async def durability(self) -> Durability:
        """Return what its own connection says."""

    @abstractmethod
    async def close(self) -> None:
        """Close it."""


class RawAsyncpg(RawLoop):
    """asyncpg: COPY for what is new, an unnested upsert for what may be there."""

    async def _connect(self) -> None:
        import asyncpg

        url = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection: Any = await asyncpg.connect(url)
        self._upserts = {table.name: await self._upsert(table) for table in TABLES if table.name in REWRITTEN}

    async def _upsert(self, table: sa.Table) -> str:
        types = dict(
            await self._connection.fetch(
                "SELECT attname, format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = $1::regclass", table.name
            )
        )
        arrays = ", ".join(f"${place}::{types[name]}[]" for place, name in enumerate(names_of(table), 1))
        return (
            f"INSERT INTO {table.name} ({', '.join(names_of(table))}) SELECT * FROM unnest({arrays})"
            f" ON CONFLICT ({', '.join(keys_of(table))}) DO UPDATE SET"
            f" {', '.join(f'{name} = excluded.{name}' for name in values_of(table))}"
        )

    async def _write(self, batch: Batch) -> None:
        connection = self._connection
        async with connection.transaction():
            await connection.execute("SET LOCAL synchronous_commit = on")
            for table in TABLES:
                rows = batch.rows[table.name]
                if table.name in REWRITTEN:
                    await connection.execute(self._upserts[table.name], *map(list, zip(*rows, strict=True)))
                else:
                    await connection.copy_records_to_table(table.name, records=rows, columns=names_of(table))
            await connection.execute(HEAD.format(place="$1", quote=""), batch.head)

    async def durability(self) -> Durability:
        async with self._connection.transaction():
            await self._connection.execute("SET LOCAL synchronous_commit = on")
            return Durability.of_postgresql(
                fsync=await self._connection.fetchval("SHOW fsync"),
                synchronous_commit=await self._connection.fetchval("SHOW synchronous_commit"),
            )

    async def close(self) -> None:
        await self._connection.close()


class RawAsyncmy(RawLoop):
    """asyncmy: many rows in one VALUES, which is what its ``executemany`` makes."""

    async def _connect(self) -> None:
        self._connection = await connect_asyncmy(self._url)
        self._statements = {table.name: _many(table) for table in TABLES}

    def ready(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        return _with_bytes(batches)

    async def _write(self, batch: Batch) -> None:
        connection = self._connection
        await connection.begin()
        async with connection.cursor() as cursor:
            for table in TABLES:
                await cursor.executemany(self._statements[table.name], batch.rows[table.name])
            await cursor.execute(HEAD.format(place="%s", quote="`"), (batch.head,))
        await connection.commit()

    async def durability(self) -> Durability:
        async with self._connection.cursor() as cursor:
            await cursor.execute("SELECT @@innodb_flush_log_at_trx_commit")
            (found,) = await cursor.fetchone()
        await self._connection.commit()
        return Durability.of_mariadb(flush_log_at_trx_commit=int(found))

    async def close(self) -> None:
        self._connection.close()


class RawSqlite(RawLoop):
    """The standard library's sqlite3 in a thread, one hop for all batches."""

    async def _connect(self) -> None:
        self._connection = sqlite3.connect(self._url.database or "", isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "foreign_keys=ON"):
            self._connection.execute(f"PRAGMA {pragma}").fetchall()
        self._statements = {table.name: _upsert(table) for table in TABLES}

    def ready(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        return _with_bytes(batches)

    async def write(self, batches: Sequence[Batch]) -> float:
        begun = time.perf_counter()
        await asyncio.to_thread(self._write_all, batches)
        return time.perf_counter() - begun

    async def _write(self, batch: Batch) -> None:
        await asyncio.to_thread(self._write_all, [batch])

    def _write_all(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self._connection.execute("BEGIN IMMEDIATE")
            for table in TABLES:
                self._connection.executemany(self._statements[table.name], batch.rows[table.name])
            self._connection.execute(HEAD.format(place="?", quote=""), (batch.head,))
            self._connection.execute("COMMIT")

    async def durability(self) -> Durability:
        ((journal,),) = self._connection.execute("PRAGMA journal_mode").fetchall()
        ((synchronous,),) = self._connection.execute("PRAGMA synchronous").fetchall()
        return Durability.of_sqlite(journal, synchronous)

    async def close(self) -> None:
        self._connection.close()


def raw_loop(kind: str, url: str) -> RawLoop:
    """Return the raw loop of a kind of store."""
    return {"postgresql": RawAsyncpg, "mariadb": RawAsyncmy, "sqlite": RawSqlite}[kind](url)


def _many(table: sa.Table) -> str:
    names = names_of(table)
    columns = ", ".join(f"`{name}`" for name in names)
    statement = f"INSERT INTO {table.name} ({columns}) VALUES ({', '.join(['%s'] * len(names))})"
    if table.name not in REWRITTEN:
        return statement
    changed = ", ".join(f"`{name}` = VALUES(`{name}`)" for name in values_of(table))
    return f"{statement} ON DUPLICATE KEY UPDATE {changed}"


def _upsert(table: sa.Table) -> str:
    names = names_of(table)
    statement = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    if table.name not in REWRITTEN:
        return statement
    changed = ", ".join(f"{name} = excluded.{name}" for name in values_of(table))
    return f"{statement} ON CONFLICT ({', '.join(keys_of(table))}) DO UPDATE SET {changed}"


def _with_bytes(batches: Sequence[Batch]) -> list[Batch]:
    return [
        Batch(rows={name: with_bytes(rows) for name, rows in batch.rows.items()}, head=batch.head) for batch in batches
    ]

"""A store whose tables the database divides: what is written and read touches the partitions that it concerns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import PostgreSQL
from letopis.store.database.engines import create_store_engine
from letopis.store.database.schema import conversations, events, lanes, log_heads, messages, metadata
from letopis.store.rules.apply_plan import TableRow
from tests.support.native_partitions import DIVIDED, make_divided_store

OF_THIS_CONNECTION = sa.text(
    "SELECT relation::regclass::text FROM pg_locks"
    " WHERE pid = pg_backend_pid() AND mode = 'RowExclusiveLock' AND relation::regclass::text LIKE 'letopis%'"
)

DIVIDED_TABLES = {
    "postgresql": "SELECT relname FROM pg_class WHERE relkind = 'p'",
    "mariadb": "SELECT table_name FROM information_schema.tables WHERE create_options LIKE '%partitioned%'"
    " AND table_schema = database()",
}


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncConnection]:
    engine = create_store_engine(url)
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


ORIGIN, EVENT = uuid4(), uuid4()
ROWS: tuple[tuple[sa.Table, TableRow], ...] = (
    (lanes, (3, "chat-1", ORIGIN, 1, 0)),
    (messages, (3, "chat-1", 1, "m-1", 1, None, "user", "appended", None, None, None, None)),
    (events, (3, 1, "chat-1", 1, EVENT, ORIGIN, 1, "message.appended", 1, "{}", None, None, 0, 0)),
    (conversations, (3, "chat-1", "anna", 1, None, "active", 1, 1, 0, 0, 0, *[None] * 4, 0, None, 0, 1)),
)


async def test_an_overwrite_locks_the_partitions_of_its_rows(fresh_postgresql_url: str) -> None:
    dialect = PostgreSQL()
    await make_divided_store(fresh_postgresql_url)
    async with connected(fresh_postgresql_url) as connection:
        for table, row in ROWS:
            await dialect.insert(connection, table, [row])
            await connection.commit()

            await dialect.overwrite(connection, table, [row])

            locked = set((await connection.execute(OF_THIS_CONNECTION)).scalars())
            assert table.name in locked
            assert len({one for one in locked if one.rstrip("0123456789") == f"{table.name}_"}) == 1, locked
            await connection.commit()

        await dialect.overwrite(connection, log_heads, [(2, 7, 0), (5, 8, 0), (11, 9, 0)])

        found = await connection.execute(sa.select(log_heads.c.partition, log_heads.c.position).order_by("partition"))
        assert [tuple(row) for row in found if row.position] == [(2, 7), (5, 8), (11, 9)]


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_every_table_with_partitions_can_be_divided(kind: str, new_store_url: Callable[[str], str]) -> None:
    url = new_store_url(kind)
    await make_divided_store(url)
    async with connected(url) as connection:
        divided = await connection.execute(sa.text(DIVIDED_TABLES[kind]))

        assert sorted(divided.scalars()) == sorted(DIVIDED)
        assert "letopis_search" in DIVIDED


def test_every_unique_key_of_a_table_with_partitions_holds_them() -> None:
    for table in metadata.tables.values():
        if "partition" in table.columns:
            for key in (table.primary_key, *(index for index in table.indexes if index.unique)):
                assert "partition" in key.columns, f"{table.name}: {key.name}"

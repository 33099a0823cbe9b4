"""A statement is one hop into the thread, whatever is asked of its rows they are all there, and nothing stays open."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from letopis.store.database.engines import create_store_engine
from letopis.store.database.sqlite import connect_to_sqlite
from letopis.store.database.sqlite_connection import PREFETCHED_ROWS, SQLiteConnection
from letopis.store.database.urls import normalise_url

MANY = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT i FROM n"


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[SQLiteConnection]:
    opened = await connect_to_sqlite(str(tmp_path / "some.db"), 1.0)
    yield opened
    await opened.close()


@pytest.mark.parametrize("count", [0, 1, PREFETCHED_ROWS - 1, PREFETCHED_ROWS, PREFETCHED_ROWS + 1, 1_000])
@pytest.mark.parametrize("way", ["all", "one by one", "by sevens", "some, then all", "iterated"])
async def test_all_rows_come_in_order_however_they_are_asked_for(
    connection: SQLiteConnection, count: int, way: str
) -> None:
    cursor = connection.cursor()
    await cursor.execute(MANY + " LIMIT ?", (max(count, 1), count))
    found: list[Any] = []
    match way:
        case "all":
            found = await cursor.fetchall()
        case "one by one":
            while (row := await cursor.fetchone()) is not None:
                found.append(row)
        case "by sevens":
            while rows := await cursor.fetchmany(7):
                assert len(rows) == 7 or len(found) + len(rows) == count
                found += rows
        case "some, then all":
            found = await cursor.fetchmany(5) + await cursor.fetchall()
        case _:
            found = [row async for row in cursor]

    assert [row[0] for row in found] == list(range(1, count + 1))
    assert await cursor.fetchall() == []
    assert await cursor.fetchone() is None
    await cursor.close()


async def test_a_statement_with_few_rows_is_one_hop(
    connection: SQLiteConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    hops: list[object] = []  # that are awaited
    real: Callable[..., Any] = connection._execute

    async def execute(fn: Any, *args: Any, **named: Any) -> Any:
        hops.append(fn)
        return await real(fn, *args, **named)

    monkeypatch.setattr(connection, "_execute", execute)
    for count, together in ((50, 1), (1_000, 3)):
        async with connection.cursor() as cursor:
            await cursor.execute(MANY, (count,))
            assert len(await cursor.fetchall()) == count
            assert [column[0] for column in cursor.description] == ["i"]
        assert len(hops) == together


async def test_what_writes_says_what_it_did(connection: SQLiteConnection) -> None:
    async with connection.cursor() as cursor:
        assert cursor.description is None
        await cursor.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT UNIQUE)")
        await cursor.executemany("INSERT INTO t (b) VALUES (?)", [(str(number),) for number in range(5)])
        assert cursor.rowcount == 5
        assert await cursor.fetchall() == []
        await cursor.execute("INSERT INTO t (b) VALUES ('five')")
        assert (cursor.lastrowid, cursor.description) == (6, None)
        with pytest.raises(sqlite3.IntegrityError):
            await cursor.execute("INSERT INTO t (b) VALUES ('five')")
        await cursor.execute("SELECT count(*) FROM t")  # the cursor is of use still
        assert await cursor.fetchone() == (6,)


async def test_rows_of_the_statement_before_are_not_those_of_one_that_fails(connection: SQLiteConnection) -> None:
    async with connection.cursor() as cursor:
        await cursor.execute(MANY, (3,))
        with pytest.raises(sqlite3.OperationalError):
            await cursor.execute("SELECT nothing FROM nowhere")
        assert await cursor.fetchall() == []


async def test_a_cursor_that_was_closed_half_read_holds_no_lock(connection: SQLiteConnection, tmp_path: Path) -> None:
    await connection.execute("CREATE TABLE t (a)")
    await connection.execute(MANY.replace(") SELECT", ") INSERT INTO t SELECT"), (500,))
    await connection.commit()
    cursor = connection.cursor()
    await cursor.execute("SELECT a FROM t")
    await cursor.close()
    await connection.run(lambda driver: None)  # comes behind the closing

    with closing(sqlite3.connect(tmp_path / "some.db", timeout=0)) as other:
        other.execute("DROP TABLE t")  # SQLITE_LOCKED while it is being read


async def test_closing_a_cursor_after_its_connection_is_harmless(tmp_path: Path) -> None:
    connection = await connect_to_sqlite(str(tmp_path / "other.db"), 1.0)
    cursor, unused = connection.cursor(), connection.cursor()
    await cursor.execute(MANY, (1_000,))
    await connection.close()
    await cursor.close()
    await unused.close()
    with pytest.raises(ValueError, match="no active connection"):
        await cursor.execute("SELECT 1")


async def test_a_stream_over_sqlalchemy_is_read_in_pieces(tmp_path: Path) -> None:
    engine = create_store_engine(normalise_url(tmp_path / "third.db"))
    statement = sa.text(MANY.replace("?", "950"))
    try:
        async with engine.connect() as connection:
            assert [row[0] async for row in await connection.stream(statement)] == list(range(1, 951))
            assert (await connection.execute(statement)).scalars().all() == list(range(1, 951))
    finally:
        await engine.dispose()

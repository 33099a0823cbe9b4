"""A transaction of a file runs in one thread, a statement is one hop into it, and nothing stays open at its end."""

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from letopis.store import ConfigurationError, FaultClass, StoreFault, Timeouts
from letopis.store.database.sqlite import connect_to_sqlite
from letopis.store.database.sqlite_connection import PREFETCHED_ROWS, SQLiteConnection
from letopis.store.database.sqlite_file import FileConnection, SQLiteFile
from letopis.store.database.urls import normalise_url
from tests.support.relays import until
from tests.support.sqlite_rows import change

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[SQLiteFile]:
    url = normalise_url(tmp_path / "some.db")
    opened = SQLiteFile(url, Timeouts(statement=0.3, lock=0.3), pool_size=1)
    await opened.run(write(opened, "CREATE TABLE t (a INTEGER PRIMARY KEY)"), write=True)
    yield opened
    await opened.dispose()


async def write(file: SQLiteFile, *statements: str) -> None:
    async with file.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def read(file: SQLiteFile, statement: str = "SELECT count(*) FROM t") -> int:
    async with file.execution_options(sqlite_begin="DEFERRED").connect() as connection:
        found: int = (await connection.exec_driver_sql(statement)).scalar_one()
        return found


@pytest.mark.parametrize("scope", [True, False])
async def test_a_cancelled_read_ends_at_once_and_frees_its_thread(file: SQLiteFile, scope: bool) -> None:
    """The only thread that reads is in a statement without end."""
    if scope:
        with anyio.move_on_after(0.05):
            await file.run(read(file, ENDLESS))
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await file.run(read(file, ENDLESS))

    async def is_free() -> bool:
        with suppress(PoolTimeout):
            return await file.run(read(file)) == 0
        return False

    await until(is_free, patience=30)


async def test_a_read_that_is_cancelled_when_it_has_ended_interrupts_no_other(file: SQLiteFile) -> None:
    """The thread has its result, and the loop has not heard of it yet."""
    await file.run(read(file))
    reading = asyncio.create_task(file.run(read(file)))
    await asyncio.sleep(0)
    time.sleep(0.2)  # noqa: ASYNC251 - so that the loop hears of nothing
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    for _ in range(4):
        assert await file.run(read(file)) == 0


async def test_a_read_that_is_cancelled_between_two_statements_runs_no_further(file: SQLiteFile) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), list[str]()

    async def work() -> None:
        async with file.execution_options(sqlite_begin="DEFERRED").connect() as connection:
            begun.set()
            go_on.wait(5)
            await connection.exec_driver_sql("SELECT 1")
            ended.append("read")

    task = asyncio.ensure_future(file.run(work()))
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    await asyncio.wait((task,))
    go_on.set()

    assert await file.run(read(file)) == 0
    assert ended == []


async def test_a_cancelled_write_is_done_whole_before_the_cancellation_is_raised(file: SQLiteFile) -> None:
    begun, go_on = threading.Event(), threading.Event()

    async def work() -> None:
        async with file.begin() as connection:
            await connection.exec_driver_sql("INSERT INTO t VALUES (1)")
            begun.set()
            go_on.wait(5)
            await connection.exec_driver_sql("INSERT INTO t VALUES (2)")

    task = asyncio.ensure_future(file.run(work(), write=True))
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()
    go_on.set()
    await asyncio.wait((task,))

    assert task.cancelled()
    assert await file.run(read(file)) == 2
    with closing(sqlite3.connect(file.url.database or "", timeout=0)) as other:
        other.execute("BEGIN IMMEDIATE")  # nothing holds the lock


async def test_a_read_waits_for_a_free_thread_and_not_for_ever(file: SQLiteFile) -> None:
    go_on = threading.Event()

    async def work() -> None:
        go_on.wait(5)

    long = asyncio.ensure_future(file.run(work()))
    await asyncio.sleep(0)
    with pytest.raises(PoolTimeout):
        await file.run(read(file))
    waiting = asyncio.ensure_future(file.run(read(file)))
    await asyncio.sleep(0.05)
    go_on.set()

    assert await waiting == 0
    await long


async def test_a_transaction_must_await_nothing_but_its_connection(file: SQLiteFile) -> None:
    async def work() -> None:
        async with file.begin() as connection:
            await connection.exec_driver_sql("INSERT INTO t VALUES (1)")
            await asyncio.sleep(0)  # lets others run, which a thread does anyway
            await cast("Any", asyncio.Future(loop=loop))

    loop = asyncio.get_running_loop()
    with pytest.raises(RuntimeError, match="await nothing"):
        await file.run(work(), write=True)
    assert await file.run(read(file)) == 0


async def test_after_sqlite_rolled_back_on_its_own_nothing_more_is_written(file: SQLiteFile) -> None:
    trigger = "CREATE TRIGGER no BEFORE INSERT ON t WHEN NEW.a = 2 BEGIN SELECT RAISE(ROLLBACK, 'no'); END"
    await file.run(write(file, trigger), write=True)

    async def work() -> None:
        async with file.begin() as connection:
            await connection.exec_driver_sql("INSERT INTO t VALUES (1)")
            with pytest.raises(IntegrityError):
                await connection.exec_driver_sql("INSERT INTO t VALUES (2)")
            await connection.exec_driver_sql("INSERT INTO t VALUES (3)")

    with pytest.raises(sqlite3.OperationalError, match="rolled back"):
        await file.run(work(), write=True)

    assert await file.run(read(file)) == 0


async def test_a_lost_connection_is_opened_again_and_told_of(file: SQLiteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[None] = []
    file.on_change(lambda: told.append(None))
    assert await file.run(read(file)) == 0
    real = FileConnection.run
    with monkeypatch.context() as patch:
        patch.setattr(FileConnection, "run", lambda self, *_, **named: real(self, "SELECT * FROM nowhere", **named))
        with pytest.raises(sqlite3.OperationalError):
            await file.run(read(file))

    assert await file.run(read(file)) == 0
    assert len(told) == 3  # opened, lost, opened again


async def test_a_file_that_was_replaced_is_an_outage_once(file: SQLiteFile, tmp_path: Path) -> None:
    assert await file.run(read(file)) == 0
    change(tmp_path / "other.db", "CREATE TABLE t (a)", "INSERT INTO t VALUES (1)")
    for end in ("-wal", "-shm"):
        (tmp_path / f"some.db{end}").unlink(missing_ok=True)
    (tmp_path / "other.db").replace(tmp_path / "some.db")

    with pytest.raises(StoreFault) as caught:
        await file.run(read(file))

    assert (caught.value.fault_class, caught.value.code) == (FaultClass.UNAVAILABLE, "replaced")
    assert await file.run(read(file)) == 1


def test_one_loop_after_another_finds_its_threads_free(tmp_path: Path) -> None:
    file = SQLiteFile(normalise_url(tmp_path / "some.db"), Timeouts(statement=5), pool_size=1)

    async def abandon() -> None:
        task = asyncio.ensure_future(file.run(read(file, ENDLESS)))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait((task,))

    async def again() -> int:
        try:
            return await file.run(read(file, "SELECT 7"))
        finally:
            await file.dispose()

    asyncio.run(abandon())
    assert asyncio.run(again()) == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_forked_child_is_refused(file: SQLiteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(ConfigurationError, match="fork"):
        await file.run(read(file))
    monkeypatch.undo()
    assert await file.run(read(file)) == 0


@pytest.mark.parametrize("hangs", [False, True])
async def test_closing_waits_for_what_is_running_and_not_for_ever(
    file: SQLiteFile, hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.store.database.sqlite_file.CLOSE_TIMEOUT_SECONDS", 0.1 if hangs else 20)
    begun, go_on = threading.Event(), threading.Event()

    async def work() -> int:
        begun.set()
        go_on.wait(5)
        return await read(file)

    running = asyncio.ensure_future(file.run(work()))
    await asyncio.to_thread(begun.wait, 5)
    if not hangs:
        asyncio.get_running_loop().call_later(0.1, go_on.set)
    async with asyncio.timeout(4):
        await file.dispose()

    assert running.done() is not hangs
    go_on.set()
    assert await running == 0


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

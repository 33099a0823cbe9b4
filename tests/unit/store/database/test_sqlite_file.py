"""A transaction of a file runs in one thread from beginning to end, and leaves nothing behind however it ends."""

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from letopis.store import ConfigurationError, FaultClass, StoreFault, Timeouts
from letopis.store.database.engines import run_whole
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


async def test_what_was_written_is_read_and_what_failed_is_not(file: SQLiteFile) -> None:
    await file.run(write(file, "INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)"), write=True)
    with pytest.raises(IntegrityError):
        await file.run(write(file, "INSERT INTO t VALUES (3)", "INSERT INTO t VALUES (1)"), write=True)
    assert await file.run(read(file)) == 2


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


async def test_a_writer_that_waits_too_long_for_the_lock_is_refused(file: SQLiteFile) -> None:
    with closing(sqlite3.connect(file.url.database or "", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreFault) as caught:
            await run_whole(cast("Any", file), write(file, "INSERT INTO t VALUES (1)"))
        assert caught.value.code == "SQLITE_BUSY"
        assert await file.run(read(file)) == 0  # a read waits for no writer


async def test_it_can_be_used_again_after_it_was_disposed_of(file: SQLiteFile) -> None:
    assert await file.run(read(file)) == 0
    await file.dispose()
    assert not Path(f"{file.url.database}-wal").exists()
    assert await file.run(read(file)) == 0


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


async def test_statements_of_sqlalchemy_are_run_with_ids_lists_and_several_rows(file: SQLiteFile) -> None:
    table = sa.table("t", sa.column("a", sa.Integer))

    async def work() -> list[int]:
        async with file.begin() as connection:
            await connection.execute(sa.insert(table), [{"a": number} for number in range(5)])
            changed = await connection.execute(sa.delete(table).where(table.c.a == sa.bindparam("which")), {"which": 3})
            assert changed.rowcount == 1
            some = sa.select(table.c.a).where(table.c.a.in_(sa.bindparam("some", expanding=True)))
            return list((await connection.execute(some, {"some": [1, 2, 3]})).scalars())

    assert await file.run(work(), write=True) == [1, 2]


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

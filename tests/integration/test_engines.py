"""An engine holds the settings that the guarantees rest on, on each of the three databases."""

import asyncio
import os
import random
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
import sqlalchemy.exc
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects.mysql import insert as mysql_insert
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store.database import sqlite
from letopis.store.database.engines import create_store_engine
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.sqlite import install_sqlite_events
from letopis.store.database.timeouts import Timeouts
from letopis.store.errors import ConfigurationError
from letopis.store.private_files import create_private_file
from tests.support.child import ran
from tests.support.platforms import own_threads, posix_only

POSIX_ONLY = posix_only("Windows has no file modes, fork or POSIX locks")


@pytest.fixture
async def engine(store_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine whose database has the table ``probe``."""
    engine = create_store_engine(store_url, timeouts=Timeouts(connect=5, statement=20, lock=2), pool_size=3)
    async with engine.begin() as connection:
        await connection.run_sync(probe.metadata.create_all)
    yield engine
    await engine.dispose()


async def value_of(engine: AsyncEngine, statement: str) -> Any:
    async with engine.begin() as connection:
        return (await connection.exec_driver_sql(statement)).scalar_one()


def python(script: str, *arguments: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    return ran(sys.executable, "-c", textwrap.dedent(script), *arguments, timeout=timeout)


# --- all three ------------------------------------------------------------------------------------------------------

probe = sa.Table(
    "probe",
    sa.MetaData(),
    sa.Column("id", sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb"), primary_key=True),
    sa.Column("body", sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")),
    sa.Column("number", sa.BigInteger),
)


async def test_errors_show_no_parameter(engine: AsyncEngine) -> None:
    row = {"id": b"i" * 16, "body": "planted-Secret-42", "number": 1}
    with pytest.raises(sa.exc.IntegrityError) as caught:  # noqa: PT012  # the engine's exit is part of it
        async with engine.begin() as connection:
            await connection.execute(probe.insert(), row)
            await connection.execute(probe.insert(), row)

    assert "planted-Secret-42" not in str(caught.value)


@pytest.mark.parametrize("how", ["asyncio", "anyio"])
async def test_a_cancelled_statement_leaves_a_usable_pool(engine: AsyncEngine, how: str) -> None:
    """At whatever moment: no answer goes to the wrong question, nothing stays open, nothing keeps running."""
    rng = random.Random(20_261_125)
    tasks, threads = len(asyncio.all_tasks()), own_threads()
    ends: list[object] = []  # kept: what a traceback refers to must not keep a lock

    async def work(number: int) -> int:
        async with engine.begin() as connection:
            row = {"id": rng.randbytes(16), "body": "y" * rng.randrange(10, 50_000), "number": number}
            await connection.execute(probe.insert(), row)
            return int((await connection.exec_driver_sql(f"SELECT {number}")).scalar_one())

    for number in range(60):
        if how == "anyio":
            with anyio.move_on_after(rng.random() * 0.004):
                assert await work(number) == number
        else:
            task = asyncio.create_task(work(number))
            await asyncio.sleep(rng.random() * 0.004)
            task.cancel()
            ends += await asyncio.gather(task, return_exceptions=True)
            assert ends[-1] == number or isinstance(ends[-1], asyncio.CancelledError)

    assert [await work(number) for number in range(5)] == list(range(5))
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # of the queue pool
    for _ in range(100):
        if len(asyncio.all_tasks()) <= tasks and own_threads() <= threads + 3:
            break
        await asyncio.sleep(0.02)
    assert len(asyncio.all_tasks()) <= tasks
    assert own_threads() <= threads + 3  # one a pooled connection of SQLite


async def test_a_cancelled_wait_ends_soon_and_keeps_no_lock(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(probe.insert(), {"id": b"i" * 16, "body": "x", "number": 1})

    async def work() -> None:
        async with engine.begin() as connection:
            await connection.execute(sa.update(probe).values(number=probe.c.number + 1))

    async with engine.begin() as connection:
        await connection.execute(sa.update(probe).values(number=10))
        before = time.monotonic()
        with anyio.move_on_after(0.2) as scope:
            await work()
        waited = time.monotonic() - before
    await work()

    assert scope.cancelled_caught
    assert waited < 8  # SQLite's thread cannot be interrupted while it waits for the lock
    assert await value_of(engine, "SELECT number FROM probe") == 11


async def test_a_dropped_connection_gives_its_lock_back_although_a_cursor_lives(tmp_path: Path) -> None:
    """As the cursor of a cancelled task does, for as long as its traceback is kept anywhere."""
    engine = create_store_engine(tmp_path / "history.db", timeouts=Timeouts(lock=0.1))
    connection = await engine.connect()
    await connection.exec_driver_sql("CREATE TABLE probe (id INTEGER)")
    await connection.exec_driver_sql("INSERT INTO probe VALUES (1), (2)")
    driver: Any = (await connection.get_raw_connection()).driver_connection
    cursor = await driver.execute("SELECT * FROM probe")  # not read
    await connection.invalidate()
    await connection.close()

    assert await value_of(engine, "SELECT COUNT(*) FROM sqlite_master") == 0
    assert cursor is not None
    await engine.dispose()


@POSIX_ONLY
def test_an_engine_is_refused_after_a_fork(store_url: str) -> None:
    """A child that used it would hang, or speak on its parent's socket."""
    done = python(
        """
        import asyncio, os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is the point
        from letopis.store.database.engines import create_store_engine
        from letopis.store.errors import ConfigurationError

        async def ask(engine):
            async with asyncio.timeout(10):
                async with engine.connect() as connection:
                    return (await connection.exec_driver_sql("SELECT 42")).scalar_one()

        async def parent():
            engines = [create_store_engine(sys.argv[1]), create_store_engine(sys.argv[1])]
            assert await ask(engines[0]) == 42  # one has a connection in its pool, the other has none
            return engines

        loop = asyncio.new_event_loop()
        engines = loop.run_until_complete(parent())
        child = os.fork()
        if child == 0:
            asyncio.events._set_running_loop(None)
            ends = []
            for engine in engines:
                try:
                    ends.append(asyncio.new_event_loop().run_until_complete(ask(engine)))
                except ConfigurationError:
                    ends.append("refused")
            own = create_store_engine(sys.argv[1])
            ends.append(asyncio.new_event_loop().run_until_complete(ask(own)))
            print(ends, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(loop.run_until_complete(ask(engines[0])))
        """,
        store_url,
    )

    assert (done.stdout.splitlines(), done.returncode) == (["['refused', 'refused', 42]", "42"], 0), done.stderr


@pytest.mark.parametrize(("url", "extra"), [("postgresql://h/db", "postgresql"), ("mariadb://h/db", "mariadb")])
def test_a_driver_that_is_not_installed(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("asyncpg", "asyncmy"):
        monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ConfigurationError, match=rf"letopis\[{extra}\]"):
        create_store_engine(url)


# --- SQLite ---------------------------------------------------------------------------------------------------------

PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": 2,
    "fullfsync": 1,
    "foreign_keys": 1,
    "secure_delete": 1,
    "temp_store": 2,
    "journal_size_limit": 64 * 1024 * 1024,
    "busy_timeout": 1500,
}


async def test_every_sqlite_connection_is_durable(tmp_path: Path) -> None:
    engine = create_store_engine(tmp_path / "history.db", timeouts=Timeouts(lock=1.5))
    reader = engine.execution_options(sqlite_begin="DEFERRED")
    async with reader.connect() as first, reader.connect() as second:
        for connection in (first, second):
            found = {name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one() for name in PRAGMAS}

            assert found == PRAGMAS
    await engine.dispose()


def test_the_events_serve_a_synchronous_engine_too(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'outbox.db'}", connect_args={"timeout": 1.5})
    install_sqlite_events(engine, busy_timeout=1.5)
    with engine.begin() as connection:
        found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in PRAGMAS}
        driver: Any = connection.connection
        holds_the_lock = driver.in_transaction
    engine.dispose()

    assert found == PRAGMAS
    assert holds_the_lock


TRY_TO_WRITE = """
    import sqlite3, sys
    try:
        sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        print(error.sqlite_errorname)
    else:
        print("free")
"""


@POSIX_ONLY
def test_an_existing_file_is_not_touched(tmp_path: Path) -> None:
    """Opening and closing it would drop SQLite's locks; the last lines prove that the test would see it."""
    path = tmp_path / "history.db"
    assert create_private_file(path) is True
    path.chmod(0o640)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA journal_mode=DELETE")
    holder.execute("BEGIN IMMEDIATE")

    assert create_private_file(path) is False
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert python(TRY_TO_WRITE, str(path)).stdout == "SQLITE_BUSY\n"
    path.open("rb").close()
    assert python(TRY_TO_WRITE, str(path)).stdout == "free\n"
    holder.close()


async def test_how_a_transaction_begins(tmp_path: Path) -> None:
    engine = create_store_engine(tmp_path / "history.db", timeouts=Timeouts(lock=0.1))
    reader = engine.execution_options(sqlite_begin="DEFERRED")
    bare = engine.execution_options(sqlite_begin="AUTOCOMMIT")
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE probe (id INTEGER)")

    async with engine.connect() as writer:
        await writer.exec_driver_sql("SELECT 1")  # a transaction that only reads so far
        with pytest.raises(sa.exc.OperationalError, match="locked"):
            await value_of(engine, "SELECT 1")
        assert await value_of(reader, "SELECT COUNT(*) FROM probe") == 0
    async with reader.begin() as first:
        assert (await first.exec_driver_sql("SELECT COUNT(*) FROM probe")).scalar_one() == 0
        async with engine.begin() as writer:
            await writer.exec_driver_sql("INSERT INTO probe VALUES (1)")
        # A reader sees one moment.
        assert (await first.exec_driver_sql("SELECT COUNT(*) FROM probe")).scalar_one() == 0
    async with bare.connect() as connection:
        await connection.exec_driver_sql("VACUUM")
    with pytest.raises(ConfigurationError, match="sqlite_begin"):
        await value_of(engine.execution_options(sqlite_begin="LATER"), "SELECT 1")
    await engine.dispose()


async def test_the_switch_to_wal_waits_for_a_lock_and_not_in_the_event_loop(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("CREATE TABLE probe (id INTEGER)")
    holder.execute("BEGIN EXCLUSIVE")
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1
            if ticks == 20:
                holder.execute("COMMIT")
                holder.close()

    engine = create_store_engine(path, timeouts=Timeouts(lock=10))
    ticking = asyncio.create_task(tick())

    assert await value_of(engine, "PRAGMA journal_mode") == "wal"
    assert ticks >= 20
    ticking.cancel()
    await engine.dispose()


async def test_a_file_system_without_wal_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_enter_wal", lambda *_: "delete")
    engine = create_store_engine(tmp_path / "history.db")
    with pytest.raises(StoreFault) as caught:
        await engine.connect()
    await engine.dispose()

    assert (caught.value.fault_class, caught.value.code) == (FaultClass.MISCONFIGURED, "no-wal")


# --- PostgreSQL -----------------------------------------------------------------------------------------------------

LIMITS = {"statement_timeout": "7s", "lock_timeout": "3s", "idle_in_transaction_session_timeout": "7s"}


async def _shown(engine: AsyncEngine, *names: str) -> dict[str, str]:
    async with engine.begin() as connection:
        return {name: (await connection.exec_driver_sql(f"SHOW {name}")).scalar_one() for name in names}


async def test_a_postgresql_session(fresh_postgresql_url: str) -> None:
    engine = create_store_engine(fresh_postgresql_url, timeouts=Timeouts(statement=7, lock=3))
    expected = LIMITS | {"application_name": "letopis", "transaction_isolation": "read committed"}

    assert await _shown(engine, *expected) == expected
    await engine.dispose()


# --- MariaDB --------------------------------------------------------------------------------------------------------


async def test_a_mariadb_session(fresh_mariadb_url: str) -> None:
    engine = create_store_engine(fresh_mariadb_url, timeouts=Timeouts(statement=7, lock=3))
    expected = {
        "sql_mode": "STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION",
        "time_zone": "+00:00",
        "innodb_lock_wait_timeout": 3,
        "max_statement_time": 7.0,
        "tx_isolation": "READ-COMMITTED",
        "autocommit": 0,
        "character_set_client": "utf8mb4",
        "character_set_connection": "utf8mb4",
        "character_set_results": "utf8mb4",
        "idle_transaction_timeout": 7,
        "wait_timeout": 3600,
    }
    async with engine.begin() as connection:
        found = {name: (await connection.exec_driver_sql(f"SELECT @@{name}")).scalar_one() for name in expected}
    await engine.dispose()

    assert found == expected


async def test_many_rows_are_one_statement_on_mariadb(fresh_mariadb_url: str) -> None:
    engine = create_store_engine(fresh_mariadb_url)
    upsert = mysql_insert(probe)
    upsert = upsert.on_duplicate_key_update(number=upsert.inserted.number)

    async def statements(connection: Any) -> int:
        row = (await connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Com_insert'")).one()
        return int(row[1])

    async with engine.begin() as connection:
        await connection.run_sync(probe.metadata.create_all)
        for statement in (probe.insert(), upsert):
            rows = [{"id": os.urandom(16), "body": "té😀", "number": number} for number in range(500)]
            before = await statements(connection)
            await connection.execute(statement, rows)

            assert await statements(connection) - before == 1
    await engine.dispose()

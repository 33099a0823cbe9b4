"""Make every fault of the table happen to a real server, and show its class and code.

The servers are those of the tests (`tests.support.servers`); each run makes a database of its own and drops it.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store.database import failover
from letopis.store.database.engines import create_store_engine
from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.timeouts import Timeouts
from tests.proof.harness import Tally
from tests.proof.options import Options
from tests.proof.rows import Row as ProofRow
from tests.support import peers
from tests.support.bench import SHORT_TIMEOUTS, Bench
from tests.support.servers import MariaDBServer, PostgresServer, Server, ServerUnavailable

CONFLICT, POISON, UNKNOWN_OUTCOME = FaultClass.CONFLICT, FaultClass.POISON, FaultClass.UNKNOWN_OUTCOME
UNAVAILABLE, MISCONFIGURED = FaultClass.UNAVAILABLE, FaultClass.MISCONFIGURED

KINDS: Final = ("postgresql", "mariadb", "sqlite")
DRIVERS: Final = {"postgresql": "asyncpg", "mariadb": "asyncmy", "sqlite": "aiosqlite"}
WHAT: Final = "every fault of the table, on a real server: its class and code"


Scene = Callable[[Bench], Awaitable[None]]
Peer = Callable[[], AbstractAsyncContextManager[int]]


@dataclass(frozen=True, slots=True)
class Row:
    """One fault of the table: what makes it happen, its class and, by kind of store, its code, if that is settled."""

    name: str
    scene: Scene
    expected: FaultClass
    codes: Mapping[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    name: str
    kind: str
    expected: str
    expected_code: str | None = None
    driver_error: str = "none"
    code: str = "-"
    found: str = "none"

    @property
    def ok(self) -> bool:
        """Return True if class and code are those of the table."""
        return self.expected == self.found and self.expected_code in (None, self.code)

    def __str__(self) -> str:
        found = self.found if self.ok else f"{self.found} (NOT {self.expected} {self.expected_code or ''})"
        return " | ".join((self.name, DRIVERS[self.kind], self.driver_error, self.code, found))


ROWS: Final[list[Row]] = []


def row(name: str, expected: FaultClass, code: str | None = None, **codes: str | None) -> Callable[[Scene], Scene]:
    """Enter a scene for the kinds of stores that have a code, or for both servers with one and the same."""

    def enter(scene: Scene) -> Scene:
        ROWS.append(Row(name, scene, expected, codes or {"postgresql": code, "mariadb": code}))
        return scene

    return enter


def refused(name: str, expected: FaultClass, statement: str, **codes: str | None) -> None:
    """Enter a statement that is refused."""

    async def scene(bench: Bench) -> None:
        await bench.run(statement)

    row(name, expected, **codes)(scene)


@asynccontextmanager
async def _engine(url: str, *, timeouts: Timeouts = SHORT_TIMEOUTS) -> AsyncIterator[AsyncEngine]:
    engine = create_store_engine(url, timeouts=timeouts, pool_size=1)
    try:
        yield engine
    finally:
        await engine.dispose()


def reached(name: str, expected: FaultClass, change: Callable[[Bench], str], **codes: str) -> None:
    """Enter a URL at which a store cannot be used."""

    async def scene(bench: Bench) -> None:
        await bench.at(change(bench))

    row(name, expected, **codes)(scene)


def _beside(bench: Bench, name: str) -> str:
    return str(Path(make_url(bench.url).database or "").parent / name)


def met(name: str, peer: Peer, *, code: str | None = None, **changed: Any) -> None:
    """Enter a peer that is no history store, where one should be."""

    async def scene(bench: Bench) -> None:
        async with peer() as port:
            await bench.at(bench.changed(port=port, **changed))

    row(name, UNAVAILABLE, code)(scene)


def bound(name: str, expected: FaultClass, statement: Any, values: Mapping[str, object], *kinds: str) -> None:
    """Enter a statement that is refused, or not sent, with these values."""

    async def scene(bench: Bench) -> None:
        async with bench.engine.begin() as connection:
            await connection.execute(statement, values)

    row(name, expected, **dict.fromkeys(kinds))(scene)


# --- the connection -------------------------------------------------------------------------------------------------


@row("killed by an operator while idle", UNAVAILABLE)
async def _(bench: Bench) -> None:
    async with bench.engine.connect() as connection:
        await bench.kill(await bench.session(connection))
        await connection.exec_driver_sql("SELECT 1")


@row("killed in mid statement", UNAVAILABLE)
async def _(bench: Bench) -> None:
    async with bench.engine.connect() as connection:
        session = await bench.session(connection)

        async def kill() -> None:
            await asyncio.sleep(0.2)
            await bench.kill(session)

        killing = asyncio.create_task(kill())
        try:
            await connection.exec_driver_sql(bench.either("SELECT pg_sleep(5)", "SELECT SLEEP(5)"))
        finally:
            await killing


async def _commit_through(bench: Bench, *, heard: bool = False, hole: bool = False) -> None:
    wire = peers.Wire(bench.port)
    async with wire.open() as port, _engine(bench.changed(port=port)) as engine:
        try:
            async with engine.connect() as connection:
                await connection.exec_driver_sql("UPDATE probe SET number = 1 WHERE id = 1")
                wire.heard = heard
                wire.cut_at = None if hole else b"COMMIT"
                if hole:
                    wire.flowing.clear()
                with translated(committing=True):
                    await connection.commit()
        finally:
            wire.flowing.set()


row("reset before COMMIT arrived", UNKNOWN_OUTCOME)(_commit_through)
row("reset after COMMIT arrived", UNKNOWN_OUTCOME)(partial(_commit_through, heard=True))
row("black hole on COMMIT", UNKNOWN_OUTCOME)(partial(_commit_through, hole=True))


@row("refused", UNAVAILABLE, "refused")
async def _(bench: Bench) -> None:
    await bench.at(bench.changed(port=await peers.refused_port()))


reached("no such host", UNAVAILABLE, lambda it: it.changed(host="history.invalid"), code="name-resolution")
reached(
    "no such database", MISCONFIGURED, lambda it: it.changed(database="no_such"), postgresql="3D000", mariadb="1049"
)
reached("no folder", MISCONFIGURED, lambda it: _beside(it, "nowhere/history.db"), sqlite="no-folder")


met("a peer of another protocol", partial(peers.babbling, b"SSH-2.0-OpenSSH_9.9\r\n"), query={"sslmode": "disable"})
met("accepts and hangs up", peers.closing)
met("accepts and never answers", peers.silent, code="timeout")


@row("all connections of the pool in use", CONFLICT, "pool-timeout")
async def _(bench: Bench) -> None:
    async with _engine(bench.url) as engine, engine.connect():
        await bench.run("SELECT 1", engine=engine)


# --- the account ----------------------------------------------------------------------------------------------------


async def _as_user(bench: Bench, work: Callable[[str], Awaitable[None]], *, password: str = "right") -> None:  # noqa: S107  # of a user made for the moment
    name = f"letopis_{uuid.uuid4().hex[:12]}"
    database = make_url(bench.url).database
    admin = bench.admin
    if bench.postgresql:
        await asyncio.to_thread(admin, f"CREATE ROLE {name} LOGIN PASSWORD 'right' CONNECTION LIMIT 1")
    else:
        await asyncio.to_thread(admin, f"CREATE USER '{name}'@'%' IDENTIFIED BY 'right' WITH MAX_USER_CONNECTIONS 1")
        await asyncio.to_thread(admin, f"GRANT CREATE ON `{database}`.* TO '{name}'@'%'")
    try:
        await work(bench.changed(username=name, password=password))
    finally:
        await asyncio.to_thread(admin, bench.either(f"DROP ROLE {name}", f"DROP USER '{name}'@'%'"))


@row("wrong password", MISCONFIGURED, mariadb="1045")
async def _(bench: Bench) -> None:
    await _as_user(bench, bench.at, password="wrong")


@row("wrong password", MISCONFIGURED, postgresql="28P01")
async def _(bench: Bench) -> None:
    # A server of our own: the one of the tests may trust every client.
    with PostgresServer.own(auth="scram-sha-256") as own:
        await bench.at(make_url(own.url).set(password="wrong").render_as_string(hide_password=False))


@row("TLS demanded and refused", MISCONFIGURED, postgresql="tls-refused")
async def _(bench: Bench) -> None:
    with PostgresServer.own() as own:
        await bench.at(f"{own.url}?sslmode=require")


@row("the server stops under a connection", UNAVAILABLE, postgresql=None)
async def _(bench: Bench) -> None:
    with PostgresServer.own() as own:
        async with _engine(own.url) as engine, engine.connect() as connection:
            await connection.exec_driver_sql("SELECT 1")
            await asyncio.to_thread(own.stop, "immediate")
            await connection.exec_driver_sql("SELECT 1")


@row("no privilege", MISCONFIGURED, postgresql="42501", mariadb="1142")
async def _(bench: Bench) -> None:
    await _as_user(bench, lambda url: bench.at(url, "SELECT * FROM probe"))


@row("too many connections", UNAVAILABLE, postgresql="53300", mariadb="1226")
async def _(bench: Bench) -> None:
    async def work(url: str) -> None:
        async with _engine(url) as first, first.connect() as connection:
            await connection.exec_driver_sql("SELECT 1")
            await bench.at(url)

    await _as_user(bench, work)


# --- limits and locks -----------------------------------------------------------------------------------------------


@row("statement takes too long", UNAVAILABLE, postgresql="57014", mariadb="1969")
async def _(bench: Bench) -> None:
    await bench.at(bench.url, bench.either("SELECT pg_sleep(10)", "SELECT SLEEP(10)"))


@row("idle in a transaction for too long", UNAVAILABLE)
async def _(bench: Bench) -> None:
    timeouts = Timeouts(connect=5, statement=0.5 if bench.postgresql else 1, lock=1)
    async with _engine(bench.url, timeouts=timeouts) as engine, engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE probe SET number = 3")
        await asyncio.sleep(0.8 if bench.postgresql else 2.2)
        await connection.exec_driver_sql("SELECT 1")


@row("lock held by another", CONFLICT, postgresql="55P03", mariadb="1205")
async def _(bench: Bench) -> None:
    async with bench.engine.connect() as holder:
        await holder.exec_driver_sql("SELECT * FROM probe WHERE id = 1 FOR UPDATE")
        await bench.run("UPDATE probe SET number = 4 WHERE id = 1")


@row("deadlock", CONFLICT, postgresql="40P01", mariadb="1213")
async def _(bench: Bench) -> None:
    met = asyncio.Barrier(2)

    async def work(first: int, second: int) -> None:
        async with bench.engine.begin() as connection:
            if bench.postgresql:
                await connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
                await connection.exec_driver_sql("SET LOCAL deadlock_timeout = '100ms'")
            await connection.exec_driver_sql(f"UPDATE probe SET number = 5 WHERE id = {first}")
            await met.wait()
            await connection.exec_driver_sql(f"UPDATE probe SET number = 6 WHERE id = {second}")

    for end in await asyncio.gather(work(1, 2), work(2, 1), return_exceptions=True):
        if end is not None:
            raise end


@row("row changed since the snapshot", CONFLICT, postgresql="40001", mariadb="1020")
async def _(bench: Bench) -> None:
    async with _engine(bench.url) as engine, engine.connect() as connection:
        if bench.postgresql:
            await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        else:
            await connection.exec_driver_sql("SET SESSION innodb_snapshot_isolation = ON")
            await connection.exec_driver_sql("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await connection.commit()
        await connection.exec_driver_sql("SELECT * FROM probe")
        await bench.run("UPDATE probe SET number = number + 1 WHERE id = 1")
        await connection.exec_driver_sql("UPDATE probe SET number = 9 WHERE id = 1")


@row("read-only server (failover)", UNAVAILABLE, postgresql="25006", mariadb="1792")
async def _(bench: Bench) -> None:
    begin = bench.either("SET TRANSACTION READ ONLY", "START TRANSACTION READ ONLY")
    await bench.run(begin, "UPDATE probe SET number = 1")


@row("schema changed under a prepared statement", CONFLICT, postgresql="cached-statement")
async def _(bench: Bench) -> None:
    async with _engine(bench.url) as engine:
        await bench.run("SELECT * FROM probe", engine=engine)
        await bench.run("ALTER TABLE probe ADD COLUMN IF NOT EXISTS more INT")
        await bench.run("SELECT * FROM probe", engine=engine)


_LENGTH = sa.text("SELECT LENGTH(:body)")
bound("payload beyond max_allowed_packet", UNAVAILABLE, _LENGTH, {"body": "x" * (17 * 1024 * 1024)}, "mariadb")


# --- the data -------------------------------------------------------------------------------------------------------

_KEY = "SQLITE_CONSTRAINT_PRIMARYKEY"
_NULL, _CHECK = "SQLITE_CONSTRAINT_NOTNULL", "SQLITE_CONSTRAINT_CHECK"
_INSERT = "INSERT INTO probe VALUES"
refused("duplicate key", POISON, f"{_INSERT} (1, 'x', 1)", postgresql="23505", mariadb="1062", sqlite=_KEY)
refused("null where none may be", POISON, f"{_INSERT} (3, NULL, 1)", postgresql="23502", mariadb="1048", sqlite=_NULL)
refused("check constraint", POISON, f"{_INSERT} (3, 'x', 100)", postgresql="23514", mariadb="4025", sqlite=_CHECK)
refused("too long", POISON, f"{_INSERT} (3, 'far too long', 1)", postgresql="22001", mariadb="1406")
refused("number out of range", POISON, f"{_INSERT} (3, 'x', 99999999999)", postgresql="22003", mariadb="1264")
refused("bad JSON", POISON, "SELECT '{'::jsonb", postgresql=None)
refused("bad JSON", POISON, "INSERT INTO probe_json VALUES ('{')", mariadb=None)
refused("NUL in JSON", POISON, r"""SELECT '"\u0000"'::jsonb ->> 0, ('{"a":"\u0000"}'::jsonb)""", postgresql=None)
refused("text that is none", MISCONFIGURED, "SELECT CAST(x'ff' AS TEXT)", sqlite="undecodable")
_CODES = {"postgresql": "42P01", "mariadb": "1146", "sqlite": "SQLITE_ERROR"}
refused("missing table", MISCONFIGURED, "SELECT * FROM nowhere", **_CODES)
_CODES = {"postgresql": "42703", "mariadb": "1054", "sqlite": "SQLITE_ERROR"}
refused("missing column", MISCONFIGURED, "SELECT absent FROM probe", **_CODES)


_PROBE = sa.table("probe", sa.column("id", sa.Integer), sa.column("body", sa.String))
bound("NUL in text", POISON, sa.text("SELECT CAST(:body AS text)"), {"body": "a\0b"}, "postgresql")
bound("number beyond 64 bits", POISON, _PROBE.insert(), {"id": 2**70, "body": "x"}, *KINDS)
bound("lone surrogate", POISON, _LENGTH, {"body": "\ud800"}, *KINDS)


# --- SQLite ---------------------------------------------------------------------------------------------------------


@row("file locked by another process", UNAVAILABLE, sqlite="SQLITE_BUSY")
async def _(bench: Bench) -> None:
    async with bench.engine.begin():
        await bench.run("UPDATE probe SET number = 1")


@row("read before a write, and another wrote", CONFLICT, sqlite="SQLITE_BUSY_SNAPSHOT")
async def _(bench: Bench) -> None:
    async with bench.engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
        await connection.exec_driver_sql("SELECT * FROM probe")
        await bench.run("UPDATE probe SET number = 2")
        await connection.exec_driver_sql("UPDATE probe SET number = 3")


@row("no database file", MISCONFIGURED, sqlite="SQLITE_NOTADB")
async def _(bench: Bench) -> None:
    letter = _beside(bench, "letter.db")
    Path(letter).write_text("Dear reader, this is no database, but it is long enough to be looked at. " * 20)
    await bench.at(letter)


# --- the table ------------------------------------------------------------------------------------------------------


async def _open(kind: str, server: Server | None, folder: Path) -> Bench:
    if server is None:
        url = f"sqlite:///{(folder / 'history.db').as_posix()}"
        engine = create_store_engine(url, timeouts=Timeouts(lock=0.3))
        bench = Bench(kind, url, engine, lambda _: None)
    else:
        url = server.create_database("letopis_faults")
        engine = create_store_engine(url, timeouts=Timeouts(connect=5, statement=10, lock=1), pool_size=3)
        admin = server.execute  # type: ignore[attr-defined]
        bench = Bench(kind, url, engine, admin)
        if kind == "mariadb":
            await bench.run("CREATE TABLE probe_json (body JSON)")
    await bench.make_table()
    return bench


async def produce(kind: str, folder: Path) -> list[Outcome]:
    server: Any = {"postgresql": PostgresServer, "mariadb": MariaDBServer}.get(kind)
    found = None if server is None else server.find()
    margin, failover.ANSWER_MARGIN_SECONDS = failover.ANSWER_MARGIN_SECONDS, 0.5  # type: ignore[misc]
    bench = None
    outcomes = []
    try:
        bench = await _open(kind, found, folder)
        for one in ROWS:
            if kind not in one.codes:
                continue
            fault = await _fault(one.scene, bench)
            outcome = Outcome(name=one.name, kind=kind, expected=str(one.expected), expected_code=one.codes.get(kind))
            if fault is not None:
                error = _driver_error(fault)
                outcome = replace(outcome, found=str(fault.fault_class), code=fault.code, driver_error=error)
            outcomes.append(outcome)
    finally:
        failover.ANSWER_MARGIN_SECONDS = margin  # type: ignore[misc]
        if bench is not None:
            await bench.engine.dispose()
            if found is not None:
                found.drop_database(bench.url)
        if found is not None:
            found.close()
    return outcomes


async def _fault(scene: Scene, bench: Bench) -> StoreFault | None:
    await bench.run("SELECT 1")  # so that what is met is the scene's own fault
    try:
        async with asyncio.timeout(30):
            with translated():
                await scene(bench)
    except StoreFault as fault:
        return fault
    return None


def _driver_error(fault: StoreFault) -> str:
    """The name of the driver's own class, under SQLAlchemy's."""
    error: BaseException | None = fault.__cause__
    if isinstance(error, sa.exc.DBAPIError) and error.orig is not None:
        error = error.orig.__cause__ or error.orig
    return type(error).__name__


def prove(options: Options) -> Iterator[ProofRow]:
    logging.disable()
    for kind in KINDS:
        try:
            outcomes = asyncio.run(produce(kind, options.folder))
        except ServerUnavailable as missing:
            yield ProofRow(what=WHAT, where=kind, missing=str(missing))
            continue
        options.tell("\n".join(map(str, outcomes)))
        tally = Tally(count=len(outcomes), problems=[str(one) for one in outcomes if not one.ok])
        tally.require(len(outcomes) == sum(kind in one.codes for one in ROWS), "not every row was produced")
        yield tally.row(WHAT, DRIVERS[kind], "faults")

"""What a driver raises is put into its class; `tests/campaigns/faults.py` has each row of the table really happen."""

import asyncio
import errno
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import asyncmy.errors
import asyncpg
import pytest
import sqlalchemy as sa
import sqlalchemy.exc
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi

from letopis.store.database.engines import create_store_engine
from letopis.store.database.failover import diagnose_connecting
from letopis.store.database.fault_classification import classify, translated
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.timeouts import Timeouts
from letopis.store.errors import ConfigurationError
from tests.support import peers
from tests.support.bench import SHORT_TIMEOUTS, Bench

UNAVAILABLE, MISCONFIGURED, POISON = FaultClass.UNAVAILABLE, FaultClass.MISCONFIGURED, FaultClass.POISON
UNKNOWN_OUTCOME, CONFLICT, UNCLASSIFIED = FaultClass.UNKNOWN_OUTCOME, FaultClass.CONFLICT, FaultClass.UNCLASSIFIED

PLANTED = "planted-Secret-42"


async def fault_of(work: Coroutine[Any, Any, Any]) -> tuple[FaultClass, str]:
    """Run `work` where it must fail, and return the class and code of its fault."""
    async with asyncio.timeout(30):
        with pytest.raises(StoreFault) as caught, translated():
            await work
    return caught.value.fault_class, caught.value.code


@pytest.fixture(params=["postgresql", "mariadb"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    server = request.getfixturevalue(f"{request.param}_server")
    url = request.getfixturevalue("new_store_url")(request.param)
    engine = create_store_engine(url, timeouts=Timeouts(connect=5, statement=10, lock=1), pool_size=3)
    bench = Bench(request.param, url, engine, server.execute)
    await bench.make_table()
    yield bench
    await bench.run("DROP TABLE probe")
    await engine.dispose()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="http"),
        pytest.param(b"SSH-2.0-OpenSSH_9.9\r\n", id="ssh"),
        pytest.param(b"\x05\0\0\0\x0a1.0\0", id="mariadb-handshake-cut-short"),
        pytest.param(b"R\0\0\0\x08\0\0\0\x63", id="postgresql-strange-authentication"),
        pytest.param(b"E\0\0\0\x05\0", id="postgresql-error-without-code"),
        pytest.param(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I", id="postgresql-without-version"),
    ],
)
async def test_a_peer_that_speaks_another_language(bench: Bench, words: bytes) -> None:
    async with peers.babbling(words) as port:
        url = bench.changed(port=port, query={"sslmode": "disable"})
        assert (await fault_of(bench.at(url)))[0] is UNAVAILABLE


@pytest.mark.parametrize("options", ["-c work_mem=much", "-c no_such_setting=1"])
@pytest.mark.parametrize("bench", ["postgresql"], indirect=True)
async def test_a_connection_setting_that_the_server_refuses_is_no_fault_of_an_event(bench: Bench, options: str) -> None:
    assert (await fault_of(bench.at(bench.changed(query={"options": options}))))[0] is MISCONFIGURED


async def test_a_read_only_server_and_the_way_back(bench: Bench) -> None:
    """After a failover the pool holds connections to what is now a standby: they must not be used again."""
    async with bench.engine.begin() as connection:
        before = await bench.session(connection)
        begin = "SET TRANSACTION READ ONLY" if bench.postgresql else "START TRANSACTION READ ONLY"

        async def work() -> None:
            await connection.exec_driver_sql(begin)
            await connection.exec_driver_sql("UPDATE probe SET number = 1")

        found = await fault_of(work())
        await connection.rollback()
    async with bench.engine.begin() as connection:
        after = await bench.session(connection)

    assert found == (UNAVAILABLE, "25006" if bench.postgresql else "1792")
    assert after != before


async def _ask(url: str) -> None:
    engine = create_store_engine(url, timeouts=SHORT_TIMEOUTS, pool_size=1)
    try:
        async with engine.connect() as connection:
            await connection.exec_driver_sql("SELECT 1")
    finally:
        await engine.dispose()


async def test_a_file_that_cannot_be_opened_leaves_no_thread_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, threads = aiosqlite.Connection.stop, list[threading.Thread]()

    def late(self: aiosqlite.Connection) -> Any:
        self._tx.put_nowait((None, partial(time.sleep, 0.2)))  # as on a machine that is busy
        threads.append(self._thread)
        return stop(self)

    monkeypatch.setattr(aiosqlite.Connection, "stop", late)
    assert await fault_of(_ask(str(tmp_path))) == (MISCONFIGURED, "SQLITE_CANTOPEN")

    assert threads
    for one in threads:
        one.join(0.1)  # what is left of it is to return
        assert not one.is_alive()


def _asyncpg(code: str) -> Any:
    return asyncpg.PostgresError.new({"C": code, "M": PLANTED, "D": PLANTED, "S": "ERROR"})


def _asyncmy(code: str) -> BaseException:
    return asyncmy.errors.OperationalError(int(code), PLANTED)


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def _sqlite(name: str) -> BaseException:
    error = sqlite3.OperationalError(PLANTED)
    error.sqlite_errorname = name
    return error


def _wrapped(orig: BaseException, *, lost: bool = False) -> BaseException:
    return sa.exc.DBAPIError(f"SELECT '{PLANTED}'", {"body": PLANTED}, orig, connection_invalidated=lost)


# Those whose code is the driver's own.
SQLSTATES = {
    UNAVAILABLE: "08006 57P01 57P02 57P03",
    UNKNOWN_OUTCOME: "08007 40003",
    MISCONFIGURED: "0A000 26000 28000 42P05 XX001",
    POISON: "22P05 54000",
    CONFLICT: "40001",
    UNCLASSIFIED: "42601 XX000 ZZ999",
}
MARIADB = {
    UNAVAILABLE: "1040 1047 1053 1290 1927 2013",
    UNKNOWN_OUTCOME: "1180",
    MISCONFIGURED: "1193",
    POISON: "1153",
    UNCLASSIFIED: "9999",
}
SQLITE = {
    UNAVAILABLE: "SQLITE_IOERR_FSYNC",
    MISCONFIGURED: "SQLITE_CORRUPT_INDEX SQLITE_READONLY_DIRECTORY",
    POISON: "SQLITE_TOOBIG SQLITE_MISMATCH",
    UNCLASSIFIED: "SQLITE_ERROR SQLITE_MISUSE",
}


@pytest.mark.parametrize(
    ("error", "expected", "code"),
    [
        *((_asyncpg(code), fault, code) for fault, codes in SQLSTATES.items() for code in codes.split()),
        *((_asyncmy(code), fault, code) for fault, codes in MARIADB.items() for code in codes.split()),
        *((_sqlite(name), fault, name) for fault, names in SQLITE.items() for name in names.split()),
        (_asyncpg("53100"), MISCONFIGURED, "disk-full"),
        (asyncpg.DataError(PLANTED), POISON, "22000"),
        (asyncpg.exceptions._base.DataError(PLANTED), POISON, "client-data"),
        (asyncpg.TargetServerAttributeNotMatched(PLANTED), UNAVAILABLE, "no-matching-server"),
        (asyncpg.InternalClientError(PLANTED), UNAVAILABLE, "cut-off"),
        (asyncpg.InterfaceError(PLANTED), UNAVAILABLE, "not-connected"),
        (_caused(asyncpg.ConnectionDoesNotExistError(PLANTED), _asyncpg("57P01")), UNAVAILABLE, "08003"),
        (asyncpg.ProtocolError(PLANTED), UNAVAILABLE, "protocol"),
        (_wrapped(asyncpg.InterfaceError(PLANTED), lost=True), UNAVAILABLE, "not-connected"),
        (asyncmy.errors.ProgrammingError(1064, PLANTED), UNCLASSIFIED, "1064"),
        (asyncmy.errors.InternalError(PLANTED), UNAVAILABLE, "protocol"),
        (asyncmy.errors.InterfaceError(0, "Not connected"), UNAVAILABLE, "0"),
        (_wrapped(asyncmy.errors.OperationalError(9999, PLANTED), lost=True), UNAVAILABLE, "9999"),
        (_sqlite("SQLITE_FULL"), MISCONFIGURED, "disk-full"),
        (sqlite3.OperationalError("no active connection"), UNAVAILABLE, "closed"),
        (ConnectionRefusedError(), UNAVAILABLE, "refused"),
        (ConnectionResetError(), UNAVAILABLE, "disconnected"),
        (asyncio.IncompleteReadError(b"", 1), UNAVAILABLE, "disconnected"),
        *((lost, UNAVAILABLE, "disconnected") for lost in (ssl.SSLEOFError(), sa.exc.PendingRollbackError())),
        (socket.gaierror(), UNAVAILABLE, "name-resolution"),
        (TimeoutError(), UNAVAILABLE, "timeout"),
        (ssl.SSLCertVerificationError(), MISCONFIGURED, "tls"),
        (PermissionError(), MISCONFIGURED, "permission"),
        (OSError("Multiple exceptions"), UNAVAILABLE, "os-error"),
        (OSError(errno.ENOSPC, "x"), MISCONFIGURED, "disk-full"),
        (OSError(errno.EHOSTUNREACH, "x"), UNAVAILABLE, "EHOSTUNREACH"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, PLANTED), POISON, "encoding"),
        (OverflowError(), POISON, "overflow"),
        (sa.exc.TimeoutError(), CONFLICT, "pool-timeout"),
        (sa.exc.StatementError(PLANTED, PLANTED, None, TypeError(PLANTED)), UNCLASSIFIED, "TypeError"),
        *((bug(PLANTED), UNCLASSIFIED, bug.__name__) for bug in (TypeError, AttributeError, asyncio.CancelledError)),
        # The code is found through SQLAlchemy's wrapping; the cause of a bug says nothing about the store.
        (_wrapped(_caused(AsyncAdapt_asyncpg_dbapi.Error("x"), _asyncpg("40P01"))), CONFLICT, "40P01"),
        (_wrapped(asyncmy.errors.OperationalError(1213, "x")), CONFLICT, "1213"),
        (_wrapped(_sqlite("SQLITE_BUSY")), UNAVAILABLE, "SQLITE_BUSY"),
        (_caused(KeyError("x"), ConnectionResetError()), UNCLASSIFIED, "KeyError"),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, BaseException) else None,
)
def test_classify(error: BaseException, expected: FaultClass, code: str) -> None:
    found = classify(error)
    assert (found.fault_class, found.code) == (expected, code)
    assert PLANTED not in found.reason


@pytest.mark.parametrize("error", [AttributeError("x"), TypeError("x"), asyncio.InvalidStateError("x")])
async def test_a_login_that_is_cut_off_is_a_lost_connection(error: Exception) -> None:
    """The driver fails on what it has closed itself; a peer of another kind makes it fail on what that sent."""

    async def connect(raised: Exception) -> None:
        raise raised

    with pytest.raises(StoreFault) as lost:
        await diagnose_connecting(connect, error)
    with pytest.raises(StoreFault) as foreign:
        await diagnose_connecting(connect, IndexError("x"))

    assert (lost.value.code, foreign.value.code) == ("disconnected", "protocol")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((lost, UNKNOWN_OUTCOME) for lost in (ConnectionResetError(), TimeoutError(), _sqlite("SQLITE_IOERR_FSYNC"))),
        (_wrapped(asyncpg.InterfaceError("x"), lost=True), UNKNOWN_OUTCOME),
        (_asyncpg("40001"), CONFLICT),
        (_asyncpg("23505"), POISON),
        (TypeError(), UNCLASSIFIED),
    ],
)
def test_in_commit_what_is_lost_is_in_doubt_and_what_is_refused_is_not(
    error: BaseException, expected: FaultClass
) -> None:
    assert classify(error, committing=True).fault_class is expected


@pytest.mark.parametrize(
    "kind",
    [
        *(asyncmy.errors.OperationalError, asyncmy.errors.InternalError, sqlite3.OperationalError),
        *(asyncpg.PostgresError, OSError, ConnectionError, Exception),
    ],
)
@given(st.text(), st.one_of(st.integers(), st.text(), st.none()), st.booleans())
def test_classify_never_raises(kind: type[Exception], text: str, first: object, committing: bool) -> None:
    error = kind(first, text)
    assert classify(error, committing=committing).reason
    assert classify(_wrapped(error), committing=committing).code


@pytest.mark.parametrize(
    "error",
    [
        *(KeyError("x"), TypeError("x"), asyncio.CancelledError(), KeyboardInterrupt(), ConfigurationError("x")),
        *(StoreFault(fault_class=CONFLICT, code="40001", reason="x"), sa.exc.InvalidRequestError("x")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_the_stores_passes_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, translated():
        raise error
    assert caught.value is error


def test_a_fault_classified_again_stays_what_it_is() -> None:
    fault = StoreFault(fault_class=MISCONFIGURED, code="no-wal", reason="x")
    assert classify(fault, committing=True).fault_class is MISCONFIGURED

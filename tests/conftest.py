"""Fixtures every test may ask for: fresh, empty databases of all three kinds on real servers."""

import gc
import logging
import os
import signal
import sqlite3
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import settings

from letopis.store.database.migrations import Migrations, SchemaState, exclude_other_migrations, revision_state, upgrade
from tests.support.opens import WIRE
from tests.support.required import fail_if_required, required
from tests.support.servers import CitusServer, MariaDBServer, PostgresServer, Server
from tests.support.servers.base import DATABASE_PREFIX, RUN
from tests.support.servers.postgresql import in_own_loop
from tests.support.servers.store_pool import MariaDBPool, PostgresPool, StorePool, copy_sqlite_store, migrate

pytest_plugins = [
    "tests.support.fix_command",
    "tests.support.fix_costs",
    "tests.support.fix_disk",
    "tests.support.fix_left_behind",
    "tests.support.fix_outbox",
]

STORES = ("sqlite", "postgresql", "mariadb")
NO_CHANGES = ("SELECT", "SHOW", "DESCRIBE", "PRAGMA", "SET", "COMMIT")
"""What a migration looks with."""

# A shared machine stalls now and then: a slow example is no failure.
settings.register_profile("letopis", deadline=None)
settings.load_profile("letopis")


def pytest_configure(config: pytest.Config) -> None:
    """Name the run, whose workers and other processes inherit the name.

    Heed SIGINT, which some tests send: a shell that starts the run in the background has it ignored.

    Let the programs that tests start keep their bytecode, or each of hundreds compiles the whole package.
    """
    if not hasattr(config, "workerinput"):
        os.environ[RUN] = uuid.uuid4().hex[:10]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Drop the databases that an interrupted run has left; own servers have ended with theirs."""
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    for server in filter(None, (PostgresServer.running(), MariaDBServer.running())):
        for url in server.databases(f"{DATABASE_PREFIX}_{os.environ[RUN]}_"):
            server.drop_database(url)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave what is imported and collected alone: it lives to the end, and is most of what a collection looks at."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that is skipped for want of what LETOPIS_TEST_REQUIRE names."""
    return fail_if_required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a file."""
    return fail_if_required((yield))


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print a failure when it happens: a run that is ended from outside has no summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid} ({report.when}):\n{report.longreprtext}", flush=True)


def pytest_report_header() -> str:
    servers = f"PostgreSQL {PostgresServer.describe()}, MariaDB {MariaDBServer.describe()}"
    return f"databases: SQLite {sqlite3.sqlite_version}, {servers}"


@pytest.fixture(scope="session", autouse=True)
def no_raw_opens() -> Iterator[None]:
    """Nothing of ours opens a live SQLite file but SQLite, in the whole run: that would drop the process's locks."""
    WIRE.install()
    yield
    if WIRE.found:
        pytest.fail("\n".join(("a live SQLite file was opened by other means than SQLite:", *WIRE.found[:5])))


@pytest.fixture(scope="session", autouse=True)
def quick_creation() -> Iterator[None]:
    """Create databases as the migration created the first one: running Alembic each time costs more.

    Its statements are replayed on an empty database; whoever asks for `upgrade` itself gets Alembic.
    """
    scripts: dict[Any, list[tuple[str, Any]]] = {}

    def replay(
        connection: sa.Connection, migrations: Migrations, *, attributes: Mapping[str, Any] | None = None
    ) -> None:
        dialect = connection.dialect
        key = (dialect.name, dialect.server_version_info, migrations, *sorted((attributes or {}).items()))
        if sa.inspect(connection).get_table_names():
            upgrade(connection, migrations, attributes=attributes)
        elif key not in scripts:
            scripts[key] = _recorded(connection, migrations, attributes)
        else:
            with exclude_other_migrations(connection):
                if revision_state(connection, migrations).state is SchemaState.MISSING:
                    for statement, parameters in scripts[key]:  # the database itself makes the identity of a store
                        connection.exec_driver_sql(statement, parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("letopis.store.components.upgrade", replay)
        patch.setattr("letopis.outbox.file.opening.upgrade", replay)
        yield


def _recorded(
    connection: sa.Connection, migrations: Migrations, attributes: Mapping[str, Any] | None
) -> list[tuple[str, Any]]:
    script: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.lstrip().startswith(NO_CHANGES):
            script.append((statement.lstrip(), parameters))

    sa.event.listen(connection, "after_cursor_execute", note)
    try:
        upgrade(connection, migrations, attributes=attributes)
    finally:
        sa.event.remove(connection, "after_cursor_execute", note)
    return script


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """What a command sets up for its own process ends with the test: the next one may look at what is logged."""
    loggers = [logging.getLogger(name) for name in ("letopis", "asyncio")]
    before = [(one, one.handlers[:], one.filters[:], one.level, one.propagate, one.disabled) for one in loggers]
    silenced = logging.root.manager.disable
    yield
    logging.disable(silenced)
    for one, handlers, filters, level, propagate, disabled in before:
        one.handlers[:], one.filters[:], one.propagate, one.disabled = handlers, filters, propagate, disabled
        one.setLevel(level)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """SQLAlchemy's asyncio and aiosqlite know asyncio only."""
    return "asyncio", {"debug": False}


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresServer]:
    """A PostgreSQL that answers; shared by the run: never stop it (`PostgresServer.own()` is for that)."""
    with required("postgresql", PostgresServer.find) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDBServer]:
    """A MariaDB that answers; shared by the run: never stop it (`MariaDBServer.own()` is for that)."""
    with required("mariadb", MariaDBServer.find) as server:
        yield server


@pytest.fixture(scope="session")
def citus_server() -> Iterator[CitusServer]:
    """The Citus cluster that the environment names; shared by the run."""
    with required("citus", CitusServer.find) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from tests.support.console import chromium

    with chromium() as running:
        yield running


@pytest.fixture
def new_store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """A function from a kind of store to the URL of a fresh, empty database, dropped after the test."""
    created: list[tuple[Server, str]] = []
    files = 0

    def new(kind: str) -> str:
        nonlocal files
        if kind == "sqlite":
            files += 1
            return f"sqlite:///{(tmp_path / f'store-{files}.db').as_posix()}"
        server: Server = request.getfixturevalue(f"{kind}_server")
        url = server.create_database()
        created.append((server, url))
        return url

    yield new
    for server, url in created:
        server.drop_database(url)


@pytest.fixture(scope="session")
def postgresql_stores(postgresql_server: PostgresServer) -> Iterator[StorePool]:
    """Databases that hold a migrated, empty store."""
    with closing(PostgresPool(postgresql_server)) as pool:
        yield pool


@pytest.fixture(scope="session")
def mariadb_stores(mariadb_server: MariaDBServer) -> Iterator[StorePool]:
    with closing(MariaDBPool(mariadb_server)) as pool:
        yield pool


@pytest.fixture(scope="session")
def sqlite_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "store.db"
    in_own_loop(migrate(f"sqlite:///{path.as_posix()}"))
    return path


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a migrated, empty store, as users write it; the test runs once on each kind of store."""
    if request.param == "sqlite":
        yield copy_sqlite_store(request.getfixturevalue("sqlite_store"), tmp_path / "store.db")
        return
    pool: StorePool = request.getfixturevalue(f"{request.param}_stores")
    url = pool.take()
    yield url
    pool.give_back(url)


@pytest.fixture(params=STORES)
def empty_database_url(request: pytest.FixtureRequest, new_store_url: Callable[[str], str]) -> str:
    """The URL of a database without a store; the test runs once on each kind."""
    return new_store_url(request.param)


@pytest.fixture
def fresh_postgresql_url(new_store_url: Callable[[str], str]) -> str:
    return new_store_url("postgresql")


@pytest.fixture
def fresh_mariadb_url(new_store_url: Callable[[str], str]) -> str:
    return new_store_url("mariadb")

"""The history store's tables come from its migrations, wherever those are run, and are what the code expects."""

import asyncio
import os
import re
import subprocess
import sys
from asyncio import to_thread
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from alembic.config import CommandLine, Config
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.event_log.schema import metadata as outbox_metadata
from letopis.outbox.file.inspection import OUTBOX_MIGRATIONS
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import ConversationStore, FaultClass, StoreFault
from letopis.store.database.engines import create_store_engine
from letopis.store.database.migrations import STORE, Revision, SchemaState, revision_state, upgrade
from letopis.store.database.schema import metadata
from tests.support.bench import ask
from tests.support.child import ran
from tests.support.next_release import NEXT
from tests.support.paths import ROOT
from tests.support.sayings import NewStore
from tests.support.servers.store_pool import MariaDBPool, PostgresPool, StorePool
from tests.support.store_changes import run_there

T = TypeVar("T")
OURS = sorted([*metadata.tables, STORE.version_table])
FULL_TEXT = "letopis_search_words"
OPEN_AND_PRINT = (
    "import asyncio, sys\n"
    "from letopis.store import ConversationStore\n"
    "async def main():\n"
    "    async with ConversationStore.open(sys.argv[1], migrate=True) as store:\n"
    "        print(await store.head())\n"
    "asyncio.run(main())\n"
)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncConnection]:
    engine = create_store_engine(url)
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


async def there(url: str, look: Callable[..., T], *given: Any) -> T:
    """Call a function with a synchronous connection, in a transaction of its own."""
    async with connected(url) as connection:
        return await connection.run_sync(look, *given)


async def migrated(url: str, **options: Any) -> None:
    async with ConversationStore.open(url, migrate=True, **options):
        pass


async def tables(url: str) -> list[str]:
    """The tables, without those in which SQLite keeps its full-text index."""
    found = await there(url, lambda connection: sa.inspect(connection).get_table_names())
    return sorted(name for name in found if not name.startswith(FULL_TEXT))


async def state(url: str) -> Revision:
    return await there(url, revision_state, STORE)


def alembic(*words: str, cwd: Path = ROOT, url: str = "") -> str:
    """Run Alembic's command in this process, in no event loop, and return what it prints."""
    line, output = CommandLine(), StringIO()
    options = line.parser.parse_args(words)
    config = Config(cwd / "alembic.ini", cmd_opts=options, output_buffer=output, stdout=output)
    assert config.file_config.sections()
    config.config_file_name = None  # which leaves the logging of this process alone
    with patch.dict(os.environ, LETOPIS_STORE=url):
        try:
            line.run_cmd(config, options)
        except SystemExit as end:
            raise AssertionError(end.code) from None
    return output.getvalue()


def described_tables(dialect: str) -> list[sa.Table]:
    """The tables that the code describes as they are on one of the databases."""
    return [table for table in metadata.tables.values() if table.info["not_on"] != dialect]


def described_file(connection: sa.Connection) -> list[Any]:
    told: list[Any] = []
    for table in (one.name for one in described_tables("sqlite")):
        told += [(table, *row) for row in connection.exec_driver_sql(f"PRAGMA table_info({table})")]
        for index in connection.exec_driver_sql(f"PRAGMA index_list({table})").all():
            columns = connection.exec_driver_sql(f"PRAGMA index_xinfo({index.name})").all()
            told.append((table, index.name, index.unique, index.origin, [tuple(row) for row in columns]))
    return sorted(told, key=str)


async def described(url: str) -> list[Any]:
    """All that the database says of its tables, beyond what SQLAlchemy reflects."""
    if url.startswith("sqlite"):
        return await there(url, described_file)
    pool: type[StorePool] = PostgresPool if url.startswith("postgresql") else MariaDBPool
    text, _ = await to_thread(pool(None)._describe, url)  # type: ignore[arg-type]
    # By line, since the indexes stand in the order in which they were made.
    return [sorted(line.rstrip(",") for line in table.splitlines()) for table in text.split("CREATE TABLE")]


async def test_the_migrations_make_what_the_code_describes(
    empty_database_url: str, new_store_url: NewStore, request: pytest.FixtureRequest
) -> None:
    await migrated(empty_database_url)
    other = new_store_url(request.node.callspec.params["empty_database_url"])
    async with connected(other) as connection:
        await connection.run_sync(metadata.create_all, tables=described_tables(connection.dialect.name))

    assert await tables(empty_database_url) == OURS
    await run_there(empty_database_url, f"DROP TABLE {STORE.version_table}")
    assert await described(empty_database_url) == await described(other)


async def test_a_difference_would_be_found(empty_database_url: str) -> None:
    """The control: a column and an index that the code does not describe."""
    await migrated(empty_database_url)
    for change in (
        "ALTER TABLE letopis_events ADD COLUMN extra INTEGER",
        "CREATE INDEX ix_extra ON letopis_events (type)",
    ):
        before = await described(empty_database_url)
        await run_there(empty_database_url, change)
        assert await described(empty_database_url) != before


async def test_down_to_nothing_and_up_again(empty_database_url: str) -> None:
    """The bot's own tables and its own migrations are left alone."""
    await run_there(
        empty_database_url,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)",
        "INSERT INTO alembic_version VALUES ('bot-17')",
        "CREATE TABLE events (id INTEGER PRIMARY KEY)",
    )
    await migrated(empty_database_url)

    await to_thread(alembic, "downgrade", "base", url=empty_database_url)
    assert await tables(empty_database_url) == ["alembic_version", "events", "letopis_version"]
    assert await state(empty_database_url) == Revision(state=SchemaState.MISSING, revision=None)

    await to_thread(alembic, "upgrade", "head", url=empty_database_url)
    assert await tables(empty_database_url) == sorted([*OURS, "alembic_version", "events"])
    assert await ask(empty_database_url, "SELECT version_num FROM alembic_version") == "bot-17"
    await to_thread(alembic, "check", url=empty_database_url)


async def test_option_goes_before_environment_and_file(new_store_url: NewStore, tmp_path: Path) -> None:
    ini = "[alembic]\nscript_location = letopis.migrations:store\npath_separator = os\n"
    (tmp_path / "alembic.ini").write_text(ini)
    with pytest.raises(AssertionError, match="LETOPIS_STORE"):  # without a URL it says how to give one
        await to_thread(alembic, "upgrade", "head", cwd=tmp_path)
    named, environment, in_file = (new_store_url("sqlite") for _ in range(3))
    (tmp_path / "alembic.ini").write_text(f"{ini}sqlalchemy.url = {in_file}\n")

    await to_thread(
        alembic, "-x", f"url={named}", "-x", "partitions=3", "upgrade", "head", cwd=tmp_path, url=environment
    )
    assert (await state(named)).state is SchemaState.CURRENT
    assert not Path(environment.removeprefix("sqlite:///")).exists()
    await to_thread(alembic, "upgrade", "head", cwd=tmp_path, url=environment)
    assert (await state(environment)).state is SchemaState.CURRENT
    assert not Path(in_file.removeprefix("sqlite:///")).exists()
    await to_thread(alembic, "upgrade", "head", cwd=tmp_path)
    assert (await state(in_file)).state is SchemaState.CURRENT
    async with ConversationStore.open(named) as store:
        assert await store.partitions() == 3


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://bot:s3cret@127.0.0.1:1/history", "cannot be reached"),
        ("oracle://bot:s3cret@127.0.0.1/history", "not a supported kind of database"),
    ],
)
def test_no_way_to_the_database_is_one_line_without_a_secret(url: str, said: str) -> None:
    """Of a process of its own, as operators run it."""
    words = (sys.executable, "-W", "error", "-m", "alembic", "upgrade", "head")
    done = ran(*words, cwd=ROOT, env={**os.environ, "LETOPIS_STORE": url})

    assert done.returncode != 0
    assert said in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr


async def test_printed_sql(empty_database_url: str, new_store_url: NewStore, request: pytest.FixtureRequest) -> None:
    script = await to_thread(alembic, "upgrade", "head", "--sql", url=empty_database_url)
    statements = [re.sub(r"^--.*$", "", part, flags=re.MULTILINE).strip() for part in script.split(";\n")]
    async with connected(empty_database_url) as connection:
        for statement in statements:
            if statement and statement not in ("BEGIN", "COMMIT"):
                await connection.exec_driver_sql(statement)
    other = new_store_url(request.node.callspec.params["empty_database_url"])
    await migrated(other)
    assert await described(empty_database_url) == await described(other)
    async with ConversationStore.open(empty_database_url, migrate=False) as store:
        assert await store.head() == 0
    down = await to_thread(alembic, "downgrade", f"{STORE.head}:base", "--sql", url=empty_database_url)
    assert all(f"DROP TABLE {table}" in down for table in metadata.tables)


async def put_at(url: str, *revisions: str) -> None:
    async with connected(url) as connection:
        await connection.exec_driver_sql("DELETE FROM letopis_version")
        for revision in revisions:
            await connection.exec_driver_sql(f"INSERT INTO letopis_version VALUES ('{revision}')")


async def test_a_database_of_another_revision_says_what_to_do(empty_database_url: str) -> None:
    """What is newer or foreign is never migrated."""
    await migrated(empty_database_url)
    for revisions, expected, advice in (
        (("0000",), SchemaState.OLDER, "letopis db upgrade"),
        ((NEXT,), SchemaState.NEWER, "install the newer release"),
        (("ae1027a6acf",), SchemaState.FOREIGN, "check that the URL names the right database"),
        (("0001", "0002"), SchemaState.FOREIGN, "check that the URL names the right database"),
        ((), SchemaState.MISSING, "letopis db upgrade"),
    ):
        await put_at(empty_database_url, *revisions)
        found = await state(empty_database_url)
        assert found.state is expected
        store = ConversationStore(empty_database_url, migrate=False)
        with pytest.raises(StoreFault, match=advice) as caught:
            await store.prepare()
        assert caught.value.fault_class is FaultClass.MISCONFIGURED
        assert caught.value.code == f"schema-{expected}"
        with pytest.raises(StoreFault, match=advice):
            await store.head()
        if expected in (SchemaState.NEWER, SchemaState.FOREIGN):
            with pytest.raises(StoreFault, match=advice):
                await migrated(empty_database_url)
            assert await state(empty_database_url) == found
        await put_at(empty_database_url, STORE.head)
        assert await store.head() == 0  # looked at again
        await store.close()


async def test_a_file_migrates_itself_unless_told_not_to(new_store_url: NewStore) -> None:
    url = new_store_url("sqlite")
    path = Path(url.removeprefix("sqlite:///"))
    store = ConversationStore(url, migrate=False)
    with pytest.raises(StoreFault, match="letopis db upgrade"):
        await store.prepare()
    await store.close()
    assert not path.exists(), "looking must not create the file"

    async with ConversationStore.open(path) as store:
        assert await store.head() == 0
    if os.name != "nt":
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
async def test_many_may_migrate_at_once(empty_database_url: str) -> None:
    """Two tasks of this process, and two other processes; each waits for the lock and finds the tables complete.

    With a next release, and without the lock, by the part ``upgrade`` of the proof.
    """
    words = [sys.executable, "-W", "error", "-c", OPEN_AND_PRINT, empty_database_url]
    others = [
        await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)
    ]
    await asyncio.gather(*(migrated(empty_database_url) for _ in range(2)))
    for other in others:
        out, err = await other.communicate()
        assert (out.decode().strip(), err.decode()) == ("0", "")
    assert await tables(empty_database_url) == OURS
    assert await ask(empty_database_url, "SELECT COUNT(*) FROM letopis_log_heads") == 1


async def test_lock_is_freed_with_the_revision_committed(new_store_url: NewStore) -> None:
    """Who waits for the lock looks at the revision next: an older one would have it migrate once more, and fail."""
    url = new_store_url("mariadb")
    engine = create_store_engine(url)
    async with engine.connect() as connection:
        await connection.run_sync(upgrade, STORE)
        assert (await state(url)).state is SchemaState.CURRENT
        await connection.rollback()
    await engine.dispose()


def test_the_head_is_the_last_revision_there_is() -> None:
    config = Config()
    config.set_main_option("script_location", STORE.location)
    scripts = ScriptDirectory.from_config(config)

    assert scripts.get_heads() == [STORE.head]
    assert all(re.fullmatch(r"\d{4}", script.revision) for script in scripts.walk_revisions())


def test_alembic_is_not_imported_for_a_store_that_is_current(tmp_path: Path) -> None:
    code = f"{OPEN_AND_PRINT}print('alembic' in sys.modules)\n"
    told = [ran(sys.executable, "-c", code, tmp_path / "history.db").stdout.split() for _ in range(2)]

    assert told == [["0", "True"], ["0", "False"]]


@pytest.mark.parametrize("number", [0, -1, 1025])
async def test_a_number_of_partitions_that_is_none_is_refused(number: int, tmp_path: Path) -> None:
    engine = create_store_engine(tmp_path / "history.db")
    async with engine.connect() as connection:
        with pytest.raises(ValueError, match="partitions"):
            await connection.run_sync(upgrade, STORE, attributes={"partitions": number})
    await engine.dispose()


async def test_many_databases_are_migrated_at_once_in_one_process(tmp_path: Path) -> None:
    """Alembic keeps the database it works on in globals: each has to have its turn."""
    outboxes = [tmp_path / f"{number}.outbox.db" for number in range(4)]
    stores = [f"sqlite:///{tmp_path}/{number}.history.db" for number in range(4)]

    async def created(path: Path) -> None:
        await (await OutboxFile.open(path)).close()

    await asyncio.gather(*map(created, outboxes), *map(migrated, stores))

    assert [await tables(url) for url in stores] == [OURS] * 4
    for path in outboxes:
        assert sorted({*outbox_metadata.tables, OUTBOX_MIGRATIONS.version_table}) == [
            one for one in await tables(str(path)) if one.startswith("letopis_")
        ]

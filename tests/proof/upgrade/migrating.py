"""Run a migration in a process of its own: killed at a statement, concurrently with others, or without its lock."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event

from letopis.outbox.file.inspection import OUTBOX_MIGRATIONS
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import ConversationStore
from letopis.store.database import migrations as the_migration
from letopis.store.database import sqlite, sqlite_file
from letopis.store.database.engines import create_store_engine
from letopis.store.database.migrations import STORE, Migrations, upgrade
from tests.campaigns.victims import Context
from tests.support.child import start_piped
from tests.support.next_release import next_outbox_tables, next_store_tables

RUNNERS: Final = 4
T = TypeVar("T")


def kind_of(url: str) -> tuple[Migrations, sa.MetaData]:
    return (STORE, next_store_tables()) if "://" in url else (OUTBOX_MIGRATIONS, next_outbox_tables())


def config_of(migrations: Migrations) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", migrations.location)
    return config


async def looked(url: str, read: Callable[[sa.Connection], T]) -> T:
    """Return what is read of a database, in a transaction that is committed."""
    engine = create_store_engine(url)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(read)
    finally:
        await engine.dispose()


async def bring_to(url: str, target: str) -> None:
    from alembic import command

    migrations, _ = kind_of(url)

    def run(connection: sa.Connection) -> None:
        there = the_migration.revision_state(connection, migrations)
        if target == "head" or (there.revision or "") < target:
            upgrade(connection, migrations, target)
            return
        config = config_of(migrations)
        config.attributes.update(connection=connection, version_table=migrations.version_table)
        with the_migration.exclude_other_migrations(connection):
            command.downgrade(config, target)

    await looked(url, run)


async def differences(url: str) -> list[str]:
    """Return how the tables differ from what the code expects, in words."""
    _, expected = kind_of(url)

    def compare(connection: sa.Connection) -> list[Any]:
        options = {
            "compare_type": True,
            "include_name": lambda name, kind, _: kind != "table" or name in expected.tables,
            "include_object": lambda item, *_: item.info.get("not_on") != connection.dialect.name,
        }
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), expected))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an index over an expression cannot be compared
        return [str(one)[:200] for one in await looked(url, compare)]


async def migrate(url: str, *, create: bool = True) -> None:
    """Open what there is, and create or migrate it if asked."""
    if "://" in url:
        async with ConversationStore.open(url, migrate=create) as store:
            await store.head()
    else:
        await (await OutboxFile.open(url, create=create)).close()


def changes(statement: str) -> bool:
    words = statement.lstrip().upper()
    return not words.startswith(("SELECT", "PRAGMA", "BEGIN", "SET ", "SHOW", "DESCRIBE", "COMMIT", "ROLLBACK"))


def killed(url: str, at: int, after: bool) -> None:
    """Migrate, and die by SIGKILL at the changing statement with this number, before or after it took effect.

    If there are fewer statements, it dies before the commit.
    """
    logging.disable()
    seen = -1

    def before(*given: Any) -> None:
        nonlocal seen
        seen += changes(given[2])
        if seen == at and not after and changes(given[2]):
            os.kill(os.getpid(), signal.SIGKILL)

    def behind(*given: Any) -> None:
        if seen == at and after:
            os.kill(os.getpid(), signal.SIGKILL)

    def commit(*_: Any) -> None:
        if seen >= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(sa.Engine, "before_cursor_execute", before)
    event.listen(sa.Engine, "after_cursor_execute", behind)
    event.listen(sa.Engine, "commit", commit)
    real = sqlite_file.FileConnection.commit  # a store on SQLite commits by the driver

    async def committing(connection: sqlite_file.FileConnection) -> None:
        commit()
        await real(connection)

    sqlite_file.FileConnection.commit = committing  # type: ignore[method-assign]
    asyncio.run(migrate(url))


def race(pipe: Connection, *, locked: bool) -> None:
    """Migrate each database that comes through the pipe, and send back the error or ""."""
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:  # so that what is raced for is not the imports
        asyncio.run(migrate(f"sqlite:///{folder}/warm.db"))
    if not locked:
        the_migration.exclude_other_migrations = nullcontext
        for module in (sqlite, sqlite_file):
            module.BEGIN = {**sqlite.BEGIN, "IMMEDIATE": "BEGIN"}  # type: ignore[misc]
    pipe.send("")
    while (url := pipe.recv()) is not None:
        try:
            asyncio.run(asyncio.wait_for(migrate(url), 40))
        except Exception as error:  # whatever it is, it is what the race came to
            pipe.send(f"{type(error).__name__}: {str(error)[:200]}")
        else:
            pipe.send("")


@contextmanager
def racing(context: Context, *, locked: bool) -> Iterator[list[Connection]]:
    """Yield the pipes of four processes that migrate the same database at the same moment."""
    racers = [start_piped(context, race, duplex=True, locked=locked) for _ in range(RUNNERS)]
    pipes = [pipe for _, pipe in racers]
    for pipe in pipes:
        assert pipe.poll(60), "a racer did not start"
        pipe.recv()
    yield pipes
    for process, pipe in racers:
        pipe.send(None)
        process.join(5)
        process.kill()
        pipe.close()


def race_in(url: str, pipes: list[Connection]) -> list[str]:
    """Return how it ended for each, empty where it went well."""
    for pipe in pipes:
        pipe.send(url)
    return [pipe.recv() if pipe.poll(60) else "no end within a minute" for pipe in pipes]

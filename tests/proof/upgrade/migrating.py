"""Migrate in processes of their own, killed at a statement, concurrently with others, or without the lock; and look."""

import asyncio
import logging
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing.connection import Connection
from random import Random
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event

from letopis import ConversationStore, Message, OutboxFile
from letopis.outbox.file.inspection import OUTBOX_MIGRATIONS
from letopis.store.database import migrations as the_migration
from letopis.store.database import sqlite, sqlite_file
from letopis.store.database.engines import create_store_engine
from letopis.store.database.migrations import STORE, Migrations, SchemaState, revision_state, upgrade
from letopis.store.ops.rebuild import rebuild
from tests.campaigns.victims import Context, fork_server
from tests.proof.harness import Setting, Tally, World, migrated
from tests.support.child import start, start_piped
from tests.support.next_release import next_outbox_tables, next_store_tables
from tests.support.sayings import differences as rebuilt_differences

MOST_ROUNDS: Final = 12
RUNNERS: Final = 4
T = TypeVar("T")
Held = Mapping[str, list[tuple[Any, ...]]]


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


def racer(pipe: Connection, *, locked: bool) -> None:
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
    racers = [start_piped(context, racer, duplex=True, locked=locked) for _ in range(RUNNERS)]
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


def _context() -> Context:
    return fork_server("tests.proof.upgrade.migrating", "alembic.command")


async def down_and_up(setting: Setting) -> Tally:
    """All of the vocabulary that makes rows, down to each revision and up again, then rebuilt."""
    world, url = setting.world(), setting.url
    await fill(world)
    tally, whole, revisions = world.tally, await held(url), _revisions(url)
    for revision in reversed(revisions[:-1]):
        await bring_to(url, revision)
        state = await _state(url)
        tally.require(state is SchemaState.OLDER, f"at {revision}, and {state}")
        low = await held(url, only=("letopis_events", "letopis_lanes", "letopis_origins"))
        tally.blame(f"down to {revision}: {table} changed" for table, rows in low.items() if rows != whole[table])
        await bring_to(url, "head")
        up = f"up from {revision}"
        tally.blame(await differences(url), where=up)
        async with ConversationStore.open(url, migrate=False) as store:
            async for _ in rebuild(store, every=True):
                pass
            tally.blame(await rebuilt_differences(store), where=f"{up}: not what the log makes of it")
        tally.take(await world.examine(), where=up)
        tally.count += 2
    events = len(whole["letopis_events"])
    tally.notes = f"{events} events, the same in every column each time; the rest rebuilt from them"
    return tally


async def fill(world: World) -> None:
    await migrated(world.url)
    async with world.open() as history:
        for number in range(24):
            name, owner = f"chat-{number // 4}", f"owner-{number // 4 % 2}"
            world.keep(await history.append(name, Message.user(f"{name} {number % 4} снег"), owner=owner))
        await history.chat("chat-1").undo()
        await history.chat("chat-2").rename("Зима")
        messages = await history.messages("chat-3", last=5)
        await history.chat("chat-3").redact(messages[0].id)
        assert await history.drained(30)


async def cut_off(setting: Setting) -> Tally:
    """From the first revision to this one, killed on the way; what it was is found again, and then finished."""
    world, context = setting.world(), _context()
    await fill(world)
    tally, url = Tally(), world.url if setting.kind else str(world.outbox)
    first, *_ = _revisions(url)
    await bring_to(url, first)
    before, half_made = await held(url), 0
    steps = await _count_steps(url)
    await bring_to(url, first)
    # Before the one, after the next; and at the commit.
    points = [(at, bool((at + setting.seed) % 2)) for at in range(steps + 1)]
    if setting.options.short:
        points = [*Random(setting.seed).sample(points[:-1], 1), points[-1]]
    for at, after in points:
        words = "at the commit" if at == steps else f"{'after' if after else 'before'} statement {at}"
        process = start(context, killed, url, at, after)
        await asyncio.to_thread(process.join, 60)
        if process.exitcode != -9:
            tally.problems.append(f"{words}: ended with {process.exitcode}")
            process.kill()
            continue
        tally.count += 1
        found = await _state(url)
        tally.require(found in (SchemaState.OLDER, SchemaState.CURRENT), f"{words}: {found}")
        whole = found is not SchemaState.CURRENT or at == steps or not await differences(url)
        tally.require(whole, f"{words}: half migrated, and said to be current")
        half = await held(url)
        half_made += half.keys() != before.keys() or any(
            len(half[table][0]) != len(rows[0]) for table, rows in before.items() if rows
        )
        await migrate(url)
        tally.blame(await differences(url), where=f"{words}, run again")
        tally.blame(f"{words}: {table} changed" for table in _changed(before, await held(url)))
        await bring_to(url, first)
    tally.notes = f"{steps} statements; {half_made} kills left tables between two revisions, none was taken for whole"
    return tally


async def _count_steps(url: str) -> int:
    """Return how many statements the migration changes something with."""
    seen: list[str] = []

    def before(*given: Any) -> None:
        seen.append(given[2])

    event.listen(sa.Engine, "before_cursor_execute", before)
    try:
        await migrate(url)
    finally:
        event.remove(sa.Engine, "before_cursor_execute", before)
    return sum(map(changes, seen))


def race(setting: Setting) -> Tally:
    """Race in databases that are empty and in ones of the first revision, turn by turn.

    Whether they collide without the lock is a matter of chance: a control that saw nothing yet continues for a while.
    """
    tally, number, control = Tally(), 0, setting.control
    rounds = setting.many(3, 2) if control else setting.many(12, 2)
    with racing(_context(), locked=not control) as racers:
        while number < rounds or (control and not tally.problems and number < MOST_ROUNDS):
            with setting.apart(f"{number}") as here:
                url = here.url if here.kind else str(here.world().outbox)
                if number % 2:
                    asyncio.run(migrate(url))
                    asyncio.run(bring_to(url, _revisions(url)[0]))
                tally.blame(filter(None, race_in(url, racers)), where=f"round {number}")
                if not control:
                    tally.blame(asyncio.run(differences(url)), where=f"round {number}")
                    state = asyncio.run(_state(url))
                    tally.require(state is SchemaState.CURRENT, f"round {number}: {state}")
            number += 1
    tally.count, tally.notes = number * RUNNERS, f"{number} rounds, from nothing and from the first revision"
    return tally


async def _state(url: str) -> SchemaState:
    return (await looked(url, partial(revision_state, migrations=kind_of(url)[0]))).state


async def held(url: str, *, only: tuple[str, ...] = ()) -> Held:
    """Return all rows of our tables as they are now, whatever the revision, the columns by name in the first."""

    def read(connection: sa.Connection) -> Held:
        found: dict[str, list[tuple[Any, ...]]] = {}
        for table in sorted(sa.inspect(connection).get_table_names()):
            if not table.startswith("letopis_") or "search" in table or (only and table not in only):
                continue
            result = connection.exec_driver_sql(f"SELECT * FROM {table}")
            rows = [tuple(row) for row in result.fetchall()]
            found[table] = [tuple(result.keys()), *sorted(rows, key=repr)]
        return found

    return await looked(url, read)


def _changed(before: Held, now: Held) -> list[str]:
    """Return the tables in which the columns that were there before hold something else now."""
    found = []
    for table, (names, *rows) in before.items():
        if table.endswith(("_version", "_origin")):
            continue
        there = now[table][0]
        places = [there.index(name) for name in names]
        if sorted(rows, key=repr) != sorted((tuple(row[one] for one in places) for row in now[table][1:]), key=repr):
            found.append(table)
    return found


def _revisions(url: str) -> list[str]:
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(config_of(kind_of(url)[0]))
    return sorted(script.revision for script in scripts.walk_revisions())

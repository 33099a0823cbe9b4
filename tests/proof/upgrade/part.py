"""Prove upgrades and rollbacks of all stores and the outbox: interrupted, concurrent, and beside older code.

No release has a second revision yet, so all of it is run by the code of a next release: this one's, with a second
revision of both ends. This release, and tagged ones if there are any, are the earlier ones.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event

from letopis.outbox import History
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import ConversationStore, LetopisError, Message
from letopis.store.database.engines import create_store_engine
from letopis.store.database.migrations import SchemaState, revision_state
from letopis.store.maintenance.rebuild import Rebuilt
from tests.campaigns.invariants import Ack, check
from tests.campaigns.victims import Context, fork_server
from tests.proof.options import Options
from tests.proof.rows import Row, row_of
from tests.proof.stores import fresh
from tests.proof.upgrade.migrating import bring_to, changes, differences, killed, kind_of, migrate, race
from tests.proof.upgrade.one_file import on_one_file
from tests.proof.upgrade.releases import Release, ReleaseBot, earlier_releases, next_release
from tests.support.next_release import write_next_release

KINDS: Final = ("sqlite", "postgresql", "mariadb")
RUNNERS: Final = 4
MOST_ROUNDS: Final = 12
OLDER: Final = "code of earlier releases runs on while the tables change under it"
STARTS: Final = "code of earlier releases starts on tables of this one"
CUT_OFF: Final = "a migration killed before or after each of its statements, and run again"
RACED: Final = "four processes migrate at once"
DOWN: Final = "down to each revision and up again"
NEWER: Final = "a revision that is not known"
Held = Mapping[str, list[tuple[Any, ...]]]


def prove(options: Options) -> Iterator[Row]:
    """Yield the rows of this part."""
    stores = KINDS[:1] if options.short else KINDS
    jobs: list[tuple[Callable[..., list[Row]], tuple[Any, ...]]] = [(on_a_store, (options, kind)) for kind in stores]
    jobs.append((races, (options, KINDS[:2] if options.short else KINDS)))
    # Each in a process of its own: Alembic keeps what it works on in globals. Most of the time they wait for a server.
    following = write_next_release(options.folder / "next-release")
    with (
        _first_on_path(following.roots),
        ProcessPoolExecutor(len(jobs), mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        for one in [pool.submit(work, *given) for work, given in jobs]:
            yield from one.result()


@contextmanager
def _first_on_path(roots: Sequence[str]) -> Iterator[None]:
    """Have new processes import from these folders: spawned ones take over ``sys.path``, a fork server does not."""
    before = os.environ.get("PYTHONPATH")
    sys.path[:0] = roots
    os.environ["PYTHONPATH"] = os.pathsep.join([*roots, *filter(None, [before])])
    try:
        yield
    finally:
        del sys.path[: len(roots)]
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def on_a_store(options: Options, kind: str) -> list[Row]:
    """All that is done to one store, one after the other."""
    logging.disable()
    context = fork_server("tests.proof.upgrade.migrating", "alembic.command")
    releases = earlier_releases(options.folder / f"releases-{kind}")
    rows: list[Row] = []
    for number, work in enumerate((older, on_one_file, down_and_up, cut_off_store, newer)):
        with fresh(kind, options.folder, f"store-{number}") as one:
            if one.missing:
                return [Row(what="upgrade", where=kind, missing=one.missing)]
            rows += work(options, kind, one.url, releases, context)
    return rows


def races(options: Options, kinds: Sequence[str]) -> list[Row]:
    logging.disable()
    context = fork_server("tests.proof.upgrade.migrating", "alembic.command")
    rows: list[Row] = []
    with Racers(context, locked=True) as racers:
        for where in ("outbox", *kinds):
            rows += raced(options, where, racers)
    with Racers(context, locked=False) as racers:
        for where in kinds:
            rows += raced(options, where, racers, control=True)
    outbox = options.folder / "cut.outbox.db"
    return [*rows, asyncio.run(cut_off(options, "outbox", str(outbox), context))]


def older(options: Options, kind: str, url: str, releases: list[Release], _: Context) -> Iterator[Row]:
    """Run each earlier release on a store of its own revision, then change the tables under it."""
    problems: list[str] = []
    count: Counter[str] = Counter()
    for number, release in enumerate(releases[-1:] if options.short else releases):
        with fresh(kind, options.folder, f"older-{number}") as one:
            found = _beside(release, one.url, options.folder / f"{kind}-{number}", count)
            problems += [f"revision {release.store}: {problem}" for problem in found]
    notes = (
        f"{count['releases']} releases: {count['acknowledged']} events acknowledged in all,"
        f" {count['opened']} files of theirs opened by the next release"
    )
    yield row_of(OLDER, kind, count["changed"], 30, "events", problems, notes)
    yield row_of(STARTS, kind, count["refused"], 2, "refusals", [], f"{count['kept']} events kept meanwhile, delivered")


def _beside(release: Release, url: str, folder: Path, count: Counter[str]) -> Iterator[str]:
    folder.mkdir()
    following = next_release()
    outbox, second, third = (folder / f"{name}.outbox.db" for name in ("one", "two", "three"))
    acks: list[Ack] = []
    count["releases"] += 1
    with ReleaseBot(release, outbox, url, migrate=True) as bot:
        if error := bot.ready() or bot.say(15, "before"):
            yield error
            return
        if not bot.drained(20):
            yield "not drained before anything was changed"
        asyncio.run(bring_to(url, "head"))
        if error := bot.say(15, "changed"):
            yield f"on the changed store: {error}"
        if not bot.drained(20):
            yield "not drained on the changed store"
        with ReleaseBot(following, second, url) as beside:
            if error := beside.ready() or beside.say(10, "beside"):
                yield f"the next release beside it: {error}"
            asyncio.run(_opened(outbox))
            if error := bot.say(15, "outbox changed too"):
                yield f"on the changed outbox: {error}"
            if not (bot.drained(20) and beside.drained(20)):
                yield "not drained side by side"
            acks += beside.acks
        count["changed"] += 30
        acks += bot.acks
    with ReleaseBot(release, outbox, url) as bot:
        error = bot.ready()
        if "newer release" not in error:
            yield f"an outbox of the next release was not refused: {error}"
        count["refused"] += 1
    with ReleaseBot(release, third, url) as bot:
        before = asyncio.run(_held(url))
        if error := bot.ready() or bot.say(10, "kept"):
            yield f"started on the changed store: {error}"
        if bot.drained(1):
            yield "it delivered to a store that it does not know"
        if asyncio.run(_held(url)) != before:
            yield "it wrote to a store that it does not know"
        count["refused"] += 1
        count["kept"] += len(bot.acks)
        acks += bot.acks
    for path in (outbox, third):
        with ReleaseBot(following, path, url) as bot:
            if error := bot.ready() or bot.say(5, "after"):
                yield f"the next release on its file: {error}"
            if not bot.drained(20):
                yield "the next release does not drain its file"
            count["opened"] += 1
            acks += bot.acks
    count["acknowledged"] += len(acks)
    verdict = asyncio.run(check([outbox, second, third], url, acknowledged=acks, drained=True))
    if not verdict.ok:
        yield str(verdict)


async def _opened(path: Path) -> None:
    await (await OutboxFile.open(path)).close()


def down_and_up(options: Options, kind: str, url: str, _: list[Release], __: Context) -> Iterator[Row]:
    """All of the vocabulary that makes rows, down to each revision and up again, then rebuilt."""
    yield asyncio.run(_down_and_up(options, kind, url))


async def _down_and_up(options: Options, kind: str, url: str) -> Row:
    outbox = options.folder / f"{kind}-down.outbox.db"
    acks = await _fill(outbox, url)
    problems: list[str] = []
    whole = await _held(url)
    revisions = _revisions(url)
    for revision in reversed(revisions[:-1]):
        await bring_to(url, revision)
        if (await _state(url)) is not SchemaState.OLDER:
            problems.append(f"at {revision}, and {await _state(url)}")
        low = await _held(url, only=("letopis_events", "letopis_lanes", "letopis_origins"))
        problems += [f"down to {revision}: {table} changed" for table, rows in low.items() if rows != whole[table]]
        await bring_to(url, "head")
        problems += [f"up from {revision}: {one}" for one in await differences(url)]
        rebuilt: list[Rebuilt] = []
        async with ConversationStore.open(url, migrate=False) as store:
            rebuilt += [one async for one in store.rebuild(every=True)]
            left = [one async for one in store.rebuild(check=True, every=True) if one.differences]
        problems += [f"up from {revision}: {one.conversation_id} is not what the log makes of it" for one in left]
        verdict = await check([outbox], url, acknowledged=acks, drained=True)
        problems += [f"up from {revision}: {one}" for one in verdict.problems]
    notes = f"{len(whole['letopis_events'])} events, the same in every column each time; the rest rebuilt from them"
    return row_of(DOWN, kind, 2 * (len(revisions) - 1), 2, "migrations", problems, notes)


async def _fill(outbox: Path, url: str) -> list[Ack]:
    async with ConversationStore.open(url, migrate=True):
        pass
    acks: list[Ack] = []
    async with History(outbox, store=url, watch=False) as history:
        for number in range(6):
            name = f"chat-{number}"
            for turn in range(4):
                receipt = await history.append(name, Message.user(f"{name} {turn} снег"), owner=f"owner-{number % 2}")
                acks += [Ack(name, one) for one in receipt.event_ids]
        await history.chat("chat-1").undo()
        await history.chat("chat-2").rename("Зима")
        messages = await history.messages("chat-3", last=5)
        await history.chat("chat-3").redact(messages[0].id)
        assert await history.drained(30)
    return acks


def cut_off_store(options: Options, kind: str, url: str, _: list[Release], context: Context) -> Iterator[Row]:
    """Kill the migration of a filled store at each statement."""
    asyncio.run(_fill(options.folder / f"{kind}-cut.outbox.db", url))
    yield asyncio.run(cut_off(options, kind, url, context))


async def cut_off(options: Options, where: str, url: str, context: Context) -> Row:
    """From the first revision to this one, killed on the way; what it was is found again, and then finished."""
    if where == "outbox":
        async with History(url, relay=False, watch=False) as history:
            for number in range(20):
                await history.append(f"chat-{number % 3}", Message.user(f"{number}"))
    revisions = _revisions(url)
    await bring_to(url, revisions[0])
    before = await _held(url)
    steps = await _count_steps(url)
    await bring_to(url, revisions[0])
    # Before the one, after the next; and at the commit.
    points = [(at, bool((at + options.seed) % 2)) for at in range(steps + 1)]
    if options.short:
        points = [*Random(options.seed).sample(points[:-1], 3), points[-1]]
    problems: list[str] = []
    count: Counter[str] = Counter()
    for at, after in points:
        words = "at the commit" if at == steps else f"{'after' if after else 'before'} statement {at}"
        process = context.Process(target=killed, args=(url, at, after), daemon=True)
        process.start()
        await asyncio.to_thread(process.join, 60)
        if process.exitcode != -9:
            problems.append(f"{words}: ended with {process.exitcode}")
            process.kill()
            continue
        count["kills"] += 1
        found = await _state(url)
        if found is SchemaState.CURRENT and at != steps and await differences(url):
            problems.append(f"{words}: half migrated, and said to be current")
        elif found not in (SchemaState.OLDER, SchemaState.CURRENT):
            problems.append(f"{words}: {found}")
        half = await _held(url)
        count["half"] += half.keys() != before.keys() or any(
            len(half[table][0]) != len(rows[0]) for table, rows in before.items() if rows
        )
        await migrate(url)
        problems += [f"{words}, run again: {one}" for one in await differences(url)]
        problems += [f"{words}: {table} changed" for table in _changed(before, await _held(url))]
        await bring_to(url, revisions[0])
    notes = f"{steps} statements; {count['half']} kills left tables between two revisions, none was taken for whole"
    least = 0 if options.short else steps
    return row_of(CUT_OFF, where, count["kills"], least, "kills", problems, notes)


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


class Racers:
    """Four processes that migrate the same database at the same moment."""

    def __init__(self, context: Context, *, locked: bool) -> None:
        self.pipes: list[Connection] = []
        self._processes = []
        for _ in range(RUNNERS):
            ours, theirs = multiprocessing.Pipe()
            process = context.Process(target=race, args=(theirs,), kwargs={"locked": locked}, daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Racers:
        for pipe in self.pipes:
            assert pipe.poll(60), "a racer did not start"
            pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        for pipe, process in zip(self.pipes, self._processes, strict=True):
            pipe.send(None)
            process.join(5)
            process.kill()
            pipe.close()

    def run(self, url: str) -> list[str]:
        """Return how it ended for each, empty where it went well."""
        for pipe in self.pipes:
            pipe.send(url)
        return [pipe.recv() if pipe.poll(60) else "no end within a minute" for pipe in self.pipes]


def raced(options: Options, where: str, racers: Racers, *, control: bool = False) -> Iterator[Row]:
    """Race in databases that are empty and in ones of the first revision, turn by turn.

    Whether they collide without the lock is a matter of chance: a control that saw nothing yet continues for a while.
    """
    problems: list[str] = []
    rounds = options.many(3, 2) if control else options.many(12, 2)
    number = 0
    while number < rounds or (control and not problems and number < MOST_ROUNDS):
        with ExitStack() as stack:
            if where == "outbox":
                url = str(options.folder / f"race-{number}.outbox.db")
            else:
                one = stack.enter_context(fresh(where, options.folder, f"race-{control}-{number}"))
                if one.missing:
                    yield Row(what=RACED, where=where, control=control, missing=one.missing)
                    return
                url = one.url
            if number % 2:
                asyncio.run(migrate(url))
                asyncio.run(bring_to(url, _revisions(url)[0]))
            problems += [f"round {number}: {one}" for one in racers.run(url) if one]
            if not control:
                problems += [f"round {number}: {one}" for one in asyncio.run(differences(url))]
                if (state := asyncio.run(_state(url))) is not SchemaState.CURRENT:
                    problems.append(f"round {number}: {state}")
        number += 1
    what = f"{RACED}, without the lock of migrations" if control else RACED
    yield row_of(
        what,
        where,
        count=number * RUNNERS,
        unit="migrations",
        least=48,
        problems=problems,
        notes=f"{number} rounds, from nothing and from the first revision",
        control=control,
    )


def newer(options: Options, kind: str, url: str, _: list[Release], __: Context) -> Iterator[Row]:
    """A store, and an outbox, of a release that does not exist yet."""
    yield asyncio.run(_newer(options, kind, url))


async def _newer(options: Options, kind: str, url: str) -> Row:
    outbox = options.folder / f"{kind}-newer.outbox.db"
    await _fill(outbox, url)
    problems: list[str] = []
    tried = 0
    for target in (url, str(outbox)):
        migrations, _ = kind_of(target)
        for revision in ("0999", "ae1027a6acf"):
            await _stamp(target, revision)
            before = await _held(target)
            for what, opened in (("opened", _open), ("migrated", migrate)):
                tried += 1
                try:
                    await opened(target)
                except LetopisError as error:
                    if not any(words in str(error) for words in ("newer release", "not one of Letopis")):
                        problems.append(f"{revision} {what}: {error}")
                else:
                    problems.append(f"{revision} was {what}")
            if await _held(target) != before:
                problems.append(f"{revision}: it was written to")
            await _stamp(target, migrations.head)
    return row_of(NEWER, f"{kind} and outbox", tried, 8, "refusals", problems, "nothing was written")


async def _open(url: str) -> None:
    if "://" in url:
        async with ConversationStore.open(url, migrate=False) as store:
            await store.head()
    else:
        await (await OutboxFile.open(url, create=False)).close()


async def _stamp(url: str, revision: str) -> None:
    engine = create_store_engine(url)
    async with engine.begin() as connection:
        table = kind_of(url)[0].version_table
        await connection.exec_driver_sql(f"UPDATE {table} SET version_num = '{revision}'")
    await engine.dispose()


async def _state(url: str) -> SchemaState:
    engine = create_store_engine(url)
    try:
        async with engine.connect() as connection:
            return (await connection.run_sync(revision_state, kind_of(url)[0])).state
    finally:
        await engine.dispose()


async def _held(url: str, *, only: tuple[str, ...] = ()) -> Held:
    """Return all rows of our tables as they are now, whatever the revision, the columns by name in the first."""
    engine = create_store_engine(url)

    def read(connection: sa.Connection) -> Held:
        found: dict[str, list[tuple[Any, ...]]] = {}
        for table in sorted(sa.inspect(connection).get_table_names()):
            if not table.startswith("letopis_") or "search" in table or (only and table not in only):
                continue
            result = connection.exec_driver_sql(f"SELECT * FROM {table}")
            rows = [tuple(row) for row in result.fetchall()]
            found[table] = [tuple(result.keys()), *sorted(rows, key=repr)]
        return found

    try:
        async with engine.connect() as connection:
            return await connection.run_sync(read)
    finally:
        await engine.dispose()


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
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", kind_of(url)[0].location)
    return sorted(script.revision for script in ScriptDirectory.from_config(config).walk_revisions())

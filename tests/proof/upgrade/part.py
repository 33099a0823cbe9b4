"""Prove upgrades and rollbacks of all stores and the outbox: interrupted, concurrent, and beside older code.

No release has a second revision yet, so all of it is run by the code of a next release: this one's, with a second
revision of both ends. This release, and tagged ones if there are any, are the earlier ones.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event

from letopis.outbox import History
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import ConversationStore, LetopisError, Message
from letopis.store.database.migrations import SchemaState, revision_state
from tests.campaigns.invariants import Ack, check
from tests.campaigns.victims import Context, fork_server
from tests.proof.harness import Tally, World, in_processes, migrated
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.proof.stores import KINDS, fresh
from tests.proof.upgrade.migrating import (
    RUNNERS,
    Racers,
    bring_to,
    changes,
    config_of,
    differences,
    killed,
    kind_of,
    looked,
    migrate,
)
from tests.proof.upgrade.releases import Release, ReleaseBot, earlier_releases, next_release, on_one_file
from tests.support.child import start
from tests.support.next_release import write_next_release
from tests.support.promises import acks_of
from tests.support.sayings import differences as rebuilt_differences
from tests.support.store_changes import run_there

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
    jobs = [*(partial(on_a_store, options, kind) for kind in stores)]
    jobs.append(partial(races, options, KINDS[:2] if options.short else KINDS))
    following = write_next_release(options.folder / "next-release")
    with _first_on_path(following.roots):
        # Alembic keeps what it works on in globals. Most of the time they wait for a server.
        yield from in_processes(jobs, at_a_time=len(jobs))


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


@dataclass(frozen=True, slots=True)
class Place:
    """An empty store, and what is done to it with."""

    options: Options
    kind: str
    url: str
    releases: list[Release]
    context: Context

    def file(self, name: str) -> Path:
        return self.options.folder / f"{self.kind}-{name}.outbox.db"


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
            rows += work(Place(options, kind, one.url, releases, context))
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


def older(place: Place) -> Iterator[Row]:
    """Run each earlier release on a store of its own revision, then change the tables under it."""
    tally, options, kind = Tally(), place.options, place.kind
    for number, release in enumerate(place.releases[-1:] if options.short else place.releases):
        with fresh(kind, options.folder, f"older-{number}") as one:
            world = World(options.folder, one.url, name=f"{kind}-{number}-one.outbox.db")
            _beside(release, world, tally.figures)
        tally.blame(world.tally.problems, where=f"revision {release.store}")
    count = tally.figures
    tally.count = count["changed"]
    tally.notes = (
        f"{count['releases']} releases: {count['acknowledged']} events acknowledged in all,"
        f" {count['opened']} files of theirs opened by the next release"
    )
    yield tally.row(OLDER, kind, "events", 30)
    notes = f"{count['kept']} events kept meanwhile, delivered"
    yield Tally(count["refused"], notes=notes).row(STARTS, kind, "refusals", 2)


def _beside(release: Release, one: World, count: Counter[str]) -> None:
    two, three = (replace(one, name=one.name.replace("one", name)) for name in ("two", "three"))
    following, tally, url = next_release(), one.tally, one.url
    count["releases"] += 1
    with ReleaseBot(release, one, migrate=True) as bot:
        if not bot.ready():
            return
        bot.say(15, "before")
        bot.drain(20, "before anything was changed")
        asyncio.run(bring_to(url, "head"))
        bot.say(15, "changed")
        bot.drain(20, "on the changed store")
        with ReleaseBot(following, two) as beside:
            beside.ready()
            beside.say(10, "beside")
            asyncio.run(migrate(str(one.outbox)))
            bot.say(15, "outbox changed too")
            for each in (bot, beside):
                each.drain(20, "side by side")
        count["changed"] += 30
    with ReleaseBot(release, one) as bot:
        error = bot.answer(40).get("error", "")
        tally.require("newer release" in error, f"an outbox of the next release was not refused: {error}")
        count["refused"] += 1
    with ReleaseBot(release, three) as bot:
        before, promised = asyncio.run(_held(url)), len(one.acks)
        bot.ready()
        bot.say(10, "kept")
        tally.require(not bot.drained(1), "it delivered to a store that it does not know")
        tally.require(asyncio.run(_held(url)) == before, "it wrote to a store that it does not know")
        count["refused"] += 1
        count["kept"] += len(one.acks) - promised
    for world in (one, three):
        with ReleaseBot(following, world) as bot:
            bot.ready()
            bot.say(5, "after")
            bot.drain(20, "by the next release")
            count["opened"] += 1
    count["acknowledged"] += len(one.acks)
    asyncio.run(one.judge(two.outbox, three.outbox))


def down_and_up(place: Place) -> Iterator[Row]:
    """All of the vocabulary that makes rows, down to each revision and up again, then rebuilt."""
    yield asyncio.run(_down_and_up(place.file("down"), place.url)).row(DOWN, place.kind, "migrations", 2)


async def _down_and_up(outbox: Path, url: str) -> Tally:
    acks = await _fill(outbox, url)
    tally, whole, revisions = Tally(), await _held(url), _revisions(url)
    for revision in reversed(revisions[:-1]):
        await bring_to(url, revision)
        state = await _state(url)
        tally.require(state is SchemaState.OLDER, f"at {revision}, and {state}")
        low = await _held(url, only=("letopis_events", "letopis_lanes", "letopis_origins"))
        tally.blame(f"down to {revision}: {table} changed" for table, rows in low.items() if rows != whole[table])
        await bring_to(url, "head")
        up = f"up from {revision}"
        tally.blame(await differences(url), where=up)
        async with ConversationStore.open(url, migrate=False) as store:
            async for _ in store.rebuild(every=True):
                pass
            tally.blame(await rebuilt_differences(store), where=f"{up}: not what the log makes of it")
        tally.take(await check([outbox], url, acknowledged=acks, drained=True), where=up)
    events = len(whole["letopis_events"])
    tally.count = 2 * (len(revisions) - 1)
    tally.notes = f"{events} events, the same in every column each time; the rest rebuilt from them"
    return tally


async def _fill(outbox: Path, url: str) -> list[Ack]:
    await migrated(url)
    acks: list[Ack] = []
    async with History(outbox, store=url, watch=False) as history:
        for number in range(24):
            name, owner = f"chat-{number // 4}", f"owner-{number // 4 % 2}"
            acks += acks_of(await history.append(name, Message.user(f"{name} {number % 4} снег"), owner=owner))
        await history.chat("chat-1").undo()
        await history.chat("chat-2").rename("Зима")
        messages = await history.messages("chat-3", last=5)
        await history.chat("chat-3").redact(messages[0].id)
        assert await history.drained(30)
    return acks


def cut_off_store(place: Place) -> Iterator[Row]:
    """Kill the migration of a filled store at each statement."""
    asyncio.run(_fill(place.file("cut"), place.url))
    yield asyncio.run(cut_off(place.options, place.kind, place.url, place.context))


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
    tally, half_made = Tally(), 0
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
        half = await _held(url)
        half_made += half.keys() != before.keys() or any(
            len(half[table][0]) != len(rows[0]) for table, rows in before.items() if rows
        )
        await migrate(url)
        tally.blame(await differences(url), where=f"{words}, run again")
        tally.blame(f"{words}: {table} changed" for table in _changed(before, await _held(url)))
        await bring_to(url, revisions[0])
    tally.notes = f"{steps} statements; {half_made} kills left tables between two revisions, none was taken for whole"
    return tally.row(CUT_OFF, where, "kills", 0 if options.short else steps)


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


def raced(options: Options, where: str, racers: Racers, *, control: bool = False) -> Iterator[Row]:
    """Race in databases that are empty and in ones of the first revision, turn by turn.

    Whether they collide without the lock is a matter of chance: a control that saw nothing yet continues for a while.
    """
    tally, number = Tally(), 0
    rounds = options.many(3, 2) if control else options.many(12, 2)
    while number < rounds or (control and not tally.problems and number < MOST_ROUNDS):
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
            tally.blame(filter(None, racers.run(url)), where=f"round {number}")
            if not control:
                tally.blame(asyncio.run(differences(url)), where=f"round {number}")
                state = asyncio.run(_state(url))
                tally.require(state is SchemaState.CURRENT, f"round {number}: {state}")
        number += 1
    tally.count, tally.notes = number * RUNNERS, f"{number} rounds, from nothing and from the first revision"
    what = f"{RACED}, without the lock of migrations" if control else RACED
    yield tally.row(what, where, "migrations", 48, control=control)


def newer(place: Place) -> Iterator[Row]:
    """A store, and an outbox, of a release that does not exist yet."""
    yield asyncio.run(_newer(place.file("newer"), place.url)).row(NEWER, f"{place.kind} and outbox", "refusals", 8)


async def _newer(outbox: Path, url: str) -> Tally:
    await _fill(outbox, url)
    tally = Tally(notes="nothing was written")
    for target in (url, str(outbox)):
        migrations, _ = kind_of(target)
        for revision in ("0999", "ae1027a6acf"):
            await _stamp(target, revision)
            before = await _held(target)
            for what, opened in (("opened", _open), ("migrated", migrate)):
                tally.count += 1
                try:
                    await opened(target)
                except LetopisError as error:
                    told = any(words in str(error) for words in ("newer release", "not one of Letopis"))
                    tally.require(told, f"{revision} {what}: {error}")
                else:
                    tally.problems.append(f"{revision} was {what}")
            tally.require(await _held(target) == before, f"{revision}: it was written to")
            await _stamp(target, migrations.head)
    return tally


async def _open(url: str) -> None:
    if "://" in url:
        async with ConversationStore.open(url, migrate=False) as store:
            await store.head()
    else:
        await (await OutboxFile.open(url, create=False)).close()


async def _stamp(url: str, revision: str) -> None:
    await run_there(url, f"UPDATE {kind_of(url)[0].version_table} SET version_num = '{revision}'")


async def _state(url: str) -> SchemaState:
    return (await looked(url, partial(revision_state, migrations=kind_of(url)[0]))).state


async def _held(url: str, *, only: tuple[str, ...] = ()) -> Held:
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

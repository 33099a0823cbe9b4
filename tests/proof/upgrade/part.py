"""Prove upgrades and rollbacks of all stores and the outbox: interrupted, concurrent, and beside older code.

No release has a second revision yet, so all of it is run by the code of a next release: this one's, with a second
revision of both ends. This release, and tagged ones if there are any, are the earlier ones.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event

from letopis.store import ConversationStore, LetopisError, Message
from letopis.store.database.migrations import SchemaState, revision_state
from tests.campaigns.victims import Context, fork_server
from tests.proof.harness import Experiment, Setting, Tally, World, migrated, prove_by_kind
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.proof.stores import KINDS
from tests.proof.upgrade.migrating import (
    RUNNERS,
    bring_to,
    changes,
    config_of,
    differences,
    killed,
    kind_of,
    looked,
    migrate,
    race_in,
    racing,
)
from tests.proof.upgrade.releases import (
    KILLS,
    Release,
    ReleaseBot,
    deliver_rest,
    earlier_releases,
    kill_bot,
    kill_daemon,
    next_release,
    on_one_file,
)
from tests.support.child import start
from tests.support.next_release import write_next_release
from tests.support.sayings import differences as rebuilt_differences
from tests.support.store_changes import run_there

MOST_ROUNDS: Final = 12
Held = Mapping[str, list[tuple[Any, ...]]]


def prove(options: Options) -> Iterator[Row]:
    """Yield the rows of this part; Alembic keeps what it works on in globals, so that each kind has its process."""
    following = write_next_release(options.folder / "next-release")
    with _first_on_path(following.roots):
        yield from prove_by_kind(options, TABLE)


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


def _context() -> Context:
    return fork_server("tests.proof.upgrade.migrating", "alembic.command")


def at_each_release(setting: Setting, *, play: Callable[[Release, World], None]) -> Tally:
    """Do something with each earlier release, each with a store of its own."""
    whole, releases = Tally(), earlier_releases(setting.folder)
    for release in releases[-setting.many(len(releases), 1) :]:
        with setting.apart(release.store) as here:
            world = here.world()
            play(release, world)
            whole.add(world.tally, where=f"revision {release.store}")
    whole.notes = f"{len(releases)} releases: {whole.acknowledged} events acknowledged in all"
    return whole


def run_on(release: Release, one: World) -> None:
    """Run it on a store of its own revision, then change the tables under it."""
    two = replace(one, name="two.outbox.db")
    with ReleaseBot(release, one, migrate=True) as bot:
        bot.ready()
        bot.say(15, "before")
        bot.drain("before anything was changed")
        asyncio.run(bring_to(one.url, "head"))
        bot.say(15, "changed")
        bot.drain("on the changed store")
        with ReleaseBot(next_release(), two) as beside:
            beside.ready()
            beside.say(10, "beside")
            asyncio.run(migrate(str(one.outbox)))
            bot.say(15, "outbox changed too")
            for each in (bot, beside):
                each.drain("side by side")
        one.tally.count = 30
    deliver_rest(one)
    asyncio.run(one.judge(two.outbox))


def start_on(release: Release, one: World) -> None:
    """Start it on an outbox of the next release, which it refuses, and on a store, to which it delivers nothing."""
    two = replace(one, name="two.outbox.db")
    asyncio.run(_fill(one))
    before = asyncio.run(_held(one.url))
    with ReleaseBot(release, one) as bot:
        error = bot.answer(40).get("error", "")
        one.tally.require("newer release" in error, f"an outbox of the next release was not refused: {error}")
    with ReleaseBot(release, two) as bot:
        bot.ready()
        bot.say(10, "kept")
        one.tally.require(not bot.drained(1), "it delivered to a store that it does not know")
    one.tally.require(asyncio.run(_held(one.url)) == before, "it wrote to a store that it does not know")
    one.tally.count = 2
    deliver_rest(two)
    asyncio.run(one.judge(two.outbox))


async def down_and_up(setting: Setting) -> Tally:
    """All of the vocabulary that makes rows, down to each revision and up again, then rebuilt."""
    world, url = setting.world(), setting.url
    await _fill(world)
    tally, whole, revisions = world.tally, await _held(url), _revisions(url)
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
        tally.take(await world.examine(), where=up)
        tally.count += 2
    events = len(whole["letopis_events"])
    tally.notes = f"{events} events, the same in every column each time; the rest rebuilt from them"
    return tally


async def _fill(world: World) -> None:
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
    await _fill(world)
    tally, url = Tally(), world.url if setting.kind else str(world.outbox)
    first, *_ = _revisions(url)
    await bring_to(url, first)
    before, half_made = await _held(url), 0
    steps = await _count_steps(url)
    await bring_to(url, first)
    # Before the one, after the next; and at the commit.
    points = [(at, bool((at + setting.seed) % 2)) for at in range(steps + 1)]
    if setting.options.short:
        points = [*Random(setting.seed).sample(points[:-1], 3), points[-1]]
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


async def newer(setting: Setting) -> Tally:
    """A store, and an outbox, of a release that does not exist yet."""
    world, tally = setting.world(), Tally(notes="nothing was written")
    await _fill(world)
    for target in (world.url, str(world.outbox)):
        migrations, _ = kind_of(target)
        for revision in ("0999", "ae1027a6acf"):
            await _stamp(target, revision)
            before = await _held(target)
            for what, create in (("opened", False), ("migrated", True)):
                tally.count += 1
                try:
                    await migrate(target, create=create)
                except LetopisError as error:
                    told = any(words in str(error) for words in ("newer release", "not one of Letopis"))
                    tally.require(told, f"{revision} {what}: {error}")
                else:
                    tally.problems.append(f"{revision} was {what}")
            tally.require(await _held(target) == before, f"{revision}: it was written to")
            await _stamp(target, migrations.head)
    return tally


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


def table() -> Iterator[Experiment]:
    one = partial(Experiment, short=("sqlite",))
    run = partial(at_each_release, play=run_on)
    yield one("code of earlier releases runs on while the tables change under it", run, "events", 30)
    run = partial(at_each_release, play=start_on)
    yield one("code of earlier releases starts on tables of this one", run, "refusals", 2)
    for what, play in (
        ("an earlier release's bot and the next one's daemon on one file: the daemon killed", kill_daemon),
        ("the next release's bot and an earlier one's daemon on one file: the bot killed", kill_bot),
    ):
        yield one(what, partial(on_one_file, play=play), "kills", KILLS)
    yield one("down to each revision and up again", down_and_up, "migrations", 2)
    what = "a migration killed before or after each of its statements, and run again"
    yield one(what, cut_off, "kills")
    yield Experiment(what, cut_off, "kills", on=(), where="outbox")
    for kind in KINDS:
        given = ("a revision that is not known", newer, "refusals", 8)
        yield one(*given, on=(kind,), where=f"{kind} and outbox")
    what = "four processes migrate at once"
    one = partial(Experiment, run=race, unit="migrations", short=KINDS[:2])
    yield one(what, least=48)
    yield Experiment(what, race, "migrations", 48, on=(), where="outbox")
    yield one(f"{what}, without the lock of migrations", control=True)


TABLE: Final = tuple(table())

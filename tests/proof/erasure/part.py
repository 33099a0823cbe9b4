"""Run programs of erasures against a model on three stores, and show that each holder of words that is skipped shows.

The first programs plant words in each kind of holder and erase them in one way each; the others are drawn.
"""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from tests.proof.erasure import skipped
from tests.proof.erasure.checks import Checks
from tests.proof.erasure.judgement import Judgement
from tests.proof.erasure.program import CHOSEN, Step, chosen, program
from tests.proof.erasure.world import World
from tests.proof.harness import Experiment, Setting, Tally, prove_by_kind
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support.servers import MariaDBServer, PostgresServer
from tests.support.servers.store_pool import MariaDBPool, PostgresPool, StorePool, copy_sqlite_store, migrate

MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder with an unpredictable name is made in it
PROGRAMS: Final = {"sqlite": (500, 20), "postgresql": (100, 3), "mariadb": (100, 3)}
"""On each kind of store, in the whole proof and in the short one."""
CONSOLE_SHARE: Final = 0.3
Opened = tuple[str, Callable[[], str]]
"""The URL of a store without events, and what returns that of an empty database to move it to."""


def prove(options: Options) -> Iterator[Row]:
    """Run the table, and as many programs of other seeds as there are further rounds."""
    yield from prove_by_kind(options, TABLE)
    for number in range(1, options.rounds):
        seed, folder = options.seed + number * PROGRAMS["sqlite"][0], options.folder / f"round-{number}"
        yield from prove_by_kind(replace(options, seed=seed, folder=folder), TABLE[:1])


def run_programs(setting: Setting) -> Tally:
    """Run the chosen programs, then those of seeds."""
    programs: list[tuple[str, list[Step]]] = [(name, chosen(name)) for name in CHOSEN]
    wanted = setting.many(*PROGRAMS[setting.kind])
    programs += [(f"seed {seed}", program(seed)) for seed in range(setting.seed, setting.seed + wanted)]
    return _run(setting, programs[:wanted])


def run_chosen(setting: Setting, names: Sequence[str]) -> Tally:
    """Run some of the chosen programs, to show that a defect shows."""
    return _run(setting, [(name, chosen(name)) for name in names])


def _run(setting: Setting, programs: list[tuple[str, list[Step]]]) -> Tally:
    logging.disable()
    tally = Tally()
    with ExitStack() as stack:
        for module in ("codec", "large_content"):
            stack.enter_context(patch(f"letopis.store.model.{module}.LARGE_BYTES", 400))
        memory = MEMORY if MEMORY.is_dir() else setting.folder
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        opened = stack.enter_context(_stores(setting.kind, folder))
        for number, (name, steps) in enumerate(programs):
            place = folder / str(number)
            place.mkdir()
            with opened(place) as (url, empty):
                world = World(place, url, f"p{number}", empty, random.Random(name))
                problems = _run_one(world, steps, tally)
            tally.count += 1
            tally.blame(problems, where=name)
            if problems and not setting.control:
                setting.options.tell("\n    ".join((f"{setting.kind}, {name}", *problems, *map(str, world.book.acts))))
    tally.notes = tally.told()
    return tally


def _run_one(world: World, steps: list[Step], tally: Tally) -> list[str]:
    try:
        checks = run(world, steps)
    except Exception:
        return [f"{traceback.format_exc()}"]
    finally:
        world.close()
        tally.figures["processes killed"] += world.kills
    tally.figures += checks.counts
    return checks.problems


def run(world: World, steps: list[Step]) -> Checks:
    world.begin()
    for step in steps:
        world.step(step)
    world.close()
    world.run(world.settle())
    world.close()
    handed: list[Any] = []
    world.run(_open(world, handed))
    checks = world.run(_examine(world, handed))
    world.close()
    for files in world.files:
        checks.in_file(files.path, files.box)
    if world.url.startswith("sqlite"):
        checks.in_store(Path(world.url.removeprefix("sqlite:///")))
    checks.problems += world.problems
    return checks


async def _open(world: World, handed: list[Any]) -> None:
    for files in world.files:
        options: dict[str, Any] = {"on_unconfirmed": handed.append}
        await world.hand(files, **options)


async def _examine(world: World, handed: list[Any]) -> Checks:
    store = await world.store()
    registered = {row.erasure_id for row in await store.erasures.after(0)}
    judged = Judgement(world.book, await world.log(), registered)
    checks = Checks(judged, world.prefix, world.chance)
    histories = {files.box.name: (await world.hand(files)).history for files in world.files}
    # All readers through each of them would cost more than the program.
    name = world.chance.choice([None, *histories])
    await checks.read(store if name is None else histories[name], name or "store")
    for files in world.files:
        checks.unconfirmed(files.box, await histories[files.box.name].unconfirmed())
    if world.chance.random() < CONSOLE_SHARE:
        await checks.console(world.chance.choice(list(histories.values())))
    checks.handed("on_unconfirmed", handed)
    await checks.verify(store, world.url, [files.path for files in world.files])
    return checks


@contextmanager
def _stores(kind: str, folder: Path) -> Iterator[Callable[[Path], Any]]:
    """Give what opens a store of a kind in a place, for the time of a program."""
    if kind == "sqlite":
        template = folder / "template.db"
        asyncio.run(migrate(f"sqlite:///{template}"))
        yield partial(_in_files, template)
        return
    server: Any = PostgresServer.find() if kind == "postgresql" else MariaDBServer.find()
    with server:
        pool = (PostgresPool if kind == "postgresql" else MariaDBPool)(server)
        try:
            yield partial(_on_server, server, pool)
        finally:
            pool.close()


@contextmanager
def _in_files(template: Path, place: Path) -> Iterator[Opened]:
    names = iter(range(100))
    yield copy_sqlite_store(template, place / "store.db"), lambda: f"sqlite:///{place}/moved{next(names)}.db"


@contextmanager
def _on_server(server: Any, pool: StorePool, _: Path) -> Iterator[Opened]:
    url, targets = pool.take(), list[str]()

    def empty() -> str:
        targets.append(server.create_database("letopis_proof"))
        return targets[-1]

    try:
        yield url, empty
    finally:
        pool.give_back(url)
        for target in targets:
            server.drop_database(target)


WHAT: Final = "random programs of erasures, holds, trims, kills, copies, restores and moves: what is erased is gone"
TABLE: Final = (
    Experiment(WHAT, run_programs, "programs", {kind: whole for kind, (whole, _) in PROGRAMS.items()}),
    *(
        Experiment(
            f"the same, but {name}",
            partial(run_chosen, names=names),
            "programs",
            on=("sqlite",),
            defect=name,
        )
        for name, names in skipped.CAUGHT_BY.items()
    ),
)

"""Run each seed in a Python process of its own, which the simulation may spoil, a few at a time."""

import asyncio
import gc
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import ConversationStore
from tests.proof.simulation.mutants import MUTANTS
from tests.proof.simulation.plan import Profile, plan_of
from tests.proof.simulation.world import Result, World
from tests.support.defects import plant
from tests.support.forking import as_they_end, in_fork

LIMIT: Final = 60  # seconds of the processor that a seed may take; one that never ends is a broken promise, too
MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder with an unpredictable name is made in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A seed to be lived through."""

    seed: int
    profile: Profile | None = None
    mutant: str | None = None
    scale: float = 1.0


@contextmanager
def templates(near: Path) -> Iterator[Path]:
    """Give a folder, in memory where there is such a thing, with a history store and an outbox that are new."""
    place = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else near
    with TemporaryDirectory(prefix="letopis-simulation-", dir=place) as name:
        folder = Path(name)
        in_fork(lambda _: asyncio.run(_make(folder)))  # so that this process continues without a thread
        yield folder


async def _make(folder: Path) -> None:
    async with ConversationStore.open(folder / "history.db"):
        pass
    outbox = await OutboxFile.open(folder / "outbox.db")
    # Each copy is to be an outbox of its own.
    await outbox.write(lambda connection: connection.exec_driver_sql("DELETE FROM letopis_outbox_origin"))
    await outbox.close()


def live(job: Job, folder: Path, *, trace: Callable[[str], None] | None = None) -> Result:
    """Live through a seed in a fork, which is of no use for anything else afterwards."""

    def spoil(here: Path) -> Result:
        logging.disable()
        gc.disable()  # an abandoned run must stay unchanged
        world = World(plan_of(job.seed, profile=job.profile, scale=job.scale), here, folder, trace=trace)
        if job.mutant is not None:
            if prepare := MUTANTS[job.mutant].prepare:
                prepare(world)
            plant(job.mutant)
        return world.run()

    try:
        result: Result | None = in_fork(spoil, cpu_seconds=LIMIT, near=folder, quiet=trace is None)
        how = f"it did not end within {LIMIT} s"
    except RuntimeError as error:
        result, how = None, f"it crashed: {error}"
    return result or Result(seed=job.seed, profile=str(job.profile), broken=[how])


def lived(jobs: Iterable[Job], folder: Path, *, workers: int = 2) -> Iterator[Result]:
    """Live through seeds, some at a time, and yield each result as it comes."""
    return as_they_end(live, ((job, folder) for job in jobs), jobs=workers)

"""Run random programs over every verb of conversations through two outboxes, and compare each read with a plain model.

``python -m tests.campaigns.model --seeds 2000 --store all``; what a seed does hangs on the seed alone.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url

from tests.model.machine import Machine, Step, program
from tests.model.reads import Wrong
from tests.model.world import World, hasty
from tests.proof.stores import KINDS, fresh
from tests.support.servers.store_pool import copy_sqlite_store, migrate

SEEDS_PER_STORE: Final = 20
STORES_AT_A_TIME: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    seed: int
    name: str
    detail: str
    steps: Sequence[Step]
    did: Sequence[str] = ()

    def __str__(self) -> str:
        lines = "\n".join(f"  {one}" for one in self.did)
        return f"seed {self.seed}: {self.detail}\n{lines}"


@dataclass
class Campaign:
    kind: str
    shrinks: bool = False
    enough: int | None = None
    done: int = 0
    steps: int = 0
    failures: list[Failure] = field(default_factory=list)
    _runs: int = 0

    async def run(self, seeds: Sequence[int]) -> None:
        """Run the programs of these seeds, some of them on each store."""
        async with _databases(self.kind) as databases:
            room = asyncio.Semaphore(STORES_AT_A_TIME)

            async def some(part: Sequence[int]) -> None:
                async with room:
                    for failure in await self._some(databases, part):
                        known = failure.name in {one.name for one in self.failures}
                        if self.shrinks and failure.steps and not known:
                            failure = await self._shrunk(databases, failure)
                        self.failures.append(failure)
                        print(failure, flush=True)

            # Waiting for threads takes most of the time, so some run at once.
            parts = (seeds[start : start + SEEDS_PER_STORE] for start in range(0, len(seeds), SEEDS_PER_STORE))
            await asyncio.gather(*map(some, parts))

    async def _some(self, databases: Databases, seeds: Sequence[int]) -> list[Failure]:
        failures: list[Failure] = []
        left = list(seeds)
        while left and (self.enough is None or len(self.failures) + len(failures) < self.enough):
            async with databases.world() as world:
                sound = True
                while left and sound:
                    seed = left.pop(0)
                    steps = program(seed)
                    self.done, self.steps = self.done + 1, self.steps + len(steps)
                    if (failure := await self._try(world, seed, steps)) is not None:
                        failures.append(failure)
                        sound = False  # the store may keep what was wrong
                if sound and (problems := await world.problems()):
                    failures.append(Failure(seed=seeds[0], name="db verify", detail=f"{problems}", steps=()))
        return failures

    async def _try(self, world: World, seed: int, steps: Sequence[Step]) -> Failure | None:
        self._runs += 1
        machine = Machine(world, prefix=f"{seed}.{self._runs}")
        try:
            await machine.run(steps)
        except Exception as error:  # of any kind: the product may raise what it should not
            name = error.name if isinstance(error, Wrong) else f"{type(error).__name__}"
            detail = f"{error}" if isinstance(error, Wrong) else traceback.format_exc()
            return Failure(seed=seed, name=name, detail=detail, steps=steps, did=machine.did)
        return None

    async def _shrunk(self, databases: Databases, failure: Failure) -> Failure:
        """Leave out steps, fewer at a time, as long as the same is wrong."""
        size = len(failure.steps) // 2
        while size:
            for at in reversed(range(0, len(failure.steps), size)):
                steps = [*failure.steps[:at], *failure.steps[at + size :]]
                async with databases.world() as world:
                    shorter = await self._try(world, failure.seed, steps)
                if shorter is not None and shorter.name == failure.name:
                    failure = shorter
            size //= 2
        return failure


@dataclass(frozen=True, slots=True)
class Databases:
    kind: str
    folder: Path

    @asynccontextmanager
    async def world(self) -> AsyncIterator[World]:
        """Give a world on a store of its own; its databases are dropped in the end."""
        with ExitStack() as stack:

            def empty() -> str:
                folder = Path(tempfile.mkdtemp(dir=self.folder))
                stack.callback(shutil.rmtree, folder)
                return stack.enter_context(fresh(self.kind, folder, "history")).url

            url = await asyncio.to_thread(empty)
            if self.kind == "sqlite":
                copy_sqlite_store(self.folder / "template.db", Path(str(make_url(url).database)))
            else:
                await migrate(url)
            outboxes = Path(tempfile.mkdtemp(dir=self.folder))
            stack.callback(shutil.rmtree, outboxes)
            world = World(url, empty, outboxes)
            await world.open()
            try:
                yield world
            finally:
                await world.close()


@asynccontextmanager
async def _databases(kind: str) -> AsyncIterator[Databases]:
    memory = Path("/dev/shm")  # noqa: S108 - nothing here is about a disk
    place = memory if memory.is_dir() else None
    with hasty(), tempfile.TemporaryDirectory(prefix="letopis-model-", dir=place) as folder:
        if kind == "sqlite":
            await migrate(f"sqlite:///{folder}/template.db")
        yield Databases(kind, Path(folder))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.model", description=__doc__)
    parser.add_argument("--store", choices=(*KINDS, "all"), default="sqlite")
    parser.add_argument("--seeds", type=int, default=2000, help="how many programs")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run this one alone, and shorten its program if it fails")
    given = parser.parse_args(arguments)
    seeds = range(given.first, given.first + given.seeds) if given.seed is None else [given.seed]
    wrong = 0
    for kind in KINDS if given.store == "all" else (given.store,):
        campaign = Campaign(kind, shrinks=given.seed is not None)
        began = time.monotonic()
        asyncio.run(campaign.run(seeds))
        wrong += len(campaign.failures)
        print(
            f"{kind}: {campaign.done} programs, {campaign.steps} steps, {len(campaign.failures)} wrong,"
            f" {time.monotonic() - began:.0f} s",
            flush=True,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

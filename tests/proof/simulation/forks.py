"""Run each seed in a Python process of its own, which the simulation may spoil, a few at a time."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import resource
import selectors
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Final

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import ConversationStore
from tests.proof.simulation.mutants import apply
from tests.proof.simulation.plan import Profile, plan_of
from tests.proof.simulation.world import Result, World

LIMIT: Final = 60  # seconds of the processor that a seed may take; one that never ends is a broken promise, too
TIMEOUT_SECONDS: Final = 600.0  # real seconds, for one that waits for something
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
    with TemporaryDirectory(prefix="letopis-simulation-", dir=place) as folder:
        pid = os.fork()  # so that this process continues without a thread or an event loop
        if pid == 0:
            with _no_way_back():
                asyncio.run(_make(Path(folder)))
        os.waitpid(pid, 0)
        yield Path(folder)


async def _make(folder: Path) -> None:
    async with ConversationStore.open(folder / "history.db"):
        pass
    outbox = await OutboxFile.open(folder / "outbox.db")
    # Each copy is to be an outbox of its own.
    await outbox.write(lambda connection: connection.exec_driver_sql("DELETE FROM letopis_outbox_origin"))
    await outbox.close()


def live(job: Job, folder: Path, *, trace: Callable[[str], None] | None = None) -> Result:
    """Live through a seed in this Python process, which is of no use for anything else afterwards."""
    logging.disable()
    gc.disable()  # an abandoned run must stay unchanged
    here = Path(mkdtemp(dir=folder))
    try:
        world = World(plan_of(job.seed, profile=job.profile, scale=job.scale), here, folder, trace=trace)
        if job.mutant is not None:
            apply(job.mutant, world)
        return world.run()
    finally:
        shutil.rmtree(here)


def lived(jobs: Iterable[Job], folder: Path, *, workers: int = 2) -> Iterator[tuple[Job, Result]]:
    """Live through seeds, some at a time, and yield each result as it comes."""
    waiting = iter(jobs)
    running: dict[int, tuple[Job, int, float, bytearray]] = {}
    with selectors.DefaultSelector() as selector:

        def begin() -> None:
            job = next(waiting, None)
            if job is not None:
                pid, reading = _fork(job, folder)
                running[reading] = (job, pid, time.monotonic() + TIMEOUT_SECONDS, bytearray())
                selector.register(reading, selectors.EVENT_READ)

        try:
            for _ in range(workers):
                begin()
            while running:
                for key, _ in selector.select(1.0):
                    job, pid, _, read = running[key.fd]
                    if part := os.read(key.fd, 1 << 16):
                        read += part
                        continue
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    os.waitpid(pid, 0)
                    del running[key.fd]
                    begin()
                    yield job, _result(job, bytes(read))
                for _, pid, deadline, _ in running.values():
                    if time.monotonic() > deadline:
                        os.kill(pid, signal.SIGKILL)
        finally:
            for _, pid, _, _ in running.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _fork(job: Job, folder: Path) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    with _no_way_back():
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(live(job, folder), pipe)
    raise AssertionError("unreachable")


def _result(job: Job, read: bytes) -> Result:
    if read:
        result: Result = pickle.loads(read)  # noqa: S301 - from our own fork
        return result
    return Result(seed=job.seed, profile=str(job.profile), broken=[f"it did not end within {LIMIT} s, or crashed"])


@contextmanager
def _no_way_back() -> Iterator[None]:
    """End this process at the end of the block, without tidying up: what it holds is not to be tidied."""
    try:
        yield
        os._exit(0)
    except BaseException:  # no caller above may see it: it would continue as if it were the parent
        traceback.print_exc()
        os._exit(1)

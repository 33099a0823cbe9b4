"""Run tasks in forks of this process, each of which may spoil its own: some at a time, with a limit of time."""

import math
import os
import pickle
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import suppress
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NoReturn

WAITING: Final = 10  # times the processor time that a task may take, it may last


def as_they_end(work: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], *, jobs: int) -> Iterator[Any]:
    """Yield what the work returns for each task, some at a time; as one ends, the next is drawn."""
    waiting = iter(tasks)
    with ProcessPoolExecutor(jobs, get_context("fork")) as pool:
        running = {pool.submit(work, *task) for task in islice(waiting, jobs)}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(work, *task) for task in islice(waiting, len(ended))}
            yield from (one.result() for one in ended)


def in_fork(
    task: Callable[[Path], Any], *, cpu_seconds: int | None = None, near: Path | None = None, quiet: bool = True
) -> Any:
    """Return what a task, given a temporary folder, returns in a process of its own; ``None`` if it hangs.

    :param cpu_seconds: processor time that the task may take.
    :param near: where the folder is made.
    :param quiet: whether what the task prints is kept for the error.
    :raises RuntimeError: the task failed.
    """
    with TemporaryDirectory(prefix="letopis-fork-", dir=near, ignore_cleanup_errors=True) as folder:
        answer, output = Path(folder, "answer"), Path(folder, "output")
        child = os.fork()
        if not child:
            _answer(task, Path(folder), answer, output if quiet else None, cpu_seconds)
        deadline = math.inf if cpu_seconds is None else time.monotonic() + WAITING * cpu_seconds
        try:
            while not (ended := os.waitpid(child, os.WNOHANG))[0]:
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                time.sleep(0.02)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # with what it has started
        if os.WIFSIGNALED(ended[1]):
            return None
        if not answer.exists():
            printed = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
            raise RuntimeError(printed[-2_000:])
        return pickle.loads(answer.read_bytes())  # noqa: S301 - from our own fork


def _answer(
    task: Callable[[Path], Any], folder: Path, answer: Path, output: Path | None, cpu_seconds: int | None
) -> NoReturn:
    """Do the task, and end this process without tidying up: no caller above may see it."""
    try:
        os.setsid()
        if cpu_seconds is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
        if output is not None:
            target = os.open(output, os.O_CREAT | os.O_WRONLY)
            os.dup2(target, 1)
            os.dup2(target, 2)
        answer.write_bytes(pickle.dumps(task(folder)))
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(0)

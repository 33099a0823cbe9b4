"""Call a function of the tests in a process of its own, which prints what it returns.

    python -m tests.support.child MODULE:FUNCTION '[[ARGUMENTS], {OPTIONS}]'

Arguments are what JSON holds, and paths, which arrive as text.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from tests.campaigns.victims import Context


def ran(*words: object, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=timeout, check=False, **options)


def command(function: Callable[..., Any], *given: Any, **options: Any) -> list[str]:
    """Return the words that call a function in a new process."""
    words = json.dumps([given, options], default=str)
    return [sys.executable, "-m", "tests.support.child", f"{function.__module__}:{function.__qualname__}", words]


def call(function: Callable[..., Any], *given: Any, timeout: float, under: tuple[str, ...] = (), **options: Any) -> Any:
    """Return what a function returns in a new process."""
    done = subprocess.run(
        [*under, *command(function, *given, **options)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
        timeout=timeout,
    )
    return json.loads(done.stdout)


def start(context: Context, target: Callable[..., None], *given: Any, **named: Any) -> BaseProcess:
    """Start a process that calls a function, and that ends with this one."""
    process = context.Process(target=target, args=given, kwargs=named, daemon=True)
    process.start()
    return process


def start_piped(
    context: Context, target: Callable[..., None], *given: Any, duplex: bool = False, **named: Any
) -> tuple[BaseProcess, Connection]:
    """Start a process whose last argument is the other end of a pipe."""
    ours, theirs = context.Pipe(duplex)
    process = start(context, target, *given, theirs, **named)
    theirs.close()
    return process, ours


@contextmanager
def promising(words: list[str], promises: Path, *, size: int, patience: float) -> Iterator[subprocess.Popen[bytes]]:
    """Give a process once it has written so many bytes of promises; kill it in the end."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + patience
        while not (promises.exists() and promises.stat().st_size > size):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"the bot was promised nothing within {patience:g} s")
            time.sleep(0.02)
        yield process
        if process.poll() is not None:
            raise RuntimeError(f"the bot ended by itself, with {process.returncode}")
    finally:
        process.kill()
        process.wait()


def main() -> None:
    module, _, name = sys.argv[1].partition(":")
    given, options = json.loads(sys.argv[2])
    logging.disable()
    value = getattr(import_module(module), name)(*given, **options)
    if inspect.iscoroutine(value):
        value = asyncio.run(value)
    if value is not None:
        print(json.dumps(value))


if __name__ == "__main__":
    main()

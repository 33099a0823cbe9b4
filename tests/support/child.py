"""Call a function of the tests in a process of its own, which prints what it returns, or obeys lines.

    python -m tests.support.child MODULE:FUNCTION '[[ARGUMENTS], {OPTIONS}]'

Arguments are what JSON holds, and paths, which arrive as text.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from tests.campaigns.victims import Context


def ran(*words: object, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=timeout, check=False, **options)


def command(function: Callable[..., Any], *given: Any, **options: Any) -> list[str]:
    words = json.dumps([given, options], default=str)
    return [sys.executable, "-m", "tests.support.child", f"{function.__module__}:{function.__qualname__}", words]


def call(function: Callable[..., Any], *given: Any, timeout: float, under: tuple[str, ...] = (), **options: Any) -> Any:
    done = subprocess.run(
        [*under, *command(function, *given, **options)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
        timeout=timeout,
    )
    return json.loads(done.stdout)


def start(context: Context, target: Callable[..., None], *given: Any, **named: Any) -> BaseProcess:
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


END_SECONDS = 10.0
"""Seconds within which it has to end once no more lines come."""


class LineProcess:
    """A process that is told what to do line by line; all of it is ended with the block."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that all of it can be ended
        )
        self._held = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, how: signal.Signals) -> None:
        self._process.send_signal(how)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def answer(self, patience: float) -> dict[str, Any]:
        """Return its next answer, or an ``error`` if it does not come."""
        assert self._process.stdout is not None
        until = time.monotonic() + patience
        while b"\n" not in self._held:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                return {"error": f"no answer within {patience:g} s"}
            part = os.read(self._process.stdout.fileno(), 65_536)
            if not part:
                return {"error": f"it ended with {self._process.wait(END_SECONDS)}"}
            self._held += part
        line, _, self._held = self._held.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, line: str, patience: float) -> dict[str, Any]:
        try:
            self.tell(line)
        except OSError as error:
            return {"error": f"it has ended: {error}"}
        return self.answer(patience)


if __name__ == "__main__":
    main()

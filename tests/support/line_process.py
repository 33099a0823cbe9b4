"""Run a process that obeys lines, and answers each with a line of JSON."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

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
        """End all of it at once."""
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

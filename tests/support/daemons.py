"""Run daemons in processes of their own, and listen to their notifications."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

TIMEOUT_SECONDS = 60.0


def until(true: Callable[[], Any], what: str, *, patience: float = TIMEOUT_SECONDS) -> None:
    """Wait until ``true()`` says so."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, f"not in {patience:g} s: {what}"
        time.sleep(0.02)


class Ear:
    """A service manager's notification socket, and what was heard on it, with the moment."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(0.1)
        self._ended = False
        self.heard: list[tuple[float, str]] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._ended:
            try:
                message = self._socket.recv(65536).decode()
            except TimeoutError:
                continue
            self.heard.append((time.monotonic(), message))

    def count(self, word: str) -> int:
        return sum(message.startswith(word) for _, message in self.heard)

    def last(self, word: str) -> float:
        return max((at for at, message in self.heard if message.startswith(word)), default=0.0)

    def close(self) -> None:
        self._ended = True
        self._thread.join()
        self._socket.close()


class DaemonProcess:
    """``letopis relay`` in a process of its own, its log read line by line."""

    def __init__(self, *arguments: str, folder: Path, code: str | None = None, **environment: str) -> None:
        how = ["-m", "letopis.outbox.cli"] if code is None else ["-c", code]
        self._popen = subprocess.Popen(
            [sys.executable, *how, "relay", "--log-format", "json", *arguments],
            cwd=folder,
            env=_clean() | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stderr is not None
        for line in self._popen.stderr:
            self.lines.append(line.rstrip("\n"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
        self.wait()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def messages(self) -> list[str]:
        return [json.loads(line)["message"] for line in list(self.lines) if line.startswith("{")]

    def said(self, words: str) -> bool:
        return any(words in message for message in self.messages())

    def works(self) -> Self:
        """Wait until it has taken the lease of an outbox."""
        until(lambda: self.said("this relay works on the outbox"), f"a lease: {self.lines}")
        return self

    def signal(self, how: signal.Signals) -> None:
        self._popen.send_signal(how)

    def end(self) -> None:
        """Have it end in order."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.lines

    def wait(self, seconds: float = TIMEOUT_SECONDS) -> int:
        code = self._popen.wait(seconds)
        self._reader.join(10)
        if self._popen.stderr is not None:
            self._popen.stderr.close()
        return code

    def port(self) -> int:
        """The port that ``--listen 0`` became."""
        until(lambda: self.said("listening on"), f"listening: {self.lines}")
        (found,) = (one for one in map(re.compile(r"listening on [\d.]+:(\d+)").search, self.messages()) if one)
        return int(found.group(1))


def ask(port: int, path: str) -> tuple[int, str]:
    """Return status and body of a request to this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def letopis(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "letopis.outbox.cli", *arguments],
        cwd=folder,
        env=_clean() | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def _clean() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("LETOPIS_", "NOTIFY_"))}

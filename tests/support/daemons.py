"""Run daemons in processes of their own, for many outboxes if asked, and listen to their notifications."""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from letopis.outbox.file.identity import assign_new_identity
from letopis.outbox.file.outbox_file import OutboxFile
from tests.support.relays import say

TIMEOUT_SECONDS = 60.0


def until(true: Callable[[], Any], what: str, *, patience: float = TIMEOUT_SECONDS) -> None:
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
        how = ["-m", "letopis.ops.cli"] if code is None else ["-c", code]
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
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def letopis(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "letopis.ops.cli", *arguments],
        cwd=folder,
        env=_clean() | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def _clean() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("LETOPIS_", "NOTIFY_"))}


EVENTS_PER_FILE = 13  # one that starts the conversation, and its messages


async def make_fleet(folder: Path, files: int) -> list[Path]:
    """Make outbox files, each with one conversation of its own with pending events; no process has them open."""
    template = folder / "template"
    await (await OutboxFile.open(template)).close()
    paths = []
    for number in range(files):
        path = folder / f"bot-{number:05}.outbox.db"
        shutil.copyfile(template, path)
        path.chmod(0o600)
        outbox = await OutboxFile.open(path)

        def renew(connection: object, path: Path = path, outbox: OutboxFile = outbox) -> None:
            assign_new_identity(connection, path, now_us=outbox.now_us())  # type: ignore[arg-type]

        await outbox.write(renew)
        await say(outbox, f"chat-{number:05}", EVENTS_PER_FILE - 1)
        await outbox.close()
        paths.append(path)
    template.unlink()
    return paths


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFigures:
    rss_mb: float
    threads: int
    descriptors: int
    cpu_seconds: float
    outbox_descriptors: int
    open_files: int


def figures_of(pid: int) -> ProcessFigures:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    targets = []
    for one in os.scandir(f"/proc/{pid}/fd"):
        try:
            targets.append(str(Path(one.path).readlink()))
        except OSError:
            continue  # closed meanwhile
    outbox = [one for one in targets if ".outbox.db" in one]
    return ProcessFigures(
        rss_mb=int(fields["VmRSS"].split()[0]) / 1024,
        threads=int(fields["Threads"]),
        descriptors=len(targets),
        cpu_seconds=(int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"),
        outbox_descriptors=len(outbox),
        open_files=len({one for one in outbox if one.endswith(".outbox.db")}),
    )


async def cpu_share(pid: int, seconds: float) -> float:
    began, before = time.monotonic(), figures_of(pid).cpu_seconds
    await asyncio.sleep(seconds)
    return (figures_of(pid).cpu_seconds - before) / (time.monotonic() - began)

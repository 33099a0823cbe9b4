"""Run the real command as subprocesses: the relay, which is killed and restarted, and verbs that end."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

LETOPIS: Final = Path(sys.executable).with_name("letopis.exe" if os.name == "nt" else "letopis")


class Failed(Exception):
    """A command did not do what it must; the message says which and how it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One bot: its outbox file, its store, and a folder for what its commands print."""

    folder: Path
    outbox: Path
    store: str

    def run(self, *words: str, timeout: float) -> str:
        with self.start(*words) as process:
            return finish(process, words, timeout=timeout)

    def start(self, *words: str, out: IO[str] | int = subprocess.PIPE) -> subprocess.Popen[str]:
        environment = {"LETOPIS_OUTBOX": str(self.outbox), "LETOPIS_STORE": self.store, "NO_COLOR": "1"}
        return subprocess.Popen(
            [str(LETOPIS), *words],
            env={**os.environ, **environment},  # not in its words, as it may hold a password
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )


def finish(process: subprocess.Popen[str], words: Sequence[str], *, timeout: float) -> str:
    try:
        printed, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
        raise Failed(f"`letopis {' '.join(words)}` took longer than {timeout:g} s:\n{printed[-2000:]}") from None
    if process.returncode:
        raise Failed(f"`letopis {' '.join(words)}` ended with {process.returncode}:\n{printed[-2000:]}")
    return printed


@dataclass(slots=True)
class Relay:
    """The relay daemon of a place: started again whenever it is gone."""

    place: Place
    deaths: list[int] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None

    @property
    def log(self) -> Path:
        return self.place.folder / "relay.log"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def ensure(self) -> None:
        """Start it if it does not run; an unexpected end is noted in ``deaths``."""
        if self.pid is not None:
            return
        if self._process is not None and self._process.returncode != -signal.SIGKILL:
            self.deaths.append(self._process.returncode)
            if len(self.deaths) > 5:
                raise Failed(f"the relay keeps ending by itself, with {self.deaths}: see its output\n{self.tail()}")
        with self.log.open("a", encoding="utf-8") as log:
            self._process = self.place.start("relay", "--log-format", "json", out=log)

    def kill(self) -> bool:
        """Kill it with SIGKILL; whether it was still alive."""
        process = self._process
        if process is None or process.poll() is not None:
            return False
        process.kill()
        process.wait()
        # A process that was already ending shows its own code.
        return process.returncode == -signal.SIGKILL

    def stop(self, *, timeout: float = 30.0) -> int:
        process = self._process
        assert process is not None, "the relay was never started"
        process.terminate()
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Failed(f"the relay did not end in {timeout:g} s after SIGTERM:\n{self.tail()}") from None

    def close(self) -> None:
        """End it, whatever it does."""
        self.kill()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an outbox is: events appended and delivered, and the process that holds the relay's lease."""

    appended: int
    delivered: int
    holder: int | None

    @property
    def pending(self) -> int:
        return self.appended - self.delivered


class Probe:
    def __init__(self, outbox: Path) -> None:
        self._connection = sqlite3.connect(outbox, isolation_level=None, timeout=10)
        self._connection.execute("PRAGMA query_only = ON")

    @classmethod
    def of(cls, outbox: Path) -> Probe | None:
        """Return a probe of the file, or ``None`` while it is still being made."""
        probe = cls(outbox)
        try:
            probe.look()
        except sqlite3.OperationalError:
            probe.close()
            return None
        return probe

    def look(self) -> Progress:
        ((appended, delivered),) = self._connection.execute(
            "SELECT coalesce(sum(head), 0), coalesce(sum(delivered), 0) FROM letopis_outbox_lanes"
        ).fetchall()
        row = self._connection.execute("SELECT pid FROM letopis_outbox_relay").fetchall()
        return Progress(appended, delivered, row[0][0] if row else None)

    def blocked(self) -> list[tuple[str, str, str]]:
        return self._connection.execute(
            "SELECT conversation_id, fault_class, fault FROM letopis_outbox_lanes WHERE state = 'blocked' LIMIT 10"
        ).fetchall()

    def close(self) -> None:
        """Let the file go."""
        self._connection.close()

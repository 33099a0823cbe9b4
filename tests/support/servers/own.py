"""Run a server of our own: start, stop, crash and restart it on the same port and files."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from sqlalchemy.engine import URL

from tests.support.servers.base import Server, ServerUnavailable
from tests.support.servers.processes import end, prepared, spawn, wait_until_ready


class OwnServer(Server):
    """A server in a temporary folder, on a free port that stays the same over restarts."""

    signals: ClassVar[Mapping[str, signal.Signals]]
    at_close: ClassVar[str] = "kill"
    prefix: ClassVar[str]
    marker: ClassVar[str]
    """What lies in the folder of a server that was initialised."""
    death_signal: ClassVar[str]
    """What it gets when we die."""
    _user: str | None = None

    def __init__(self, url: URL, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(url)
        self._settings = dict(settings or {})
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerUnavailable("the server was not started")
        return self._process.pid

    @property
    def log(self) -> Path:
        return self._root() / "log"

    @property
    def data(self) -> Path:
        """The folder of its databases."""
        return self._root() / "data"

    def start(self) -> Self:
        """Start the server and return when it answers; nothing if it runs."""
        if self.running:
            return self
        if not (self.data / self.marker).exists():
            prepared(self._installation(), user=self._user)
        self._process = spawn(self._command(), log=self.log, death_signal=self.death_signal, user=self._user)
        wait_until_ready(self._process, self.answers, log=self.log)
        return self

    @abstractmethod
    def _installation(self) -> list[str]:
        """Return the command that makes its files."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command that is the server."""

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: ``fast`` rolls back what is open, other modes are crashes; files are kept."""
        if self._process is not None:
            end(self._process, self.signals[mode])

    def kill(self) -> None:
        """Crash the server with SIGKILL; files are kept."""
        self.stop("kill")

    def restart(self, mode: str = "fast") -> None:
        """Stop in this mode and start again on the same port and files."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        self.stop(self.at_close)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _root(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=self.prefix))
        return self._folder

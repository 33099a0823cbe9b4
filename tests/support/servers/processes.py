"""Start a server process that dies with us, wait until it answers or has died, and restart one of our own."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Self

from sqlalchemy.engine import URL

from tests.support.servers.base import Server, ServerUnavailable

# The kernel sends the parent-death signal when the *thread* that started the child ends, so every server is started
# by this one thread, which lives as long as the process. A caller may then restart a server from a worker thread.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-starter")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def spawn(command: Sequence[str], *, log: Path, death_signal: str, user: str | None = None) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, its output into `log`; it gets `death_signal` when we die.

    Without ``setpriv`` (not Linux) the server outlives a killed parent.
    """
    setpriv = shutil.which("setpriv")
    full = [setpriv, "--pdeathsig", death_signal, *command] if setpriv else list(command)

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            return subprocess.Popen(
                full,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                user=user,
                # Ctrl-C at the terminal is for the test run, not for its servers.
                start_new_session=True,
            )

    return _starter.submit(start).result()


def prepared(command: Sequence[str | Path], *, user: str | None = None) -> None:
    """Run a command that a server needs before it can start."""
    done = subprocess.run(command, capture_output=True, text=True, user=user, check=False)
    if done.returncode:
        raise ServerUnavailable(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def wait_until_ready(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], *, log: Path, timeout: float = 60.0
) -> None:
    """Return once `ready` is true; ServerUnavailable with the end of the log if it dies or takes `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        if ready():
            return
        if process.poll() is not None:
            raise ServerUnavailable(f"the server ended with code {process.returncode}:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise ServerUnavailable(f"the server did not answer in {timeout:g} s:\n{tail(log)}")
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes], how: signal.Signals, *, timeout: float = 30.0) -> None:
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout)


def tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(no log)"


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

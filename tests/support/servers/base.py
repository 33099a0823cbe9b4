"""Define what every test server can do: give its URL, create a database of a unique name, drop it."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from sqlalchemy.engine import URL, make_url

from tests.support.servers.processes import ServerUnavailable, end, prepared, spawn, wait_until_ready

DATABASE_PREFIX: Final = "letopis_test"
RUN: Final = "LETOPIS_TEST_RUN"  # names the run of tests that makes databases, in it and in its processes


class Server(ABC):
    """A database server that answers at `url`; ``with PostgresServer.find() as server: server.url``."""

    environment: ClassVar[str]
    """The variable that names the server to use."""
    local: ClassVar[URL]
    """Where a server of this machine listens."""
    errors: ClassVar[tuple[type[Exception], ...]]
    """What a server that does not answer raises."""
    ask_version: ClassVar[str]
    ask_databases: ClassVar[str]
    """Finds the names of the databases that begin with a text."""

    def __init__(self, url: URL) -> None:
        self._url = url

    @staticmethod
    @abstractmethod
    def program() -> str | Path:
        """The program of a server to start."""

    @classmethod
    def find(cls) -> Any:
        return cls.running() or cls.own().start()

    @classmethod
    @abstractmethod
    def own(cls) -> Any:
        """A new server of our own, initialised on first `start`; it may be stopped, killed and restarted."""

    @classmethod
    def running(cls) -> Self | None:
        """The server that the environment names, else the local one if it answers.

        A server named in the environment that does not answer is an error, not a reason to take another.
        """
        named = os.environ.get(cls.environment)
        if not named:
            server = cls(cls.local)
            return server if server.answers() else None
        url = make_url(named).set(drivername=cls.local.drivername)
        server = cls(url if url.database else url.set(database=cls.local.database))
        try:
            server.version()
        except cls.errors as exc:
            raise ServerUnavailable(f"{cls.environment} is set, but the server does not answer: {exc}") from exc
        return server

    @classmethod
    def describe(cls) -> str:
        """The server that the tests will use, for the report's header; starts nothing."""
        try:
            if (server := cls.running()) is not None:
                named = f"from {cls.environment}" if os.environ.get(cls.environment) else ""
                return f"{server.version()} ({named or f'at {server.host}:{server.port}'})"
            shown = subprocess.run([cls.program(), "--version"], capture_output=True, text=True, check=True).stdout
        except ServerUnavailable as exc:
            return f"none ({exc})"
        return f"{re.findall('[0-9]+[.][0-9.]+', shown)[0]} (started when needed)"

    def execute(self, statement: str) -> None:
        self.rows(statement)

    def answers(self) -> bool:
        with suppress(*self.errors):
            return bool(self.version())
        return False

    @property
    def url(self) -> str:
        return self._url.render_as_string(hide_password=False)

    @property
    def host(self) -> str:
        return self._url.host or "127.0.0.1"

    @property
    def port(self) -> int:
        return self._url.port or self.local.port or 0

    def database_url(self, name: str) -> str:
        return self._url.set(database=name).render_as_string(hide_password=False)

    def create_database(self, prefix: str = DATABASE_PREFIX) -> str:
        """Create an empty database of a name that no other run uses, and return its URL."""
        name = f"{prefix}_{os.environ.get(RUN) or os.getpid()}_{uuid.uuid4().hex[:10]}"
        self._create_database(name)
        return self.database_url(name)

    def drop_database(self, url: str) -> None:
        """Drop the database of this URL and cut its remaining connections; no error if it is gone."""
        name = make_url(url).database
        if not name or name == self._url.database:
            raise ValueError(f"not a database of a test run: {name!r}")
        self._drop_database(name)

    def databases(self, start: str) -> list[str]:
        return [self.database_url(name) for (name,) in self.rows(self.ask_databases, start)]

    def version(self) -> str:
        return re.split("[ -]", self.rows(self.ask_version)[0][0])[0]

    @abstractmethod
    def rows(self, statement: str, *arguments: object) -> list[Any]:
        """Run one statement in the maintenance database, outside a transaction."""

    @abstractmethod
    def terminate_connections(self, url: str) -> int:
        """Cut every connection to the database of this URL, as an operator would; return how many were cut."""

    @abstractmethod
    def _create_database(self, name: str) -> None: ...

    @abstractmethod
    def _drop_database(self, name: str) -> None: ...

    def close(self) -> None:  # noqa: B027  # a server that was found is left as it was
        """Leave the server: one that we started is stopped and its files are deleted."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OwnServer(Server):
    """A server of our own in a temporary folder, on a free port that stays the same over restarts."""

    signals: ClassVar[Mapping[str, signal.Signals]]
    at_close: ClassVar[str] = "kill"
    prefix: ClassVar[str]
    marker: ClassVar[str]
    """What lies in the folder of a server that was initialised."""
    death_signal: ClassVar[str]
    """What it gets when we die."""
    _user: str | None = None

    def __init__(self, url: URL, settings: Mapping[str, str] | None) -> None:
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
        self.stop("kill")

    def close(self) -> None:
        self.stop(self.at_close)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _root(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=self.prefix))
        return self._folder

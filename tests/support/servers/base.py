"""Define what every test server can do: give its URL, create a database of a unique name, drop it."""

import os
import re
import subprocess
import uuid
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from sqlalchemy.engine import URL, make_url

DATABASE_PREFIX: Final = "letopis_test"
RUN: Final = "LETOPIS_TEST_RUN"  # names the run of tests that makes databases, in it and in its processes


class ServerUnavailable(Exception):
    """No server answers and none can be started; the message says why."""


class Server(ABC):
    """A database server that answers at `url`; ``with PostgresServer.find() as server: server.url``."""

    environment: ClassVar[str]
    """The variable that names the server to use."""
    errors: ClassVar[tuple[type[Exception], ...]]
    """What a server that does not answer raises."""

    def __init__(self, url: URL) -> None:
        self._url = url

    @staticmethod
    @abstractmethod
    def local() -> URL:
        """Where a server of this machine listens."""

    @staticmethod
    @abstractmethod
    def program() -> str | Path:
        """The program of a server to start."""

    @classmethod
    def find(cls) -> Any:
        """The server that runs, else an own one, started."""
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
        local = cls.local()
        if named := os.environ.get(cls.environment):
            url = make_url(named).set(drivername=local.drivername)
            server = cls(url if url.database else url.set(database=local.database))
            try:
                server.version()
            except cls.errors as exc:
                raise ServerUnavailable(f"{cls.environment} is set, but the server does not answer: {exc}") from exc
            return server
        server = cls(local)
        return server if server.answers() else None

    @classmethod
    def describe(cls) -> str:
        """The server that the tests will use, for the report's header; starts nothing."""
        try:
            if (server := cls.running()) is not None:
                how = (
                    f"from {cls.environment}" if os.environ.get(cls.environment) else f"at {server.host}:{server.port}"
                )
                return f"{server.version()} ({how})"
            shown = subprocess.run([cls.program(), "--version"], capture_output=True, text=True, check=True).stdout
        except ServerUnavailable as exc:
            return f"none ({exc})"
        found = re.search(r"\d+\.[\d.]+", shown)
        return f"{found.group() if found else shown} (started when needed)"

    def answers(self) -> bool:
        with suppress(*self.errors):
            return bool(self.version())
        return False

    @property
    def url(self) -> str:
        """The URL of the maintenance database."""
        return self._url.render_as_string(hide_password=False)

    @property
    def host(self) -> str:
        return self._url.host or "127.0.0.1"

    @property
    def port(self) -> int:
        return self._url.port or self.local().port or 0

    def database_url(self, name: str) -> str:
        """The URL of the database of this name, which need not exist."""
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

    @abstractmethod
    def databases(self, start: str) -> list[str]:
        """The URLs of the databases whose names begin like this."""

    @abstractmethod
    def version(self) -> str:
        """The version that the server reports, for display."""

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

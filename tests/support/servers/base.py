"""Define what every test server can do: give its URL, create a database of a unique name, drop it."""

from __future__ import annotations

import os
import uuid
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Final, Self

from sqlalchemy.engine import URL, make_url

DATABASE_PREFIX: Final = "letopis_test"
RUN: Final = "LETOPIS_TEST_RUN"  # names the run of tests that makes databases, in it and in its processes


class ServerUnavailable(Exception):
    """No server answers and none can be started; the message says why."""


class Server(ABC):
    """A database server that answers at `url`."""

    def __init__(self, url: URL) -> None:
        self._url = url

    @property
    def url(self) -> str:
        """The URL of the maintenance database."""
        return self._url.render_as_string(hide_password=False)

    @property
    def host(self) -> str:
        return self._url.host or "127.0.0.1"

    @property
    @abstractmethod
    def port(self) -> int:
        """The TCP port."""

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

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

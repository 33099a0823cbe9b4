"""Break a store of each kind: cut its connections, or make it unavailable for a while."""

from __future__ import annotations

import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from tests.support.servers import MariaDBServer, OwnMariaDBServer, OwnPostgresServer, PostgresServer

KINDS: Final = ("sqlite", "postgresql", "mariadb")


class Target(ABC):
    """A fresh, empty history store of a campaign's own; ``close`` leaves nothing behind."""

    kind: str
    url: str

    @abstractmethod
    def version(self) -> str:
        """The version of the database, for the report."""

    @abstractmethod
    def cut(self, seconds: float) -> int:
        """Cut what is connected, as an operator would; return how many connections that hit."""

    @abstractmethod
    def outage(self) -> int:
        """Make the whole store unavailable and bring it back; return how many times that was."""

    @property
    @abstractmethod
    def words(self) -> tuple[str, str]:
        """What a cut and an outage are here, in words."""

    def close(self) -> None:  # noqa: B027  # a file goes with its folder
        """Delete what was made."""


class SQLiteTarget(Target):
    """A SQLite file: while another process holds its lock, none can write, which is all that can fail from outside.

    The outage outlasts the time that the relay waits for a lock, so that it meets an error and not only a delay.
    """

    kind = "sqlite"
    OUTAGE: Final = 12.0

    def __init__(self, folder: Path) -> None:
        self._path = folder / "history.db"
        self.url = f"sqlite:///{self._path.as_posix()}"

    @property
    def words(self) -> tuple[str, str]:
        return "file locked for a moment", f"file locked for {self.OUTAGE:g} s"

    def version(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"

    def cut(self, seconds: float) -> int:
        return self._hold(seconds)

    def outage(self) -> int:
        return self._hold(self.OUTAGE)

    def _hold(self, seconds: float) -> int:
        if not self._path.exists():
            return 0
        with closing(sqlite3.connect(self._path, isolation_level=None, timeout=10)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            time.sleep(seconds)
            connection.execute("ROLLBACK")
        return 1


class ServerTarget(Target):
    """A database on a server that the campaign started itself, so it may crash it."""

    def __init__(self, server: OwnPostgresServer | OwnMariaDBServer, *, kind: str, crash: Callable[[], None]) -> None:
        self._server = server.start()
        self._crash = crash
        self.kind = kind
        try:
            self.url = server.create_database("letopis_campaign")
        except BaseException:
            server.close()
            raise

    @property
    def words(self) -> tuple[str, str]:
        if self.kind == "postgresql":
            return "pg_terminate_backend", "stop -m immediate and start"
        return "KILL CONNECTION", "kill -9 of the server and start"

    def version(self) -> str:
        return f"{'PostgreSQL' if self.kind == 'postgresql' else 'MariaDB'} {self._server.version()}"

    def cut(self, seconds: float) -> int:
        return self._server.terminate_connections(self.url)

    def outage(self) -> int:
        self._crash()
        time.sleep(1.0)
        self._server.start()
        return 1

    def close(self) -> None:
        self._server.close()


def open_target(kind: str, folder: Path) -> Target:
    if kind == "sqlite":
        return SQLiteTarget(folder)
    if kind == "postgresql":
        postgresql = PostgresServer.own()
        return ServerTarget(postgresql, kind=kind, crash=lambda: postgresql.stop("immediate"))
    mariadb = MariaDBServer.own()
    return ServerTarget(mariadb, kind=kind, crash=mariadb.kill)

"""Find a MariaDB in the environment or at 127.0.0.1:3306, or run one of our own."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import pymysql
from sqlalchemy.engine import URL, make_url

from tests.support.servers.base import Server, ServerUnavailable
from tests.support.servers.processes import OwnServer, free_port

ENVIRONMENT: Final = "LETOPIS_TEST_MARIADB"
LOCAL: Final = URL.create("mysql", username="root", host="127.0.0.1", port=3306, database="mysql")

_SIGNALS: Final[Mapping[str, signal.Signals]] = {"fast": signal.SIGTERM, "kill": signal.SIGKILL}


class MariaDBServer(Server):
    """A MariaDB that answers."""

    environment = ENVIRONMENT
    errors = (pymysql.Error,)

    @staticmethod
    def local() -> URL:
        return LOCAL

    @staticmethod
    def program() -> str:
        return find_programs()[0]

    @classmethod
    def own(cls, *, settings: Mapping[str, str] | None = None) -> OwnMariaDBServer:
        return OwnMariaDBServer(settings=settings)

    def version(self) -> str:
        return str(self._run("SELECT VERSION()")[0][0]).split("-", maxsplit=1)[0]

    def execute(self, statement: str) -> None:
        """Run one statement in the maintenance database, in autocommit."""
        self._run(statement)

    def terminate_connections(self, url: str) -> int:
        """Cut every connection to the database of this URL, as an operator would; return how many were cut."""
        rows = self._run("SELECT id FROM information_schema.processlist WHERE db = %s", make_url(url).database)
        cut = 0
        for (connection_id,) in rows:
            # 1094: it ended on its own between the two statements.
            with suppress(pymysql.err.OperationalError):
                self._run(f"KILL CONNECTION {int(connection_id)}")
                cut += 1
        return cut

    def databases(self, start: str) -> list[str]:
        names = "SELECT schema_name FROM information_schema.schemata WHERE LEFT(schema_name, CHAR_LENGTH(%s)) = %s"
        return [self.database_url(name) for (name,) in self._run(names, start, start)]

    def _create_database(self, name: str) -> None:
        self._run(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")

    def _drop_database(self, name: str) -> None:
        # An open transaction elsewhere would hold the metadata lock, and DROP would wait for it.
        self.terminate_connections(self.database_url(name))
        self._run(f"DROP DATABASE IF EXISTS `{name}`")

    def _run(self, statement: str, *arguments: object) -> list[Any]:
        with closing(connect(self._url, autocommit=True)) as connection, connection.cursor() as cursor:
            cursor.execute(statement, arguments or None)
            return list(cursor.fetchall())


def connect(url: URL, **options: Any) -> pymysql.Connection[Any]:
    return pymysql.connect(
        host=url.host or "127.0.0.1",
        port=url.port or 3306,
        user=url.username or "root",
        password=str(url.password or ""),
        database=url.database or "mysql",
        charset="utf8mb4",
        connect_timeout=10,
        **options,
    )


describe = MariaDBServer.describe


class OwnMariaDBServer(OwnServer, MariaDBServer):
    """A MariaDB of our own in a temporary folder, on a free port that stays the same over restarts."""

    signals = _SIGNALS
    prefix = "letopis-maria-"
    marker = "mysql"
    death_signal = "TERM"

    def __init__(self, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(LOCAL.set(port=free_port()), settings=settings)
        self._server, self._installer = find_programs()
        self._as_user = ["--user=root"] if os.name != "nt" and os.geteuid() == 0 else []

    def _command(self) -> list[str]:
        return [
            *(self._server, *self._places(), f"--port={self.port}", "--bind-address=127.0.0.1"),
            *(f"--socket={self._root() / 's'}", f"--pid-file={self._root() / 'pid'}"),
            *(f"--{key}={value}" for key, value in self._settings.items()),
        ]

    def _installation(self) -> list[str]:
        options = ("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve")
        return [self._installer, *self._places(), *options]

    def _places(self) -> list[str]:
        return ["--no-defaults", f"--datadir={self.data}", f"--tmpdir={self._own_tmpdir()}", *self._as_user]

    def _own_tmpdir(self) -> Path:
        """Where temporary tables go: a server that starts deletes all it finds, its neighbours' in /tmp too."""
        folder = self._root() / "tmp"
        folder.mkdir(exist_ok=True)
        return folder


def find_programs() -> tuple[str, str]:
    folders = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/usr/bin"))
    server = shutil.which("mariadbd", path=folders)
    installer = shutil.which("mariadb-install-db", path=folders)
    if server is None or installer is None:
        raise ServerUnavailable(
            "no MariaDB answers at 127.0.0.1:3306, and mariadbd was not found to start one:"
            f" install mariadb-server, or set {ENVIRONMENT}"
        )
    return server, installer

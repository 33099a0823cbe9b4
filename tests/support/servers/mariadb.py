"""Find a MariaDB in the environment or at 127.0.0.1:3306, or run one of our own."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, ClassVar, Final

import pymysql
from sqlalchemy.engine import URL, make_url

from tests.support.servers.base import OwnServer, Server
from tests.support.servers.processes import ServerUnavailable, free_port

ENVIRONMENT: Final = "LETOPIS_TEST_MARIADB"
LOCAL: Final = URL.create("mysql", username="root", host="127.0.0.1", port=3306, database="mysql")


class MariaDBServer(Server):
    environment = ENVIRONMENT
    local = LOCAL
    errors = (pymysql.Error,)
    ask_version = "SELECT VERSION()"
    ask_databases = "SELECT schema_name FROM information_schema.schemata WHERE LOCATE(%s, schema_name) = 1"

    @staticmethod
    def program() -> str:
        return find_programs()[0]

    @classmethod
    def own(cls, *, settings: Mapping[str, str] | None = None) -> OwnMariaDBServer:
        return OwnMariaDBServer(settings=settings)

    def rows(self, statement: str, *arguments: object) -> list[Any]:
        with closing(connect(self._url, autocommit=True)) as connection, connection.cursor() as cursor:
            cursor.execute(statement, arguments or None)
            return list(cursor.fetchall())

    def terminate_connections(self, url: str) -> int:
        cut = 0
        others = "SELECT id FROM information_schema.processlist WHERE db = %s"
        for (connection_id,) in self.rows(others, make_url(url).database):
            # 1094: it ended on its own between the two statements.
            with suppress(pymysql.err.OperationalError):
                self.rows(f"KILL CONNECTION {int(connection_id)}")
                cut += 1
        return cut

    def _create_database(self, name: str) -> None:
        self.rows(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")

    def _drop_database(self, name: str) -> None:
        # An open transaction elsewhere would hold the metadata lock, and DROP would wait for it.
        self.terminate_connections(self.database_url(name))
        self.rows(f"DROP DATABASE IF EXISTS `{name}`")


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


class OwnMariaDBServer(OwnServer, MariaDBServer):
    """A MariaDB of our own in a temporary folder, on a free port that stays the same over restarts."""

    signals: ClassVar = {"fast": signal.SIGTERM, "kill": signal.SIGKILL}
    prefix = "letopis-maria-"
    marker = "mysql"
    death_signal = "TERM"

    def __init__(self, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(LOCAL.set(port=free_port()), settings)
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
    server, installer = (shutil.which(name, path=folders) for name in ("mariadbd", "mariadb-install-db"))
    if server is None or installer is None:
        raise ServerUnavailable(
            "no MariaDB answers at 127.0.0.1:3306, and mariadbd was not found to start one:"
            f" install mariadb-server, or set {ENVIRONMENT}"
        )
    return server, installer

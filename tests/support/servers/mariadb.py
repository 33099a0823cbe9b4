"""Find a MariaDB in the environment or at 127.0.0.1:3306, or run one of our own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import pymysql
from sqlalchemy.engine import URL, make_url

from tests.support.servers.base import Server, ServerUnavailable
from tests.support.servers.own import OwnServer
from tests.support.servers.processes import free_port, spawn, wait_until_ready

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
    def find(cls) -> MariaDBServer:
        """The server that runs, else an own one, started."""
        return cls.running() or cls.own().start()

    @classmethod
    def own(cls, *, settings: Mapping[str, str] | None = None) -> OwnMariaDBServer:
        """A new server of our own, initialised on first `start`; it may be stopped, killed and restarted."""
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
            with contextlib.suppress(pymysql.err.OperationalError):
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
        connection = pymysql.connect(
            host=self.host,
            port=self.port,
            user=self._url.username or "root",
            password=str(self._url.password or ""),
            database=self._url.database or "mysql",
            charset="utf8mb4",
            autocommit=True,
            connect_timeout=10,
        )
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, arguments or None)
                return list(cursor.fetchall())
        finally:
            connection.close()


describe = MariaDBServer.describe


class OwnMariaDBServer(OwnServer, MariaDBServer):
    """A MariaDB of our own in a temporary folder, on a free port that stays the same over restarts."""

    signals = _SIGNALS
    prefix = "letopis-maria-"

    def __init__(self, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(LOCAL.set(port=free_port()), settings=settings)
        self._server, self._installer = find_programs()
        self._as_user = ["--user=root"] if os.name != "nt" and os.geteuid() == 0 else []

    @property
    def data(self) -> Path:
        """The folder that holds a folder a database."""
        return self._root() / "data"

    def start(self) -> Self:
        """Start the server and return when it answers; nothing if it runs."""
        if self.running:
            return self
        data = self.data
        if not (data / "mysql").exists():
            self._initialise(data)
        self._process = spawn(
            [
                self._server,
                "--no-defaults",
                f"--datadir={data}",
                f"--port={self.port}",
                "--bind-address=127.0.0.1",
                f"--socket={self._root() / 's'}",
                f"--pid-file={self._root() / 'pid'}",
                f"--tmpdir={self._own_tmpdir()}",
                *self._as_user,
                *(f"--{key}={value}" for key, value in self._settings.items()),
            ],
            log=self.log,
            death_signal="TERM",
        )
        wait_until_ready(self._process, self.answers, log=self.log)
        return self

    def _initialise(self, data: Path) -> None:
        command = [
            self._installer,
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
            f"--tmpdir={self._own_tmpdir()}",
            *self._as_user,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerUnavailable(f"mariadb-install-db ended with code {done.returncode}:\n{done.stderr[-2000:]}")

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

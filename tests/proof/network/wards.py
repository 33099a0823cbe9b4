"""Run a server of our own with bots on it, and harm it as an administrator could."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
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
SEATS: Final = 24
SERVER_DISK: Final = "160m"  # connections that the server takes at most


class Ward(ABC):
    """One kind of server, with a database that belongs to a plain user; on a small disk where that can be had."""

    kind: str
    number: ClassVar[str]
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
        """Start the server and make database and user."""

    async def start(self) -> None:
        """Start it, with an empty history store."""
        await asyncio.to_thread(self._set_up)
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
        driver = "postgresql+asyncpg" if self.kind == "postgresql" else "mysql+asyncmy"
        return create_async_engine(url.set(drivername=driver), poolclass=NullPool)

    async def occupy(self) -> list[AsyncConnection]:
        """Take every connection that the plain user can get, those of the bots too, and return them."""
        engine, held = self.engine(), [await self.engine(admin=True).connect()]
        spared = [await self._number(held[0])]
        for cuts in range(4):
            if cuts:  # what the bots hold, and what they got back meanwhile
                await self._cut(held[0], spared)
            with suppress(DBAPIError, OSError):
                while True:
                    held.append(await engine.connect())
                    spared.append(await self._number(held[-1]))
        return held

    async def _number(self, connection: AsyncConnection) -> int:
        """Return the number under which the server knows a connection."""
        return int((await connection.execute(sa.text(self.number))).scalar_one())

    @abstractmethod
    async def _cut(self, admin: AsyncConnection, spared: Collection[int]) -> None:
        """Cut all connections to the database but for these."""

    def _users_url(self) -> str:
        url = make_url(self.server.url).set(username=USER, password=None, database=USER)
        return url.render_as_string(hide_password=False)


class PostgreSQLWard(Ward):
    """PostgreSQL, with the database in a tablespace on the small disk."""

    kind = "postgresql"
    number = "SELECT pg_backend_pid()"
    many_rows = "SELECT generate_series(1, 1000)"
    codes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "read-only": ("25006",),
        "connections": ("53300",),
        "lock": ("55P03",),
        "statement": ("57014",),
        "deadlock": ("40P01",),
        "full": ("disk-full",),
    }

    def __init__(self) -> None:
        self._own = PostgresServer.own(
            settings={
                "max_connections": str(SEATS),
                "deadlock_timeout": "100ms",
                "max_wal_senders": "0",
                "shared_buffers": "32MB",
            }
        )
        super().__init__(self._own)

    def _set_up(self) -> None:
        self.server.start()
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
        self.url = self._users_url()

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._place, ignore_errors=True)

    def crash(self) -> None:
        self._own.stop("immediate")

    def read_only(self, on: bool) -> None:
        self.server.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
        self.server.execute("SELECT pg_reload_conf()")

    async def _cut(self, admin: AsyncConnection, spared: Collection[int]) -> None:
        kept = ", ".join(map(str, spared))
        await admin.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = current_database() AND pid NOT IN ({kept})"
            )
        )


class MariaDBWard(Ward):
    """MariaDB, with the folder of the database on the small disk."""

    kind = "mariadb"
    number = "SELECT CONNECTION_ID()"
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
        self.server.start()
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
        self.url = self._users_url()

    def crash(self) -> None:
        self._own.kill()

    def read_only(self, on: bool) -> None:
        self.server.execute(f"SET GLOBAL read_only = {int(on)}")

    async def _cut(self, admin: AsyncConnection, spared: Collection[int]) -> None:
        asks = sa.text("SELECT id FROM information_schema.processlist WHERE db = database()")
        for (number,) in await admin.execute(asks):
            if number not in spared:
                with suppress(DBAPIError):  # it ended on its own
                    await admin.execute(sa.text(f"KILL CONNECTION {int(number)}"))


WARDS: Final[Mapping[str, Callable[[], Ward]]] = {"postgresql": PostgreSQLWard, "mariadb": MariaDBWard}
"""What makes the ward of each kind of server, which is started then."""

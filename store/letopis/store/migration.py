"""Migrations: which revision a database is at, and how it gets to this release's; for both ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from letopis.store.faults import FaultClass, StoreFault

_LOCK_NAME: Final = "CONCAT('letopis ', SHA1(DATABASE()))"
_LOCK_KEY: Final = 0x6C65746F70697300


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrations:
    """One line of migrations.

    :ivar location: the package resource that holds ``env.py`` and ``versions``.
    :ivar version_table: holds the database's revision; its own, since the bot's own migrations have theirs.
    :ivar head: this release's revision. Revisions are four digits that rise, so that a newer one shows as such.
    """

    location: str
    version_table: str
    head: str


IN_TURN: Final = threading.Lock()
"""Held by who runs :func:`upgrade`: Alembic keeps what it works on in globals, so two upgrades at the same time, in
threads or in tasks of one event loop, would run on each other's databases."""


@asynccontextmanager
async def in_turn() -> AsyncIterator[None]:
    """Hold :data:`IN_TURN`; waited for in small steps, since other holders are threads and other tasks."""
    while not IN_TURN.acquire(blocking=False):  # noqa: ASYNC110 - a lock between threads
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        IN_TURN.release()


STORE: Final = Migrations(location="letopis.migrations:store", version_table="letopis_version", head="0003")
"""The history store's."""


class State(StrEnum):
    """How a database stands to this release."""

    MISSING = "missing"
    OLDER = "older"
    CURRENT = "current"
    NEWER = "newer"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """The revision that a database is at; ``revision`` is ``None`` where it is missing."""

    state: State
    revision: str | None

    def advice(self, migrations: Migrations, *, command: str) -> str:
        """Return what is wrong and what to do about it, in one sentence; ``command`` migrates this database."""
        match self.state:
            case State.MISSING:
                return f"the database has no tables of Letopis: run `{command}`"
            case State.OLDER:
                return (
                    f"the database is at revision {self.revision}, this release needs {migrations.head}: "
                    f"make a backup, then run `{command}`"
                )
            case State.NEWER:
                return (
                    f"the database is at revision {self.revision}, this release knows {migrations.head} and older: "
                    "install the newer release of Letopis that migrated it"
                )
            case State.FOREIGN:
                return (
                    f"the table {migrations.version_table} holds a revision that is none of Letopis's: "
                    "check that the URL names the right database"
                )
            case State.CURRENT:
                return f"the database is at revision {self.revision}, as it should be"


def revision_state(connection: sa.Connection, migrations: Migrations) -> Revision:
    """Return how the database stands to this release; reads one small table and imports nothing."""
    if not sa.inspect(connection).has_table(migrations.version_table):
        return Revision(state=State.MISSING, revision=None)
    table = sa.table(migrations.version_table, sa.column("version_num", sa.String))
    found = connection.execute(sa.select(table.c.version_num)).scalars().all()
    if not found:
        return Revision(state=State.MISSING, revision=None)
    revision = str(found[0])
    if len(found) > 1 or not (len(revision) == 4 and revision.isascii() and revision.isdigit()):
        return Revision(state=State.FOREIGN, revision=revision)
    if revision == migrations.head:
        return Revision(state=State.CURRENT, revision=revision)
    return Revision(state=State.OLDER if revision < migrations.head else State.NEWER, revision=revision)


def upgrade(
    connection: sa.Connection,
    migrations: Migrations,
    target: str = "head",
    *,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Bring the database to ``target``; nothing happens where it is there already.

    Runs inside the connection's transaction and leaves the commit to the caller, who holds :data:`IN_TURN`. Several
    processes may call it at once: they wait for each other. Where the database commits each table by itself (MariaDB),
    an upgrade that was cut off is taken up again by the next one.

    :param attributes: for the migrations, for example ``{"partitions": 4}`` for a store that is created now.
    """
    # Alembic costs 75 ms to import; a database that is current never needs it.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", migrations.location)
    config.attributes.update(attributes or {})
    config.attributes["connection"] = connection
    config.attributes["version_table"] = migrations.version_table
    if not connection.in_transaction():
        connection.begin()  # else Alembic would commit as it goes
    with alone(connection):
        command.upgrade(config, target)


@contextmanager
def alone(connection: sa.Connection) -> Iterator[None]:
    """Keep other migrations out until the end; SQLite's ``BEGIN IMMEDIATE`` has done it already.

    :raises StoreFault: another process has been migrating the database for a minute.
    """
    match connection.dialect.name:
        case "postgresql":
            # Given back at the end of the transaction.
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            yield
        case "mysql" | "mariadb":
            # By the database's name, since the server knows these locks for all databases together.
            taken = connection.execute(sa.text(f"SELECT GET_LOCK({_LOCK_NAME}, 60)")).scalar_one()
            if taken != 1:
                raise StoreFault(
                    fault_class=FaultClass.UNAVAILABLE,
                    code="migrating",
                    reason="another process is migrating this database: wait until it is done",
                )
            # The driver would log that MariaDB gives every primary key the same name.
            connection.execute(sa.text("SET SESSION max_error_count = 0"))
            try:
                yield
            except BaseException:  # an interrupt as well: the lock outlives the transaction
                connection.invalidate()  # the server frees the lock with the connection, whatever state it is in
                raise
            connection.execute(sa.text("SET SESSION max_error_count = DEFAULT"))
            # The revision, too, before the next one may look: all else was committed table by table.
            connection.execute(sa.text("COMMIT"))
            connection.execute(sa.text(f"SELECT RELEASE_LOCK({_LOCK_NAME})"))
        case _:
            yield

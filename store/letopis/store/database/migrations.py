"""Tell which revision a database is at, and upgrade it to this release's; for both ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from letopis.store.database.faults import FaultClass, StoreFault

if TYPE_CHECKING:
    import sqlalchemy as sa

_MARIADB_LOCK_NAME: Final = "CONCAT('letopis ', SHA1(DATABASE()))"
_POSTGRESQL_LOCK_KEY: Final = 0x6C65746F70697300


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrations:
    """The migrations of one end."""

    location: str  # the package resource that holds ``env.py`` and ``versions``
    version_table: str  # apart from that of the bot's own migrations
    head: str  # four ascending digits, so that a newer one is recognised

    @property
    def query(self) -> str:
        return f"SELECT version_num FROM {self.version_table}"  # noqa: S608


ALEMBIC_LOCK: Final = threading.Lock()
"""To be held around :func:`upgrade`: Alembic keeps its database in globals, so concurrent upgrades in one process would
run on each other's databases."""


@asynccontextmanager
async def hold_alembic_lock() -> AsyncIterator[None]:
    """Hold :data:`ALEMBIC_LOCK`. Polls, since other holders are threads and tasks."""
    while not ALEMBIC_LOCK.acquire(blocking=False):  # noqa: ASYNC110 - a lock between threads
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        ALEMBIC_LOCK.release()


STORE: Final = Migrations(location="letopis.migrations:store", version_table="letopis_version", head="0001")


class SchemaState(StrEnum):
    """The state of a database's tables for this release."""

    MISSING = "missing"
    OLDER = "older"
    CURRENT = "current"
    NEWER = "newer"
    FOREIGN = "foreign"


_ADVICE: Final = {
    SchemaState.MISSING: "the database has no tables of Letopis: run `{command}`",
    SchemaState.OLDER: "the database is at revision {revision}, this release needs {head}: make a backup, then run"
    " `{command}`",
    SchemaState.NEWER: "the database is at revision {revision}, this release knows {head} and older: install the newer"
    " release of Letopis that migrated it",
    SchemaState.FOREIGN: "the table {table} holds a revision that is not one of Letopis: check that the URL names the"
    " right database",
    SchemaState.CURRENT: "the database is at revision {revision}, as it should be",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """The revision of a database, or ``None`` if it has no tables of Letopis."""

    state: SchemaState
    revision: str | None

    def advice(self, migrations: Migrations, *, command: str) -> str:
        """Return what is wrong and what to do about it, in one sentence."""
        head, table = migrations.head, migrations.version_table
        return _ADVICE[self.state].format(revision=self.revision, head=head, table=table, command=command)


def revision_state(connection: sa.Connection, migrations: Migrations) -> Revision:
    """Return the revision of a database. Reads one small table and imports nothing."""
    if not connection.dialect.has_table(connection, migrations.version_table):
        return Revision(state=SchemaState.MISSING, revision=None)
    return revision_of(connection.exec_driver_sql(migrations.query).scalars().all(), migrations)


def revision_of(found: Sequence[str], migrations: Migrations) -> Revision:
    """Return the revision that the version table of a database holds."""
    if not found:
        return Revision(state=SchemaState.MISSING, revision=None)
    revision = str(found[0])
    if len(found) > 1 or not (len(revision) == 4 and revision.isascii() and revision.isdigit()):
        return Revision(state=SchemaState.FOREIGN, revision=revision)
    if revision == migrations.head:
        return Revision(state=SchemaState.CURRENT, revision=revision)
    return Revision(state=SchemaState.OLDER if revision < migrations.head else SchemaState.NEWER, revision=revision)


def upgrade(
    connection: sa.Connection,
    migrations: Migrations,
    target: str = "head",
    *,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Upgrade the database to ``target`` in the connection's transaction, which the caller commits. Idempotent."""
    # The caller holds ALEMBIC_LOCK. MariaDB commits each table: there the next upgrade completes an interrupted one.

    # Alembic is slow to import, and not needed for a database that is current.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", migrations.location)
    config.attributes.update(attributes or {})
    config.attributes["connection"] = connection
    config.attributes["version_table"] = migrations.version_table
    if not connection.in_transaction():
        connection.begin()  # without it Alembic would commit each step
    with exclude_other_migrations(connection):
        command.upgrade(config, target)


@contextmanager
def exclude_other_migrations(connection: sa.Connection) -> Iterator[None]:
    """Exclude other migrations until the end. SQLite's ``BEGIN IMMEDIATE`` already does."""
    match connection.dialect.name:
        case "postgresql":
            # Released at the end of the transaction.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRESQL_LOCK_KEY})")
            yield
        case "mysql" | "mariadb":
            # Named by the database, since these locks are global to the server.
            acquired = connection.exec_driver_sql(f"SELECT GET_LOCK({_MARIADB_LOCK_NAME}, 60)").scalar_one()
            if acquired != 1:
                reason = "another process is migrating this database: wait until it has finished"
                raise StoreFault(fault_class=FaultClass.UNAVAILABLE, code="migrating", reason=reason)
            # The driver would log that MariaDB gives every primary key the same name.
            connection.exec_driver_sql("SET SESSION max_error_count = 0")
            try:
                yield
            except BaseException:  # an interrupt as well: the lock outlives the transaction
                connection.invalidate()  # the server frees the lock with the connection, whatever state it is in
                raise
            connection.exec_driver_sql("SET SESSION max_error_count = DEFAULT")
            # The revision too, before the next migration may read it: MariaDB has committed the tables.
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql(f"SELECT RELEASE_LOCK({_MARIADB_LOCK_NAME})")
        case _:
            yield

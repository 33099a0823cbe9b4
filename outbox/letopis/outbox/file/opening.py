"""Find, create, migrate and inspect outbox files."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL

from letopis.outbox.file.committer import LOCK_TIMEOUT_SECONDS
from letopis.outbox.file.identity import FileId, file_id_of, load_origin
from letopis.outbox.file.inspection import (
    BUSY_TIMEOUT_SECONDS,
    OUTBOX_MIGRATIONS,
    TABLES,
    check_file,
    check_revision,
    explained,
    outbox_path,
    with_reserve,
)
from letopis.outbox.file.limits import release_reserve
from letopis.outbox.file.sqlite_errors import is_busy, is_full
from letopis.store.database.migrations import ALEMBIC_LOCK, STORE, SchemaState, revision_state, upgrade
from letopis.store.database.sqlite import install_sqlite_events
from letopis.store.errors import ConfigurationError
from letopis.store.rules.apply_plan import Origin

T = TypeVar("T")

_INSPECT_TIMEOUT_SECONDS: Final = 3.0


class OpenedFile(NamedTuple):
    """An outbox file that is ready for use."""

    engine: sa.Engine
    origin: Origin
    file_id: FileId
    anchor: sa.Connection  # a connection that stays open, and keeps the -wal and the -shm in place


async def read_snapshot(path: str | os.PathLike[str], work: Callable[[sa.Connection], T]) -> T:
    """Run ``work(connection)`` over one snapshot of an outbox file, which it neither creates nor changes."""
    return await asyncio.to_thread(_read_snapshot, outbox_path(path), work)


def _read_snapshot(path: Path, work: Callable[[sa.Connection], T]) -> T:
    check_file(path, create=False)
    engine = _sync_engine(path).execution_options(sqlite_begin="DEFERRED")

    def read() -> T:
        with engine.connect() as connection, connection.begin():
            tables = connection.exec_driver_sql(TABLES).scalars()
            check_revision(revision_state(connection, OUTBOX_MIGRATIONS), path, tables)
            return work(connection)

    try:
        return with_reserve(path, read)
    finally:
        engine.dispose()


@contextmanager
def open_read_only(path: Path) -> Iterator[sa.Connection]:
    """Open one snapshot of an SQLite file of unknown origin; nothing of it can change."""
    # Not SQLite's ``mode=ro``, which leaves a -wal and a -shm behind where there were none.
    engine = _create_engine(path, timeout=_INSPECT_TIMEOUT_SECONDS)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA query_only = ON")
            connection.exec_driver_sql("BEGIN")
            try:
                yield connection
            finally:
                connection.exec_driver_sql("ROLLBACK")
    finally:
        engine.dispose()


def open_file(path: Path, *, create: bool, now_us: Callable[[], int]) -> OpenedFile:
    """Create the file where it is missing, migrate it and load its identity; in the writer's thread."""
    check_file(path, create=create)
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    engine = _sync_engine(path)
    may_migrate = False
    while True:
        try:
            with engine.begin() as connection:
                current = _is_current(connection, path, create=create)
                if may_migrate and not current:
                    with ALEMBIC_LOCK:
                        upgrade(connection, OUTBOX_MIGRATIONS)
                origin = load_origin(connection, path, now_us=now_us()) if current or may_migrate else None
            if origin is not None:
                return OpenedFile(engine, origin, file_id_of(path), _anchor(engine))
            # Without the lock of the file: another process that opens it would not wait as long as this may take.
            import_module("alembic.command")
            may_migrate, deadline = True, time.monotonic() + LOCK_TIMEOUT_SECONDS
        except Exception as error:
            if is_busy(error) and time.monotonic() < deadline:
                continue
            if is_full(error) and release_reserve(path):
                continue
            engine.dispose()
            raise explained(error, path) or error from error


def _is_current(connection: sa.Connection, path: Path, *, create: bool) -> bool:
    """Return False if the file is to be migrated."""
    revision = revision_state(connection, OUTBOX_MIGRATIONS)
    if revision.state is SchemaState.MISSING and not create:
        # An outbox that was cut to nothing must not look like a new one.
        check_revision(revision, path, connection.exec_driver_sql(TABLES).scalars())
    if revision.state is SchemaState.MISSING and sa.inspect(connection).has_table(STORE.version_table):
        raise ConfigurationError(f"{path.name!r} is a history store: give the outbox a file of its own")
    if revision.state in (SchemaState.NEWER, SchemaState.FOREIGN):
        raise ConfigurationError(f"{path.name!r}: {revision.advice(OUTBOX_MIGRATIONS, command='letopis init')}")
    return revision.state is SchemaState.CURRENT


def _sync_engine(path: Path) -> sa.Engine:
    engine = _create_engine(path, timeout=BUSY_TIMEOUT_SECONDS)
    install_sqlite_events(engine, busy_timeout=BUSY_TIMEOUT_SECONDS)
    return engine


def _create_engine(path: Path, *, timeout: float) -> sa.Engine:
    return sa.create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=sa.NullPool,
        hide_parameters=True,
        connect_args={"isolation_level": None, "timeout": timeout},
    )


def _anchor(engine: sa.Engine) -> sa.Connection:
    """Return a connection that has the -wal and the -shm open, and no transaction."""
    connection = engine.execution_options(sqlite_begin="DEFERRED").connect()
    try:
        with connection.begin():
            connection.exec_driver_sql("SELECT only FROM letopis_outbox_origin").all()
    except BaseException:  # whatever ended it: nothing else knows of this connection, which would keep the file open
        connection.close()
        raise
    return connection

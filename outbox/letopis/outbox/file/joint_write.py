"""Write an append in a transaction that is open on a SQLAlchemy connection, ours or the caller's."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from letopis.outbox.event_log.append import append_events
from letopis.outbox.event_log.append_encoding import Prepared
from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.file.identity import file_id_of
from letopis.outbox.file.sqlite_errors import translate
from letopis.store.cancellation import run_to_completion
from letopis.store.database.sqlite_connection import SQLiteConnection
from letopis.store.errors import InvalidInput, LetopisError

if TYPE_CHECKING:
    from letopis.outbox.file.outbox_file import OutboxFile

# Changes nothing, and makes SQLite begin a write: no other writer can append before this transaction ends.
_LOCK: Final = "UPDATE letopis_outbox_origin SET epoch = epoch WHERE false"
_SYNCHRONOUS_FULL: Final = 2
_CHECKED_FILE: Final = "letopis_outbox_place"


class TransactionEnd:
    __slots__ = ("ended", "rolled_back")

    def __init__(self) -> None:
        self.rolled_back = asyncio.Event()
        self.ended = asyncio.Event()


CompanionWrite = Callable[[Any, Appended], None]  # what is written together with an append, on the same DBAPI cursor


async def append_in(outbox: OutboxFile, given: AsyncConnection | AsyncSession, prepared: Prepared) -> Appended:
    """Write an append in the caller's transaction, which is begun here if it has not begun."""
    if isinstance(given, AsyncSession):
        try:
            connection = await given.connection()
        except UnboundExecutionError as error:
            raise InvalidInput("connection", "is a session without an engine: bind it to the outbox file") from error
    elif isinstance(given, AsyncConnection):
        connection = given
    else:
        raise InvalidInput("connection", f"must be an AsyncConnection or AsyncSession, not {type(given).__name__}")
    if connection.dialect.name != "sqlite":
        raise InvalidInput("connection", f"is on {connection.dialect.name}: it must be on this outbox file")
    try:
        await connection.run_sync(_check_file, outbox)
        driver = driver_of(connection)
        if isinstance(driver, SQLiteConnection) and driver.in_transaction:
            await driver.run(lambda connection: connection.execute(_LOCK))  # one hop instead of three
        else:
            await connection.exec_driver_sql(_LOCK)
    except (DBAPIError, sqlite3.Error) as error:
        raise translate(error) or error from error
    if not is_open(connection):
        raise InvalidInput("connection", "commits each statement separately: begin a transaction on it")
    # A caller that is cancelled here may commit all the same: that commits the whole append, never half of one.
    appended = await run_to_completion(write(outbox, connection, prepared))
    if appended.erased:
        outbox.truncate_wal()
    return appended


def _check_file(connection: sa.Connection, outbox: OutboxFile) -> None:
    if connection.info.get(_CHECKED_FILE) == outbox.file_id:
        return
    files = {row[1]: row[2] for row in connection.exec_driver_sql("PRAGMA database_list")}
    try:
        here = bool(files.get("main")) and file_id_of(Path(files["main"])) == outbox.file_id
    except OSError:
        here = False
    if not here:
        raise InvalidInput(
            "connection", f"is not on this outbox file ({outbox.path.name!r}): use an engine on its path"
        )
    if connection.exec_driver_sql("PRAGMA synchronous").scalar_one() < _SYNCHRONOUS_FULL:
        raise InvalidInput(
            "connection", "does not flush its commits to disk: set PRAGMA synchronous=FULL on its engine"
        )
    connection.info[_CHECKED_FILE] = outbox.file_id


async def write(
    outbox: OutboxFile, connection: AsyncConnection, prepared: Prepared, companion: CompanionWrite | None = None
) -> Appended:
    """Write an append and its companion in the transaction that is open on ``connection`` and holds the lock."""

    def run(driver: Any) -> Appended | LetopisError:
        with closing(driver.cursor()) as cursor:
            outbox.gate.check_room(cursor)
            outcome = append_events(cursor, (prepared,), now_us=outbox.now_us())[0]
            if companion is not None and isinstance(outcome, Appended):
                companion(cursor, outcome)
            return outcome

    try:
        driver = driver_of(connection)
        if isinstance(driver, SQLiteConnection):
            outcome = await driver.run(run)  # one hop into its thread instead of three a statement
        else:  # of an engine that the caller made
            outcome = await connection.run_sync(lambda under: run(under.connection))
    except LetopisError:
        raise  # refused before anything was written
    except Exception as error:
        # Half of it may be written, or SQLite has rolled back all that came before: none of it may be committed now.
        await connection.invalidate()
        raise translate(error) or error from error
    if isinstance(outcome, LetopisError):
        raise outcome
    return outcome


def is_open(connection: AsyncConnection) -> bool:
    """Return True if SQLite has an open transaction; on some errors, such as a full disk, it rolls back on its own."""
    return bool(getattr(driver_of(connection), "in_transaction", False))


def driver_of(connection: AsyncConnection) -> object:
    """Return the driver's connection; ``None`` if there is none."""
    if connection.sync_connection is None or connection.invalidated:
        return None
    return connection.sync_connection.connection.driver_connection

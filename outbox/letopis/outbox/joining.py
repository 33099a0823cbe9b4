"""Joining: append inside a transaction that the caller opened, on the caller's own connection or session."""

from __future__ import annotations

import asyncio
import sqlite3
import weakref
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from letopis.outbox.append import Appended, Prepared
from letopis.outbox.file import OutboxFile
from letopis.outbox.identity import place_of
from letopis.outbox.transaction import driver_of, write
from letopis.outbox.trouble import translate
from letopis.store.errors import InvalidInput
from letopis.store.shield import uninterrupted
from letopis.store.sqlite_files import SQLiteConnection

# Changes nothing, and makes SQLite begin a write: from here on nobody else can append before this transaction ends.
_LOCK: Final = "UPDATE letopis_outbox_origin SET epoch = epoch WHERE false"
_FULL: Final = 2
_CHECKED: Final = "letopis_outbox_place"
_FIRST_LOOK: Final = 0.0005
_SLOWEST_LOOK: Final = 0.05
_LAST_LOOK: Final = 10.0

_heard: weakref.WeakKeyDictionary[sa.Connection, list[asyncio.Event]] = weakref.WeakKeyDictionary()
"""What to set when the transaction that is open on a connection is rolled back."""


async def append_in(
    outbox: OutboxFile, given: AsyncConnection | AsyncSession, prepared: Prepared, *, void: asyncio.Event
) -> Appended:
    """Write an append in the caller's transaction, which this begins where it has not begun.

    The relay is woken after the caller's commit, and by nothing where the caller rolls back.

    :param void: set when the caller rolls back the whole transaction; not for a savepoint.
    :raises InvalidInput: the connection is not on this outbox file, does not flush its commits, or commits each
        statement by itself.
    :raises OutboxUnavailable: the file is held by somebody else, or the transaction read before it wrote and another
        writer committed in between.
    """
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
        await connection.run_sync(_check_place, outbox)
        driver = driver_of(connection)
        if isinstance(driver, SQLiteConnection) and driver.in_transaction:
            await driver.run(_lock)  # one hop instead of three
        else:
            await connection.exec_driver_sql(_LOCK)
            driver = driver_of(connection)
    except (DBAPIError, sqlite3.Error) as error:
        raise translate(error) or error from error
    if not getattr(driver, "in_transaction", False):
        raise InvalidInput("connection", "commits each statement by itself: begin a transaction on it")
    assert connection.sync_connection is not None  # noqa: S101 - it has just been used
    _listen(outbox, connection.sync_connection, driver).append(void)
    # A caller that is cancelled here may commit all the same: then it commits the whole append, never half of one.
    appended = await uninterrupted(write(outbox, connection, prepared))
    if appended.erased:
        outbox.cut_back()
    return appended


def _lock(driver: sqlite3.Connection) -> None:
    driver.execute(_LOCK)


def _check_place(connection: sa.Connection, outbox: OutboxFile) -> None:
    if connection.info.get(_CHECKED) == outbox.place:
        return
    files = {row[1]: row[2] for row in connection.exec_driver_sql("PRAGMA database_list")}
    try:
        here = bool(files.get("main")) and place_of(Path(files["main"])) == outbox.place
    except OSError:
        here = False
    if not here:
        raise InvalidInput(
            "connection", f"is not on this outbox file ({outbox.path.name!r}): use an engine on its path"
        )
    if connection.exec_driver_sql("PRAGMA synchronous").scalar_one() < _FULL:
        raise InvalidInput(
            "connection", "does not flush its commits to disk: set PRAGMA synchronous=FULL on its engine"
        )
    connection.info[_CHECKED] = outbox.place


def _listen(outbox: OutboxFile, connection: sa.Connection, driver: Any) -> list[asyncio.Event]:
    """Ring after each commit on the connection from now on; return what is set by the next rollback."""
    if (known := _heard.get(connection)) is not None:
        return known
    voided = _heard[connection] = []
    loop = asyncio.get_running_loop()

    def on_rollback(_: sa.Connection) -> None:
        for void in voided:
            void.set()
        voided.clear()

    def on_commit(_: sa.Connection) -> None:
        voided.clear()
        # SQLAlchemy tells of a commit before it makes it: the bell waits until the driver has left the transaction.
        loop.call_soon(look, _FIRST_LOOK, loop.time() + _LAST_LOOK)

    def look(pause: float, until: float) -> None:
        try:
            busy = bool(driver.in_transaction)
        except ValueError:
            busy = False  # closed meanwhile
        if busy and loop.time() < until:
            loop.call_later(pause, look, min(pause * 2, _SLOWEST_LOOK), until)
        else:
            outbox.appended.ring()

    event.listen(connection, "commit", on_commit)
    event.listen(connection, "rollback", on_rollback)
    return voided

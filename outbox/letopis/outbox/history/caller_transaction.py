"""Append inside a transaction that the caller opened, on the caller's own connection or session."""

from __future__ import annotations

import asyncio
import sqlite3
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from letopis.outbox.concurrency.fair_lock import current_caller
from letopis.outbox.event_log.append_encoding import Prepared
from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.file.identity import file_id_of
from letopis.outbox.file.sqlite_errors import translate
from letopis.outbox.history.joint_write import CompanionWrite, TransactionEnd, driver_of, write
from letopis.store.cancellation import run_to_completion
from letopis.store.database.sqlite_connection import SQLiteConnection
from letopis.store.errors import InvalidInput

if TYPE_CHECKING:
    from letopis.outbox.file.outbox_file import OutboxFile

# Changes nothing, and makes SQLite begin a write: no other writer can append before this transaction ends.
_LOCK: Final = "UPDATE letopis_outbox_origin SET epoch = epoch WHERE false"
_SYNCHRONOUS_FULL: Final = 2
_CHECKED_FILE: Final = "letopis_outbox_place"
_POLL_MIN_SECONDS: Final = 0.0005
_POLL_MAX_SECONDS: Final = 0.05
_POLL_TIMEOUT_SECONDS: Final = 10.0


@dataclass(slots=True)
class _JoinedConnection:
    """A caller's connection on which something was appended.

    :ivar task: the task that appended last in the open transaction.
    :ivar ends: to be set when that transaction ends.
    """

    outbox: OutboxFile
    driver: Any
    task: object = None
    ends: list[TransactionEnd] = field(default_factory=list)

    @property
    def open(self) -> bool:
        try:
            return bool(self.driver.in_transaction)
        except (ValueError, sqlite3.ProgrammingError):
            return False  # closed meanwhile


_joined: weakref.WeakKeyDictionary[sa.Connection, _JoinedConnection] = weakref.WeakKeyDictionary()


def holds_here(outbox: OutboxFile) -> bool:
    """Return True if the caller holds the outbox by a transaction of its own, and would wait for itself."""
    caller = current_caller()
    return outbox.gate.holder is caller or any(
        one.outbox is outbox and one.task is caller and one.ends and one.open for one in list(_joined.values())
    )


async def append_in(
    outbox: OutboxFile,
    given: AsyncConnection | AsyncSession,
    prepared: Prepared,
    *,
    end: TransactionEnd,
    companion: CompanionWrite | None = None,
    task: asyncio.Task[Any] | None = None,
) -> Appended:
    """Write an append in the caller's transaction, which is begun here if it has not begun.

    The relay is woken after the caller's commit; a rollback wakes nothing.

    :param end: set when the caller commits or rolls back the whole transaction, not for a savepoint.
    :param companion: what is written together with the append.
    :param task: the caller's task; by default the current one.
    :raises InvalidInput: the connection is not on this outbox file, does not flush its commits, or commits each
        statement separately.
    :raises OutboxUnavailable: another writer holds the file, or the transaction read before it wrote and another writer
        committed in between.
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
        await connection.run_sync(_check_file, outbox)
        driver = driver_of(connection)
        if isinstance(driver, SQLiteConnection) and driver.in_transaction:
            await driver.run(_lock)  # one hop instead of three
        else:
            await connection.exec_driver_sql(_LOCK)
            driver = driver_of(connection)
    except (DBAPIError, sqlite3.Error) as error:
        raise translate(error) or error from error
    if not getattr(driver, "in_transaction", False):
        raise InvalidInput("connection", "commits each statement separately: begin a transaction on it")
    assert connection.sync_connection is not None  # noqa: S101 - it has just been used
    joined = _join(outbox, connection.sync_connection, driver)
    joined.task = task or asyncio.current_task()
    joined.ends.append(end)
    # A caller that is cancelled here may commit all the same: that commits the whole append, never half of one.
    appended = await run_to_completion(write(outbox, connection, prepared, companion))
    if appended.erased:
        outbox.truncate_wal()
    return appended


def _lock(driver: sqlite3.Connection) -> None:
    driver.execute(_LOCK)


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


def _join(outbox: OutboxFile, connection: sa.Connection, driver: Any) -> _JoinedConnection:
    """Notify the relay after each commit on the connection from now on, and set the ends of its transactions."""
    if (known := _joined.get(connection)) is not None:
        known.driver = driver
        return known
    joined = _joined[connection] = _JoinedConnection(outbox, driver)
    loop = asyncio.get_running_loop()

    def on_rollback(_: sa.Connection) -> None:
        ends, joined.ends = joined.ends, []
        for end in ends:
            end.rolled_back.set()
            end.ended.set()

    def on_commit(_: sa.Connection) -> None:
        ends, joined.ends = joined.ends, []
        # SQLAlchemy reports a commit before it makes it: wait until the driver has left the transaction.
        loop.call_soon(notify_once_left, ends, _POLL_MIN_SECONDS, loop.time() + _POLL_TIMEOUT_SECONDS)

    def notify_once_left(ends: list[TransactionEnd], pause: float, until: float) -> None:
        if joined.open and loop.time() < until:
            loop.call_later(pause, notify_once_left, ends, min(pause * 2, _POLL_MAX_SECONDS), until)
            return
        for end in ends:
            end.ended.set()
        outbox.appended.notify()

    event.listen(connection, "commit", on_commit)
    event.listen(connection, "rollback", on_rollback)
    return joined

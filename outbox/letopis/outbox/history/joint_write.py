"""Write an append in a transaction that is open on a SQLAlchemy connection, and track how that transaction ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.event_log.append import append_events
from letopis.outbox.event_log.append_encoding import Prepared
from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.file.sqlite_errors import translate
from letopis.store.database.sqlite_connection import SQLiteConnection
from letopis.store.errors import LetopisError

if TYPE_CHECKING:
    from letopis.outbox.file.outbox_file import OutboxFile

T = TypeVar("T")


class TransactionEnd:
    """How a transaction ends, as far as that is known.

    :ivar rolled_back: set once it is rolled back, so that its receipts are void.
    :ivar ended: set once it is over, committed or not.
    """

    __slots__ = ("ended", "rolled_back")

    def __init__(self) -> None:
        self.rolled_back = asyncio.Event()
        self.ended = asyncio.Event()


CompanionWrite = Callable[[Any, Appended], None]
"""What is written together with an append, on the same DBAPI cursor."""


async def write(
    outbox: OutboxFile, connection: AsyncConnection, prepared: Prepared, companion: CompanionWrite | None = None
) -> Appended:
    """Write an append and its companion in the transaction that is open on ``connection`` and holds the lock.

    :raises LetopisError: the append was refused, or the file cannot be written.
    """

    def run(cursor: Any) -> Appended | LetopisError:
        outbox.gate.check_room(cursor)
        outcome = append_events(cursor, (prepared,), now_us=outbox.now_us())[0]
        if companion is not None and isinstance(outcome, Appended):
            companion(cursor, outcome)
        return outcome

    outcome = await run_on(connection, run)
    if isinstance(outcome, LetopisError):
        raise outcome
    return outcome


async def run_on(connection: AsyncConnection, work: Callable[[Any], T]) -> T:
    """Return what ``work(cursor)`` returns, run in the transaction that is open on ``connection``.

    :raises LetopisError: the work was refused before it wrote anything, or the file cannot be written.
    """

    def run(driver: Any) -> T:
        cursor = driver.cursor()
        try:
            return work(cursor)
        finally:
            cursor.close()

    try:
        driver = driver_of(connection)
        if isinstance(driver, SQLiteConnection):
            return await driver.run(run)  # one hop into its thread instead of three a statement
        # An engine that the caller made.
        return await connection.run_sync(lambda under: run(under.connection))
    except LetopisError:
        raise  # refused before anything was written
    except Exception as error:
        # Half of it may be written, or SQLite has rolled back all that came before: none of it may be committed now.
        await connection.invalidate()
        raise translate(error) or error from error


def is_open(connection: AsyncConnection) -> bool:
    """Return True if SQLite has an open transaction; on some errors, such as a full disk, it rolls back on its own."""
    return bool(getattr(driver_of(connection), "in_transaction", False))


def driver_of(connection: AsyncConnection) -> object:
    """Return the driver's connection; ``None`` if there is none."""
    if connection.sync_connection is None or connection.invalidated:
        return None
    return connection.sync_connection.connection.driver_connection

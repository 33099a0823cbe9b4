"""Transactions: the bot's own rows and what it says, committed together or not at all."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.append import After, Appended, Prepared, append_events, condition, prepare
from letopis.outbox.file import OutboxFile
from letopis.outbox.receipts import Deliveries, Receipt, receipt_of
from letopis.outbox.trouble import is_busy, translate
from letopis.outbox.writer import PATIENCE
from letopis.store.codec import Limits
from letopis.store.errors import LetopisError, OutboxUnavailable
from letopis.store.events import Event
from letopis.store.messages import Message
from letopis.store.shield import uninterrupted
from letopis.store.sqlite_files import SQLiteConnection
from letopis.store.vocabulary import Body

T = TypeVar("T")
logger = logging.getLogger("letopis.outbox.history")

LONG: Final = 1.0
"""Seconds after which a transaction that is still open is worth a warning: everybody else waits for it."""


class Transaction:
    """An open transaction on the outbox file. Made by ``History.transaction()``; ends with its ``async with`` block.

    :ivar connection: SQLAlchemy's, for everything that has no method here. It must not be committed or closed.
    """

    def __init__(self, outbox: OutboxFile, connection: AsyncConnection, deliveries: Deliveries, limits: Limits) -> None:
        self.connection = connection
        self._outbox = outbox
        self._deliveries = deliveries
        self._limits = limits
        self._void = asyncio.Event()  # set when rolled back: the receipts are worth nothing
        self._appended = False
        self._ending = False

    async def execute(
        self, statement: sa.Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> sa.CursorResult[Any]:
        """Run a statement on the bot's own tables and return its result, fetched already."""
        return await self._run(self.connection.execute(statement, parameters))

    async def scalar(self, statement: sa.Executable, parameters: Mapping[str, Any] | None = None) -> Any:
        """Run a statement and return the first column of its first row, or ``None``."""
        return await self._run(self.connection.scalar(statement, parameters))

    async def append(
        self,
        conversation_id: str,
        what: Message | Body | Event,
        *more: Message | Body | Event,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        occurred_at: datetime | None = None,
        expected: After | None = None,
        after: After | None = None,
        fail_if_types: Collection[str] | None = None,
    ) -> Receipt:
        """Append as ``History.append`` does, with the transaction: it is durable once that has committed.

        An append that is refused writes nothing and leaves the transaction usable. The receipt's ``saved()`` is for
        after the commit.

        :raises LetopisError: as for ``History.append``.
        """
        prepared = prepare(
            conversation_id,
            (what, *more),
            owner=owner,
            metadata=metadata,
            occurred_at=occurred_at,
            limits=self._limits,
            expects=condition(expected=expected, after=after, fail_if_types=fail_if_types),
        )
        self._appended = True  # also where the caller is cancelled and commits all the same
        appended = await uninterrupted(write(self._outbox, self.connection, prepared))
        if appended.erased:
            self._outbox.cut_back()
        return receipt_of(appended, self._deliveries, void=self._void)

    async def _run(self, statement: Awaitable[T]) -> T:
        try:
            return await uninterrupted(statement)
        except DBAPIError:
            if not is_open(self.connection):
                await self.connection.invalidate()  # else what comes next would commit by itself
            raise

    async def _commit(self) -> None:
        if not is_open(self.connection):
            raise OutboxUnavailable(
                "a statement of the transaction failed and took all of it back: nothing was committed, run it again"
            )
        self._outbox.check_place()
        self._ending = True  # from here on the outcome is the file's to tell
        try:
            await self.connection.commit()
        except Exception as error:
            await self.connection.invalidate()
            raise translate(error) or error from error
        if self._appended:
            self._outbox.appended.ring()

    def _fail(self) -> None:
        if not self._ending:
            self._void.set()


async def write(outbox: OutboxFile, connection: AsyncConnection, prepared: Prepared) -> Appended:
    """Write an append in the transaction that is open on ``connection`` and holds the write lock.

    :raises LetopisError: it was refused, or the file cannot be written.
    """

    def run(driver: Any) -> Appended | LetopisError:
        cursor = driver.cursor()
        try:
            outbox.check_room(cursor)
            # Careful: a row that the unique index refused could not be taken back without the caller's own rows.
            return append_events(cursor, (prepared,), now_us=outbox.now_us(), careful=True)[0]
        finally:
            cursor.close()

    try:
        driver = driver_of(connection)
        if isinstance(driver, SQLiteConnection):
            outcome = await driver.run(run)  # one hop into its thread instead of three a statement
        else:  # an engine of the caller's own making
            outcome = await connection.run_sync(lambda under: run(under.connection))
    except LetopisError:
        raise  # refused before anything was written
    except Exception as error:
        # Half of it may be written, or SQLite has taken back all that came before: none of it may be committed now.
        await connection.invalidate()
        raise translate(error) or error from error
    if isinstance(outcome, LetopisError):
        raise outcome
    return outcome


def is_open(connection: AsyncConnection) -> bool:
    """Whether a transaction is still open in SQLite: on some errors, as of a full disk, it rolls back by itself."""
    return bool(getattr(driver_of(connection), "in_transaction", False))


def driver_of(connection: AsyncConnection) -> object:
    """Return the driver's connection; ``None`` where it is not connected."""
    if connection.sync_connection is None or connection.invalidated:
        return None
    return connection.sync_connection.connection.driver_connection


@asynccontextmanager
async def transaction(outbox: OutboxFile, deliveries: Deliveries, limits: Limits) -> AsyncIterator[Transaction]:
    """Open a transaction; commit it when the block ends well, else roll it back, also when the block is cancelled.

    :raises OutboxUnavailable: the file is held by somebody else for 10 seconds, or the commit ended in an error: then
        whether it took effect is known by the event ids.
    """
    await outbox.turn.take()
    opened: list[AsyncConnection] = []
    watch: _Watch | None = None
    try:
        await uninterrupted(_begin(outbox, opened))
        running = Transaction(outbox, opened[0], deliveries, limits)
        watch = _Watch(outbox)
        try:
            yield running
            await uninterrupted(running._commit())
        except BaseException:  # a cancellation too: its receipts must not wait for what was rolled back
            running._fail()
            raise
    finally:
        if watch is not None:
            watch.end()
        try:
            if opened:
                await uninterrupted(opened[0].close())  # rolls back what is still open
        finally:
            outbox.turn.give()


async def _begin(outbox: OutboxFile, opened: list[AsyncConnection]) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        outbox.check_place()  # before SQLite makes a new file where there is none
        try:
            if not opened:
                opened.append(await outbox.engine.connect())
            await opened[0].begin()
        except Exception as error:
            outbox.check_place()
            if is_busy(error) and time.monotonic() < deadline:
                continue
            raise translate(error) or error from error
        return


class _Watch:
    """Sees to it that a transaction that stays open for long is noticed, and does not hold up the others for ever."""

    def __init__(self, outbox: OutboxFile) -> None:
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(LONG, self._warn)

    def end(self) -> None:
        """Stop watching."""
        self._timer.cancel()

    def _warn(self) -> None:
        logger.warning(
            "a transaction on the outbox has been open for %g s: all appends wait for it; await nothing slow inside",
            LONG,
        )
        self._timer = self._loop.call_later(PATIENCE - LONG, self._give_up)

    def _give_up(self) -> None:
        self._outbox.give_up_waiting(
            f"a transaction of this process has held the outbox for {PATIENCE:g} s: await nothing slow inside one"
        )
        self._timer = self._loop.call_later(PATIENCE, self._give_up)

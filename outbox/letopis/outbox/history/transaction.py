"""Commit a bot's own rows together with what it appends, or neither."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from letopis.outbox.concurrency.home_loop import at_home
from letopis.outbox.event_log.append_encoding import Prepared, PreparedChange, prepare
from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.event_log.records.changes import prepare_delete, together
from letopis.outbox.file.committer import LOCK_TIMEOUT_SECONDS
from letopis.outbox.file.joint_write import CompanionWrite, TransactionEnd, is_open, write
from letopis.outbox.file.sqlite_errors import is_busy, translate
from letopis.outbox.history.options import AppendOptions
from letopis.outbox.history.receipts import Receipt
from letopis.outbox.history.records import (
    OnExists,
    RecordPut,
    RecordReceipt,
    Records,
    are_put_into,
    prepare_puts,
    record_receipts,
)
from letopis.outbox.history.reply import Reply
from letopis.outbox.telemetry.tracing import appending
from letopis.store.cancellation import run_to_completion
from letopis.store.errors import Closed, InvalidInput, OutboxUnavailable
from letopis.store.model.event_types import Body
from letopis.store.model.events import Event
from letopis.store.model.messages import Message
from letopis.store.model.records import ANY, Condition, Scope, Tag

if TYPE_CHECKING:
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.history.append import Appender

T = TypeVar("T")
logger = logging.getLogger("letopis.outbox.history")

WARN_AFTER_SECONDS: Final = 1.0  # an open transaction is logged after this, because all other appends wait for it


@at_home()
class Transaction:
    """An open transaction on the outbox file. Made by ``History.transaction()``; ends with its ``async with`` block."""

    def __init__(self, appender: Appender, connection: AsyncConnection) -> None:
        self._connection = connection
        self._appender = appender
        self._outbox = appender.outbox
        self._home = self._outbox.home
        self._deliveries = appender.deliveries
        self._end = TransactionEnd()
        self._appended = False
        self._committing = False

    @property
    def connection(self) -> AsyncConnection:
        """SQLAlchemy's connection, for everything without a method here. Do not commit or close it.

        :raises Closed: the outbox is open in another event loop, where the connection belongs.
        """
        if not self._home.here:
            raise Closed("the connection belongs to another event loop, in which the outbox is open: use tx.execute")
        return self._connection

    async def execute(
        self, statement: sa.Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> sa.CursorResult[Any]:
        """Run a statement on the bot's own tables and return its result, already fetched."""
        return await self._run(self._connection.execute(statement, parameters))

    async def scalar(self, statement: sa.Executable, parameters: Mapping[str, Any] | None = None) -> Any:
        """Run a statement and return the first column of its first row, or ``None``."""
        return await self._run(self._connection.scalar(statement, parameters))

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Open an ORM session in this transaction for the time of a block.

        ::

            async with history.transaction() as tx, tx.session() as session:
                session.add(Order(owner="42"))
                await tx.append("chat-1", Message.assistant("Ordered."))

        What was added is flushed at the end of the block, and commits and rolls back with the transaction. The session
        works in a savepoint, from the beginning of the block and then, after a ``commit()`` or ``rollback()`` of its
        own, from its next statement: ``commit()`` keeps what was written so far for the transaction's commit,
        ``rollback()`` takes back what was written in the savepoint, appends of this transaction included.

        :raises Closed: the outbox is open in another event loop, where the session would belong.
        """
        session = AsyncSession(self.connection, join_transaction_mode="create_savepoint", expire_on_commit=False)
        async with session:
            try:
                await session.connection()  # or its savepoint begins with its first statement, after an append
                yield session
                await run_to_completion(session.commit())
            except DBAPIError:
                if not is_open(self._connection):
                    await self._connection.invalidate()  # otherwise the next statement would be committed on its own
                raise

    async def append(
        self,
        conversation_id: str,
        what: Message | Body | Event,
        *more: Message | Body | Event,
        **options: Unpack[AppendOptions],
    ) -> Receipt:
        """Append as ``History.append`` does; the events are durable once the transaction has committed.

        A refused append writes nothing and leaves the transaction usable. Wait for the receipt's ``saved()`` after the
        commit only.

        :raises LetopisError: as for ``History.append``.
        """
        with appending(conversation_id, (what, *more)):
            prepared = prepare(conversation_id, (what, *more), limits=self._appender.limits, **options)
            if prepared.to_confirm is not None:
                self._appender.claim(prepared)
            appended = await run_to_completion(self._write(prepared))
            return Receipt(appended, self._deliveries, void=self._end.rolled_back)

    async def put(
        self,
        records: Records,
        namespace: Sequence[str],
        key: str,
        value: Any,
        *,
        expected: Condition | UUID = ANY,
        on_exists: OnExists = "raise",
        tags: Mapping[str, Tag] | None = None,
    ) -> RecordReceipt:
        """Put a record as ``Records.put`` does, together with everything else in the transaction.

        The history store is not asked meanwhile. A condition on a record that the outbox does not know itself is left
        to the store, and the receipt's ``superseded()`` tells after the delivery.

        :param records: of ``History.records()``.
        :raises LetopisError: as for ``Records.put``; the transaction stays usable.
        """
        put = RecordPut(namespace, key, value, expected, on_exists, tags)
        return await self._change(records, await prepare_puts(self._scope_of(records), [put]))

    async def delete_record(
        self, records: Records, namespace: Sequence[str], key: str, *, expected: Condition | UUID = ANY
    ) -> RecordReceipt:
        """Delete a record as ``Records.delete`` does, together with everything else in the transaction.

        :raises LetopisError: as for :meth:`put`.
        """
        change = prepare_delete(self._scope_of(records), namespace, key, expected=expected)
        return await self._change(records, [change])

    def _scope_of(self, records: Records) -> Scope:
        if not isinstance(records, Records) or not are_put_into(records, self._outbox):
            raise InvalidInput("records", "must be what records() of this history returns")
        return records.scope

    async def _change(self, records: Records, changes: Sequence[PreparedChange]) -> RecordReceipt:
        appended = await run_to_completion(self._write(together(records.scope, changes, trusting=True)))
        [receipt] = record_receipts(changes, appended, self._deliveries, void=self._end.rolled_back)
        return receipt

    async def finish(
        self,
        reply: Reply,
        *,
        tokens: int | None = None,
        usage: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Finish a reply of ``History.reply()`` in this transaction, as ``Reply.finish`` does outside one.

        The message and the bot's own rows commit together or not at all. After a rollback the reply is unfinished, its
        draft is kept, and it can be finished again.

        :param tokens: as for ``Reply.finish``.
        :param usage: as for ``Reply.finish``.
        :param metadata: as for ``Reply.finish``.
        :raises InvalidInput: the reply belongs to another outbox, or an argument cannot be kept; nothing was written.
        :raises LetopisError: as for ``Reply.finish``; the transaction stays usable.
        """
        if not isinstance(reply, Reply):
            raise InvalidInput("reply", f"must be what history.reply() gives, not {type(reply).__name__}")
        return await reply._finish_within(
            self._outbox, self._write, self._end, tokens=tokens, usage=usage, metadata=metadata
        )

    async def _write(self, prepared: Prepared, companion: CompanionWrite | None = None) -> Appended:
        self._appended = True  # also if the caller is cancelled and commits all the same
        appended = await write(self._outbox, self._connection, prepared, companion)
        if appended.erased:
            self._outbox.truncate_wal()
        return appended

    async def _run(self, statement: Awaitable[T]) -> T:
        try:
            return await run_to_completion(statement)
        except DBAPIError:
            if not is_open(self._connection):
                await self._connection.invalidate()  # otherwise the next statement would be committed on its own
            raise

    async def _commit(self) -> None:
        if not is_open(self._connection):
            raise OutboxUnavailable(
                "a statement of the transaction failed and rolled all of it back: nothing was committed, run it again"
            )
        self._outbox.gate.verify_file()
        self._committing = True  # from here on only the file knows the outcome
        try:
            await self._connection.commit()
        except Exception as error:
            await self._connection.invalidate()
            raise translate(error) or error from error
        if self._appended:
            self._outbox.appended.notify()


@asynccontextmanager
async def transaction(appender: Appender) -> AsyncIterator[Transaction]:
    """Open a transaction, commit it if the block ends well, and roll it back otherwise, also on cancellation."""
    outbox = appender.outbox
    await outbox.gate.acquire()
    opened: list[AsyncConnection] = []
    watch: _DurationWatch | None = None
    running: Transaction | None = None
    try:
        await run_to_completion(_begin(outbox, opened))
        running = Transaction(appender, opened[0])
        watch = _DurationWatch(outbox)
        try:
            yield running
            await run_to_completion(running._commit())
        except BaseException:  # a cancellation too: receipts must not wait for what was rolled back
            if not running._committing:
                running._end.rolled_back.set()
            raise
    finally:
        if watch is not None:
            watch.timer.cancel()
        try:
            if opened:
                await run_to_completion(opened[0].close())  # rolls back what is still open
        finally:
            if running is not None:
                running._end.ended.set()
            outbox.gate.release()


async def _begin(outbox: OutboxFile, opened: list[AsyncConnection]) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    while True:
        outbox.gate.verify_file()  # before SQLite creates a file where there is none
        try:
            if not opened:
                opened.append(await outbox.engine.connect())
            await opened[0].begin()
        except Exception as error:
            outbox.gate.verify_file()
            if is_busy(error) and time.monotonic() < deadline:
                continue
            raise translate(error) or error from error
        return


class _DurationWatch:
    """Logs a transaction that stays open for long, and refuses those that have waited too long for it."""

    def __init__(self, outbox: OutboxFile) -> None:
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self.timer = self._loop.call_later(WARN_AFTER_SECONDS, self._warn)

    def _warn(self) -> None:
        logger.warning(
            "a transaction on the outbox has been open for %g s: all appends wait for it; await nothing slow inside",
            WARN_AFTER_SECONDS,
        )
        self.timer = self._loop.call_later(LOCK_TIMEOUT_SECONDS - WARN_AFTER_SECONDS, self._refuse_waiters)

    def _refuse_waiters(self) -> None:
        self._outbox.reject_waiters(
            f"a transaction of this process has held the outbox for {LOCK_TIMEOUT_SECONDS:g} s:"
            " await nothing slow inside one"
        )
        self.timer = self._loop.call_later(LOCK_TIMEOUT_SECONDS, self._refuse_waiters)

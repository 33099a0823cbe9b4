"""The writer: takes everything that waits and commits it in one transaction, on one connection, in one thread hop."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from letopis.outbox.append import Appended, Prepared, append_events
from letopis.outbox.bell import Bell
from letopis.outbox.bounds import Bounds
from letopis.outbox.headroom import Headroom
from letopis.outbox.identity import Whereabouts
from letopis.outbox.thread import OwnThread
from letopis.outbox.trouble import is_busy, is_conflict, is_full, sqlite_error, translate
from letopis.outbox.turn import Turn
from letopis.store.cutback import CutBack
from letopis.store.errors import Closed, LetopisError, OutboxUnavailable

T = TypeVar("T")
logger = logging.getLogger("letopis.outbox.writer")

GROUP: Final = 512
"""Requests in one transaction: more gain nothing, and keep the first of them waiting."""
PATIENCE: Final = 10.0
"""Seconds that a write waits for the file before it is given up."""
_BUSY_MS: Final = 2
"""How long SQLite itself waits for the lock, before it is asked again: it looks each millisecond at first, then less
and less often, up to 100 ms, and meets a bot that writes all the time only by chance."""
LARGE_WAL: Final = 8 * 1024**2
"""Bytes of a WAL, twice what SQLite lets it grow to by itself, above which a quiet moment is used to cut it back."""
_CUT_PATIENCE_MS: Final = 50
TRIES: Final = 3
"""How often a transaction is run whose commit ended in an error."""

Work = Callable[[sa.Connection], Any]


@dataclass(slots=True, eq=False)
class _Request:
    """One caller that waits, and what it wants written."""

    answer: asyncio.Future[Any]
    prepared: Prepared | None = None
    work: Work | None = None


@dataclass(slots=True, eq=False)
class _Group:
    """What goes into one transaction, and what came of each."""

    requests: list[_Request]
    values: list[Any] = field(default_factory=list)
    appended: bool = False
    changed: bool = False
    erased: bool = False


class _CommitFailed(Exception):
    """COMMIT ended in an error: whether it took effect is not known."""


class Writer:
    """The one writer of an outbox file in this process.

    Nothing that a caller does tears a transaction: it runs in the writer's thread, whatever becomes of those who wait.
    """

    def __init__(
        self,
        *,
        path: Path,
        whereabouts: Whereabouts,
        engine: sa.Engine,
        thread: OwnThread,
        turn: Turn,
        bounds: Bounds,
        headroom: Headroom,
        now_us: Callable[[], int],
        appended: Bell,
        changed: Bell,
    ) -> None:
        self._path = path
        self._whereabouts = whereabouts
        self._engine = engine
        self._thread = thread
        self._turn = turn
        self._bounds = bounds
        self._headroom = headroom
        self._now_us = now_us
        self._appended = appended
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._connection: sa.Connection | None = None  # the thread's alone
        self._waiting: deque[_Request] = deque()
        self._asked = False
        self._crowded = False
        # Whether the WAL may still hold what was taken out of the file; also by a process that died before it cut it.
        self._cut = True
        self._cutting = CutBack(self._cut_now)
        self._idle: asyncio.Future[None] | None = None
        self._closed = False

    async def append(self, prepared: Prepared) -> Appended:
        """Write one append, durably; concurrent ones share a transaction.

        :raises LetopisError: it was refused, or the file cannot be written; then nothing of it was acknowledged.
        """
        request = _Request(self._loop.create_future(), prepared=prepared)
        self._submit(request)
        result: Appended = await request.answer
        return result

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in a write transaction, which others may share, and return what it returns, after COMMIT."""
        request = _Request(self._loop.create_future(), work=work)
        self._submit(request)
        result: T = await request.answer
        return result

    async def tidy(self) -> None:
        """Checkpoint the WAL, between two transactions, and see to the ballast.

        :raises OutboxUnavailable: the file cannot be written; OutboxFull where the disk is full.
        """
        await self._thread.run(self._tidy)

    def cut_back(self) -> None:
        """Have the WAL cut back, as soon as no reader needs it: it holds what was taken out of the file."""
        self._cut = True
        self._cutting.due()

    async def _cut_now(self) -> bool:
        def run() -> bool:
            with suppress(sqlite3.Error, DBAPIError, OutboxUnavailable):
                self._checkpoint()
            return not self._cut

        return await self._thread.run(run)

    async def close(self) -> None:
        """Write what waits, then close the connection. Later requests are refused."""
        self._closed = True
        await self._cutting.close()
        if self._asked:
            self._idle = self._loop.create_future()
            await self._idle
        await self._thread.run(self._disconnect)

    def give_up_waiting(self, reason: str) -> None:
        """Refuse what waits for its turn; what is being written is not touched."""
        waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            if not request.answer.done():
                request.answer.set_exception(OutboxUnavailable(reason))

    # In the event loop.

    def _submit(self, request: _Request) -> None:
        if self._closed:
            raise Closed("the outbox was closed")
        holder = self._turn.holder
        if holder is not None and holder is asyncio.current_task():
            # It would wait for itself.
            raise OutboxUnavailable("this task holds a transaction on the outbox: append through it (tx.append)")
        self._thread.check()
        if asyncio.get_running_loop() is not self._loop:
            raise Closed("opened in another event loop: open the outbox in the loop that uses it")
        self._waiting.append(request)
        if not self._asked:
            self._asked = True
            if self._crowded:
                # At the end of this turn of the loop, so that what other tasks are about to submit comes along.
                self._loop.call_soon(self._turn.ask, self._begin)
            else:
                self._turn.ask(self._begin)

    def _begin(self) -> bool:
        waiting = self._waiting
        if len(waiting) <= GROUP:
            self._waiting = deque()
        else:
            waiting = deque([self._waiting.popleft() for _ in range(GROUP)])
        # A caller that was cancelled while it waited is not written at all.
        group = _Group([one for one in waiting if not one.answer.done()])
        self._crowded = len(waiting) > 1
        try:
            self._thread.post(partial(self._commit, group), partial(self._finish, group))
        except Closed as closed:
            self._loop.call_soon(self._finish, group, None, closed)
        return True

    def _finish(self, group: _Group, _: None, error: BaseException | None) -> None:
        values = group.values if error is None else [error] * len(group.requests)
        for request, value in zip(group.requests, values, strict=True):
            if request.answer.done():
                continue
            if isinstance(value, BaseException):
                request.answer.set_exception(value)
            else:
                request.answer.set_result(value)
        if group.appended:
            self._appended.ring()
        if group.changed:
            self._changed.ring()
        if group.erased and self._cut and not self._closed:
            self._cutting.due()
        if self._waiting:
            # After those who were woken just now, and behind the transactions that ask already.
            self._loop.call_soon(self._turn.ask, self._begin)
        else:
            self._asked = False
            if self._idle is not None and not self._idle.done():
                self._idle.set_result(None)
        self._turn.give()

    # In the thread.

    def _commit(self, group: _Group) -> None:
        group.values = self._write([(one.prepared, one.work) for one in group.requests])
        for request, value in zip(group.requests, group.values, strict=True):
            if isinstance(value, BaseException):
                continue
            if request.work is not None:
                group.changed = True
            else:
                group.appended = True
                group.erased = group.erased or value.erased
        if group.erased:
            self._cut = True
            with suppress(sqlite3.Error, DBAPIError):  # then behind it
                self._checkpoint()

    def _write(self, members: Sequence[tuple[Prepared | None, Work | None]]) -> list[Any]:
        """Return, for each member, what came of it: a value or an error."""
        deadline = time.monotonic() + PATIENCE
        careful = False
        tries = 0
        while True:
            try:
                return self._transact(members, careful=careful)
            except _CommitFailed as failed:
                if is_full(failed.__cause__ or failed):  # no space for its last page: nothing of it can be read
                    careful = True
                    if (refused := self._without_space(members, failed.__cause__ or failed)) is not None:
                        return refused
                    continue
                # Once more with the same ids: what did get committed is found again and not written twice.
                self._disconnect()
                careful = True
                tries += 1
                if tries >= TRIES:
                    return [_ours(failed.__cause__ or failed)] * len(members)
                logger.warning("a commit of the outbox ended in an error; running it again under the same event ids")
            except LetopisError as error:
                self._rescue()
                return [error] * len(members)
            except Exception as error:  # sorted here: waited for, isolated, or handed to the one it belongs to
                if is_busy(error):
                    if time.monotonic() < deadline:
                        continue
                    return [_ours(error)] * len(members)
                if is_conflict(error) and not careful:
                    careful = True  # an id is there already, most likely
                    continue
                if is_full(error):
                    if (refused := self._without_space(members, error)) is not None:
                        return refused
                    continue
                if sqlite_error(error) is not None and (lost := self._lost()) is not None:
                    return [lost] * len(members)
                if len(members) > 1:
                    return [self._write([member])[0] for member in members]
                if sqlite_error(error) is not None:
                    self._disconnect()  # after an error of the disk a connection is not to be trusted
                return [_ours(error)]

    def _without_space(
        self, members: Sequence[tuple[Prepared | None, Work | None]], error: BaseException
    ) -> list[Any] | None:
        """Return what comes of ``members`` on a full disk; ``None`` to try again, there is a little space now.

        The space of the ballast is for what writes events off, not for new ones.
        """
        if len(members) > 1:
            return [self._write([member])[0] for member in members]
        _, work = members[0]
        if work is None or not self._headroom.release():
            return [_ours(error)]
        logger.warning("the disk of the outbox is full: its ballast was deleted, so that deliveries can be written off")
        with suppress(sqlite3.Error, DBAPIError):  # then the WAL goes on growing, into the same space
            self._checkpoint()
        return None

    def _tidy(self) -> None:
        try:
            self._checkpoint()
        except (sqlite3.Error, DBAPIError) as error:
            raise _ours(error) from error
        self._headroom.restore()

    def _checkpoint(self) -> None:
        """Move the WAL into the file. Only what has grown large is cut back: to write over a WAL is cheaper."""
        driver: sqlite3.Connection = self._connect().connection.driver_connection  # type: ignore[assignment]
        _, frames, moved = driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if frames == moved and (self._cut or self._wal_bytes() > LARGE_WAL):
            # Waits for readers, and appends wait behind it.
            ((patience,),) = driver.execute("PRAGMA busy_timeout").fetchall()
            driver.execute(f"PRAGMA busy_timeout={_CUT_PATIENCE_MS}").fetchall()
            try:
                ((busy, _, _),) = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self._cut = self._cut and bool(busy)
            finally:
                driver.execute(f"PRAGMA busy_timeout={patience}").fetchall()

    def _wal_bytes(self) -> int:
        try:
            return self._path.with_name(self._path.name + "-wal").stat().st_size
        except OSError:
            return 0

    def _transact(self, members: Sequence[tuple[Prepared | None, Work | None]], *, careful: bool) -> list[Any]:
        connection = self._connect()
        driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
        transaction: sqlite3.Connection | sa.RootTransaction
        if [work for _, work in members if work is not None]:
            transaction = connection.begin()  # IMMEDIATE, by the engine's event
        else:
            # What SQLAlchemy does around a transaction costs as much as the rows of an append.
            driver.execute("BEGIN IMMEDIATE")
            transaction = driver
        try:
            values = self._run(connection, driver.cursor(), members, careful=careful)
            # As late as can be: SQLite would commit to a file that nobody will find.
            self._whereabouts.check()
        except BaseException:  # whatever it was, the write lock is not kept
            self._roll_back(transaction)
            raise
        try:
            transaction.commit()
        except Exception as error:
            if is_busy(error):  # refused before anything was written
                self._roll_back(transaction)
                raise
            if driver.in_transaction:  # else a connection that is kept could not begin the next one
                self._roll_back(driver)
            if is_full(error):
                # The connection stays: on a full disk there may be no opening another.
                driver.rollback()
                self._roll_back(transaction)
            raise _CommitFailed from error
        return values

    def _run(
        self,
        connection: sa.Connection,
        cursor: sqlite3.Cursor,
        members: Sequence[tuple[Prepared | None, Work | None]],
        *,
        careful: bool,
    ) -> list[Any]:
        appends = [prepared for prepared, _ in members if prepared is not None]
        outcomes: list[Any] = []
        if appends:
            try:
                self._headroom.check()
                self._bounds.check(cursor, self._whereabouts.size)
            except LetopisError as full:
                outcomes = [full] * len(appends)
            else:
                outcomes = append_events(cursor, appends, now_us=self._now_us(), careful=careful)
            if len(appends) == len(members):
                return outcomes
        values: list[Any] = []
        appended = iter(outcomes)
        for _, work in members:
            if work is None:
                values.append(next(appended))
            else:
                values.append(self._run_apart(connection, work) if len(members) > 1 else work(connection))
        return values

    def _run_apart(self, connection: sa.Connection, work: Work) -> Any:
        """Run ``work`` under a savepoint, so that its failure is its own."""
        savepoint = connection.begin_nested()
        try:
            value = work(connection)
        except Exception as error:
            if sqlite_error(error) is not None and not is_conflict(error):
                raise  # SQLite may have rolled back the whole transaction
            savepoint.rollback()
            return error
        savepoint.commit()
        return value

    def _connect(self) -> sa.Connection:
        if self._connection is None:
            self._whereabouts.check()
            self._connection = self._engine.connect()
            driver: sqlite3.Connection = self._connection.connection.driver_connection  # type: ignore[assignment]
            driver.execute(f"PRAGMA busy_timeout={_BUSY_MS}").fetchall()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _lost(self) -> LetopisError | None:
        """Return why SQLite meets errors, where it is that its files were taken away under it."""
        try:
            self._whereabouts.check()
        except OutboxUnavailable as lost:
            self._rescue()
            return lost
        return None

    def _rescue(self) -> None:
        """Move into the file what was committed to a -wal that was removed: while it is open here, it can be read."""
        if self._connection is not None and self._whereabouts.lost_wal():
            with suppress(sqlite3.Error, DBAPIError):  # a reader is in the way: the next write tries again
                self._checkpoint()

    def _roll_back(self, transaction: sqlite3.Connection | sa.RootTransaction) -> None:
        try:
            transaction.rollback()
        except Exception:  # a connection that cannot even roll back is of no further use, its end rolls back
            self._disconnect()


def _ours(error: BaseException) -> BaseException:
    """Return our error for ``error``, chained; what is not SQLite's is returned as it is."""
    translated = translate(error)
    if translated is None:
        return error
    translated.__cause__ = error
    return translated

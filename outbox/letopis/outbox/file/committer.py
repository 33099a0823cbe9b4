"""Commit a group of appends and other writes in one transaction, in the writer's thread."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from letopis.outbox.concurrency.fair_lock import FairLock
from letopis.outbox.event_log.append import append_events
from letopis.outbox.event_log.append_encoding import Prepared
from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.file.identity import FileId, FileIdentityGuard
from letopis.outbox.file.limits import Bounds, DiskReserve
from letopis.outbox.file.sqlite_errors import is_busy, is_conflict, is_full, sqlite_error, translate
from letopis.outbox.file.wal_checkpoint import WalCheckpoint, wal_size
from letopis.store.errors import LetopisError, OutboxUnavailable

LOCK_TIMEOUT_SECONDS: Final = 10.0  # how long a write waits for the file before it is refused


class WriteGate(FairLock):
    """Lets one writer of this process at a time to the file, while that is in its place and has room."""

    def __init__(self, path: Path, file_id: FileId, *, bounds: Bounds) -> None:
        super().__init__()
        self.files = FileIdentityGuard(path, file_id)
        self.verify_file = self.files.verify
        self.reserve = DiskReserve(path, watermark=bounds.min_free_bytes)
        self._bounds = bounds
        self._wal_size = partial(wal_size, path)

    def check_room(self, cursor: Any) -> None:
        """Do nothing if new events may be written, in the transaction that is open on a DBAPI ``cursor``."""
        self.verify_file()
        self.check_space(cursor)

    def check_space(self, cursor: Any) -> None:
        """Do the part of :meth:`check_room` that is left to a writer that verifies the file before its commit."""
        self.reserve.check()
        self._bounds.check(cursor, self.files.size, self._wal_size)


logger = logging.getLogger("letopis.outbox.writer")

MAX_COMMIT_ATTEMPTS: Final = 3  # how often a transaction is run whose commit ended in an error
_BUSY_TIMEOUT_MS: Final = 2
"""How long SQLite itself waits for the lock before it is asked again. It looks each millisecond at first, then less and
less often, up to 100 ms, and would meet a bot that writes all the time only by chance."""

Work = Callable[[sa.Connection], Any]
Member = Prepared | Work  # what one caller wants written


class _CommitFailed(Exception):
    """COMMIT ended in an error: it may or may not have taken effect."""


class Committer:
    """The writing connection of an outbox file. All methods are for the writer's thread."""

    def __init__(self, *, path: Path, engine: sa.Engine, gate: WriteGate, now_us: Callable[[], int]) -> None:
        self.wal = WalCheckpoint(path)
        self._engine = engine
        self._gate = gate
        self._now_us = now_us
        self._open: tuple[sa.Connection, sqlite3.Connection] | None = None

    def commit(self, members: Sequence[Member]) -> list[Any]:
        """Write ``members`` in one transaction, or each alone; return a value or an error for each, after COMMIT."""
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        failed_commits = 0
        while True:
            try:
                return self._transact(members)
            except _CommitFailed as failed:
                # Run it again with the same ids: what did get committed is found and not written twice.
                self.disconnect()
                failed_commits += 1
                if failed_commits >= MAX_COMMIT_ATTEMPTS:
                    return [_ours(failed.__cause__ or failed)] * len(members)
                logger.warning("a commit of the outbox ended in an error; running it again under the same event ids")
            except LetopisError as error:
                self._rescue()
                return [error] * len(members)
            except Exception as error:  # sorted here: waited for, isolated, or returned to its caller
                if is_busy(error):
                    if time.monotonic() < deadline:
                        continue
                    return [_ours(error)] * len(members)
                if is_full(error):
                    if (refused := self._without_space(members, error)) is not None:
                        return refused
                    continue
                if sqlite_error(error) is not None and (lost := self._lost()) is not None:
                    return [lost] * len(members)
                if len(members) > 1:
                    return self._commit_alone(members)
                if sqlite_error(error) is not None:
                    self.disconnect()  # after an error of the disk a connection is not to be trusted
                return [_ours(error)]

    def checkpoint(self) -> None:
        self.wal.run(self._connect()[1])

    def maintain(self) -> None:
        """Move the WAL into the file and make the disk reserve where it is missing."""
        try:
            self.checkpoint()
        except (sqlite3.Error, DBAPIError) as error:
            raise _ours(error) from error
        self._gate.reserve.restore()

    def disconnect(self) -> None:
        """Close the connection; the next write opens another."""
        opened, self._open = self._open, None
        if opened is not None:
            opened[0].invalidate()
            opened[0].close()

    def _commit_alone(self, members: Sequence[Member]) -> list[Any]:
        return [self.commit([member])[0] for member in members]

    def _without_space(self, members: Sequence[Member], error: BaseException) -> list[Any] | None:
        """Return the outcome of ``members`` on a full disk; ``None`` to try again with the reserve's space."""
        if len(members) > 1:
            return self._commit_alone(members)
        if isinstance(members[0], Prepared) or not self._gate.reserve.release():
            return [_ours(error)]
        logger.warning(
            "the disk of the outbox is full: its reserve was deleted, so that deliveries can be acknowledged"
        )
        with suppress(sqlite3.Error, DBAPIError):  # the WAL then goes on growing, into the same space
            self.checkpoint()
        return None

    def _transact(self, members: Sequence[Member]) -> list[Any]:
        if not members:  # all were cancelled
            return []
        connection, driver = self._open or self._connect()
        transaction: sqlite3.Connection | sa.RootTransaction
        if appends_only := {Prepared}.issuperset(map(type, members)):
            # What SQLAlchemy does around a transaction costs as much as the rows of an append.
            driver.execute("BEGIN IMMEDIATE")
            transaction = driver
        else:
            transaction = connection.begin()  # IMMEDIATE, by the engine's event
        try:
            outcomes = (
                self._append(driver.cursor(), members)
                if appends_only
                else self._run(connection, driver.cursor(), members)
            )
            # As late as possible: SQLite would commit to a file that is no longer at its path.
            self._gate.verify_file()
        except BaseException:  # whatever it was, the write lock is not kept
            self._roll_back(transaction)
            raise
        try:
            transaction.commit()
        except Exception as error:
            if is_busy(error):  # refused before anything was written
                self._roll_back(transaction)
                raise
            if driver.in_transaction:  # otherwise a connection that is kept could not begin the next one
                self._roll_back(driver)
            if is_full(error):
                # There was no space for the last page, so nothing took effect. The connection stays: on a full disk it
                # may be impossible to open another.
                driver.rollback()
                self._roll_back(transaction)
                raise
            raise _CommitFailed from error
        for outcome in outcomes:
            if type(outcome) is Appended and outcome.erased:
                self.wal.truncation_due = True
                # The members are committed: no error from here on may be taken for one of theirs. The scheduled
                # truncation tries again.
                with suppress(Exception):
                    self.checkpoint()
                break
        return outcomes

    def _run(self, connection: sa.Connection, cursor: sqlite3.Cursor, members: Sequence[Member]) -> list[Any]:
        """Return the outcome of each member; the appends are written first, together."""
        appends = [member for member in members if isinstance(member, Prepared)]
        appended = iter(self._append(cursor, appends) if appends else ())
        return [
            next(appended)
            if isinstance(member, Prepared)
            else self._run_apart(connection, member)
            if len(members) > 1
            else member(connection)
            for member in members
        ]

    def _append(self, cursor: sqlite3.Cursor, appends: Sequence[Any]) -> list[Any]:
        try:
            self._gate.check_space(cursor)
        except LetopisError as full:
            return [full] * len(appends)
        return append_events(cursor, appends, now_us=self._now_us())

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

    def _connect(self) -> tuple[sa.Connection, sqlite3.Connection]:
        if self._open is None:
            self._gate.verify_file()
            connection = self._engine.connect()
            driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
            self._open = connection, driver
            driver.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}").fetchall()
        return self._open

    def _lost(self) -> LetopisError | None:
        """Return why SQLite meets errors, if the reason is that its files were removed or replaced."""
        try:
            self._gate.verify_file()
        except OutboxUnavailable as lost:
            self._rescue()
            return lost
        return None

    def _rescue(self) -> None:
        """Move into the file what was committed to a -wal that was removed: this process can still read it."""
        if self._open is not None and self._gate.files.lost_wal():
            with suppress(sqlite3.Error, DBAPIError):  # a reader is in the way: the next write tries again
                self.checkpoint()

    def _roll_back(self, transaction: sqlite3.Connection | sa.RootTransaction) -> None:
        try:
            transaction.rollback()
        except Exception:  # a connection that cannot roll back is of no further use; closing it rolls back
            self.disconnect()


def _ours(error: BaseException) -> BaseException:
    """Return our error for ``error``, chained; an error that is not SQLite's is returned unchanged."""
    translated = translate(error)
    if translated is None:
        return error
    translated.__cause__ = error
    return translated

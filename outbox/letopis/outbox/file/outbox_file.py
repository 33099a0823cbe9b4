"""Open an outbox file and share it between everything that reads or writes it in this process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.outbox.concurrency.home_loop import HomeLoop
from letopis.outbox.event_log.append_encoding import Prepared
from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.file.change_watcher import Signal
from letopis.outbox.file.committer import LOCK_TIMEOUT_SECONDS, Committer, WriteGate
from letopis.outbox.file.inspection import BUSY_TIMEOUT_SECONDS, outbox_path
from letopis.outbox.file.limits import Bounds
from letopis.outbox.file.opening import OpenedFile, open_file
from letopis.outbox.file.pending_probe import PendingProbe
from letopis.outbox.file.sqlite_errors import is_busy, is_full, sqlite_error, translate
from letopis.outbox.file.writer import Writer
from letopis.store.cancellation import run_to_completion
from letopis.store.database.engines import create_store_engine
from letopis.store.database.timeouts import Timeouts
from letopis.store.database.worker_thread import WorkerThread
from letopis.store.errors import Closed
from letopis.store.model.events import now_microseconds, to_microseconds, utc_now

T = TypeVar("T")


class OutboxReader:
    """The reading connection of an outbox file: it waits for no writer, and no writer waits for it."""

    def __init__(self, engine: sa.Engine, gate: WriteGate, *, thread: WorkerThread | None = None) -> None:
        """Prepare to read; ``thread`` is another's, which is not closed here, or ``None`` for one of its own."""
        self._engine = engine.execution_options(sqlite_begin="DEFERRED")
        self._gate = gate
        self._own_thread = thread is None
        self._thread = thread or WorkerThread("letopis-outbox-reader")
        self._connection: sa.Connection | None = None  # the reading thread's alone

    async def run(self, fn: Callable[[sa.Connection], T]) -> T:
        """Run ``fn(connection)`` over one snapshot and return its result."""
        return await self._thread.run(lambda: self._run(fn))

    async def disconnect(self) -> None:
        """Close the connection, after the reads that were submitted."""
        await self._thread.run(self._disconnect)

    async def close(self) -> None:
        """End the thread, if it is its own."""
        if self._own_thread:
            await self._thread.close()

    def _run(self, fn: Callable[[sa.Connection], T]) -> T:
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while True:
            try:
                if self._connection is None:
                    self._gate.verify_file()  # SQLite would create a missing file
                    self._connection = self._engine.connect()
                with self._connection.begin():
                    return fn(self._connection)
            except Exception as error:
                if sqlite_error(error) is None:
                    raise  # an error of fn
                self._disconnect()
                if is_full(error) and self._gate.reserve.release():
                    continue
                if not is_busy(error) or time.monotonic() > deadline:
                    raise translate(error) or error from error

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()


_BOUNDS: Final = Bounds()


class OutboxFile:
    """One open outbox file. Made by :meth:`open`; to be used in the event loop that opened it, until :meth:`close`.

    Any number of processes may have the same file open. None of them may ever ``open()`` and close it by other means
    than SQLite: that drops the locks of the whole process.

    :ivar path: absolute.
    :ivar home: the event loop that opened it.
    :ivar origin: the file's identity, under which it delivers.
    :ivar file_id: device and inode.
    :ivar engine: for the caller's own transactions; they begin with ``BEGIN IMMEDIATE``.
    :ivar probe: tells in any thread how far a conversation has got in the file.
    :ivar gate: to be passed by everything that writes over ``engine`` for longer than a moment.
    :ivar appended: notified after each commit of this process that added events.
    :ivar changed: notified after each other write of this process: acknowledged, retried, blocked.
    :ivar now_us: returns the present moment in UTC microseconds.
    """

    def __init__(
        self,
        *,
        path: Path,
        opened: OpenedFile,
        thread: WorkerThread,
        bounds: Bounds,
        now: Callable[[], datetime],
        one_thread: bool = False,
    ) -> None:
        self.path = path
        self.home = HomeLoop()
        self.file_id = opened.file_id
        self.appended = Signal()
        self.changed = Signal()
        self.gate = WriteGate(path, opened.file_id, bounds=bounds)
        self.gate.files.capture()
        self.engine: AsyncEngine = create_store_engine(path, timeouts=Timeouts(lock=BUSY_TIMEOUT_SECONDS), pool_size=8)
        self.probe = PendingProbe(path, self.gate.verify_file)
        # Another one than that of lookups, which would wait for as long as a large string is read.
        self._contents = PendingProbe(path, self.gate.verify_file)
        self.origin = replace(opened.origin, read_content=self._contents.content)
        self.now_us = now_microseconds if now is utc_now else lambda: to_microseconds(now())
        self._anchor = opened.anchor  # the writer's thread's alone
        self._thread = thread
        self._reader = OutboxReader(opened.engine, self.gate, thread=thread if one_thread else None)
        self._writer = Writer(
            committer=Committer(path=path, engine=opened.engine, gate=self.gate, now_us=self.now_us),
            thread=thread,
            gate=self.gate,
            appended=self.appended,
            changed=self.changed,
        )
        self._closed = False

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        create: bool = True,
        bounds: Bounds = _BOUNDS,
        now: Callable[[], datetime] = utc_now,
        one_thread: bool = False,
    ) -> OutboxFile:
        """Open an outbox file; create it (mode 0600) and bring its tables to this release's revision where needed.

        Several processes may do so at once. A file with other tables in it, the bot's own database, becomes an outbox
        as well and keeps its mode.

        :param create: create a missing file; the folder is never created.
        :param now: the clock that times in the file are taken from.
        :param one_thread: read in the writer's thread too, so that a read may wait for a write; for a process with very
            many files.
        :raises ConfigurationError: there is no file, or it cannot be an outbox: the message says what to do.
        :raises OutboxUnavailable: other processes hold its lock, or the disk fails.
        """
        where = outbox_path(path)
        thread = WorkerThread("letopis-outbox-writer")
        opened: list[OpenedFile] = []

        def work() -> None:
            opened.append(open_file(where, create=create, now_us=lambda: to_microseconds(now())))

        try:
            await run_to_completion(thread.run(work))
            return cls(path=where, opened=opened[0], thread=thread, bounds=bounds, now=now, one_thread=one_thread)
        except BaseException:  # a cancelled open leaves no thread and no connection behind either
            for outbox in opened:
                await run_to_completion(thread.run(outbox.anchor.close))
            await run_to_completion(thread.close())
            raise

    def append(self, prepared: Prepared) -> asyncio.Future[Appended]:
        """Write prepared events; once the future is done, they survive a power cut.

        Concurrent appends share one transaction and one flush; those of one conversation keep the order of the calls.
        An event that is there already, with the same content, is not written again: its first sequence is returned.
        (An event that has been pruned meanwhile is written again; the history store then absorbs it.)

        A cancellation may come too late: the event ids tell whether the append took effect, so running it again with
        the same ids is always safe.

        :raises IdReused: an id of it holds other content.
        :raises InvalidInput: the conversation has another owner.
        :raises OutboxFull: the outbox, or the disk, is full; nothing was dropped.
        :raises OutboxUnavailable: the file cannot be written, or another writer holds it for 10 seconds.
        :raises Closed: after :meth:`close`, or in a process that was forked off.
        """
        return self._writer.submit(prepared)

    def write(self, fn: Callable[[sa.Connection], T]) -> asyncio.Future[T]:
        """Run ``fn(connection)`` in a write transaction; the future has its result after COMMIT.

        The transaction may be shared with appends and other work; a function that raises fails alone. It runs in the
        writer's thread, and once more when a commit ends in an error: it must bear that. It must not commit, and must
        fetch all that it reads.

        :raises OutboxUnavailable: the file cannot be written. Other errors of ``fn`` are raised unchanged.
        """
        return self._writer.submit(fn)

    async def read(self, fn: Callable[[sa.Connection], T]) -> T:
        """Run ``fn(connection)`` over one snapshot of the file, in the reading thread, and return its result.

        It waits for no writer, and no writer waits for it. It must fetch all that it reads.

        :raises OutboxUnavailable: the file cannot be read.
        """
        if self._closed:
            raise Closed("the outbox was closed")
        return await self._reader.run(fn)

    async def maintain(self) -> None:
        """Move the WAL into the file as far as no reader needs it, truncate it where it has grown large, and create the
        disk reserve where it is missing. For idle moments.

        :raises OutboxUnavailable: the file cannot be written; :exc:`OutboxFull` where the disk is full.
        """
        await self._writer.maintain()

    def truncate_wal(self) -> None:
        """Have the WAL truncated as soon as no reader needs it, because content was erased from the file."""
        self._writer.truncate_wal()

    def reject_waiters(self, reason: str) -> None:
        """Refuse the appends, writes and transactions that wait for the gate, with ``OutboxUnavailable``."""
        self._writer.reject_waiters(reason)
        self.gate.reject_waiters(reason)

    async def close(self) -> None:
        """Write what waits, then close everything; nothing has to be delivered first. Idempotent."""
        if not self._closed:
            self._closed = True
            await run_to_completion(self._close())

    async def _close(self) -> None:
        try:
            await self._writer.close()
            await self._reader.disconnect()
            self.probe.close()
            self._contents.close()
            await self.engine.dispose()
        finally:
            try:
                await self._thread.run(self._anchor.close)
            finally:
                await self._thread.close()
                await self._reader.close()

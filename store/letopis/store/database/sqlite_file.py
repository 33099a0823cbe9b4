"""Run whole transactions of an SQLite file in the threads of synchronous connections."""

# A transaction is a coroutine that awaits nothing but its connection, so the same code serves a server, whose
# connection is awaited, and a file, where a thread runs it from beginning to end, in one hop.

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import StaticPool

from letopis.store.cancellation import run_to_completion
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.sqlite import BEGIN, note_trigger_text, open_file, set_up
from letopis.store.database.sqlite_connection import file_id
from letopis.store.database.sqlite_statements import DIALECT, Rows, Statement, compiled, rows_of
from letopis.store.database.timeouts import Timeouts
from letopis.store.database.worker_thread import WorkerThread, settle
from letopis.store.errors import Closed, ConfigurationError

T = TypeVar("T")

CLOSE_TIMEOUT_SECONDS: Final = 1.0
"""Seconds that closing waits for transactions that are running."""
_INTERRUPT_AGAIN_SECONDS: Final = 0.05
_PASSING_CODES: Final = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CONSTRAINT", "SQLITE_INTERRUPT")
"""Errors after which a connection is as good as before."""
_here: Final = threading.local()
_inherited: Final[list[object]] = []
"""Connections of a parent process: closing them in a forked child would release the parent's locks."""


class SQLiteFile:
    """The connections of an SQLite file, in the place of an engine: one for transactions that write, some for reads."""

    dialect = DIALECT

    def __init__(self, url: URL, timeouts: Timeouts, *, pool_size: int) -> None:
        self.url = url
        self._begin = BEGIN["IMMEDIATE"]
        self._pool = _Pool(str(url.database), timeouts, pool_size)

    def execution_options(self, *, sqlite_begin: str) -> SQLiteFile:
        """Return the same file with transactions that begin in another way."""
        other = SQLiteFile.__new__(SQLiteFile)
        other.url, other._pool, other._begin = self.url, self._pool, BEGIN[sqlite_begin]
        return other

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called, in any thread, whenever a connection is opened or lost."""
        self._pool.listeners.append(listener)

    def connect(self) -> FileConnection:
        """Return the connection of the thread that runs the caller, for one transaction."""
        return FileConnection(_here.worker, self._begin)

    def begin(self) -> FileConnection:
        """Return what :meth:`connect` does; the transaction is committed unless its block raises."""
        return FileConnection(_here.worker, self._begin, commits=True)

    async def run(self, work: Coroutine[Any, Any, T], *, write: bool = False) -> T:
        """Return the result of ``work``, run in a thread."""
        # A cancelled read is interrupted and not waited for; a cancelled write runs to its end first.
        pool = self._pool
        try:
            worker = pool.writer() if write else pool.idle_reader() or await pool.next_reader()
        except BaseException:  # a cancellation too
            work.close()
            raise
        if write:
            return await run_to_completion(worker.begin(work))
        reading = worker.begin(work, pool.release)
        try:
            return await reading
        except asyncio.CancelledError:
            worker.interrupt(reading)
            raise

    async def dispose(self) -> None:
        """Close all connections; the next use opens new ones."""
        await self._pool.close()


class _Pool:
    def __init__(self, path: str, timeouts: Timeouts, size: int) -> None:
        self.path = path
        self.timeouts = timeouts
        self.listeners: list[Callable[[], None]] = []
        self._size = size
        self._pid = os.getpid()
        self._writer: _Worker | None = None
        self._readers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._waiting: deque[asyncio.Future[_Worker]] = deque()

    def writer(self) -> _Worker:
        self._check_process()
        if self._writer is None:
            self._writer = _Worker(self)
        return self._writer

    def idle_reader(self) -> _Worker | None:
        self._check_process()
        if self._idle:
            return self._idle.pop()
        if len(self._readers) >= self._size:
            # A closed event loop is never notified that they are free.
            self._readers -= {worker for worker in self._readers if worker.let_go()}
            if len(self._readers) >= self._size:
                return None
        worker = _Worker(self)
        self._readers.add(worker)
        return worker

    async def next_reader(self) -> _Worker:
        turn: asyncio.Future[_Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self.timeouts.statement):
                return await turn
        except BaseException as error:  # a cancellation too
            if turn.done() and not turn.cancelled():
                self.release(turn.result())
            if isinstance(error, TimeoutError):
                raise PoolTimeout("all connections of the history store are in use") from None
            raise

    def release(self, worker: _Worker) -> None:
        """Give a reader to the one who has waited longest."""
        while self._waiting:
            if not (turn := self._waiting.popleft()).done():
                turn.set_result(worker)
                return
        if worker in self._readers:
            self._idle.append(worker)

    async def close(self) -> None:
        workers = [*self._readers, *([] if self._writer is None else [self._writer])]
        self._writer = None
        self._readers.clear()
        self._idle.clear()
        if self._pid != os.getpid():
            _inherited.extend(workers)
        elif workers:
            closing = {asyncio.get_running_loop().create_task(worker.close()): worker for worker in workers}
            _, late = await asyncio.wait(closing, timeout=CLOSE_TIMEOUT_SECONDS)
            # The last connection to close copies the log into the file, which may take longer on a busy disk.
            if idle := [task for task in late if closing[task].running == 0]:
                await asyncio.wait(idle)

    def changed(self) -> None:
        for listener in self.listeners:
            listener()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ConfigurationError("this store was opened before a fork: create a new one in the child process")


class _Worker:
    """A thread with a connection of its own."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._thread = WorkerThread("letopis-history")
        self._file: tuple[int, int] | None = None
        self.driver: sqlite3.Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reading: asyncio.Future[Any] | None = None
        self.running = 0
        self.broken = False
        self.cancelled = False

    def let_go(self) -> bool:
        """Return True if the event loop that used the connection is closed, and have it closed, too."""
        if abandoned := self._loop is not None and self._loop.is_closed():
            self._thread.submit(self._disconnect, lambda *_: None)
        return abandoned

    def begin(self, work: Coroutine[Any, Any, T], release: Callable[[Any], None] | None = None) -> asyncio.Future[T]:
        """Return the future result of ``work``; ``release`` is called once the thread is free again."""
        self._loop = loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def done(value: T, error: BaseException | None) -> None:
            self.cancelled = False
            self.running -= 1
            if release is not None:
                self._reading = None
                release(self)
            settle(result, value, error)

        self._thread.submit(partial(self._drive, copy_context(), work), done)
        self.running += 1
        if release is not None:
            self._reading = result
        return result

    async def close(self) -> None:
        """Close the connection after what is running, and end the thread."""
        with suppress(Closed):
            await self._thread.run(self._disconnect)
        await self._thread.close()

    def interrupt(self, reading: asyncio.Future[Any]) -> None:
        """Interrupt a read that nobody waits for, unless it has just ended: the next one is another's."""
        if self._reading is reading:
            self.cancelled = True
            self._interrupt()

    def _interrupt(self) -> None:
        # Again until it has ended: a statement that begins just now is not interrupted.
        if self.cancelled and (driver := self.driver) is not None:
            with suppress(sqlite3.ProgrammingError):  # closed just now
                driver.interrupt()
            asyncio.get_running_loop().call_later(_INTERRUPT_AGAIN_SECONDS, self._interrupt)

    def _drive(self, context: Context, work: Coroutine[Any, Any, T]) -> T:
        _here.worker = self
        try:
            self._connect()
            while context.run(work.send, None) is None:
                pass  # it lets others run, which a thread does anyway
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            work.close()
            del _here.worker  # the thread must not keep alive what ends it
            if self.broken:
                self._disconnect()
        raise RuntimeError("a transaction of a file must await nothing but its connection")

    def _connect(self) -> None:
        now = file_id(self._pool.path)
        if self.driver is not None and now != self._file:
            # SQLite does not notice, and would go on with an unreachable file. A new one shows by its tables.
            self._disconnect()
            if now is not None:
                # An outage, after which a relay compares what it delivered with what is there.
                reason = "the SQLite file of the history was replaced: it is opened again"
                raise StoreFault(fault_class=FaultClass.UNAVAILABLE, code="replaced", reason=reason)
        if self.driver is None:
            timeout = self._pool.timeouts.lock
            driver = open_file(self._pool.path, timeout)
            try:
                set_up(timeout, driver)
            except BaseException:  # nothing else knows of this connection
                driver.close()
                raise
            self.driver, self._file = driver, file_id(self._pool.path)
            self._pool.changed()

    def _disconnect(self) -> None:
        driver, self.driver, self.broken = self.driver, None, False
        if driver is not None:
            driver.close()
            self._pool.changed()


class FileConnection:
    """What a transaction uses of an :class:`~sqlalchemy.ext.asyncio.AsyncConnection`, in the thread that runs it."""

    # The transaction begins with its first statement, and is rolled back at the end of the block unless committed.
    dialect = DIALECT
    invalidated = False

    def __init__(self, worker: _Worker, begin: str | None, *, commits: bool = False) -> None:
        self._worker = worker
        self._begin = begin
        self._begun = False
        self._commits = commits

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is None and self._commits:
            await self.commit()
        await self.rollback()

    async def execute(
        self, statement: sa.Executable, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> Rows:
        """Run a statement; with a sequence of values, an INSERT of several rows."""
        if isinstance(values, Sequence):
            ready = compiled(statement, values[0])
            bound = [ready.bound(row) for row in values]
            return rows_of(self.run(bound[0][0], [row for _, row in bound], many=True))
        ready = compiled(statement, values or {})
        return rows_of(self.run(*ready.bound(values or {})), ready.converters)

    async def exec_driver_sql(self, text: str, values: Any = ()) -> Rows:
        """Run a statement of the driver; with a list of values, once for each."""
        return rows_of(self.run(text, values, many=isinstance(values, list)))

    def fetch(self, statement: Statement, values: Mapping[str, Any]) -> list[Any]:
        """Return the rows of a compiled statement as the driver gives them."""
        return self.run(statement.text, values).fetchall()

    def run(self, text: str, values: Any = (), *, many: bool = False) -> sqlite3.Cursor:
        """Run a statement of the driver, in the transaction."""
        worker = self._worker
        driver = worker.driver
        if worker.cancelled or driver is None:
            raise sqlite3.OperationalError("interrupted")
        try:
            if not self._begun and self._begin is not None:
                driver.execute(self._begin)
                self._begun = True
            elif self._begun and not driver.in_transaction:
                # As after a full disk. Another statement would be committed on its own.
                raise sqlite3.OperationalError("the transaction was rolled back")
            return driver.executemany(text, values) if many else driver.execute(text, values)
        except sqlite3.IntegrityError as error:
            note_trigger_text(driver, error)
            raise IntegrityError(None, None, error) from error
        except sqlite3.Error as error:
            worker.broken = not str(getattr(error, "sqlite_errorname", None)).startswith(_PASSING_CODES)
            raise

    async def commit(self) -> None:
        if self._begun:
            self.run("COMMIT")
            self._begun = False

    async def rollback(self) -> None:
        begun, self._begun = self._begun, False
        driver = self._worker.driver
        if begun and driver is not None and driver.in_transaction:  # SQLite rolls back on its own after some errors
            driver.execute("ROLLBACK")

    async def run_sync(self, work: Callable[..., T], *args: Any, **named: Any) -> T:
        """Return what ``work`` returns with a synchronous connection of SQLAlchemy, in the transaction."""
        self.run("SELECT 1")
        engine = sa.create_engine("sqlite://", creator=lambda: _Held(self._worker.driver), poolclass=StaticPool)
        with engine.connect() as connection:
            return work(connection, *args, **named)


class _Held:
    """A connection whose transaction is another's to end."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def commit(self) -> None: ...

    def rollback(self) -> None: ...

    def close(self) -> None: ...

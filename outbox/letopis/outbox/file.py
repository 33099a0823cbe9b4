"""The outbox file: opened, migrated, and shared by everything that reads or writes it in this process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.outbox.append import Appended, Prepared
from letopis.outbox.bell import Bell
from letopis.outbox.bounds import Bounds
from letopis.outbox.glance import Glance
from letopis.outbox.headroom import Headroom, release
from letopis.outbox.identity import Whereabouts, place_of, settle
from letopis.outbox.thread import OwnThread
from letopis.outbox.trouble import code_of, is_busy, is_full, sqlite_error, translate
from letopis.outbox.turn import Turn
from letopis.outbox.writer import PATIENCE, Writer
from letopis.store.engines import Timeouts, create_store_engine
from letopis.store.errors import Closed, ConfigurationError, OutboxUnavailable
from letopis.store.events import to_microseconds, utc_now
from letopis.store.faults import StoreFault
from letopis.store.migration import IN_TURN, Migrations, State, revision_state, upgrade
from letopis.store.plan import Origin
from letopis.store.shield import uninterrupted
from letopis.store.sqlite_files import create_private_file, install_sqlite_events
from letopis.store.urls import normalise_url

T = TypeVar("T")

OUTBOX: Final = Migrations(location="letopis.migrations:outbox", version_table="letopis_outbox_version", head="0002")
"""The outbox file's migrations."""
BUSY_TIMEOUT: Final = 1.5
"""Seconds that SQLite itself waits for a lock; waiting longer is done above it, where it can be given up."""
_BOUNDS: Final = Bounds()


class OutboxFile:
    """One open outbox file. Made by :meth:`open`; to be used in the event loop that opened it, until :meth:`close`.

    Any number of processes may have the same file open. None of them may ever ``open()`` and close it by other means
    than SQLite: that drops the locks of the whole process.

    :ivar path: absolute.
    :ivar origin: the file's identity, under which it delivers.
    :ivar engine: for the caller's own transactions; they begin with ``BEGIN IMMEDIATE``.
    :ivar glance: tells in any thread how far a conversation has got in the file.
    :ivar turn: to be taken by what writes over ``engine`` for longer than a moment.
    :ivar appended: rung after each commit of this process that added events.
    :ivar changed: rung after each other write of this process: acknowledged, retried, blocked.
    """

    def __init__(
        self,
        *,
        path: Path,
        origin: Origin,
        place: tuple[int, int],
        sync_engine: sa.Engine,
        anchor: sa.Connection,
        thread: OwnThread,
        bounds: Bounds,
        now: Callable[[], datetime],
    ) -> None:
        self.path = path
        self.origin = origin
        self.place = place
        self.bounds = bounds
        self._headroom = Headroom(path, watermark=bounds.min_free_bytes)
        self.appended = Bell()
        self.changed = Bell()
        self.turn = Turn()
        self.engine: AsyncEngine = create_store_engine(path, timeouts=Timeouts(lock=BUSY_TIMEOUT), pool_size=8)
        self._now = now
        self._sync_engine = sync_engine
        self._anchor = anchor  # the writing thread's alone; keeps the -wal and the -shm where they are
        self._whereabouts = Whereabouts(path, place)
        self._whereabouts.settle()
        self._readers = sync_engine.execution_options(sqlite_begin="DEFERRED")
        self._writing = thread
        self._reading = OwnThread("letopis-outbox-reader")
        self.glance = Glance(path, self._whereabouts.check)
        self._reader: sa.Connection | None = None  # the reading thread's alone
        self._writer = Writer(
            path=path,
            whereabouts=self._whereabouts,
            engine=sync_engine,
            thread=thread,
            turn=self.turn,
            bounds=bounds,
            headroom=self._headroom,
            now_us=self.now_us,
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
    ) -> OutboxFile:
        """Open an outbox file; create it (mode 0600) and bring its tables to this release's revision where needed.

        Several processes may do so at once. A file with other tables in it, the bot's own database, becomes an outbox
        as well and keeps its mode.

        :param create: whether a missing file is made; the folder never is.
        :param now: what times in the file are taken from.
        :raises ConfigurationError: there is no file, or it cannot be an outbox: the message says what to do.
        :raises OutboxUnavailable: other processes hold its lock, or the disk fails.
        """
        where = outbox_path(path)
        thread = OwnThread("letopis-outbox-writer")
        anchors: list[sa.Connection] = []
        try:
            engine, origin, place = await uninterrupted(
                thread.run(_prepare, where, create, lambda: to_microseconds(now()), anchors)
            )
            return cls(
                path=where,
                origin=origin,
                place=place,
                sync_engine=engine,
                anchor=anchors[0],
                thread=thread,
                bounds=bounds,
                now=now,
            )
        except BaseException:  # a cancelled open leaves no thread and no connection behind either
            for anchor in anchors:
                await uninterrupted(thread.run(anchor.close))
            await uninterrupted(thread.close())
            raise

    def now_us(self) -> int:
        """Return the present moment in UTC microseconds."""
        return to_microseconds(self._now())

    async def append(self, prepared: Prepared) -> Appended:
        """Write what :func:`~letopis.outbox.append.prepare` made; when it returns, a power cut does not take it away.

        Concurrent appends share one transaction and one flush; those of one conversation keep the order of the calls.
        An event that is there already, with the same content, is not written again: its first place is returned.
        (An event id that has been pruned meanwhile is written again; the history store then absorbs it.)

        Cancelling may come too late: whether the append took effect is known by its event ids, so running it again
        with the same ids is always safe.

        :raises EventIdReused: an id of it holds other content.
        :raises InvalidInput: the conversation has another owner.
        :raises OutboxFull: the outbox, or the disk, is full; nothing was dropped.
        :raises OutboxUnavailable: the file cannot be written, or is held by somebody else for 10 seconds.
        :raises Closed: after :meth:`close`, or in a process that was forked off.
        """
        return await self._writer.append(prepared)

    async def write(self, fn: Callable[[sa.Connection], T]) -> T:
        """Run ``fn(connection)`` in a write transaction and return its result after COMMIT.

        The transaction may be shared with appends and other work; a function that raises fails alone. It runs in the
        writer's thread and may be run more than once, when a commit ends in an error: it must bear that. It must not
        commit, and must fetch all that it reads.

        :raises OutboxUnavailable: the file cannot be written. What ``fn`` raises comes as it is, unless it is
            SQLite's.
        """
        return await self._writer.write(fn)

    async def read(self, fn: Callable[[sa.Connection], T]) -> T:
        """Run ``fn(connection)`` over one snapshot of the file, in the reading thread, and return its result.

        It waits for no writer, and no writer waits for it. It must fetch all that it reads.

        :raises OutboxUnavailable: the file cannot be read.
        """
        self._check_open()
        return await self._reading.run(lambda: self._read(fn))

    def check_place(self) -> None:
        """Look whether the file, and what SQLite keeps beside it, is still where it was opened.

        :raises OutboxUnavailable: it was removed or replaced: what is written now would be found by nobody.
        """
        self._whereabouts.check()

    def check_room(self, cursor: Any) -> None:
        """Look whether new events may be written, in the transaction that is open on a DBAPI ``cursor``.

        :raises OutboxFull: the outbox has reached one of its bounds, or its disk the watermark.
        :raises OutboxUnavailable: as for :meth:`check_place`.
        """
        self.check_place()
        self._headroom.check()
        self.bounds.check(cursor, self._whereabouts.size)

    async def tidy(self) -> None:
        """Move the WAL into the file as far as no reader needs it, cut it back where it has grown large, and see to it
        that there is a ballast. For quiet moments.

        :raises OutboxUnavailable: the file cannot be written; :exc:`OutboxFull` where the disk is full.
        """
        await self._writer.tidy()

    def cut_back(self) -> None:
        """Have the WAL cut back as soon as no reader needs it: content was taken out of the file."""
        self._writer.cut_back()

    def give_up_waiting(self, reason: str) -> None:
        """Refuse the appends, writes and transactions that wait for their turn, with ``OutboxUnavailable``."""
        self._writer.give_up_waiting(reason)
        self.turn.give_up_waiting(reason)

    async def close(self) -> None:
        """Write what waits, then close everything; nothing has to be delivered first. Again does nothing."""
        if not self._closed:
            self._closed = True
            await uninterrupted(self._close())

    async def _close(self) -> None:
        try:
            await self._writer.close()
            await self._reading.run(self._end_reading)
            await self.engine.dispose()
        finally:
            try:
                await self._writing.run(self._anchor.close)
            finally:
                await self._writing.close()
                await self._reading.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the outbox was closed")

    # In the reading thread.

    def _read(self, work: Callable[[sa.Connection], T]) -> T:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if self._reader is None:
                    self._whereabouts.check()  # SQLite would make a new file where there is none
                    self._reader = self._readers.connect()
                with self._reader.begin():
                    return work(self._reader)
            except Exception as error:
                if sqlite_error(error) is None:
                    raise  # the work's own
                self._disconnect()
                if is_full(error) and self._headroom.release():
                    continue
                if not is_busy(error) or time.monotonic() > deadline:
                    raise translate(error) or error from error

    def _end_reading(self) -> None:
        self._disconnect()
        self.glance.close()

    def _disconnect(self) -> None:
        connection, self._reader = self._reader, None
        if connection is not None:
            connection.invalidate()
            connection.close()


def outbox_path(given: str | os.PathLike[str]) -> Path:
    """Return the absolute path of an outbox file, which may be given as an SQLite URL too; looks at no disk.

    :raises ConfigurationError: it cannot be a file.
    """
    text = os.fspath(given)
    if isinstance(text, str) and "://" in text:
        url = normalise_url(text)
        if url.get_backend_name() != "sqlite":
            raise ConfigurationError("an outbox is a local SQLite file: give its path, the server belongs in store=")
        text = url.database or ""
    if not text or text == ":memory:" or "\0" in text:
        raise ConfigurationError("an outbox is a file on a local disk: give its path, for example bot.outbox.db")
    return Path(text).absolute()


async def look(path: str | os.PathLike[str], work: Callable[[sa.Connection], T]) -> T:
    """Run ``work(connection)`` over one snapshot of an outbox file, and leave the file as it is.

    For looking at an outbox from outside: creates nothing, migrates nothing, raises no epoch.

    :raises ConfigurationError: there is no outbox of this release's revision.
    :raises OutboxUnavailable: the file cannot be read.
    """
    where = outbox_path(path)
    return await asyncio.to_thread(_look, where, work)


def _look(path: Path, work: Callable[[sa.Connection], T]) -> T:
    check_file(path, create=False)
    engine = _sync_engine(path).execution_options(sqlite_begin="DEFERRED")
    try:
        while True:
            try:
                with engine.connect() as connection, connection.begin():
                    _check_revision(connection, path)
                    return work(connection)
            except Exception as error:
                # On a full disk even a look needs a little space, where no other process has the file open.
                if not (is_full(error) and release(path)):
                    raise _ours(error, path) or error from error
    finally:
        engine.dispose()


def _check_revision(connection: sa.Connection, path: Path) -> None:
    found = revision_state(connection, OUTBOX)
    if found.state is State.MISSING:
        raise ConfigurationError(f"{path.name!r} holds no outbox: check the path")
    if found.state is not State.CURRENT:
        raise ConfigurationError(f"{path.name!r}: {found.advice(OUTBOX, command='letopis init')}")


def _sync_engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=sa.NullPool,
        hide_parameters=True,
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT},
    )
    install_sqlite_events(engine, busy_timeout=BUSY_TIMEOUT)
    return engine


def _prepare(
    path: Path, create: bool, now_us: Callable[[], int], anchors: list[sa.Connection]
) -> tuple[sa.Engine, Origin, tuple[int, int]]:
    """Create, migrate and settle the file, and add the connection that is to stay open; in the writing thread."""
    check_file(path, create=create)
    deadline = time.monotonic() + PATIENCE
    engine = _sync_engine(path)
    while True:
        try:
            with engine.begin() as connection:
                _migrate(connection, path)
                origin = settle(connection, path, now_us=now_us())
            found = engine, origin, place_of(path)
            anchors.append(_anchor(engine))
        except Exception as error:
            if is_busy(error) and time.monotonic() < deadline:
                continue
            if is_full(error) and release(path):
                continue
            engine.dispose()
            raise _ours(error, path) or error from error
        return found


def _anchor(engine: sa.Engine) -> sa.Connection:
    """Return a connection that has the -wal and the -shm open, and nothing under way."""
    connection = engine.execution_options(sqlite_begin="DEFERRED").connect()
    try:
        with connection.begin():
            connection.exec_driver_sql("SELECT only FROM letopis_outbox_origin").all()
    except BaseException:  # whatever ended it: nobody else knows of this connection, which would keep the file open
        connection.close()
        raise
    return connection


def check_file(path: Path, *, create: bool) -> None:
    """Make sure that there is a file, without opening one that is there.

    :raises ConfigurationError: there is none, or it is no file, or it may not be used.
    """
    if path.is_dir():
        raise ConfigurationError(f"{str(path)!r} is a folder: give the path of a file in it")
    if not path.parent.is_dir():
        raise ConfigurationError(
            f"the folder {str(path.parent)!r} does not exist: create it (mkdir -p), then try again"
        )
    if path.exists():
        if not path.is_file():
            raise ConfigurationError(f"{str(path)!r} is no regular file")
        return
    if not create:
        raise ConfigurationError(
            f"there is no outbox at {str(path)!r}: check the path, or create it with `letopis init`"
        )
    try:
        create_private_file(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(f"{str(path)!r} cannot be created ({reason}): check the folder's mode") from error


def _migrate(connection: sa.Connection, path: Path) -> None:
    found = revision_state(connection, OUTBOX)
    if found.state is State.CURRENT:
        return
    if found.state is State.MISSING and sa.inspect(connection).has_table("letopis_version"):
        raise ConfigurationError(f"{path.name!r} is a history store: give the outbox a file of its own")
    if found.state in (State.NEWER, State.FOREIGN):
        raise ConfigurationError(f"{path.name!r}: {found.advice(OUTBOX, command='letopis init')}")
    with IN_TURN:
        upgrade(connection, OUTBOX)


def _ours(error: BaseException, path: Path) -> Exception | None:
    code = code_of(error)
    if code.startswith("SQLITE_NOTADB"):
        return ConfigurationError(f"{path.name!r} is no SQLite database: give another path")
    if code.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        return ConfigurationError(
            f"{path.name!r} may not be written: check the owner and the mode of the file and of its folder [{code}]"
        )
    if isinstance(error, StoreFault):
        return ConfigurationError(f"{path.name!r}: {error.reason}")
    if isinstance(error, OSError):
        return OutboxUnavailable(f"{path.name!r} cannot be reached [{error.errno}]")
    if isinstance(error, UnicodeDecodeError):  # SQLite quotes the file in its errors
        return OutboxUnavailable(f"{path.name!r} is damaged: `letopis outbox verify` says where")
    return translate(error)


__all__ = ("BUSY_TIMEOUT", "OUTBOX", "OutboxFile", "check_file", "look", "outbox_path")

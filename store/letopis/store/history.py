"""The history store: what the relay applies to, and what everybody reads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Any, Final, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.apply import Applier
from letopis.store.conversation import Conversation, Page, RecordedMessage
from letopis.store.dialects import dialect_for
from letopis.store.engines import Timeouts, create_store_engine
from letopis.store.errors import Closed, ConfigurationError, InvalidInput
from letopis.store.events import RecordedEvent, to_microseconds, utc_now
from letopis.store.faults import FaultClass, StoreFault, translated
from letopis.store.migration import IN_TURN, STORE, Revision, State, revision_state, upgrade
from letopis.store.plan import ApplyResult, LaneBatch, Origin
from letopis.store.reads import Reader, StoreView, Window, check_count, check_place
from letopis.store.schema import log_heads
from letopis.store.shield import interrupted_once, uninterrupted
from letopis.store.subscription import follow
from letopis.store.upcasters import NO_UPCASTERS, Upcasters

T = TypeVar("T")

UPGRADE_COMMAND: Final = "letopis db upgrade"
_TIMEOUTS: Final = Timeouts()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """What is known once the database has been looked at."""

    applier: Applier
    reader: Reader
    partitions: int


class ConversationStore:
    """A history store on SQLite, PostgreSQL or MariaDB.

    Making one does no I/O and cannot fail for a server that is down: the first use connects, and :meth:`prepare` does
    so at once. All methods may be called concurrently, from one event loop. Every failure of the database is a
    :class:`~letopis.store.faults.StoreFault` with its class; a cancelled call leaves no transaction open.

    :param url: as people write it: ``postgresql://``, ``mysql://``, ``sqlite:///``, or the path of an SQLite file.
    :param partitions: of the log, for a store that is created now; one that exists keeps what it has.
    :param migrate: whether :meth:`prepare` may create and migrate the tables. ``None``: yes for an SQLite file, which
        is the bot's own; no for a server, which is migrated by ``letopis db upgrade`` or ``alembic upgrade head``.
    :param upcasters: read old events as if they had been written today.
    :param timeouts: in seconds; see :class:`~letopis.store.engines.Timeouts`.
    :param pool_size: connections kept open at most.
    :param now: what ``recorded_at`` is taken from; no order is.
    :raises ConfigurationError: the URL or an option is wrong.
    """

    def __init__(
        self,
        url: str | URL | os.PathLike[str],
        *,
        partitions: int = 1,
        migrate: bool | None = None,
        upcasters: Upcasters = NO_UPCASTERS,
        timeouts: Timeouts = _TIMEOUTS,
        pool_size: int = 5,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        if not 1 <= partitions <= 1024:
            raise ConfigurationError("partitions must be between 1 and 1024")
        self._engine = create_store_engine(url, timeouts=timeouts, pool_size=pool_size)
        self._embedded = self._engine.dialect.name == "sqlite"
        # A reader's transaction is one snapshot and takes no lock.
        self._readers: AsyncEngine = self._engine.execution_options(sqlite_begin="DEFERRED")
        self._dialect = dialect_for(self._engine.dialect.name)
        self._partitions = partitions
        self._migrate = self._embedded if migrate is None else migrate
        self._upcasters = upcasters
        self._now = now
        self._preparing = asyncio.Lock()
        self._ready: _Ready | None = None
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str | URL | os.PathLike[str], **options: Any) -> AsyncIterator[ConversationStore]:
        """Open a store for the time of a ``with`` block: prepared at once, closed at the end."""
        store = cls(url, **options)
        try:
            await store.prepare()
            yield store
        finally:
            await store.close()

    @property
    def url(self) -> URL:
        """The normalised URL, with its secrets: for connecting, not for showing."""
        return self._engine.url

    async def prepare(self) -> None:
        """Connect, and make sure that the database is at this release's revision; again costs nothing.

        :raises StoreFault: the database cannot be reached; or ``MISCONFIGURED``, with what to do: its tables are
            missing, older, newer or somebody else's. Checked again at the next use.
        """
        await self._prepared()

    async def close(self) -> None:
        """Close all connections; again does nothing. Whatever is used afterwards raises ``Closed``."""
        if not self._closed:
            self._closed = True
            self._ready = None
            await uninterrupted(self._engine.dispose())

    async def ping(self) -> None:
        """Ask the database for a sign of life; looks at no table.

        :raises StoreFault: there is none.
        """
        await self._read_plain(lambda connection: connection.execute(sa.select(sa.literal(1))))

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        """Apply what an outbox delivers, in one transaction: every event takes effect once, in the lane's order.

        What the store holds already is recognised by its content and not written again. A lane that contradicts what
        the store holds is in ``refused``, untouched; the other lanes are committed. After a fault nothing was written,
        except with ``UNKNOWN_OUTCOME``, where it may have been: applying the same again is always safe.

        :raises StoreFault: the database failed; ``POISON`` where an event of the batch is what it cannot take.
        :raises OriginSuperseded: a newer copy of the outbox file delivers under this identity.
        :raises InvalidInput: the batch names a lane twice.
        """
        ready = await self._prepared()
        return await self._whole(ready.applier.apply(origin, batch))

    async def conversation(self, conversation_id: str) -> Conversation | None:
        """Return a conversation as it stands; ``None`` where there is none.

        :raises InvalidInput: ``conversation_id`` cannot be one.
        """
        return await self._read(lambda reader, connection: reader.conversation(connection, conversation_id))

    async def conversations(
        self, *, owner: str | None = None, after: str | None = None, limit: int = 50
    ) -> Page[Conversation]:
        """Return a page of conversations, of one owner or of all, the newest activity first.

        A page never repeats what an earlier one showed; a conversation that becomes active while pages are turned
        moves to the front, so it may be missed by the later ones.

        :param after: the ``next`` of the page before.
        :raises InvalidInput: ``after`` is no such place, or ``limit`` not from 1 to 10,000.
        """
        return await self._read(
            lambda reader, connection: reader.conversations(connection, owner=owner, after=after, limit=limit)
        )

    async def messages(
        self,
        conversation_id: str,
        *,
        last: int | None = None,
        first: int | None = None,
        before: int | str | None = None,
        after: int | str | None = None,
    ) -> Page[RecordedMessage]:
        """Return messages of a conversation, oldest first: the newest ``last``, the ``first``, or all.

        ``before`` and ``after`` are versions (or the ``next`` of a page) and exclude themselves; ``next`` of a page is
        its ``before`` with ``last``, and its ``after`` with ``first``. Pages stay in place whatever is said meanwhile.

        :raises InvalidInput: ``last`` with ``first``, or a number out of bounds.
        """
        window = Window.of(last=last, first=first, before=before, after=after)
        return await self._read(lambda reader, connection: reader.messages(connection, conversation_id, window))

    async def events(self, conversation_id: str, *, after: int | str = 0, limit: int = 500) -> Page[RecordedEvent]:
        """Return a page of a conversation's events after a version, in order; unknown ones as they were recorded.

        :raises InvalidInput: a number is out of bounds.
        """
        return await self._read(
            lambda reader, connection: reader.events(connection, conversation_id, after=after, limit=limit)
        )

    async def view(
        self,
        conversation_id: str,
        *,
        origin_id: UUID,
        last: int | None = None,
        first: int | None = None,
        before: int | str | None = None,
        after: int | str | None = None,
    ) -> StoreView:
        """Return a conversation and messages of it, with how far an outbox's lane had got when they were read."""
        window = Window.of(last=last, first=first, before=before, after=after)
        return await self._read(
            lambda reader, connection: reader.view(connection, conversation_id, origin_id=origin_id, window=window)
        )

    async def lane_heads(self, origin_id: UUID, conversation_ids: Sequence[str]) -> dict[str, int]:
        """Return how far an outbox's lanes have got here; lanes of which nothing is here are left out."""
        return await self._read(lambda reader, connection: reader.lane_heads(connection, origin_id, conversation_ids))

    async def subscribe(
        self, from_position: int = 0, *, partition: int = 0, batch: int = 500, poll: float = 0.25
    ) -> AsyncGenerator[RecordedEvent, None]:
        """Yield the events of a log partition after a position, then those to come, for ever; none is missed.

        No connection is held between two batches. After a fault, subscribe again from the last position seen.

        :param poll: seconds between two looks while there is nothing new.
        :raises StoreFault: the database failed.
        :raises InvalidInput: there is no such partition, or a number is out of bounds.
        """
        check_count(batch, "batch")
        check_place(from_position, "from_position")
        await self._check_partition(partition)

        def fetch(position: int) -> Awaitable[Sequence[RecordedEvent]]:
            return self._read(
                lambda reader, connection: reader.log(connection, partition=partition, after=position, limit=batch)
            )

        async for event in follow(fetch, after=from_position, batch=batch, poll=poll):
            yield event

    async def head(self, partition: int = 0) -> int:
        """Return the position given out last in a log partition; 0 in an empty one.

        :raises InvalidInput: there is no such partition.
        """
        await self._check_partition(partition)
        return await self._read(lambda reader, connection: reader.head(connection, partition))

    async def partitions(self) -> int:
        """Return how many partitions the log has."""
        return (await self._prepared()).partitions

    async def _check_partition(self, partition: int) -> None:
        there = await self.partitions()
        if not isinstance(partition, int) or not 0 <= partition < there:
            raise InvalidInput("partition", f"must be from 0 to {there - 1}")

    async def _prepared(self) -> _Ready:
        if self._closed:
            raise Closed("the history store is closed")
        if (ready := self._ready) is not None:
            return ready
        async with self._preparing:
            if self._ready is None:
                self._ready = await self._whole(self._look())
            return self._ready

    async def _look(self) -> _Ready:
        """Check the revision, migrate where that is ours to do, and read how the log is parted."""
        with translated():
            found, partitions = await self._state()
            if self._migrate and found.state in (State.MISSING, State.OLDER):
                # Off the loop: it takes as long as everything else that is imported together.
                await asyncio.to_thread(import_module, "alembic.command")
                async with _in_turn(), self._engine.begin() as connection:
                    await connection.run_sync(upgrade, STORE, attributes={"partitions": self._partitions})
                found, partitions = await self._state()
        if found.state is not State.CURRENT:
            raise StoreFault(
                fault_class=FaultClass.MISCONFIGURED,
                code=f"schema-{found.state}",
                reason=found.advice(STORE, command=UPGRADE_COMMAND),
            )
        if partitions == 0:
            raise StoreFault(
                fault_class=FaultClass.MISCONFIGURED,
                code="partitions",
                reason="the counters of the log are gone (letopis_log_heads is empty): restore the database",
            )
        return _Ready(
            applier=Applier(
                self._engine,
                self._dialect,
                partitions=partitions,
                upcasters=self._upcasters,
                now=lambda: to_microseconds(self._now()),
            ),
            reader=Reader(self._dialect, partitions=partitions, upcasters=self._upcasters),
            partitions=partitions,
        )

    async def _state(self) -> tuple[Revision, int]:
        if self._embedded and not self._migrate:
            # To connect would create the file.
            there = await asyncio.to_thread(os.path.exists, str(self._engine.url.database))
            if not there:
                return Revision(state=State.MISSING, revision=None), 0
        async with self._readers.connect() as connection:
            found = await connection.run_sync(revision_state, STORE)
            if found.state is not State.CURRENT:
                return found, 0
            count = await connection.execute(sa.select(sa.func.count()).select_from(log_heads))
            return found, int(count.scalar_one())

    async def _read(self, read: Callable[[Reader, AsyncConnection], Awaitable[T]]) -> T:
        ready = await self._prepared()
        return await self._read_plain(lambda connection: read(ready.reader, connection))

    async def _read_plain(self, read: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        if self._closed:
            raise Closed("the history store is closed")

        async def transaction() -> T:
            with translated():
                async with self._readers.connect() as connection:
                    return await read(connection)

        return await self._whole(transaction())

    async def _whole(self, work: Awaitable[T]) -> T:
        """Run one transaction so that a cancellation cannot tear it, and look again after a wrong schema."""
        try:
            # A file answers soon, and a torn aiosqlite call leaks its thread; a server may not answer for long, and
            # its drivers bear one cancellation well.
            return await (uninterrupted(work) if self._embedded else interrupted_once(work))
        except StoreFault as fault:
            if fault.fault_class is FaultClass.MISCONFIGURED:
                self._ready = None
            raise


@asynccontextmanager
async def _in_turn() -> AsyncIterator[None]:
    """Hold the lock of migrations; waited for in small steps, since other holders are threads and other tasks."""
    while not IN_TURN.acquire(blocking=False):  # noqa: ASYNC110 - a lock between threads
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        IN_TURN.release()

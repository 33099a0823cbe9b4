"""The history store: what the relay applies to, and what everybody reads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterator,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from importlib import import_module
from typing import Any, Final, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.asking import EVERYDAY, Window, check_count, check_place
from letopis.store.catchup import BATCH, Access, Projector
from letopis.store.conversation import Conversation, Page, RecordedMessage
from letopis.store.cutback import CutBack, truncate
from letopis.store.dialects import dialect_for
from letopis.store.engines import Timeouts, by_statement, create_store_engine
from letopis.store.errors import Closed, InvalidInput
from letopis.store.events import RecordedEvent, to_microseconds, utc_now
from letopis.store.faults import FaultClass, StoreFault, translated
from letopis.store.fold import Elsewhere
from letopis.store.identifiers import check_identifier, partition_of
from letopis.store.kept import Kept
from letopis.store.lineage import Lineage
from letopis.store.migration import STORE, Revision, State, in_turn, revision_state, upgrade
from letopis.store.plan import ApplyResult, LaneBatch, Origin
from letopis.store.projections import Projection, checked_inline
from letopis.store.reads import PlainPage, Reader, StoreView
from letopis.store.ready import Ready, check_found, check_options, made_ready
from letopis.store.rebuild import Rebuilt
from letopis.store.schema import log_heads
from letopis.store.search.finding import UNREAD_MAX
from letopis.store.search.hits import Hit, read_place
from letopis.store.search.query import parse
from letopis.store.search.upkeep import Nearly
from letopis.store.shield import UnderWay, interrupted_once, uninterrupted
from letopis.store.sqlite_files import connect_for_reading
from letopis.store.statistics import Counted, Period, Statistics
from letopis.store.subscription import follow
from letopis.store.timetravel import AsOf, check_as_of
from letopis.store.upcasters import NO_UPCASTERS, Upcasters

T = TypeVar("T")

_TIMEOUTS: Final = Timeouts()
_CLOSING: Final = 1.0
"""Seconds that :meth:`ConversationStore.close` waits for what is under way: a server may not answer for long, and with
the 8 that a daemon's batch has this is less than the 10 after which Docker kills."""


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
    :param pool_size: connections kept open at most; to an SQLite file one more, for small reads.
    :param projections: inline ones, written in the transaction of every :meth:`apply`; all processes that apply have to
        be given the same. One that fails makes the apply fail, and what it delivers waits.
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
        projections: Sequence[Projection] = (),
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        check_options(partitions=partitions, upcasters=upcasters, now=now)
        self._inline = checked_inline(projections)
        self._engine = create_store_engine(url, timeouts=timeouts, pool_size=pool_size)
        self._embedded = self._engine.dialect.name == "sqlite"
        # A reader's transaction is one snapshot and takes no lock.
        self._readers: AsyncEngine = self._engine.execution_options(sqlite_begin="DEFERRED")
        self._by_statement = by_statement(self._readers)
        self._dialect = dialect_for(self._engine.dialect.name)
        self._partitions = partitions
        self._migrate = self._embedded if migrate is None else migrate
        self._upcasters = upcasters
        self._now = now
        self._preparing = asyncio.Lock()
        self._nearly = Nearly(self._catch_up_a_little)
        self._cut_back = CutBack(partial(truncate, self._engine))
        # One reading connection beside the pool: a small read of a file costs less than taking one from it.
        self._kept = Kept(partial(connect_for_reading, self._engine, timeouts.lock)) if self._embedded else None
        self._under_way = UnderWay()
        self._ready: Ready | None = None
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
        """Close all connections; again does nothing. Whatever is used afterwards raises ``Closed``.

        What is under way may end first, for a second at most.
        """
        if not self._closed:
            self._closed = True
            self._ready = None
            try:
                await self._nearly.close()
                await self._cut_back.close()
                # A connection in use would be given back to a pool that nobody closes any more.
                await self._under_way.end(patience=_CLOSING)
            finally:  # also for a caller that waits no longer: there is no second close
                if self._kept is not None:
                    await uninterrupted(self._kept.close())
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

    async def conversation(self, conversation_id: str, *, as_of: AsOf | None = None) -> Conversation | None:
        """Return a conversation as it stands; ``None`` where there is none.

        :param as_of: as it stood after this version, or after the last event, in order, that had happened by a moment;
            ``None`` where it had not begun. Its events up to there are read. ``active`` is not known of the past.
        :raises InvalidInput: ``conversation_id`` cannot be one, or ``as_of`` is no version and no aware datetime.
        """
        if as_of is not None:
            check_as_of(as_of)

            async def read(lineage: Lineage, connection: AsyncConnection) -> Conversation | None:
                version = await lineage.past.version_at(connection, conversation_id, as_of)
                return await lineage.past.conversation(connection, conversation_id, version)

            return await self.read_past(read)
        return await self._read(lambda reader, connection: reader.conversation(connection, conversation_id))

    async def active(self, owner: str) -> Conversation | None:
        """Return an owner's active conversation; ``None`` where there is none.

        :raises InvalidInput: ``owner`` cannot be one.
        """
        return await self._read(lambda reader, connection: reader.active(connection, owner))

    async def conversations(
        self,
        *,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 50,
        states: Collection[str] = EVERYDAY,
    ) -> Page[Conversation]:
        """Return a page of conversations, of one owner or of all, the newest activity first.

        A page never repeats what an earlier one showed; a conversation that becomes active while pages are turned
        moves to the front, so it may be missed by the later ones.

        :param after: the ``next`` of the page before.
        :param states: ``active``, ``archived``, ``deleted``: those that are shown.
        :raises InvalidInput: ``after`` is no such place, or ``limit`` not from 1 to 10,000.
        """
        return await self._read(
            lambda reader, connection: reader.conversations(
                connection, owner=owner, after=after, limit=limit, states=states
            )
        )

    async def messages(
        self,
        conversation_id: str,
        *,
        last: int | None = None,
        first: int | None = None,
        before: int | str | None = None,
        after: int | str | None = None,
        every: bool = False,
        as_of: AsOf | None = None,
    ) -> Page[RecordedMessage]:
        """Return messages of a conversation, oldest first: the newest ``last``, the ``first``, or all.

        ``before`` and ``after`` are versions (or the ``next`` of a page) and exclude themselves; ``next`` of a page is
        its ``before`` with ``last``, and its ``after`` with ``first``. Pages stay in place whatever is said meanwhile.
        The messages that a fork inherits come first, with the id and the versions of the conversation that they were
        said in; plain versions mean the conversation's own. Where an ancestor is not here yet, ``complete`` is
        ``False``.

        :param every: those of its own that have left the active path too: rewound over, or superseded.
        :param as_of: as they were after this version, or after the last event, in order, that had happened by a
            moment. What was redacted since is redacted; of a conversation deleted since, all of it.
        :raises InvalidInput: ``last`` with ``first``, a number out of bounds, or ``as_of`` is no version and no aware
            datetime.
        """
        window = Window.of(last=last, first=first, before=before, after=after, every=every)
        if as_of is not None:
            check_as_of(as_of)
            return await self.read_past(
                lambda lineage, connection: lineage.as_of(connection, conversation_id, as_of, window)
            )
        ready = await self._prepared()
        if self._kept is not None and window.at(0) == window and self._kept.fits(window):
            with self._doubting():
                page, inherits = await self._kept.own(conversation_id, window)
        else:
            page, inherits = await self._read_plain(
                lambda connection: ready.lineage.own(connection, conversation_id, window), self._by_statement
            )
        if not inherits:
            return page
        return await self.read_past(lambda lineage, connection: lineage.messages(connection, conversation_id, window))

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
        every: bool = False,
    ) -> StoreView:
        """Return a conversation and messages of it, with how far an outbox's lane had got when they were read."""
        window = Window.of(last=last, first=first, before=before, after=after, every=every)
        await self._prepared()
        at_once = self.view_beside(conversation_id, origin_id=origin_id, window=window, beside=lambda: None)
        if at_once is not None:
            return (await at_once)[0]
        return await self._read(
            lambda reader, connection: reader.view(connection, conversation_id, origin_id=origin_id, window=window)
        )

    async def plain_page(self, conversation_id: str, *, origin_id: UUID, window: Window) -> PlainPage | None:
        """Return what nearly every read comes to, in one statement; ``None`` where it is not that.

        :meta private:
        """
        return await self._read(
            lambda reader, connection: reader.plain_page(
                connection, conversation_id, origin_id=origin_id, window=window
            )
        )

    def view_beside(
        self, conversation_id: str, *, origin_id: UUID, window: Window, beside: Callable[[], T]
    ) -> Coroutine[Any, Any, tuple[StoreView, T]] | None:
        """Return what :meth:`view` does, then what ``beside`` returns, all of it in one function in a thread.

        ``None`` where that cannot be: of a server, before the first use, or for a long window.

        :meta private:
        """
        kept = self._kept
        if kept is None or self._ready is None or self._closed or not kept.fits(window):
            return None

        async def view() -> tuple[StoreView, T]:
            with self._doubting():
                return await kept.view(conversation_id, origin_id=origin_id, window=window, beside=beside)

        return view()

    async def read_past(self, read: Callable[[Lineage, AsyncConnection], Awaitable[T]]) -> T:
        """Read ancestors and the past, all of it in one snapshot."""
        ready = await self._prepared()

        async def snapshot(connection: AsyncConnection) -> T:
            await self._dialect.begin_snapshot(connection)
            return await read(ready.lineage, connection)

        return await self._read_plain(snapshot)

    async def path_of(self, conversation_id: str, message_ids: Collection[str]) -> dict[str, Elsewhere]:
        """Return where messages stand on a conversation's path; those that are not there are left out."""
        return await self._read(lambda reader, connection: reader.path_of(connection, conversation_id, message_ids))

    async def search(
        self,
        query: str,
        *,
        owner: str | None = None,
        conversation: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> Page[Hit]:
        """Return a page of messages that have all words of ``query``, in any form of them, the best ones first.

        ``"quoted words"`` are to stand there as they are, next to each other; what a word with ``-`` before it names is
        not to be there. There is no other syntax. Case, accents and the dots of ``ё`` make no difference; Russian and
        English words are found in their other forms.

        Found is what stands on the path of a conversation that was not deleted, an edited message by its present text
        only, a redacted one never: from the moment at which the store has the redaction. A fork is not searched for
        what it inherits: that is found where it was said.

        Pages show what was there when the first one was made, nothing twice, 1,000 hits at most; a page may hold fewer
        than ``limit``, so go on while there is a ``next``. ``complete`` is ``False`` while the index is so far behind
        that not all could be looked through; the search itself has it catch up.

        :param owner: only in the conversations of this owner. ``conversation``: only in this one.
        :param after: the ``next`` of the page before, of the same search.
        :raises InvalidInput: there is no word in ``query``, or it has more than 1,000 characters or 32 words, or
            another argument is wrong.
        """
        asked = parse(query)
        check_count(limit, "limit")
        place = None if after is None else read_place(after)
        for name, value in (("owner", owner), ("conversation", conversation)):
            if value is not None:
                check_identifier(value, name)
        ready = await self._prepared()
        await self._nearly.caught_up()
        return await self._read_plain(
            lambda connection: ready.finder.find(
                connection, asked, owner=owner, conversation=conversation, limit=limit, after=place
            )
        )

    async def search_place(self, conversation: str | None = None) -> str:
        """Return the ``after`` of a search, of a conversation or of all, that is to show nothing said from now on."""
        finder = (await self._prepared()).finder
        return await self._read_plain(lambda connection: finder.place(connection, conversation))

    async def catch_up_search(self, limit: int = 10_000) -> int:
        """Take at most ``limit`` events into the search index; return how many, 0 where it has all.

        Searching does a little of it by itself, and ``letopis.store.search.upkeep.Indexer`` does it in the background.

        :raises StoreFault: the database failed; what was done before stays.
        """
        ready = await self._prepared()
        return await ready.indexing.catch_up(check_place(limit, "limit") or 0)

    async def _catch_up_a_little(self) -> int:
        return await (await self._prepared()).indexing.catch_up(UNREAD_MAX, wait=False)

    def projector(self, projection: Projection, *, batch: int = BATCH, poll: float = 0.25) -> Projector:
        """Return what runs a catch-up projection over this store, or brings an inline one up to date; does no I/O.

        :param batch: events in one transaction. On an SQLite file nobody else writes meanwhile.
        :param poll: seconds between two looks while there is nothing new.
        :raises ConfigurationError: the projection's name or version is wrong.
        :raises InvalidInput: ``batch`` is not from 1 to 10,000.
        """

        async def access() -> Access:
            return (await self._prepared()).access

        return Projector(projection, access=access, whole=self._whole, batch=batch, poll=poll)

    async def rebuild(
        self, *, check: bool = False, every: bool = False, conversation: str | None = None
    ) -> AsyncGenerator[Rebuilt, None]:
        """Make the rows of conversations and messages anew from the log, while it is written to; yield each when done.

        By default those whose rows were made by the rules of an older release, and those whose row is missing: so what
        was cut off is gone on with by calling it again. Numbers and the owners' active conversations stay; one whose
        row was lost gets its owner's next number. Rows that a newer release made are left alone.

        :param check: write nothing, and look at every one.
        :param every: all of them.
        :param conversation: this one alone.
        :raises InvalidInput: ``conversation`` cannot be one.
        :raises StoreFault: the database failed; what was yielded stays done.
        """
        rebuilder = (await self._prepared()).rebuilder
        if conversation is None:
            async for rebuilt in rebuilder.run(check=check, every=every or check):
                yield rebuilt
            return
        partition = partition_of(check_identifier(conversation, "conversation"), await self.partitions())
        alone = await rebuilder.rebuild(partition, conversation, check=check)
        if alone is not None:
            yield alone

    async def lane_heads(self, origin_id: UUID, conversation_ids: Sequence[str]) -> dict[str, int]:
        """Return how far an outbox's lanes have got here; lanes of which nothing is here are left out."""
        return await self._read(lambda reader, connection: reader.lane_heads(connection, origin_id, conversation_ids))

    async def statistics(
        self,
        *,
        owner: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        by: str | None = None,
    ) -> Statistics:
        """Count what was said in a period, of one owner or of all, and what it cost.

        Every message of the period is read once, a page at a time and over one snapshot: of all owners of a large
        store it takes its time.

        :param since: the first moment of the period, aware; ``until``: the first one after it. By ``occurred_at``.
        :param by: a key of the messages' metadata; the figures are told by its values as well.
        :raises InvalidInput: an argument is wrong, or the key has more than 10,000 values.
        """
        counted = await self.counted(Period.of(owner=owner, since=since, until=until, by=by))
        return counted.counting.result()

    async def counted(self, period: Period, *, origin_id: UUID | None = None, lanes: Sequence[str] = ()) -> Counted:
        """Count a period, and say how far an outbox's lanes are in it, to add what lies beyond."""
        ready = await self._prepared()
        return await self._read_plain(
            lambda connection: ready.counter.count(connection, period, origin_id=origin_id, lanes=lanes)
        )

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

    async def _prepared(self) -> Ready:
        if self._closed:
            raise Closed("the history store is closed")
        if (ready := self._ready) is not None:
            return ready
        async with self._preparing:
            if self._ready is None:
                self._ready = await self._whole(self._look())
            return self._ready

    async def _look(self) -> Ready:
        """Check the revision, migrate where that is ours to do, and read how the log is parted."""
        with translated():
            found, partitions = await self._state()
            if self._migrate and found.state in (State.MISSING, State.OLDER):
                # Off the loop: it takes as long as everything else that is imported together.
                await asyncio.to_thread(import_module, "alembic.command")
                async with in_turn(), self._engine.begin() as connection:
                    await connection.run_sync(upgrade, STORE, attributes={"partitions": self._partitions})
                found, partitions = await self._state()
        check_found(found, partitions)
        ready = made_ready(
            self._engine,
            self._readers,
            self._dialect,
            partitions=partitions,
            upcasters=self._upcasters,
            projections=self._inline,
            now=lambda: to_microseconds(self._now()),
            whole=self._whole,
            erased=self._cut_back.due,
        )
        if self._kept is not None:
            self._kept.use(ready.reader)
        return ready

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
        return await self._read_plain(lambda connection: read(ready.reader, connection), self._by_statement)

    async def _read_plain(
        self, read: Callable[[AsyncConnection], Awaitable[T]], engine: AsyncEngine | None = None
    ) -> T:
        if self._closed:
            raise Closed("the history store is closed")

        async def transaction() -> T:
            with translated():
                async with (engine or self._readers).connect() as connection:
                    return await read(connection)

        return await self._whole(transaction())

    async def _whole(self, work: Awaitable[T]) -> T:
        """Run one transaction so that a cancellation cannot tear it, and look again after a wrong schema."""
        work = self._under_way.begin(work)
        with self._doubting():
            # A file answers soon, and a torn aiosqlite call leaks its thread; a server may not answer for long, and
            # its drivers bear one cancellation well.
            return await (uninterrupted(work) if self._embedded else interrupted_once(work))

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        """Look again at the database after it was found to be not as it was."""
        try:
            yield
        except StoreFault as fault:
            if fault.fault_class is FaultClass.MISCONFIGURED:
                self._ready = None
            raise

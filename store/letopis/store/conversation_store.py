"""Apply to, read, search and maintain a history store."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.store_identity import StoreIdentity, expect_store, read_identity, renew_identity
from letopis.store.database.timeouts import Timeouts
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.events import NO_UPCASTERS, RecordedEvent, Upcasters, utc_now
from letopis.store.model.identifiers import check_identifier
from letopis.store.projections.base import EVENTS_PER_BATCH, Projection, check_inline_projections
from letopis.store.read.paging import DEFAULT_STATES, AsOf, Window, check_as_of, check_count, check_place
from letopis.store.read.polling import check_partition, check_start, follow
from letopis.store.read.task_marks import PendingTasks
from letopis.store.rules.apply_plan import ApplyResult, LaneBatch, Origin
from letopis.store.rules.statistics import Period, Statistics
from letopis.store.search.query import parse
from letopis.store.search.results import Hit, SearchPosition

if TYPE_CHECKING:
    from letopis.store.projections.projector import Follower, Projector
    from letopis.store.read.lineage import Lineage

_TIMEOUTS: Final = Timeouts()


class ConversationStore:
    """A history store on SQLite, PostgreSQL or MariaDB.

    Constructing one does no I/O and cannot fail for a server that is down: the first use connects, and :meth:`prepare`
    does so at once. All methods may be called concurrently from one event loop. Every failure of the database is a
    :class:`~letopis.store.StoreFault` with its class; a cancelled call leaves no transaction open.

    :param url: ``postgresql://``, ``mysql://``, ``sqlite:///``, or the path of an SQLite file.
    :param partitions: partitions of the log of a store that is created now; an existing store keeps its own.
    :param migrate: whether :meth:`prepare` may create and migrate the tables. ``None``: yes for an SQLite file, which
        belongs to the bot; no for a server, which is migrated by ``letopis db upgrade`` or ``alembic upgrade head``.
    :param upcasters: read old events as if they had been written today.
    :param timeouts: in seconds; see :class:`~letopis.store.Timeouts`.
    :param pool_size: maximum of open connections; an SQLite file has one more, which writes.
    :param projections: inline projections, written in the transaction of every :meth:`apply`. All processes that apply
        must be given the same ones. When one fails, the apply fails and its events stay pending.
    :param now: the clock of ``recorded_at``; no order depends on it.
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
        # What works over a database is imported with the first store, not with its class.
        from letopis.store.erasures import ErasureRegister
        from letopis.store.runtime import StoreRuntime, check_options

        check_options(partitions=partitions, upcasters=upcasters, now=now)
        inline = check_inline_projections(projections)
        self.runtime = StoreRuntime(
            url,
            timeouts=timeouts,
            pool_size=pool_size,
            partitions=partitions,
            migrate=migrate,
            upcasters=upcasters,
            projections=inline,
            now=now,
        )
        self.erasures = ErasureRegister(self.runtime)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str | URL | os.PathLike[str], **options: Any) -> AsyncIterator[ConversationStore]:
        """Open a store for the duration of an ``async with`` block: prepared at the start, closed at the end."""
        store = cls(url, **options)
        try:
            await store.prepare()
            yield store
        finally:
            await store.close()

    @property
    def url(self) -> URL:
        """The normalised URL with its secrets: to connect with, not to show."""
        return self.runtime.engine.url

    async def prepare(self) -> None:
        """Connect, and check that the database is at the revision of this release. Idempotent.

        :raises StoreFault: the database cannot be reached; or ``MISCONFIGURED``, with what to do: its tables are
            missing, older, newer or not those of Letopis. They are checked again at the next use.
        """
        await self.runtime.prepared()

    async def close(self) -> None:
        """Close all connections, after up to a second for calls in flight; later calls raise ``Closed``. Idempotent."""
        await self.runtime.close()

    async def ping(self) -> None:
        """Check that the database answers, without reading a table; raises :class:`StoreFault` if it does not."""
        await self.runtime.connected(lambda connection: connection.execute(sa.select(sa.literal(1))))

    async def identity(self) -> StoreIdentity:
        """Return which history store this is; asks the database each time."""
        await self.runtime.prepared()
        return await self.runtime.connected(read_identity)

    async def new_identity(self) -> StoreIdentity:
        """Give this store, which is a copy, an identity of its own, and return it; nothing else in it changes.

        Outboxes that are bound to the original deliver nothing here from then on.
        """
        return await self.runtime.write(lambda connection: renew_identity(connection, now=self.runtime.now()))

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        """Apply a delivery of an outbox in one transaction: every event takes effect once, in the order of its lane.

        Events that the store holds already are recognised by their content and not written again. A lane that
        contradicts the store is returned in ``refused``, untouched; the other lanes are committed. After a fault
        nothing was written, except with ``UNKNOWN_OUTCOME``, where it may have been: applying the same batch again is
        always safe.

        :raises StoreFault: the database failed; ``POISON`` where it cannot take an event of the batch.
            ``WRONG_STORE``: the origin is bound to another store, or the history was moved away from this one.
        :raises OriginSuperseded: a newer copy of the outbox file delivers under this identity.
        :raises ErasuresPending: the outbox has to carry out erasures first; InvalidInput: a lane is named twice.
        """
        with expect_store(origin.store_id):
            components = await self.runtime.prepared()
            return await self.runtime.apply_whole(components.applier.apply(origin, batch))

    async def lane_heads(self, origin_id: UUID, conversation_ids: Sequence[str]) -> dict[str, int]:
        """Return the last applied sequence of an outbox's lanes, by conversation; unknown lanes are left out.

        :raises InvalidInput: an id cannot be one.
        """
        return await self.runtime.read(
            lambda reader, connection: reader.lane_heads(connection, origin_id, conversation_ids)
        )

    async def conversation(self, conversation_id: str, *, as_of: AsOf | None = None) -> Conversation | None:
        """Return a conversation as it stands; ``None`` where there is none.

        :param as_of: as it stood after this version, or after the last event, in log order, that had occurred by a
            datetime; ``None`` is returned where it had not begun. Its events up to there are read. ``active`` is not
            known of the past.
        :raises InvalidInput: ``conversation_id`` is not valid, or ``as_of`` is neither a version nor an aware datetime.
        """
        if as_of is not None:
            check_as_of(as_of)

            async def read(lineage: Lineage, connection: AsyncConnection) -> Conversation | None:
                version = await lineage.past.version_at(connection, conversation_id, as_of)
                return await lineage.past.conversation(connection, conversation_id, version)

            return await self.runtime.snapshot(read)
        return await self.runtime.read(lambda reader, connection: reader.conversation(connection, conversation_id))

    async def active(self, owner: str) -> Conversation | None:
        """Return an owner's active conversation; ``None`` where there is none.

        :raises InvalidInput: ``owner`` is not valid.
        """
        return await self.runtime.read(lambda reader, connection: reader.active(connection, owner))

    async def conversations(
        self,
        *,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 50,
        states: Collection[str] = DEFAULT_STATES,
    ) -> Page[Conversation]:
        """Return a page of conversations, of one owner or of all, the newest activity first.

        A page never repeats what an earlier one showed. A conversation that is written to while pages are read moves to
        the front, so later pages may miss it.

        :param after: the ``next`` of the page before.
        :param states: which of ``active``, ``archived`` and ``deleted`` are shown.
        :raises InvalidInput: ``after`` is not the ``next`` of a page, or ``limit`` is not from 1 to 10,000.
        """
        return await self.runtime.read(
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

        ``before`` and ``after`` are exclusive versions, or the ``next`` of a page: ``next`` of a page is its ``before``
        with ``last``, and its ``after`` with ``first``. Pages stay in place whatever is appended meanwhile. The
        messages that a fork inherits come first, with the id and the versions of the conversation that they were
        appended to; plain versions are the conversation's own. ``complete`` is ``False`` where an ancestor is not in
        this store yet.

        :param every: include its own messages that have left the active path: rewound over, or superseded.
        :param as_of: as they were after this version, or after the last event, in log order, that had occurred by a
            datetime. What was redacted since is redacted; a conversation that was deleted since is redacted whole.
        :raises InvalidInput: ``last`` with ``first``, a number out of bounds, or ``as_of`` is neither a version nor an
            aware datetime.
        """
        window = Window.of(last=last, first=first, before=before, after=after, every=every)
        if as_of is not None:
            check_as_of(as_of)
        return await self.runtime.with_contents(await self.runtime.messages(conversation_id, window, as_of))

    async def events(self, conversation_id: str, *, after: int | str = 0, first: int = 500) -> Page[RecordedEvent]:
        """Return a page of a conversation's events after a version, in order; unknown types as they were recorded.

        :raises InvalidInput: a number is out of bounds.
        """
        return await self.runtime.read(
            lambda reader, connection: reader.events(connection, conversation_id, after=after, limit=first)
        )

    async def statistics(
        self,
        *,
        owner: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        by: str | None = None,
    ) -> Statistics:
        """Count the messages of a period, of one owner or of all, and what they cost.

        Every message of the period is read once, a page at a time and over one snapshot; counting all owners of a large
        store takes a while.

        :param since: the first moment of the period by ``occurred_at``, aware.
        :param until: the first moment after the period.
        :param by: a key of the messages' metadata; the figures are grouped by its values as well.
        :raises InvalidInput: an argument is wrong, or the key has more than 10,000 values.
        """
        period = Period.of(owner=owner, since=since, until=until, by=by)
        reader = (await self.runtime.prepared()).statistics
        counted = await self.runtime.connected(lambda connection: reader.count(connection, period))
        return counted.counting.result()

    async def subscribe(
        self,
        from_position: int | Mapping[int, int] = 0,
        *,
        partition: int | None = None,
        batch: int = 500,
        poll: float = 0.25,
    ) -> AsyncGenerator[RecordedEvent, None]:
        """Yield the events after a position, then new ones as they come, without end or gap.

        Each partition of the log comes in the order of its positions, and so does each conversation; there is no order
        between partitions. No connection is held between two batches. After a fault, subscribe again from the last
        position seen in each partition, as ``event.partition`` and ``event.position`` name them.

        :param from_position: the last position that was seen: of the only partition that is followed, or by partition;
            those left out are followed from their beginning.
        :param partition: follow this one alone; by default all.
        :param batch: how many events of a partition one read returns at most.
        :param poll: seconds between two polls while there is nothing new.
        :raises StoreFault: the database failed.
        :raises InvalidInput: there is no such partition, a number is out of bounds, or one position is given for
            several partitions.
        """
        check_count(batch, "batch")
        after = check_start(from_position, partition, await self.partitions())
        async for event in follow(self.runtime.read, after, batch=batch, poll=poll):
            yield event

    async def log(self, *, after: int | str = 0, limit: int = 500, partition: int = 0) -> Page[RecordedEvent]:
        """Return the next events of a log partition after a position, of all conversations; unlike :meth:`subscribe`,
        without waiting for more.

        :param after: the ``next`` of the page before, or a position: that of the last event that was seen.
        :raises InvalidInput: there is no such partition, or a number is out of bounds.
        """
        start = check_place(after, "after") or 0
        check_count(limit, "limit")
        check_partition(partition, await self.partitions())
        events = await self.runtime.read(
            lambda reader, connection: reader.log(connection, partition=partition, after=start, limit=limit + 1)
        )
        return Page(tuple(events[:limit]), next=str(events[limit - 1].position) if len(events) > limit else None)

    async def head(self, partition: int = 0) -> int:
        """Return the last position assigned in a log partition; 0 where it is empty.

        :raises InvalidInput: there is no such partition.
        """
        check_partition(partition, await self.partitions())
        return (await self.runtime.read(lambda reader, connection: reader.heads(connection, (partition,))))[partition]

    async def partitions(self) -> int:
        """Return how many partitions the log has."""
        return (await self.runtime.prepared()).partitions

    async def search(
        self,
        query: str,
        *,
        owner: str | None = None,
        conversation: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> Page[Hit]:
        """Return a page of messages that contain all words of ``query`` in any form, the best ones first.

        ``"quoted words"`` must stand there as they are, next to each other; a word after ``-`` must not be there. There
        is no other syntax. Case, accents and the dots of ``ё`` make no difference; Russian and English words are found
        in their other forms.

        Found are messages on the path of a conversation that was not deleted: an edited message by its present text
        only, a redacted one never, from the moment at which the store has the redaction. Messages that a fork inherits
        are found where they were appended, not in the fork.

        Pages show what was there when the first one was read, nothing twice, and at most 1,000 hits. A page may hold
        fewer than ``limit``: go on while there is a ``next``. ``complete`` is ``False`` while the index is being
        built: ``unindexed`` events were not searched. The search itself has it catch up.

        :param owner: only the conversations of this owner.
        :param conversation: only this conversation.
        :param after: the ``next`` of the page before, of the same search.
        :raises InvalidInput: ``query`` has no word to look for, more than 1,000 characters or more than 32 words, or
            another argument is wrong.
        """
        parsed = parse(query)
        check_count(limit, "limit")
        position = None if after is None else SearchPosition.from_cursor(after)
        for name, value in (("owner", owner), ("conversation", conversation)):
            if value is not None:
                check_identifier(value, name)
        finder = await self.runtime.finder()
        page = await self.runtime.connected(
            lambda connection: finder.find(
                connection, parsed, owner=owner, conversation=conversation, limit=limit, after=position
            )
        )
        shown = await self.runtime.with_contents(Page(tuple(hit.message for hit in page)))
        items = tuple(replace(hit, message=message) for hit, message in zip(page, shown, strict=True))
        return replace(page, items=items, complete=page.complete and shown.complete)

    async def catch_up_search(self, limit: int = 10_000) -> int:
        """Read at most ``limit`` events into the search index; return how many, 0 where it is up to date.

        A search does a little of it, and ``letopis.store.search.indexer.BackgroundIndexer`` does it in the background.

        :raises StoreFault: the database failed; what was done before stays.
        """
        return await (await self.runtime.prepared()).indexer.catch_up(check_place(limit, "limit") or 0)

    def projector(self, projection: Projection, *, batch: int = EVENTS_PER_BATCH, poll: float = 0.25) -> Projector:
        """Return a runner of a catch-up projection over this store, or of an inline one that is behind; does no I/O.

        :param batch: events in one transaction; no other connection writes to an SQLite file meanwhile.
        :param poll: seconds between two polls while there is nothing new.
        :raises ConfigurationError: the projection's name or version is wrong.
        :raises InvalidInput: ``batch`` is not from 1 to 10,000.
        """
        from letopis.store.projections.projector import Projector

        return Projector(
            projection, context=self.runtime.projector_context, shielded=self.runtime.in_loop, batch=batch, poll=poll
        )

    def follower(self, name: str, *, batch: int = 500, poll: float = 0.25) -> Follower:
        """Return a reader of the whole log that remembers how far it has got, for a feed into another system; no I/O.

        Each event comes at least once, also after a crash. For tables of this database, take :meth:`projector`.
        """
        from letopis.store.projections.projector import Follower

        runtime = self.runtime
        return Follower(name, context=runtime.projector_context, shielded=runtime.in_loop, batch=batch, poll=poll)

    async def pending_tasks(self, *, owner: str | None = None) -> PendingTasks:
        """Return the long rewinds and deletions that are still to be carried out, of all or of one owner.

        Reads heed a mark at once. Content is out of the database when no task is pending.

        :raises StoreFault: the database failed.
        """
        return await self.runtime.whole((await self.runtime.prepared()).steps.pending(owner=owner), write=False)

    async def run_pending_tasks(self) -> bool:
        """Carry out a part of the pending tasks, for about 0.2 s in one transaction; return False if there are none.

        The relay does so between deliveries. Idempotent, and safe from several processes at once.

        :raises StoreFault: the database failed; what was done before stays, and the rest stays pending.
        """
        return await self.runtime.whole((await self.runtime.prepared()).steps.step())

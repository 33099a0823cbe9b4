"""Read and probe a history store in the ways that only an outbox needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store._runtime import StoreRuntime
from letopis.store.errors import ConversationGone
from letopis.store.maintenance.continuity import Continuity
from letopis.store.maintenance.due_checkpoints import CheckpointPlace, DueCheckpoints
from letopis.store.maintenance.retention import Place, RetentionStep
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.messages import EMPTY
from letopis.store.projections.base import read_lags
from letopis.store.read.contents import Contents, Wanted
from letopis.store.read.lineage import Lineage
from letopis.store.read.paging import Window, check_count
from letopis.store.read.reader import Reader, StoreView, ViewQuery
from letopis.store.read.records import RecordReader
from letopis.store.rules.fold import PathPosition
from letopis.store.rules.preconditions import Conflict, Precondition
from letopis.store.rules.retention import ContentRetention
from letopis.store.rules.statistics import Erasures, PartialStatistics, Period
from letopis.store.search.results import Hit

T = TypeVar("T")


class OutboxAccess:
    """What an outbox asks of the store that it delivers to: views at one moment, and how far its lanes have got."""

    # An application needs none of it, and it may change in any release.
    def __init__(self, runtime: StoreRuntime) -> None:
        self._runtime = runtime
        self.continuity = Continuity(
            runtime.on_connection_change, lambda look: runtime.read(lambda _, connection: look(connection))
        )

    @property
    def known_partitions(self) -> int:
        return self._runtime.known_partitions

    @property
    def setup_seconds(self) -> float:
        """Seconds spent so far on loading code and on creating or migrating an embedded store: it is not down then."""
        return self._runtime.setup_seconds

    @property
    def heeds_cancellation(self) -> bool:
        """Whether a cancelled read ends at once, as one in a thread does, so that a plain timeout limits it."""
        return self._runtime.embedded and self._runtime.is_ready

    async def view(self, query: ViewQuery) -> StoreView:
        """Return a conversation and messages of it, with how far an outbox's lane had got, all at one moment."""
        if self._runtime.embedded:
            reader = (await self._runtime.prepared()).reader
            return await self._runtime.connected(lambda connection: reader.view_of(connection, query))
        if query.window is None and not query.bounded:
            return await self._runtime.read(Reader.head_view, query)
        if not query.bounded and not query.whole:
            view = await self._runtime.read(Reader.view_in_one, query)
            if view is not None:
                return view
        return await self._runtime.snapshot(lambda lineage, connection: lineage.reader.view(connection, query))

    async def active_view(self, owner: str, *, origin_id: UUID) -> StoreView:
        return await self._runtime.read(Reader.active_view, owner, origin_id=origin_id)

    async def snapshot(self, read: Callable[[Lineage, AsyncConnection], Awaitable[T]]) -> T:
        return await self._runtime.snapshot(read)

    async def messages(self, conversation_id: str, window: Window) -> Page[RecordedMessage]:
        """Return messages with references to large content, as all that this class returns."""
        return await self._runtime.messages(conversation_id, window, None)

    async def search(
        self, query: str, *, owner: str | None, conversation: str | None, limit: int, after: str | None
    ) -> Page[Hit]:
        return await self._runtime.search(query, owner=owner, conversation=conversation, limit=limit, after=after)

    async def with_contents(self, page: Page[RecordedMessage]) -> Page[RecordedMessage]:
        return await self._runtime.with_contents(page)

    async def contents(self, wanted: Wanted) -> Contents:
        return await self._runtime.contents(wanted)

    async def path_of(self, conversation_id: str, message_ids: Collection[str]) -> dict[str, PathPosition]:
        return await self._runtime.read(Reader.path_of, conversation_id, message_ids)

    async def conflict_before(
        self, conversation_id: str, event_id: UUID, expects: Precondition, *, origin_id: UUID
    ) -> Conflict | None:
        """Return the conflict that a conditional event would have if it were delivered now, after what is stored."""
        conflicts = (await self._runtime.prepared()).conflicts
        query = ViewQuery(conversation_id=conversation_id, origin_id=origin_id)

        async def read(lineage: Lineage, connection: AsyncConnection) -> Conflict | None:
            view = await lineage.reader.head_view(connection, query)
            if view.conversation is not None and view.conversation.state == "deleted":
                raise ConversationGone(conversation_id=conversation_id)
            key = {**lineage.reader.key(conversation_id), "origin": origin_id}
            return await conflicts.find_before(connection, key, event_id, expects, head=view.sequence)

        return await self._runtime.snapshot(read)

    async def conversations_of(self, message_id: str, *, limit: int) -> list[str]:
        check_count(limit, "limit")
        return await self._runtime.read(Reader.conversations_of, message_id, limit=limit)

    async def authored(self, author: str, *, after: tuple[str, int] | None, limit: int) -> list[RecordedMessage]:
        """Return the next messages of an author, by conversation and version; ``after`` is the last place seen."""
        check_count(limit, "limit")
        return await self._runtime.read(Reader.authored, author, after=after, limit=limit)

    async def owned(self, owner: str, conversation_ids: Collection[str]) -> list[str]:
        """Return those of some conversations that belong to an owner."""
        names = await self._runtime.read(Reader.owned, owner, conversation_ids)
        return list(names)

    async def digests(
        self, conversation_id: str, event_ids: Collection[UUID]
    ) -> dict[UUID, tuple[bytes, bytes | None]]:
        return await self._runtime.read(Reader.digests, conversation_id, event_ids)

    async def conversations(
        self,
        *,
        owner: str | None,
        after: str | None,
        limit: int,
        states: Collection[str],
        oldest_first: bool,
        pending: Collection[str] = (),
    ) -> tuple[Page[Conversation], dict[str, int]]:
        """Return a page of conversations, and those of ``pending`` that are the owner's, with their last activity."""

        async def read(reader: Reader, connection: AsyncConnection) -> tuple[Page[Conversation], dict[str, int]]:
            page = await reader.conversations(
                connection, owner=owner, after=after, limit=limit, states=states, oldest_first=oldest_first
            )
            return page, {} if owner is None else await reader.owned(connection, owner, pending)

        return await self._runtime.read(read)

    async def keep_index(self, limit: int) -> int | None:
        """Index some events of an SQLite file that was searched before; return how many are left, else ``None``."""
        return await (await self._runtime.prepared()).indexer.keep_up(limit)

    async def search_start(self, conversation: str | None = None) -> str:
        """Return the ``after`` of a search that shows nothing appended from now on."""
        finder = (await self._runtime.prepared()).finder
        return await self._runtime.connected(lambda connection: finder.start(connection, conversation))

    async def statistics(
        self,
        period: Period,
        *,
        origin_id: UUID,
        lanes: Mapping[str, Collection[UUID]] = EMPTY,
        erasures: Erasures | None = None,
    ) -> PartialStatistics:
        """Count a period, and return how far lanes of an outbox are counted, to add what lies beyond."""
        reader = (await self._runtime.prepared()).statistics
        return await self._runtime.connected(
            lambda connection: reader.count(connection, period, origin_id=origin_id, lanes=lanes, erasures=erasures)
        )

    async def heads(self) -> list[int]:
        """Return the last position of each partition of the log."""
        partitions = range((await self._runtime.prepared()).partitions)
        heads = await self._runtime.read(Reader.heads, partitions)
        return list(heads.values())

    async def lags(self) -> dict[str, int]:
        """Return how many events each follower and each projection has not read, by the name of its checkpoints."""
        return await self._runtime.read(lambda _, connection: read_lags(connection))

    async def read_records(self, ask: Callable[[RecordReader, AsyncConnection], Awaitable[T]]) -> T:
        """Return what ``ask`` returns of records, all of it read in one snapshot."""
        return await self._runtime.snapshot(lambda lineage, connection: ask(lineage.reader.records, connection))

    async def untrimmed(self, origin_id: UUID, pruned: Mapping[str, int]) -> dict[str, int]:
        """Return those of ``pruned`` whose ledger reaches back further: an outbox's lanes of records."""
        rows = await self._runtime.read(Reader.lanes, origin_id, list(pruned))
        return {name: pruned[name] for name, row in rows.items() if row.floor < min(pruned[name], row.sequence)}

    async def retention_places(self, retention: ContentRetention) -> dict[Place, int]:
        """Return how far retention has read the log by these rules."""
        finder = (await self._runtime.prepared()).retention
        return await self._runtime.read(lambda _, connection: finder.places(connection, retention))

    async def due_content(
        self,
        retention: ContentRetention,
        places: Mapping[Place, int],
        *,
        origin_id: UUID,
        describe: bool = False,
        now: int | None = None,
    ) -> RetentionStep:
        """Return the content that is due next, from some places in the log on; for an outbox that appends it."""
        finder = (await self._runtime.prepared()).retention
        return await self._runtime.read(
            lambda _, connection: finder.step(
                connection, retention, places, origin_id=origin_id, describe=describe, now=now
            )
        )

    async def keep_places(self, retention: ContentRetention, step: RetentionStep) -> None:
        """Keep how far a step has read the log, once the events of what was due are appended."""
        finder = (await self._runtime.prepared()).retention
        await self._runtime.write(lambda connection: finder.keep(connection, retention, step))

    async def retention_behind(self, retention: ContentRetention) -> int:
        """Return how many events have reached an age and were not looked at, of the next 1,000 for each age."""
        finder = (await self._runtime.prepared()).retention
        return await self._runtime.read(lambda _, connection: finder.behind(connection, retention))

    async def due_checkpoints(
        self, retention: ContentRetention, place: CheckpointPlace
    ) -> tuple[list[DueCheckpoints], CheckpointPlace | None]:
        """Return threads with checkpoints that may be due, from a place on, and the next place."""
        finder = (await self._runtime.prepared()).checkpoints
        return await self._runtime.read(lambda _, connection: finder.step(connection, retention, place))

    async def try_out(self, conversation_id: str) -> None:
        """Apply an ordinary event in the partition of a conversation, and roll it back."""
        applier = (await self._runtime.prepared()).applier
        await self._runtime.apply_whole(applier.try_out(conversation_id))

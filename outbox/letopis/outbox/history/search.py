"""Find messages by their words, pending ones included."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Self
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.pending_reads.contents import ContentReads
from letopis.outbox.pending_reads.pending_search import (
    MessageKey,
    PendingConversation,
    PendingSearch,
    pending_of,
    snapshot,
)
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.store.model.codec import INTEGER_MAX
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.events import Upcasters
from letopis.store.model.identifiers import check_identifier
from letopis.store.read.paging import CursorCodec, check_count
from letopis.store.read.reader import Reader
from letopis.store.search.finder import Finder
from letopis.store.search.query import Query, parse
from letopis.store.search.results import MAX_HITS, Hit, SearchPosition, hit_of

_CURSOR: Final = CursorCodec("history-search", "hits")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What to search for, where, and from which place on."""

    typed: str
    query: Query
    owner: str | None
    conversation: str | None
    limit: int
    progress: _Progress | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    """How far a search has got."""

    queue: tuple[int, ...]  # positions in the outbox of the messages found there when the search began, in order
    shown: int  # how many of them were on earlier pages
    store: str | None  # the ``next`` of the store's page; ``None`` before its first one, ``""`` after its last

    @property
    def left(self) -> bool:
        """Whether there may be more."""
        return self.shown < len(self.queue) or self.store != ""

    def encode(self) -> str:
        return _CURSOR.encode(list(self.queue), self.shown, self.store)

    @classmethod
    def decode(cls, cursor: object) -> Self:
        """Return the progress that the ``next`` of a page names."""
        return _CURSOR.decode(cursor, cls._from_values)

    @classmethod
    def _from_values(cls, *values: Any) -> Self:
        match values:
            case [list(queue), int(shown), None | str() as store] if (
                len(queue) <= MAX_HITS
                and 0 <= shown <= len(queue)
                and all(type(position) is int and 0 <= position <= INTEGER_MAX for position in queue)
            ):
                return cls(queue=tuple(queue), shown=shown, store=store)
        raise ValueError("not the progress of a search")


@dataclass(slots=True, kw_only=True, eq=False)
class Search:
    outbox: OutboxFile
    gateway: StoreGateway
    upcasters: Upcasters
    contents: ContentReads

    async def search(
        self, query: str, *, owner: str | None, conversation: str | None, limit: int, after: str | None
    ) -> Page[Hit]:
        check_count(limit, "limit")
        for value, name in ((owner, "owner"), (conversation, "conversation")):
            if value is not None:
                check_identifier(value, name)
        request = _Request(
            typed=query,
            query=parse(query),
            owner=owner,
            conversation=conversation,
            limit=limit,
            progress=None if after is None else _Progress.decode(after),
        )
        # The outbox first: what is delivered in between is in the store's view too, and skipped by its sequence.
        pending = await self._snapshot(request)
        state, keys = self._queue(request, pending)
        while True:
            found = await self._in_store(partial(self._found, request, pending, state, keys))
            if found is None or not (unread := found.names & pending.lanes.keys() - pending.conversations.keys()):
                break
            # A snapshot has no room for conversations with very much pending: read those, and then the store again.
            pending = await self._with(pending, unread)
        page = await self._retained(request) if found is None else found.page
        shown = await self.contents.of_page(Page(tuple(hit.message for hit in page)))
        items = tuple(replace(hit, message=message) for hit, message in zip(page, shown, strict=True))
        return replace(page, items=items, complete=page.complete and shown.complete)

    async def _in_store(self, ask: Callable[[Finder, Reader, AsyncConnection], Awaitable[_Found]]) -> _Found | None:
        return await self.gateway.read(lambda: self._ask(ask))

    async def _ask(self, ask: Callable[[Finder, Reader, AsyncConnection], Awaitable[_Found]]) -> _Found:
        runtime = self.gateway.store.runtime
        finder = await runtime.finder()
        return await runtime.snapshot(lambda lineage, connection: ask(finder, lineage.reader, connection))

    async def _snapshot(self, request: _Request, *, retained: bool = False) -> PendingSearch:
        return await self.outbox.read(
            lambda connection: snapshot(
                connection,
                origin_id=self.outbox.origin.origin_id,
                conversation=request.conversation,
                retained=retained,
                queued=() if request.progress is None else request.progress.queue,
            )
        )

    def _queue(self, request: _Request, pending: PendingSearch) -> tuple[_Progress, dict[int, MessageKey]]:
        """Return the progress of the search, and the messages of the queue."""
        if request.progress is not None:
            return request.progress, dict(pending.queued)
        candidates = pending.candidates(request.query, owner=request.owner, upcasters=self.upcasters)[:MAX_HITS]
        return _Progress(queue=tuple(position for position, _ in candidates), shown=0, store=None), dict(candidates)

    async def _found(
        self,
        request: _Request,
        pending: PendingSearch,
        state: _Progress,
        keys: Mapping[int, MessageKey],
        finder: Finder,
        reader: Reader,
        connection: AsyncConnection,
    ) -> _Found:
        """Return a page, read in one snapshot of the store."""
        shown = state.queue[state.shown : state.shown + request.limit]
        merge = _PageMerge(request, pending, self.outbox.origin.origin_id, self.upcasters, reader, connection)
        hits = await merge.of_outbox([keys[position] for position in shown if position in keys])
        room, store_place, complete, unindexed = request.limit - len(shown), state.store, pending.complete, 0
        if store_place is None:
            store_place = await finder.start(connection, request.conversation)
        if room and store_place != "":
            page = await finder.find(
                connection,
                request.query,
                owner=request.owner,
                conversation=request.conversation,
                limit=room,
                after=SearchPosition.from_cursor(store_place),
            )
            hits += await merge.of_store(page, besides=frozenset(keys.values()))
            store_place, complete, unindexed = page.next or "", complete and page.complete, page.unindexed
        ahead = _Progress(queue=state.queue, shown=state.shown + len(shown), store=store_place)
        following = ahead.encode() if ahead.left else None
        return _Found(Page(tuple(hits), next=following, complete=complete, unindexed=unindexed), merge.names)

    async def _retained(self, request: _Request) -> Page[Hit]:
        """Return hits of what the outbox retains, while the store is unavailable."""
        pending = await self._snapshot(request, retained=True)
        state, keys = self._queue(request, pending)
        shown = state.queue[state.shown : state.shown + request.limit]
        hits = []
        for position in shown:
            key = keys.get(position)
            local = None if key is None else pending.conversations.get(key.conversation_id)
            if key is None or local is None or request.owner not in (None, local.lane.owner_id):
                continue
            there = local.merge((), conversation=None, elsewhere=None, upcasters=self.upcasters)
            hits += _hits(there, [key], request.query)
        ahead = _Progress(queue=state.queue, shown=state.shown + len(shown), store=state.store)
        more = ahead.shown < len(ahead.queue)
        return Page(tuple(hits), next=ahead.encode() if more else None, complete=False)

    async def _with(self, pending: PendingSearch, names: Iterable[str]) -> PendingSearch:
        """Return what is pending with that of conversations which the snapshot had no room for."""
        lanes, origin_id = [pending.lanes[name] for name in names], self.outbox.origin.origin_id
        more = await self.outbox.read(lambda connection: pending_of(connection, lanes, origin_id=origin_id))
        return replace(pending, conversations={**pending.conversations, **more})


@dataclass(frozen=True, slots=True)
class _Found:
    """A page, and the conversations of which the store was asked."""

    page: Page[Hit]
    names: set[str]


@dataclass(slots=True, eq=False)
class _PageMerge:
    """Merges what is pending in the outbox over what one snapshot of the store holds of the same conversations."""

    request: _Request
    pending: PendingSearch
    origin_id: UUID
    upcasters: Upcasters
    reader: Reader
    connection: AsyncConnection
    names: set[str] = field(default_factory=set)

    async def of_outbox(self, keys: Sequence[MessageKey]) -> list[Hit]:
        """Return the hits among messages whose content is in the outbox, or was when the search began."""
        messages = list[RecordedMessage]()
        for name in dict.fromkeys(key.conversation_id for key in keys):
            ids = {key.message_id for key in keys if key.conversation_id == name}
            conversation = await self._conversation(name)
            if self._is_searched(conversation, self.pending.conversations.get(name)):
                stored = await self.reader.named(self.connection, name, ids)
                messages += await self._merged(name, [message for message in stored if message.on_path], conversation)
        return _hits(messages, keys, self.request.query)

    async def of_store(self, page: Page[Hit], *, besides: frozenset[MessageKey]) -> list[Hit]:
        """Return the hits of the store's page that are hits still."""
        now = dict[object, RecordedMessage]()
        names = {hit.conversation_id for hit in page}
        self.names |= names
        for name in names & self.pending.conversations.keys():
            stored = [hit.message for hit in page if hit.conversation_id == name]
            there = await self._merged(name, stored, await self._conversation(name))
            now.update({message.event_id: message for message in there})
        hits = []
        for hit in page:
            if MessageKey(hit.conversation_id, hit.message.id) in besides:
                continue
            if hit.conversation_id not in self.pending.conversations:
                hits.append(hit)
            elif (message := now.get(hit.message.event_id)) is not None:  # otherwise the conversation is deleted here
                updated = hit_of(message, self.request.query, hit.score)
                hits += () if updated is None else (updated,)
        return hits

    async def _conversation(self, name: str) -> Conversation | None:
        self.names.add(name)
        return await self.reader.conversation(self.connection, name)

    async def _merged(
        self, name: str, stored: Sequence[RecordedMessage], conversation: Conversation | None
    ) -> Sequence[RecordedMessage]:
        """Return messages of the store in their state after what is pending beyond the snapshot."""
        local = self.pending.conversations.get(name)
        if local is None:
            return stored
        heads = await self.reader.lane_heads(self.connection, self.origin_id, [name])
        ids = local.targets() | local.appended()
        places = await self.reader.path_of(self.connection, name, ids) if ids else {}
        return local.merge(
            stored, conversation=conversation, elsewhere=places, upcasters=self.upcasters, after=heads.get(name, 0)
        )

    def _is_searched(self, conversation: Conversation | None, local: PendingConversation | None) -> bool:
        """Return True if a conversation is searched; the store knows best who owns it."""
        if conversation is not None and conversation.state == "deleted":
            return False
        if self.request.owner is None:
            return True
        known = None if conversation is None else conversation.owner_id
        if known is None and local is not None:
            known = local.lane.owner_id
        return known == self.request.owner


def _hits(messages: Iterable[RecordedMessage], keys: Sequence[MessageKey], query: Query) -> list[Hit]:
    """Return the hits among messages, in the order of the keys; the last of several with one id."""
    messages_by_key: dict[MessageKey, Any] = {
        MessageKey(message.conversation_id, message.id): message for message in messages
    }
    hits = (hit_of(messages_by_key[key], query) for key in dict.fromkeys(keys) if key in messages_by_key)
    return [hit for hit in hits if hit is not None]

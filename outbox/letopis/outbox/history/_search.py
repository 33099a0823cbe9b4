"""Find messages by their words, pending ones included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

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
from letopis.store.conversation_store import ConversationStore
from letopis.store.model.codec import INTEGER_MAX
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.events import Upcasters
from letopis.store.model.identifiers import check_identifier
from letopis.store.read.paging import CursorCodec, Window, check_count
from letopis.store.search.query import Query, parse
from letopis.store.search.results import MAX_HITS, Hit, hit_of

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
        if conversation is not None:
            check_identifier(conversation, "conversation")
        request = _Request(
            typed=query,
            query=parse(query),
            owner=owner,
            conversation=conversation,
            limit=limit,
            progress=None if after is None else _Progress.decode(after),
        )
        # The outbox first: a message that is delivered in between is found in both and shown once.
        pending = await self._snapshot(request)
        page = await self.gateway.read(lambda store: self._found(store, request, pending))
        page = await self._retained(request) if page is None else page
        shown = await self.contents.of_page(Page(tuple(hit.message for hit in page)))
        items = tuple(replace(hit, message=message) for hit, message in zip(page, shown, strict=True))
        return replace(page, items=items, complete=page.complete and shown.complete)

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

    async def _found(self, store: ConversationStore, request: _Request, pending: PendingSearch) -> Page[Hit]:
        state, keys = self._queue(request, pending)
        shown = state.queue[state.shown : state.shown + request.limit]
        merge = _PageMerge(self, store, request, pending)
        hits = await merge.of_outbox([keys[position] for position in shown if position in keys])
        room, store_place, complete, unindexed = request.limit - len(shown), state.store, pending.complete, 0
        if store_place is None:
            store_place = await store.outbox_access.search_start(request.conversation)
        if room and store_place != "":
            page = await store.outbox_access.search(
                request.typed, owner=request.owner, conversation=request.conversation, limit=room, after=store_place
            )
            hits += await merge.of_store(page, besides=frozenset(keys.values()))
            store_place, complete, unindexed = page.next or "", complete and page.complete, page.unindexed
        ahead = _Progress(queue=state.queue, shown=state.shown + len(shown), store=store_place)
        return Page(tuple(hits), next=ahead.encode() if ahead.left else None, complete=complete, unindexed=unindexed)

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

    async def pending_of(self, pending: PendingSearch, names: Iterable[str]) -> Mapping[str, PendingConversation]:
        """Return what is pending of conversations, also of those that a snapshot had no room for."""
        wanted = {name: pending.lanes[name] for name in names if name in pending.lanes}
        left = [lane for name, lane in wanted.items() if name not in pending.conversations]
        more: Mapping[str, PendingConversation] = {}
        if left:
            origin_id = self.outbox.origin.origin_id
            more = await self.outbox.read(lambda connection: pending_of(connection, left, origin_id=origin_id))
        return {name: pending.conversations[name] if name in pending.conversations else more[name] for name in wanted}


@dataclass(slots=True, eq=False)
class _PageMerge:
    """Merges what is pending in the outbox over what the store holds of the same conversations, for one page."""

    search: Search
    store: ConversationStore
    request: _Request
    pending: PendingSearch

    async def of_outbox(self, keys: Sequence[MessageKey]) -> list[Hit]:
        """Return the hits among messages whose content is in the outbox, or was when the search began."""
        names = list(dict.fromkeys(key.conversation_id for key in keys))
        local = await self.search.pending_of(self.pending, names)
        messages = list[RecordedMessage]()
        for name in names:
            ids = {key.message_id for key in keys if key.conversation_id == name}
            messages += await self._messages(name, ids, local.get(name))
        return _hits(messages, keys, self.request.query)

    async def of_store(self, page: Page[Hit], *, besides: frozenset[MessageKey]) -> list[Hit]:
        """Return the hits of the store's page that are hits still."""
        local = await self.search.pending_of(self.pending, {hit.conversation_id for hit in page})
        now = dict[object, RecordedMessage]()
        for name, pending in local.items():
            stored = [hit.message for hit in page if hit.conversation_id == name]
            conversation = await self.store.conversation(name)
            targets = pending.targets()
            places = await self.store.outbox_access.path_of(name, targets) if targets else {}
            there = pending.merge(stored, conversation=conversation, elsewhere=places, upcasters=self.search.upcasters)
            now.update({message.event_id: message for message in there})
        hits = []
        for hit in page:
            if MessageKey(hit.conversation_id, hit.message.id) in besides:
                continue
            if hit.conversation_id not in local:
                hits.append(hit)
            elif (message := now.get(hit.message.event_id)) is not None:  # otherwise the conversation is deleted here
                updated = hit_of(message, self.request.query, hit.score)
                hits += () if updated is None else (updated,)
        return hits

    async def _messages(self, name: str, ids: set[str], local: PendingConversation | None) -> Sequence[RecordedMessage]:
        """Return messages of a conversation in their current state, reading those of the store."""
        conversation = await self.store.conversation(name)
        if not self._is_searched(conversation, local):
            return ()
        targets = local.targets() if local is not None else frozenset[str]()
        places = await self.store.outbox_access.path_of(name, ids | targets)
        stored = list[RecordedMessage]()
        for message_id in sorted(ids):
            if message_id in places:
                version = places[message_id].version
                alone = Window(after=version - 1, before=version + 1)
                stored += await self.store.outbox_access.messages(name, alone)
        if local is None:
            return stored
        return local.merge(stored, conversation=conversation, elsewhere=places, upcasters=self.search.upcasters)

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

"""Read messages, conversations and events, pending ones included."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.event_log.append_encoding import check_types
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.pending_reads.contents import ContentReads
from letopis.outbox.pending_reads.lineage import Ancestry, OwnMessages
from letopis.outbox.pending_reads.merge import (
    AlreadyDelivered,
    last_event_at,
    may_inherit,
    merge_conversation,
    merge_events,
    merge_messages,
    merge_newest_events,
    place_of,
)
from letopis.outbox.pending_reads.merge_listing import ListingKey, merge_list, read_pending_keys, read_retained_keys
from letopis.outbox.pending_reads.pending_slice import PendingSlice
from letopis.outbox.pending_reads.read_path import ReadPath
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.store.errors import InvalidInput, OutboxUnavailable, StoreUnavailable
from letopis.store.model.conversations import Conversation, Page, RecordedMessage, any_needs_content
from letopis.store.model.events import RecordedEvent, Upcasters
from letopis.store.model.identifiers import ForkPoint, check_identifier, check_number, check_whole
from letopis.store.read.lineage import Level, Lineage, may_show_inherited, read_levels, with_completeness
from letopis.store.read.paging import (
    AsOf,
    Window,
    check_as_of,
    check_count,
    check_place,
    check_states,
    count_filtered,
    read_conversations_cursor,
    read_filtered,
)
from letopis.store.read.reader import Reader, StoreView, ViewQuery
from letopis.store.rules.filter import Filter, check_filter
from letopis.store.rules.sight import Sight

T = TypeVar("T")

MAX_CONCURRENT_CONVERSATIONS: Final = 4  # conversations of a page that are read at the same time


class HistoryReader:
    """Reads the outbox and the history store as one history."""

    def __init__(
        self,
        *,
        outbox: OutboxFile,
        gateway: StoreGateway,
        path: ReadPath,
        upcasters: Upcasters,
        contents: ContentReads,
    ) -> None:
        self._outbox = outbox
        self._gateway = gateway
        self._store = gateway.store
        self._path = path
        self._upcasters = upcasters
        self.contents = contents

    async def messages(
        self,
        conversation_id: str,
        *,
        last: int | None = None,
        first: int | None = None,
        before: int | str | None = None,
        after: int | str | None = None,
        every: bool = False,
        where: Filter | None = None,
        offset: int = 0,
        as_of: AsOf | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - for one request to the store, with an error of its own
        whole: bool = True,
    ) -> Page[RecordedMessage]:
        """Return messages as ``History.messages`` does; all of them without ``last`` and ``first``.

        Unless they are to be ``whole``, references stand for large content.
        """
        check_identifier(conversation_id, "conversation_id")
        if timeout is not None:
            _check_timeout(timeout, as_of)
        window = Window.of(last=last, first=first, before=before, after=after, every=every)
        level: Callable[..., Awaitable[Page[RecordedMessage]]] = partial(self._with_inherited, conversation_id)
        if as_of is not None:
            level = partial(self._as_of, conversation_id, check_as_of(as_of), seconds=timeout)

        if where is None and offset == 0:
            try:
                page = await level(window, file=True)
            except AlreadyDelivered:
                page = await self._until_settled(level, window)
            return await self.contents.of_page(page) if whole and any_needs_content(page.items) else page

        async def read(window: Window) -> Page[RecordedMessage]:
            return await self.contents.of_page(await self._until_settled(level, window))

        check_whole(offset, "offset", 0)
        return await read_filtered(read, window, check_filter(where), offset=offset)

    async def count(self, conversation_id: str, *, where: Filter | None) -> int:
        check_identifier(conversation_id, "conversation_id")
        check_filter(where)
        if where is None:
            conversation = await self._conversation(conversation_id)
            if not self._gateway.unavailable and (conversation is None or not conversation.inherits):
                return 0 if conversation is None else conversation.message_count

        async def read(window: Window) -> Page[RecordedMessage]:
            level = partial(self._with_inherited, conversation_id)
            return await self.contents.of_page(await self._until_settled(level, window))

        count, complete = await count_filtered(read, where)
        if not complete:
            raise StoreUnavailable("all messages of the conversation")
        return count

    async def _with_inherited(self, conversation_id: str, window: Window, *, file: bool) -> Page[RecordedMessage]:
        """Return messages of a conversation and, if it is a fork and they do not fill the window, of its ancestors."""
        at = window.at(0)
        own = await self._own(conversation_id, at or Window(last=1), inherits=at is None)
        conversation = own.conversation
        if conversation is None or not conversation.inherits:
            return own.page if at is not None else replace(own.page, items=(), next=None)
        ancestry = Ancestry(self._store, self._gateway.read, self._outbox, self._own, file=file)
        levels, whole = await ancestry.levels(conversation.forked_from, known=(conversation_id,))

        async def current(wanted: Window) -> Page[RecordedMessage]:
            if wanted == at:
                return own.page
            again = await self._own(conversation_id, wanted, inherits=True)
            there = again.conversation
            if there is None or (there.inherits, there.inherited_to) != (True, conversation.inherited_to):
                raise AlreadyDelivered  # it was rewound into inherited messages meanwhile
            return again.page

        page = await read_levels([Level.of(conversation, current), *levels], window)
        page = with_completeness(page, window, whole=whole)
        return replace(page, complete=page.complete and own.page.complete, seen=own.page.seen)

    async def _as_of(
        self, conversation_id: str, as_of: AsOf, window: Window, *, file: bool, seconds: float | None
    ) -> Page[RecordedMessage]:
        """Return messages as they were, which is what a fork made at that moment inherits."""
        point = await self._point(conversation_id, as_of, seconds)
        if point is None:
            return Page((), complete=False)
        levels, whole = await self._past(seconds, file=file).levels(point)
        if not levels:
            return Page((), complete=not self._gateway.unavailable)
        page = with_completeness(await read_levels(levels, window), window, whole=whole)
        now = await self._conversation(conversation_id)
        return page if now is None else Sight.of(now).page(page)

    async def _point(self, conversation_id: str, as_of: AsOf, seconds: float | None) -> ForkPoint | None:
        """Return the event for ``as_of``; ``None`` if it cannot be known while the store is unavailable."""
        if not isinstance(as_of, datetime):
            return ForkPoint(conversation_id=conversation_id, version=as_of)
        moment = as_of
        query = ViewQuery(conversation_id=conversation_id, origin_id=self._outbox.origin.origin_id)

        async def read(lineage: Lineage, connection: AsyncConnection) -> tuple[StoreView, int]:
            view = await lineage.reader.head_view(connection, query)
            return view, await lineage.past.version_at(connection, conversation_id, moment)

        async def ask(_: PendingSlice) -> tuple[StoreView, int] | None:
            return await self._gateway.read(lambda: self._store.runtime.snapshot(read), timeout=seconds, needed=True)

        def merge(pending: PendingSlice, view: StoreView | None, version: int | None) -> ForkPoint | None:
            event_id = last_event_at(pending, view, moment)
            if event_id is not None:
                return ForkPoint(conversation_id=conversation_id, event_id=event_id)
            return None if version is None else ForkPoint(conversation_id=conversation_id, version=version)

        return await self._path.read(conversation_id, ask, merge)

    def _past(self, seconds: float | None, *, file: bool) -> Ancestry:
        """Return what finds past states, which the store alone may know."""
        read = partial(self._gateway.read, timeout=seconds, needed=True)
        return Ancestry(self._store, read, self._outbox, self._own, file=file)

    async def _until_settled(self, read: Callable[..., Awaitable[T]], *window: Window) -> T:
        """Read again while pending events arrive in the store in between; the last time from the store alone."""
        for file in (True, True, True, False):
            try:
                return await read(*window, file=file)
            except AlreadyDelivered:
                continue
        raise OutboxUnavailable("the conversation changes faster than it can be read: read it again")

    async def _own(
        self,
        conversation_id: str,
        window: Window,
        *,
        upto: int | None = None,
        find: str | None = None,
        inherits: bool = False,
    ) -> OwnMessages:
        """Return messages of the conversation itself, without inherited ones."""

        def merge(pending: PendingSlice, view: StoreView | None) -> tuple[OwnMessages, bool]:
            page = merge_messages(pending, view, window, upcasters=self._upcasters, upto=upto)
            merged, known = None, True
            if (inherits or may_show_inherited(window, page)) and may_inherit(pending, view):
                known = view is None or not view.plain
                merged = merge_conversation(pending, view, upcasters=self._upcasters, upto=upto) if known else None
            there = None if find is None else next((message for message in reversed(page) if message.id == find), None)
            position = None if there is None else place_of(pending, view, there)
            return OwnMessages(page=page, conversation=merged, position=position), known

        # Pending messages alone may fill a page of the newest ones.
        alone = window.before is None and upto is None and find is None and not inherits
        newest = window.last if alone else None
        own, known = await self._path.read_window(
            conversation_id, window, merge, upto=upto, newest=newest, whole=inherits
        )
        if not known:
            own, _ = await self._path.read_window(conversation_id, window, merge, upto=upto, whole=True)
        return own

    async def conversation(
        self,
        conversation_id: str,
        *,
        as_of: AsOf | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - for one request to the store, with an error of its own
    ) -> Conversation | None:
        check_identifier(conversation_id, "conversation_id")
        _check_timeout(timeout, as_of)
        if as_of is None:
            return await self._conversation(conversation_id)
        check_as_of(as_of)
        return await self._until_settled(partial(self._conversation_as_of, conversation_id, as_of, seconds=timeout))

    async def _conversation_as_of(
        self, conversation_id: str, as_of: AsOf, *, file: bool, seconds: float | None
    ) -> Conversation | None:
        conversation = None
        point = await self._point(conversation_id, as_of, seconds)
        level = None if point is None else await self._past(seconds, file=file).of(point)
        if isinstance(level, int):
            conversation = await self._conversation(conversation_id, upto=level)
        elif level is not None:
            ask = partial(self._store.conversation, conversation_id, as_of=level.version)
            conversation = await self._gateway.read(ask, timeout=seconds, needed=True)
        if conversation is None and self._gateway.unavailable:
            raise StoreUnavailable("that past")
        now = None if conversation is None else await self._conversation(conversation_id)
        if conversation is None or now is None:
            return conversation
        return Sight.of(now).conversation(conversation, pending=now.pending > 0)

    async def _conversation(self, conversation_id: str, *, upto: int | None = None) -> Conversation | None:
        def merge(pending: PendingSlice, view: StoreView | None) -> Conversation | None:
            return merge_conversation(pending, view, upcasters=self._upcasters, upto=upto)

        return await self._path.read_window(conversation_id, None, merge, upto=upto, whole=True)

    async def conversations(
        self, *, owner: str | None, after: str | None, limit: int, states: Collection[str], oldest_first: bool = False
    ) -> Page[Conversation]:
        """Return a page of conversations by last activity, of one owner or of all."""
        check_count(limit, "limit")
        wanted = check_states(states)
        key = None
        if after is not None:
            updated_at, conversation_id = read_conversations_cursor(after)
            key = ListingKey(updated_at=updated_at, conversation_id=conversation_id)
        pending = await self._outbox.read(lambda connection: read_pending_keys(connection, owner))

        async def read(reader: Reader, connection: AsyncConnection) -> tuple[Page[Conversation], dict[str, int]]:
            page = await reader.conversations(
                connection, owner=owner, after=after, limit=limit, states=wanted, oldest_first=oldest_first
            )
            return page, {} if owner is None else await reader.owned(connection, owner, pending.keys)

        stored = await self._gateway.read(lambda: self._store.runtime.read(read))
        if stored is None:
            retained = await self._outbox.read(
                lambda connection: read_retained_keys(connection, owner, key, limit + 1, oldest_first=oldest_first)
            )
            listed = merge_list(retained, None, after=key, limit=limit, oldest_first=oldest_first)
        else:
            page, updated = stored
            listed = merge_list(pending.owned(updated), page, after=key, limit=limit, oldest_first=oldest_first)
        gate = asyncio.Semaphore(MAX_CONCURRENT_CONVERSATIONS)

        async def complete(conversation_id: str, settled: Conversation | None) -> Conversation | None:
            if settled is not None:
                return settled
            async with gate:
                return await self.conversation(conversation_id)

        completed = await asyncio.gather(*(complete(*item) for item in listed.items))
        items = tuple(item for item in completed if item is not None and item.state in wanted)
        return Page(items, next=listed.next, complete=stored is not None)

    async def with_last_messages(self, page: Page[Conversation]) -> Page[Conversation]:
        """Return a page with the last messages: one select for all of which nothing is pending or inherited."""
        settled = [item.conversation_id for item in page if not (item.pending or item.inherits)]
        stored = await self._gateway.read(lambda: self._store.runtime.read(Reader.last_messages, settled))
        ends = await self.contents.of_page(Page(tuple(stored or ())))
        known: dict[str, RecordedMessage | None] = {} if stored is None else dict.fromkeys(settled)
        known |= {message.conversation_id: message for message in ends}
        gate = asyncio.Semaphore(MAX_CONCURRENT_CONVERSATIONS)

        async def ended(item: Conversation) -> Conversation:
            if (name := item.conversation_id) not in known:
                async with gate:
                    known[name] = next(iter(await self.messages(name, last=1)), None)
            return item.with_changes(last_message=known[name])

        return replace(page, items=tuple(await asyncio.gather(*map(ended, page))))

    async def events(
        self,
        conversation_id: str,
        *,
        after: int | str,
        first: int,
        last: int | None = None,
        before: int | str | None = None,
        types: Collection[str] | None = None,
    ) -> Page[RecordedEvent]:
        check_identifier(conversation_id, "conversation_id")
        size = check_count(first, "first") if last is None else check_count(last, "last")
        start, end = check_place(after, "after") or 0, check_place(before, "before")
        if end is not None and last is None:
            raise InvalidInput("before", "needs last: it is the end of the newest events that are asked for")
        named = None if types is None else check_types(types)
        query = ViewQuery(conversation_id=conversation_id, origin_id=self._outbox.origin.origin_id)

        async def read(lineage: Lineage, connection: AsyncConnection) -> tuple[StoreView, Page[RecordedEvent]]:
            view = await lineage.reader.head_view(connection, query)
            kinds, newest = None if named is None else sorted(named), last is not None
            page = await lineage.reader.events(
                connection, conversation_id, after=start, limit=size, before=end, newest=newest, types=kinds
            )
            return view, page

        async def ask(_: PendingSlice) -> tuple[StoreView, Page[RecordedEvent]] | None:
            return await self._gateway.read(lambda: self._store.runtime.snapshot(read))

        def merge(
            pending: PendingSlice, view: StoreView | None, page: Page[RecordedEvent] | None
        ) -> Page[RecordedEvent]:
            stored: Page[RecordedEvent] = Page(()) if page is None else page
            if last is None:
                return merge_events(
                    pending, view, stored, after=start, limit=size, types=named, upcasters=self._upcasters
                )
            return merge_newest_events(
                pending, view, stored, before=end, after=start, limit=size, types=named, upcasters=self._upcasters
            )

        return await self._path.read(conversation_id, ask, merge)


def _check_timeout(timeout: float | None, as_of: AsOf | None) -> None:
    """Check how long the history store may take for a past state."""
    if timeout is None:
        return
    check_number(timeout, "timeout")
    if timeout <= 0:
        raise InvalidInput("timeout", "must be more than 0 seconds")
    if as_of is None:
        raise InvalidInput(
            "timeout", "needs as_of: other reads wait for `read_timeout` and are answered from the outbox"
        )

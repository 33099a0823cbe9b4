"""Reading: all that was said, with what is not saved yet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from letopis.outbox.embedded import Embedded
from letopis.outbox.glance import Standing
from letopis.outbox.lineage import Ancestry, Own, ReadOwn, is_gone
from letopis.outbox.overlay import (
    Arrived,
    Key,
    Overtaken,
    Unplaced,
    bound_of,
    conversation_over,
    events_over,
    happened,
    list_over,
    may_inherit,
    messages_over,
    nothing_over,
    place_over,
)
from letopis.store.asking import EVERYDAY, Window, check_count, check_place, check_states, read_conversations_cursor
from letopis.store.conversation import Conversation, Page, RecordedMessage, Seen
from letopis.store.errors import OutboxUnavailable
from letopis.store.events import RecordedEvent
from letopis.store.fold import Elsewhere
from letopis.store.history import ConversationStore
from letopis.store.identifiers import check_identifier
from letopis.store.lineage import across, bared, ended, goes_on
from letopis.store.reads import StoreView
from letopis.store.timetravel import AsOf, bare_conversation, check_as_of
from letopis.store.vocabulary import ForkPoint

T = TypeVar("T")

AT_ONCE: Final = 4
"""Conversations of a page that are completed at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """Where what is pending cuts the path in the history store.

    :ivar places: of the stored messages that rewinds name; ``None`` before they were asked for.
    :ivar bound: stored messages beyond this version have left the path.
    """

    places: Mapping[str, Elsewhere] | None = None
    bound: int | None = None

    def before(self, asked: int | None) -> int | None:
        """Return the version before which stored messages are to be read."""
        if self.bound is None:
            return asked
        return self.bound + 1 if asked is None else min(asked, self.bound + 1)


async def _places(
    store: ConversationStore, reading: Reading, conversation_id: str, message_ids: frozenset[str]
) -> tuple[StoreView, dict[str, Elsewhere]]:
    # Where they stand is read first: what is rewound after that is found in the view, or still in the file.
    places = await store.path_of(conversation_id, message_ids) if message_ids else {}
    view = await store.view(conversation_id, origin_id=reading.outbox.origin.origin_id, last=1)
    return view, places


def _cut_of(
    connection: sa.Connection,
    conversation_id: str,
    found: tuple[StoreView, dict[str, Elsewhere]] | None,
    upto: int | None,
) -> _Cut:
    if found is None:
        return _Cut(places={})
    view, places = found
    return _Cut(places=places, bound=bound_of(connection, conversation_id, view, places, upto=upto))


def _stored(view: StoreView, window: Window, seen: Seen, *, inherits: bool) -> Own:
    """Return what was read of a conversation of which nothing is pending."""
    page = Page(view.messages, next=view.next, seen=seen)
    held = view.conversation
    if held is None or held.forked_from is None or not held.inherits or not (inherits or goes_on(window, page)):
        return Own(page=page)
    return Own(page=page, conversation=replace(held, seen=seen))


class Reading(Embedded):
    """The part of a history that reads."""

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
        """Return messages, oldest first, with what is not saved yet: the newest ``last``, the ``first``, or all.

        ``before`` and ``after`` are the ``next`` of a page, or versions. The messages that a fork inherits come first,
        with the id and the versions of the conversation that they were said in; plain versions mean the conversation's
        own. While the history store is away, what the outbox still holds is returned, with ``complete`` set to
        ``False``; so it is where an ancestor of a fork is neither here nor there yet.

        :param every: those of its own that have left the active path too: rewound over, or superseded.
        :param as_of: as they were after this version, or after the last event, in order, that had happened by a
            moment. Unsaved events have no version, so they are part of a moment only. What was redacted since is
            redacted; of a conversation deleted since, all of it.
        :raises InvalidInput: an argument is wrong.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        check_identifier(conversation_id, "conversation_id")
        window = Window.of(last=last, first=first, before=before, after=after, every=every)
        if as_of is None:
            return await self._settled(lambda file: self._with_inherited(conversation_id, window, file=file))
        check_as_of(as_of)
        return await self._settled(lambda file: self._as_of(conversation_id, as_of, window, file=file))

    async def _with_inherited(self, conversation_id: str, window: Window, *, file: bool) -> Page[RecordedMessage]:
        """Return messages of a conversation, and where it is a fork and they do not fill the window, its ancestors'."""
        at = window.at(0)
        own = await self._own(conversation_id, at or Window(last=1), inherits=at is None)
        found = own.conversation
        if found is None or not found.inherits:
            return own.page if at is not None else replace(own.page, items=(), next=None)
        ancestry = Ancestry(self._reach, self.outbox, self._own, file=file)
        levels, whole = await ancestry.levels(found.forked_from, known=(conversation_id,))
        page = await across([_Now(self._own, found, at, own.page), *levels], window)
        page = ended(page, window, whole=whole)
        return replace(page, complete=page.complete and own.page.complete, seen=own.page.seen)

    async def _as_of(self, conversation_id: str, as_of: AsOf, window: Window, *, file: bool) -> Page[RecordedMessage]:
        """Return messages as they were: what a fork made at that moment inherits."""
        point = await self._point(conversation_id, as_of)
        if point is None:
            return Page((), complete=False)
        levels, whole = await Ancestry(self._reach, self.outbox, self._own, file=file).levels(point)
        if not levels:
            return Page((), complete=not self._reach.away)
        page = ended(await across(levels, window), window, whole=whole)
        return bared(page, conversation_id) if await self._gone(conversation_id) else page

    async def _point(self, conversation_id: str, as_of: AsOf) -> ForkPoint | None:
        """Return the event that is meant; ``None`` where that cannot be known while the store is away."""
        if not isinstance(as_of, datetime):
            return ForkPoint(conversation_id=conversation_id, version=as_of)
        moment, origin_id = as_of, self.outbox.origin.origin_id

        async def ask(store: ConversationStore) -> tuple[StoreView, int]:
            # What is delivered after this is found in the file still.
            view = await store.view(conversation_id, origin_id=origin_id, last=1)
            version = await store.read_past(
                lambda lineage, connection: lineage.past.version_at(connection, conversation_id, moment)
            )
            return view, version

        def lay(connection: sa.Connection, found: tuple[StoreView, int] | None) -> ForkPoint | None:
            event_id = happened(connection, conversation_id, None if found is None else found[0], moment)
            if event_id is not None:
                return ForkPoint(conversation_id=conversation_id, event_id=event_id)
            return None if found is None else ForkPoint(conversation_id=conversation_id, version=found[1])

        return await self._read(ask, lay)

    async def _gone(self, conversation_id: str) -> bool:
        if await is_gone(self.outbox, conversation_id):
            return True
        found = await self._reach.read(lambda store: store.conversation(conversation_id))
        return found is not None and found.state == "deleted"

    async def _settled(self, read: Callable[[bool], Awaitable[T]]) -> T:
        """Read again while what was pending arrives in the store in between; the last time from the store alone."""
        for file in (True, True, True, False):
            try:
                return await read(file)
            except Arrived:
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
    ) -> Own:
        """Return messages that were said in the conversation itself.

        :param upto: as it was after this sequence of the outbox, which is not in the store.
        :param find: a message of which the place is wanted, if it is on the page.
        :param inherits: look whether it is a fork, even if the page leaves no room for what that inherits.
        :raises Arrived: ``upto`` is in the store.
        """
        origin_id = self.outbox.origin.origin_id
        found = None
        if upto is None and find is None:
            found = await self._reach.read_at_once(
                lambda store: store.view_beside(
                    conversation_id,
                    origin_id=origin_id,
                    window=window,
                    beside=lambda: self.outbox.glance(conversation_id),
                )
            )
            if found is None and not inherits and self.outbox.glance(conversation_id).settled:
                page = await self._reach.read(lambda store: self._at_a_glance(store, conversation_id, window))
                if page is not None:
                    return Own(page=page)
            if found is None:
                found = await self._reach.read(lambda store: self._glanced(store, conversation_id, window))
            if found is not None and (seen := nothing_over(*found)) is not None:
                return _stored(found[0], window, seen, inherits=inherits)

        async def ask(store: ConversationStore, cut: _Cut) -> StoreView:
            return await store.view(
                conversation_id,
                origin_id=origin_id,
                last=window.last,
                first=window.first,
                before=window.before if window.every else cut.before(window.before),
                after=window.after,
                every=window.every,
            )

        def lay(connection: sa.Connection, view: StoreView | None, cut: _Cut) -> Own:
            page = messages_over(
                connection,
                conversation_id,
                view,
                window,
                origin_id=origin_id,
                upcasters=self._upcasters,
                places=cut.places,
                upto=upto,
            )
            held = None
            if (inherits or goes_on(window, page)) and may_inherit(connection, conversation_id, view):
                held = self._conversation_over(connection, conversation_id, view, cut, upto)
            there = next((one for one in reversed(page) if one.id == find), None)
            return Own(
                page=page, conversation=held, place=None if there is None else place_over(connection, there, view)
            )

        if found is not None:
            view = found[0]
            # Where this raises, the store has to be read again, some other way.
            with suppress(Overtaken, Unplaced):
                return await self.outbox.read(lambda connection: lay(connection, view, _Cut()))
        return await self._cut_read(conversation_id, ask, lay, upto=upto)

    async def _at_a_glance(
        self, store: ConversationStore, conversation_id: str, window: Window
    ) -> Page[RecordedMessage] | None:
        """Return a page where it is a plain one, and the file holds nothing beyond it."""
        found = await store.plain_page(conversation_id, origin_id=self.outbox.origin.origin_id, window=window)
        if found is None or (seen := nothing_over(found, self.outbox.glance(conversation_id))) is None:
            return None
        return replace(found.page, seen=seen)

    async def _glanced(
        self, store: ConversationStore, conversation_id: str, window: Window
    ) -> tuple[StoreView, Standing]:
        view = await store.view(
            conversation_id,
            origin_id=self.outbox.origin.origin_id,
            last=window.last,
            first=window.first,
            before=window.before,
            after=window.after,
            every=window.every,
        )
        # One lookup in pages that are in memory, without a lock: a thread would take longer than the loop waits for it.
        return view, self.outbox.glance(conversation_id)

    async def conversation(self, conversation_id: str, *, as_of: AsOf | None = None) -> Conversation | None:
        """Return a conversation with what is not saved yet; ``None`` where there is none.

        While the history store is away it is what the outbox still holds of it, which may be less than all.

        :param as_of: as it stood after this version, or after the last event, in order, that had happened by a moment;
            ``None`` where it had not begun, and where that cannot be known while the history store is away. Unsaved
            events have no version, so they are part of a moment only. ``active`` is not known of the past.
        """
        check_identifier(conversation_id, "conversation_id")
        if as_of is None:
            return await self._conversation(conversation_id)
        check_as_of(as_of)
        return await self._settled(lambda file: self._conversation_as_of(conversation_id, as_of, file=file))

    async def _conversation_as_of(self, conversation_id: str, as_of: AsOf, *, file: bool) -> Conversation | None:
        point = await self._point(conversation_id, as_of)
        if point is None:
            return None
        level = await Ancestry(self._reach, self.outbox, self._own, file=file).of(point)
        if isinstance(level, int):
            found = await self._conversation(conversation_id, upto=level)
        elif level is not None:
            version = level.version
            found = await self._reach.read(lambda store: store.conversation(conversation_id, as_of=version))
        else:
            return None
        gone = found is not None and await self._gone(conversation_id)
        return bare_conversation(found) if found is not None and gone else found

    async def _conversation(self, conversation_id: str, *, upto: int | None = None) -> Conversation | None:
        origin_id = self.outbox.origin.origin_id

        async def ask(store: ConversationStore, cut: _Cut) -> StoreView:
            return await store.view(conversation_id, origin_id=origin_id, last=1)

        def lay(connection: sa.Connection, view: StoreView | None, cut: _Cut) -> Conversation | None:
            return self._conversation_over(connection, conversation_id, view, cut, upto)

        return await self._cut_read(conversation_id, ask, lay, upto=upto)

    def _conversation_over(
        self, connection: sa.Connection, conversation_id: str, view: StoreView | None, cut: _Cut, upto: int | None
    ) -> Conversation | None:
        return conversation_over(
            connection,
            conversation_id,
            view,
            origin_id=self.outbox.origin.origin_id,
            upcasters=self._upcasters,
            places=cut.places,
            upto=upto,
        )

    async def _cut_read(
        self,
        conversation_id: str,
        ask: Callable[[ConversationStore, _Cut], Coroutine[Any, Any, StoreView]],
        lay: Callable[[sa.Connection, StoreView | None, _Cut], T],
        *,
        upto: int | None = None,
    ) -> T:
        """Read the store and lay the file over it; where what is pending cuts the path, first find out where."""
        cut = _Cut()
        for _ in range(4):
            try:
                return await self._read(
                    lambda store, at=cut: ask(store, at),  # type: ignore[misc]
                    lambda connection, view, at=cut: lay(connection, view, at),  # type: ignore[misc]
                )
            except Unplaced as unplaced:
                cut = await self._read(
                    lambda store, ids=unplaced.message_ids: _places(store, self, conversation_id, ids),  # type: ignore[misc]
                    lambda connection, found: _cut_of(connection, conversation_id, found, upto),
                )
        raise OutboxUnavailable("the conversation is rewound faster than it can be read: read it again")

    async def conversations(
        self,
        *,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 50,
        states: Collection[str] = EVERYDAY,
    ) -> Page[Conversation]:
        """Return a page of conversations, of one owner or of all, the newest activity first, unsaved ones included.

        A page may hold fewer than ``limit`` although there are more: go on while ``next`` is not ``None``. A
        conversation that becomes active while pages are turned moves to the front, so later pages may miss it.

        :param after: the ``next`` of the page before.
        :param states: ``active``, ``archived``, ``deleted``: those that are shown.
        :raises InvalidInput: an argument is wrong.
        """
        check_count(limit, "limit")
        wanted = check_states(states)
        if owner is not None:
            check_identifier(owner, "owner")
        key = None
        if after is not None:
            updated_at, conversation_id = read_conversations_cursor(after)
            key = Key(updated_at=updated_at, conversation_id=conversation_id)
        page = await self._reach.read(
            lambda store: store.conversations(owner=owner, after=after, limit=limit, states=wanted)
        )
        listed = await self.outbox.read(
            lambda connection: list_over(connection, page, owner=owner, after=key, limit=limit)
        )
        gate = asyncio.Semaphore(AT_ONCE)

        async def complete(conversation_id: str, held: Conversation | None) -> Conversation | None:
            if held is not None:
                return held
            async with gate:
                return await self.conversation(conversation_id)

        found = await asyncio.gather(*(complete(*item) for item in listed.items))
        return Page(
            tuple(one for one in found if one is not None and one.state in wanted),
            next=listed.next,
            complete=page is not None,
        )

    async def events(self, conversation_id: str, *, after: int | str = 0, limit: int = 500) -> Page[RecordedEvent]:
        """Return a page of a conversation's events after a version, in order, unsaved ones (no version yet) last.

        :param after: the ``next`` of the page before, or a version.
        :raises InvalidInput: an argument is wrong.
        """
        check_identifier(conversation_id, "conversation_id")
        check_count(limit, "limit")
        start = check_place(after, "after") or 0
        origin_id = self.outbox.origin.origin_id

        async def ask(store: ConversationStore) -> tuple[StoreView, Page[RecordedEvent]]:
            # How far the lane had got is read first: what arrives after that is found in both, and told by its id.
            view = await store.view(conversation_id, origin_id=origin_id, last=1)
            return view, await store.events(conversation_id, after=start, limit=limit)

        def lay(connection: sa.Connection, found: tuple[StoreView, Page[RecordedEvent]] | None) -> Page[RecordedEvent]:
            nothing: Page[RecordedEvent] = Page(())
            view, page = (None, nothing) if found is None else found
            return events_over(connection, conversation_id, view, page, after=start, limit=limit, origin_id=origin_id)

        return await self._read(ask, lay)


@dataclass(frozen=True, slots=True)
class _Now:
    """The conversation that is read, as it stood when it was found to be a fork.

    :ivar page: of ``window``, which was read at that moment.
    """

    own: ReadOwn
    conversation: Conversation
    window: Window | None
    read: Page[RecordedMessage]

    @property
    def inherited_to(self) -> str | None:
        return self.conversation.inherited_to

    async def page(self, window: Window) -> Page[RecordedMessage]:
        if window == self.window:
            return self.read
        own = await self.own(self.conversation.conversation_id, window, inherits=True)
        there = own.conversation
        if there is None or (there.inherits, there.inherited_to) != (True, self.inherited_to):
            raise Arrived  # it was rewound into what it inherits meanwhile
        return own.page

    async def find(self, message_id: str, upto: int | None) -> int | None:
        return None  # nobody reads it through a fork here

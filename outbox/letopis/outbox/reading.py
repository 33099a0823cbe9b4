"""Reading: all that was said, with what is not saved yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from letopis.outbox.embedded import Embedded
from letopis.outbox.overlay import (
    Key,
    Unplaced,
    bound_of,
    conversation_over,
    events_over,
    list_over,
    messages_over,
)
from letopis.store.conversation import Conversation, Page, RecordedMessage
from letopis.store.errors import OutboxUnavailable
from letopis.store.events import RecordedEvent
from letopis.store.fold import Elsewhere
from letopis.store.history import ConversationStore
from letopis.store.identifiers import check_identifier
from letopis.store.reads import (
    EVERYDAY,
    StoreView,
    Window,
    check_count,
    check_place,
    check_states,
    read_conversations_cursor,
)

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
    connection: sa.Connection, conversation_id: str, found: tuple[StoreView, dict[str, Elsewhere]] | None
) -> _Cut:
    if found is None:
        return _Cut(places={})
    view, places = found
    return _Cut(places=places, bound=bound_of(connection, conversation_id, view, places))


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
    ) -> Page[RecordedMessage]:
        """Return messages, oldest first, with what is not saved yet: the newest ``last``, the ``first``, or all.

        ``before`` and ``after`` are the ``next`` of a page, or versions. While the history store is away, what the
        outbox still holds is returned, with ``complete`` set to ``False``.

        :param every: those that have left the active path too: rewound over, or superseded.
        :raises InvalidInput: an argument is wrong.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        check_identifier(conversation_id, "conversation_id")
        window = Window.of(last=last, first=first, before=before, after=after, every=every)
        return await self._own_messages(conversation_id, window)

    async def _own_messages(self, conversation_id: str, window: Window) -> Page[RecordedMessage]:
        """Return messages that were said in the conversation itself."""
        origin_id = self.outbox.origin.origin_id

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

        def lay(connection: sa.Connection, view: StoreView | None, cut: _Cut) -> Page[RecordedMessage]:
            return messages_over(
                connection,
                conversation_id,
                view,
                window,
                origin_id=origin_id,
                upcasters=self._upcasters,
                places=cut.places,
            )

        return await self._cut_read(conversation_id, ask, lay)

    async def conversation(self, conversation_id: str) -> Conversation | None:
        """Return a conversation with what is not saved yet; ``None`` where there is none.

        While the history store is away it is what the outbox still holds of it, which may be less than all.
        """
        check_identifier(conversation_id, "conversation_id")
        origin_id = self.outbox.origin.origin_id

        async def ask(store: ConversationStore, cut: _Cut) -> StoreView:
            return await store.view(conversation_id, origin_id=origin_id, last=1)

        def lay(connection: sa.Connection, view: StoreView | None, cut: _Cut) -> Conversation | None:
            return conversation_over(
                connection,
                conversation_id,
                view,
                origin_id=origin_id,
                upcasters=self._upcasters,
                places=cut.places,
            )

        return await self._cut_read(conversation_id, ask, lay)

    async def _cut_read(
        self,
        conversation_id: str,
        ask: Callable[[ConversationStore, _Cut], Coroutine[Any, Any, StoreView]],
        lay: Callable[[sa.Connection, StoreView | None, _Cut], T],
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
                    lambda connection, found: _cut_of(connection, conversation_id, found),
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

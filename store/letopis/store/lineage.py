"""Lineage: what a fork reads of its ancestors, each up to the event at which the next one was forked off."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.asking import Window
from letopis.store.codec import INTEGER_MAX
from letopis.store.conversation import Conversation, Page, RecordedMessage
from letopis.store.reads import Reader
from letopis.store.timetravel import AsOf, Past, bare
from letopis.store.vocabulary import ForkPoint

DEPTH_MAX: Final = 64
"""Ancestors that are read at most; what lies beyond is left out, and the page is not complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """A conversation as of the event up to which a fork reads it.

    :ivar version: of that event. ``deleted``: whether it was deleted, before or after that.
    :ivar fork: up to where it reads its own parent; ``None`` where it reads none.
    :ivar inherited_to: the last message that it reads there; ``None`` for all up to ``fork``.
    """

    conversation_id: str
    version: int
    deleted: bool
    fork: ForkPoint | None
    inherited_to: str | None


class Level(Protocol):
    """One conversation of a lineage: the one that is read, or one of its ancestors."""

    @property
    def inherited_to(self) -> str | None:
        """The last message that it reads of all that lies deeper; ``None`` for everything."""
        ...

    async def page(self, window: Window) -> Page[RecordedMessage]:
        """Return the messages of a window that were said in it, and nowhere else."""
        ...

    async def find(self, message_id: str, upto: int | None) -> int | None:
        """Return the place of the newest message of an id that is on its path, not beyond a place."""
        ...


async def across(levels: Sequence[Level], window: Window) -> Page[RecordedMessage]:
    """Return the messages of a window over a lineage, in order.

    :param levels: the conversation that is read, its parent, the parent of that, and so on.
    """
    bounds = await _bounds(levels)
    depths = range(len(levels)) if window.last is not None else range(len(levels) - 1, -1, -1)
    found: tuple[RecordedMessage, ...] = ()
    left, complete = window.limit, True
    for depth in depths:
        at, bound = window.at(depth), bounds[depth]
        if at is None or bound == 0:
            continue
        if bound is not None:
            at = replace(at, before=bound + 1 if at.before is None else min(at.before, bound + 1))
        count = None if left is None else max(left, 1)
        at = replace(at, last=count) if window.last is not None else replace(at, first=count)
        page = await levels[depth].page(at)
        complete = complete and page.complete
        if left == 0:
            # The page was full before: there is more, all of this one.
            if page:
                return Page(
                    found, next=_place(depth, "0" if window.last is None else str(INTEGER_MAX)), complete=complete
                )
            continue
        found = (*page, *found) if window.last is not None else (*found, *page)
        if left is not None:
            if page.next is not None:
                return Page(found, next=_place(depth, page.next), complete=complete)
            left -= len(page)
    return Page(found, complete=complete)


async def _bounds(levels: Sequence[Level]) -> list[int | None]:
    """Return up to which place each level is read; 0 for nothing, ``None`` for all of it."""
    bounds: list[int | None] = [None] * len(levels)
    # The deepest cut first: the others are made in what that left.
    for depth in range(len(levels) - 1, -1, -1):
        if (target := levels[depth].inherited_to) is None:
            continue
        for deeper in range(depth + 1, len(levels)):
            if bounds[deeper] == 0:
                continue
            if (place := await levels[deeper].find(target, bounds[deeper])) is not None:
                bounds[depth + 1 : deeper] = [0] * (deeper - depth - 1)
                bounds[deeper] = place
                break
    return bounds


def _place(depth: int, place: str) -> str:
    return place if depth == 0 else f"{depth}.{place}"


class Lineage:
    """Reads conversations with what they inherit, over connections that it is given."""

    def __init__(self, reader: Reader, past: Past) -> None:
        self.past = past
        self._reader = reader

    async def ancestors(
        self, connection: AsyncConnection, fork: ForkPoint | None, *, known: Collection[str] = ()
    ) -> list[Ancestor]:
        """Return the conversations that are read through a fork, the nearest first, as far as they are here.

        :param known: conversations of the lineage that are known already: none is read twice.
        """
        found: list[Ancestor] = []
        seen = set(known)
        while fork is not None and len(seen) <= DEPTH_MAX and fork.conversation_id not in seen:
            name = fork.conversation_id
            standing = await self.past.standing(connection, name)
            if standing is None or (version := await self.past.version_of(connection, fork, standing)) is None:
                break
            tally = await self.past.heritage(connection, name, version, standing)
            fork = tally.fork if tally.inherits else None
            seen.add(name)
            found.append(
                Ancestor(
                    conversation_id=name,
                    version=version,
                    deleted=standing.deleted,
                    fork=fork,
                    inherited_to=None if fork is None else tally.inherited_to,
                )
            )
        return found

    async def own(
        self, connection: AsyncConnection, conversation_id: str, window: Window
    ) -> tuple[Page[RecordedMessage], bool]:
        """Return the conversation's own messages of a window, and whether ancestors are to be asked for more."""
        at = window.at(0)
        page: Page[RecordedMessage] = (
            Page(()) if at is None else await self._reader.messages(connection, conversation_id, at)
        )
        if not goes_on(window, page):
            return page, False
        found = await self._reader.conversation(connection, conversation_id)
        return page, found is not None and found.inherits

    async def messages(
        self, connection: AsyncConnection, conversation_id: str, window: Window
    ) -> Page[RecordedMessage]:
        """Return the messages of a window, those that the conversation inherits included, in order."""
        found = await self._reader.conversation(connection, conversation_id)
        if found is None:
            return Page(())
        own = _Now(self._reader, connection, found)
        fork = found.forked_from if found.inherits else None
        ancestors = await self.ancestors(connection, fork, known=(conversation_id,))
        end = ancestors[-1].fork if ancestors else fork
        return ended(await across([own, *self._then(connection, ancestors)], window), window, whole=end is None)

    async def as_of(
        self, connection: AsyncConnection, conversation_id: str, as_of: AsOf, window: Window
    ) -> Page[RecordedMessage]:
        """Return the messages of a window as they were, those that the conversation inherits included, in order."""
        version = await self.past.version_at(connection, conversation_id, as_of)
        ancestors = await self.ancestors(connection, ForkPoint(conversation_id=conversation_id, version=version))
        page = await across(self._then(connection, ancestors), window)
        if ancestors and ancestors[0].deleted:
            page = bared(page, conversation_id)
        return ended(page, window, whole=not ancestors or ancestors[-1].fork is None)

    def _then(self, connection: AsyncConnection, ancestors: Sequence[Ancestor]) -> list[Level]:
        return [_Then(self.past, connection, one) for one in ancestors]


def ended(page: Page[RecordedMessage], window: Window, *, whole: bool) -> Page[RecordedMessage]:
    """Return a page, not complete where it shows the end of a lineage that goes on where nothing can be read yet."""
    if whole or (page.next is not None and window.first is None):
        return page
    return replace(page, complete=False)


def bared(page: Page[RecordedMessage], conversation_id: str) -> Page[RecordedMessage]:
    """Return a page on which a conversation that was deleted since says nothing any more."""
    return replace(page, items=tuple(bare(one) if one.conversation_id == conversation_id else one for one in page))


def goes_on(window: Window, own: Page[RecordedMessage]) -> bool:
    """Whether a window that shows these own messages of a conversation may show inherited ones too."""
    if window.after is not None and window.after_depth == 0:
        return False
    return window.last is None or own.next is None


@dataclass(frozen=True, slots=True)
class _Now:
    """The conversation that is read, as it stands."""

    reader: Reader
    connection: AsyncConnection
    conversation: Conversation

    @property
    def inherited_to(self) -> str | None:
        return self.conversation.inherited_to

    async def page(self, window: Window) -> Page[RecordedMessage]:
        return await self.reader.messages(self.connection, self.conversation.conversation_id, window)

    async def find(self, message_id: str, upto: int | None) -> int | None:
        return None  # nobody reads it through a fork here


@dataclass(frozen=True, slots=True)
class _Then:
    """An ancestor as of the event up to which it is read."""

    past: Past
    connection: AsyncConnection
    ancestor: Ancestor

    @property
    def inherited_to(self) -> str | None:
        return self.ancestor.inherited_to

    async def page(self, window: Window) -> Page[RecordedMessage]:
        ancestor = self.ancestor
        return await self.past.messages(self.connection, ancestor.conversation_id, ancestor.version, window)

    async def find(self, message_id: str, upto: int | None) -> int | None:
        ancestor = self.ancestor
        return await self.past.find(self.connection, ancestor.conversation_id, ancestor.version, message_id, upto)

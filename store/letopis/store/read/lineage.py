"""Read a fork with its ancestors, each up to the event at which the next one was forked off."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Self

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.model.codec import INTEGER_MAX
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.identifiers import ForkPoint
from letopis.store.read.paging import AsOf, Window
from letopis.store.read.point_in_time import PointInTimeReader
from letopis.store.read.reader import Reader
from letopis.store.rules.reducer import NO_MESSAGE
from letopis.store.rules.sight import Sight, without_words

MAX_DEPTH: Final = 64
"""Ancestors that are read; older ones are left out, and the page is not complete."""


async def find_nothing(message_id: str, upto: int | None, /) -> int | None:
    """Find no message in the fork itself: no level reads it through a fork."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One conversation of a lineage: the fork as it stands, or an ancestor as of the event up to which it is read.

    :ivar sight: that of those who read it as it stands.
    :ivar fork: up to which it reads its own parent; ``None`` where it reads none.
    :ivar inherited_to: the last message that it reads of its parent; ``None`` for all up to ``fork``.
    :ivar trimmed: True if it shows no words of what it inherits.
    :ivar page: returns the messages of a window that were appended to it.
    :ivar find: returns the version of the newest message of an id on its path, not beyond another version.
    """

    conversation_id: str
    version: int
    sight: Sight
    fork: ForkPoint | None
    inherited_to: str | None
    trimmed: bool
    page: Callable[[Window], Awaitable[Page[RecordedMessage]]]
    find: Callable[[str, int | None], Awaitable[int | None]] = find_nothing

    @classmethod
    def of(cls, conversation: Conversation, page: Callable[[Window], Awaitable[Page[RecordedMessage]]]) -> Self:
        """Return a conversation as it stands."""
        return cls(
            conversation_id=conversation.conversation_id,
            version=conversation.version,
            sight=Sight.of(conversation),
            fork=conversation.forked_from if conversation.inherits else None,
            inherited_to=conversation.inherited_to,
            trimmed=conversation.trimmed > 0,
            page=page,
        )


async def walk_forks(
    fork: ForkPoint | None,
    find: Callable[[ForkPoint, AbstractSet[str]], Awaitable[Sequence[Level]]],
    *,
    known: Collection[str] = (),
) -> tuple[list[Level], ForkPoint | None]:
    """Follow a fork to its root; return the conversations, the nearest first, and the fork that was not followed."""
    levels: list[Level] = []
    passed = set(known)
    while fork is not None and len(passed) <= MAX_DEPTH and fork.conversation_id not in passed:
        next_levels = await find(fork, passed)
        if not next_levels:
            break
        passed.update(level.conversation_id for level in next_levels)
        levels += next_levels
        fork = next_levels[-1].fork
    return levels, fork


async def read_levels(levels: Sequence[Level], window: Window) -> Page[RecordedMessage]:
    """Return the messages of a window over a lineage, in order."""
    bounds = await _bounds(levels)
    depths = range(len(levels)) if window.last is not None else range(len(levels) - 1, -1, -1)
    messages: tuple[RecordedMessage, ...] = ()
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
        if any(nearer.trimmed for nearer in levels[:depth]):
            page = replace(page, items=tuple(map(without_words, page)))
        complete = complete and page.complete
        if left == 0:
            # The page was full before: if this level has a message, there is more.
            if page:
                return Page(
                    messages, next=_place(depth, "0" if window.last is None else str(INTEGER_MAX)), complete=complete
                )
            continue
        messages = (*page, *messages) if window.last is not None else (*messages, *page)
        if left is not None:
            if page.next is not None:
                return Page(messages, next=_place(depth, page.next), complete=complete)
            left -= len(page)
    return Page(messages, complete=complete)


async def _bounds(levels: Sequence[Level]) -> list[int | None]:
    """Return the version up to which each level is read; 0 for nothing, ``None`` for all of it."""
    bounds: list[int | None] = [None] * len(levels)
    # The oldest cut first: the others are cuts of what it left.
    for depth in range(len(levels) - 1, -1, -1):
        if (target := levels[depth].inherited_to) is None:
            continue
        if target == NO_MESSAGE:
            bounds[depth + 1 :] = [0] * (len(levels) - depth - 1)
            continue
        for deeper in range(depth + 1, len(levels)):
            if bounds[deeper] == 0:
                continue
            if (version := await levels[deeper].find(target, bounds[deeper])) is not None:
                bounds[depth + 1 : deeper] = [0] * (deeper - depth - 1)
                bounds[deeper] = version
                break
    return bounds


def _place(depth: int, place: str) -> str:
    return place if depth == 0 else f"{depth}.{place}"


class Lineage:
    """Reads conversations with what they inherit, over connections that it is given."""

    def __init__(self, reader: Reader, past: PointInTimeReader) -> None:
        self.past = past
        self.reader = reader

    async def ancestors(
        self, connection: AsyncConnection, fork: ForkPoint | None, *, known: Collection[str] = ()
    ) -> list[Level]:
        """Return the conversations that are read through a fork, the nearest first, as far as this store has them."""

        async def ancestor(fork: ForkPoint, _: AbstractSet[str]) -> list[Level]:
            name = fork.conversation_id
            head = await self.past.head(connection, name)
            if head is None or (version := await self.past.version_of(connection, fork, head)) is None:
                return []
            then = await self.past.fork_state(connection, name, version, head)
            level = Level(
                conversation_id=name,
                version=version,
                sight=head.sight,
                fork=then.forked_from if then.inherits else None,
                inherited_to=then.inherited_to if then.inherits else None,
                trimmed=then.trimmed > 0,
                page=partial(self.past.messages, connection, name, version),
                find=partial(self.past.find, connection, name, version),
            )
            return [level]

        ancestors, _ = await walk_forks(fork, ancestor, known=known)
        return ancestors

    async def own(
        self, connection: AsyncConnection, conversation_id: str, window: Window
    ) -> tuple[Page[RecordedMessage], bool]:
        """Return the conversation's own messages of a window, and whether its ancestors may have more."""
        at = window.at(0)
        page: Page[RecordedMessage] = Page(())
        if at is not None:
            page = await self.reader.messages(connection, conversation_id, at)
        if not may_show_inherited(window, page):
            return page, False
        conversation = await self.reader.conversation(connection, conversation_id)
        return page, conversation is not None and conversation.inherits

    async def messages(
        self, connection: AsyncConnection, conversation_id: str, window: Window
    ) -> Page[RecordedMessage]:
        """Return the messages of a window in order, including those that the conversation inherits."""
        conversation = await self.reader.conversation(connection, conversation_id)
        if conversation is None:
            return Page(())
        own = Level.of(conversation, partial(self.reader.messages, connection, conversation_id))
        ancestors = await self.ancestors(connection, own.fork, known=(conversation_id,))
        end = ancestors[-1].fork if ancestors else own.fork
        return with_completeness(await read_levels([own, *ancestors], window), window, whole=end is None)

    async def as_of(
        self, connection: AsyncConnection, conversation_id: str, as_of: AsOf, window: Window
    ) -> Page[RecordedMessage]:
        """Return the messages of a window as they were, in order, including those that the conversation inherits."""
        version = await self.past.version_at(connection, conversation_id, as_of)
        ancestors = await self.ancestors(connection, ForkPoint(conversation_id=conversation_id, version=version))
        page = await read_levels(ancestors, window)
        if ancestors:
            page = ancestors[0].sight.page(page)
        return with_completeness(page, window, whole=not ancestors or ancestors[-1].fork is None)


def with_completeness(page: Page[RecordedMessage], window: Window, *, whole: bool) -> Page[RecordedMessage]:
    """Return a page, incomplete where it reaches the end of a lineage of which not all can be read yet."""
    if whole or (page.next is not None and window.first is None):
        return page
    return replace(page, complete=False)


def may_show_inherited(window: Window, own: Page[RecordedMessage]) -> bool:
    """Return True if a window with these own messages of a conversation may show inherited ones too."""
    if window.after is not None and window.after_depth == 0:
        return False
    return window.last is None or own.next is None

"""Outflow: read whole conversations, page by page, as the lines of a file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, replace
from typing import Final, Protocol

from letopis.store.asking import EVERYDAY
from letopis.store.conversation import Conversation, Page, RecordedMessage
from letopis.store.transfer.jsonl import render_line
from letopis.store.transfer.occurrences import Occurrences

PAGE: Final = 500
KEPT: Final = ("active", "archived")
"""The states of conversations of which there is something to export."""


class Source(Protocol):
    """What conversations can be read from: a ``History``, or a ``ConversationStore`` alone."""

    async def conversation(self, conversation_id: str) -> Conversation | None:
        """Return one conversation."""
        ...

    async def conversations(
        self,
        *,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 50,
        states: Collection[str] = EVERYDAY,
    ) -> Page[Conversation]:
        """Return a page of conversations, newest activity first."""
        ...

    async def messages(
        self, conversation_id: str, *, first: int | None = None, after: int | str | None = None
    ) -> Page[RecordedMessage]:
        """Return a page of messages, oldest first."""
        ...


class Incomplete(Exception):
    """The history store cannot be read, so older messages may be missing: nothing of this is an export."""


@dataclass(slots=True)
class Flow:
    """One run of conversations out of a history; memory is bounded by a page.

    :ivar lines: written so far. ``conversations`` likewise.
    """

    source: Source
    lines: int = 0
    conversations: int = 0

    async def of_one(self, conversation_id: str) -> AsyncIterator[bytes]:
        """Yield the lines of one conversation, oldest first; none where there is no such conversation.

        :raises Incomplete: the history store cannot be reached.
        """
        found = await self.source.conversation(conversation_id)
        if found is not None:
            with Occurrences() as count:
                async for line in self._lines(found, count):
                    yield line

    async def of_all(self, *, owner: str | None = None) -> AsyncIterator[bytes]:
        """Yield the lines of every conversation, or of every one of ``owner``, each conversation in one piece.

        What is said while it runs may or may not be in it; no conversation that there was at the start is missing.

        :raises Incomplete: the history store cannot be reached.
        """
        with Occurrences() as count, Occurrences() as done:
            fresh = True
            # Whoever speaks while pages are turned moves to the front, where this pass no longer looks: the next one
            # takes what has moved there, until nothing has.
            while fresh:
                fresh = False
                async for found in self._listed(owner):
                    key = found.conversation_id.encode()
                    if done.seen(key):
                        continue
                    done.add(key)
                    fresh = True
                    async for line in self._lines(found, count):
                        yield line

    async def _listed(self, owner: str | None) -> AsyncIterator[Conversation]:
        after: str | None = None
        while True:
            page = await self.source.conversations(owner=owner, after=after, limit=PAGE, states=KEPT)
            _whole(page)
            for found in page:
                yield found
            if (after := page.next) is None:
                return

    async def _lines(self, found: Conversation, count: Occurrences) -> AsyncIterator[bytes]:
        self.conversations += 1
        after: str | None = None
        while True:
            page = await self.source.messages(found.conversation_id, first=PAGE, after=after)
            _whole(page)
            for message in page:
                # What a fork inherits is part of it: whoever reads the export has no need of the parent.
                said = replace(message, conversation_id=found.conversation_id)
                yield render_line(said, owner=found.owner_id, count=count)
                self.lines += 1
            if (after := page.next) is None:
                return


def _whole(page: Page[Conversation] | Page[RecordedMessage]) -> None:
    if not page.complete:
        raise Incomplete(
            "the history store cannot be read, so older messages would be missing: `letopis db check` says why it is so"
        )

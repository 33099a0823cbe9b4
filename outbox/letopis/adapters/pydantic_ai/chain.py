# pyright: reportMissingImports=false
"""Read the chain of entries that leads to one: along the path of its conversation, and off the path for branches."""

from __future__ import annotations

from typing import Final

from pydantic_ai.conversation_store import ConversationEntry

from letopis.adapters.pydantic_ai.entries import entry_of, id_of, is_entry, parent_of, was_entry
from letopis.outbox import History
from letopis.store import RecordedMessage

_PAGE: Final = 200


class Chain:
    """The entries followed so far, from the newest one back.

    Each entry names the one before it. A redacted message names none: it is left out, and the chain continues with the
    entry before it in the conversation.

    :ivar found: the newest first.
    :ivar complete: ``False`` if the history store was unreachable and the chain ends where the outbox does.
    """

    def __init__(self, history: History, head_id: str | None, limit: int | None) -> None:
        self.found: list[RecordedMessage] = []
        self.complete = True
        self._history = history
        self._limit = limit
        self._next = head_id
        self._skipping = False

    async def follow(self, conversation_id: str | None) -> None:
        """Follow the chain, starting in a conversation if it is known.

        :raises LookupError: an entry does not exist.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not know where an entry is.
        """
        tried = set[tuple[str, str | None]]()
        while not self._is_done():
            home = conversation_id or await self._home_of(str(self._next))
            if home is None or (home, self._next) in tried:
                raise KeyError(self._next)
            tried.add((home, self._next))
            conversation_id = None
            await self._along(home, every=False)
            if not self._is_done() and self.complete:
                await self._along(home, every=True)
            if not self.complete:
                return

    def entries(self) -> list[ConversationEntry]:
        """Return the entries in order; each names the one before it in the chain."""
        made: list[ConversationEntry] = []
        oldest = self.found[-1] if self.found else None
        before = None if oldest is None else parent_of(oldest)
        for message in reversed(self.found):
            made.append(entry_of(message, before))
            before = id_of(message)
        return made

    def _is_done(self) -> bool:
        return self._next is None or (self._limit is not None and len(self.found) >= self._limit)

    async def _home_of(self, entry_id: str) -> str | None:
        found = await self._history.message(entry_id)
        return None if found is None else found.conversation_id

    async def _along(self, conversation_id: str, *, every: bool) -> None:
        """Follow the chain backward through a conversation's messages; with ``every``, including those off the path."""
        before: str | None = None
        while not self._is_done():
            size = _PAGE if self._limit is None else min(_PAGE, self._limit - len(self.found))
            page = await self._history.messages(conversation_id, last=size, before=before, every=every)
            for message in reversed(page):
                if self._is_done():
                    return
                self._take(message)
            if (before := page.next) is None:
                self.complete = page.complete or self._is_done()
                if self._skipping and self.complete:
                    self._next = None  # nothing comes before the redacted ones
                return

    def _take(self, message: RecordedMessage) -> None:
        if is_entry(message):
            if id_of(message) == self._next or self._skipping:
                self._skipping = False
                self.found.append(message)
                self._next = parent_of(message)
        elif was_entry(message, self._next):
            self._skipping = True

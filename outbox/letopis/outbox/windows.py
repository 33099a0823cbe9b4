"""Windows: the newest part of a conversation for a model, and all of it as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, tzinfo
from typing import Any, Final, Protocol

from letopis.outbox.reading import Reading
from letopis.outbox.texts import language_of
from letopis.store.context import Context, Count, Fitted, Room, fitted, is_visible
from letopis.store.conversation import Page, RecordedMessage
from letopis.store.errors import InvalidInput
from letopis.store.transcript import transcript

FEWEST: Final = 64
"""Messages of the first page; each page back is twice as long as the one before it."""
MOST: Final = 2_000
"""Messages of the longest page."""
BEGINNING: Final = 8
"""Messages of a page that looks for the system messages at the beginning."""


class ReadPage(Protocol):
    """Reads a page of messages, as ``History.messages`` and ``ConversationStore.messages`` do."""

    async def __call__(
        self, *, last: int | None = None, first: int | None = None, before: str | None = None, after: str | None = None
    ) -> Page[RecordedMessage]: ...


class Windows(Reading):
    """The part of a history that reads for models, and as text for people."""

    async def context(
        self,
        conversation_id: str,
        *,
        last: int | None = None,
        turns: int | None = None,
        tokens: int | None = None,
        count: Count | None = None,
        keep_system: bool = True,
    ) -> Context:
        """Return the newest part of a conversation that fits, for a model; unsaved messages are in it.

        The limits and what is promised of calls and results are those of :func:`letopis.store.context.window`. Of a
        long conversation only as much is read as the window needs, and the beginning for its system messages. Two
        things are then not known: ``orphans``, and a result that was recorded long before its call: such a call counts
        as interrupted. While the history store is away, ``reached`` is ``False``.

        :raises InvalidInput: a limit is wrong, or the system messages alone are beyond it.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        room = Room(last=last, turns=turns, tokens=tokens, count=count, keep_system=keep_system)

        async def read(**window: Any) -> Page[RecordedMessage]:
            return await self.messages(conversation_id, **window)

        return await read_context(read, room)

    async def transcript(
        self, conversation_id: str, *, last: int | None = None, locale: str | None = None, tz: tzinfo = UTC
    ) -> str:
        """Return a conversation as text for people; empty where there is none.

        All of it is read into memory.

        :param last: only so many messages.
        :param locale: ``ru`` for Russian, as platforms give it; everything else is English.
        :param tz: the time zone of the times.
        :raises InvalidInput: an argument is wrong.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        if locale is not None and not isinstance(locale, str):
            raise InvalidInput("locale", f"must be text, such as ru or en-GB, not {type(locale).__name__}")
        if not isinstance(tz, tzinfo):
            raise InvalidInput("tz", f"must be a time zone, not {type(tz).__name__}")
        page = await self.messages(conversation_id, last=last)
        found = await self.conversation(conversation_id)
        if found is None and not page:
            return ""
        whole = page.complete and page.next is None
        return transcript(found, page, locale="ru" if language_of(locale) == "ru" else "en", tz=tz, whole=whole)


async def read_context(read: ReadPage, room: Room) -> Context:
    """Read backwards until the window is full, and return it.

    Pages grow, so that the work is proportional to what is read.

    :raises InvalidInput: as :func:`letopis.store.context.window`.
    """
    size = FEWEST if room.last is None else max(FEWEST, min(room.last, MOST))
    page = await read(last=size)
    messages, reached = list(page), page.complete
    system: list[RecordedMessage] | None = None if room.keep_system else []
    looked_back = False
    while page.next is not None:
        if system is None:
            system, known = await _beginning(read)
            reached = reached and known
        found = _of_the_newest(messages, room, system)
        # A result may have been recorded a little before its call: one more page is looked at for that.
        if found.full and (looked_back or not found.context.made_up):
            return replace(found.context, reached=reached)
        looked_back = found.full
        size = min(size * 2, MOST)
        page = await read(last=size, before=page.next)
        messages[:0] = page
        reached = reached and page.complete
    if reached:
        return fitted(messages, room).context
    # What the outbox holds may begin in the middle of a turn; system messages at its beginning are all that are known.
    if not system and room.keep_system:
        system = _leading_system(messages)
    return replace(_of_the_newest(messages, room, system or []).context, reached=False)


def _of_the_newest(messages: Sequence[RecordedMessage], room: Room, system: Sequence[RecordedMessage]) -> Fitted:
    """Return what fits of the newest messages of a conversation that begins with ``system``."""
    kept = {one.event_id for one in system}
    rest = [one for one in messages if one.event_id not in kept] if kept else messages
    return fitted(rest, room, beginning=False, system=[one.message for one in system])


async def _beginning(read: ReadPage) -> tuple[list[RecordedMessage], bool]:
    """Return the system messages that a conversation begins with, and whether the history store was reached."""
    found: list[RecordedMessage] = []
    after: str | None = None
    reached = True
    while True:
        page = await read(first=BEGINNING, after=after)
        reached = reached and page.complete
        visible = sum(map(is_visible, page))
        system = _leading_system(page)
        found += system
        if len(system) < visible or page.next is None:
            return found, reached
        after = page.next


def _leading_system(messages: Sequence[RecordedMessage]) -> list[RecordedMessage]:
    found = []
    for one in filter(is_visible, messages):
        if one.role != "system":
            break
        found.append(one)
    return found

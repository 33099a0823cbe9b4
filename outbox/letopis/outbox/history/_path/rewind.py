"""Take messages off the path of a conversation; the log keeps them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import takewhile
from typing import Final, TypeVar

from letopis.outbox.event_log.lookups import cuts_path, holds_message
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.history._append import Appender
from letopis.outbox.history._read import HistoryReader
from letopis.outbox.history.receipts import Receipt
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.store.errors import InvalidInput, StoreUnavailable, VersionConflict
from letopis.store.model.conversations import RecordedMessage, Seen
from letopis.store.model.event_types import ConversationRewound
from letopis.store.model.identifiers import check_identifier

T = TypeVar("T")

MIN_PAGE_SIZE: Final = 16
"""Messages of the first page back; each page after it is twice as long."""
MAX_PAGE_SIZE: Final = 1_000
_MAX_ATTEMPTS: Final = 5


class _BackwardReader:
    """Reads the path of a conversation from its end, as far back as needed."""

    def __init__(self, reader: HistoryReader, conversation_id: str, *, size: int = MIN_PAGE_SIZE) -> None:
        self._reader = reader
        self._conversation_id = conversation_id
        self._size = size
        self._next: str | None = None
        self._begun = False
        self.messages: list[RecordedMessage] = []
        """In order, the newest last."""
        self.seen: Seen | None = None
        self.complete = True

    async def read_page(self) -> bool:
        """Read one more page. Return False if there is none."""
        if self._begun and self._next is None:
            return False
        page = await self._reader.messages(self._conversation_id, last=self._size, before=self._next)
        if not self._begun:
            self.seen = page.seen
        self._begun = True
        self.messages[:0] = page
        self._next, self._size = page.next, min(self._size * 2, MAX_PAGE_SIZE)
        self.complete = self.complete and page.complete
        return True

    async def find(self, find: Callable[[Sequence[RecordedMessage]], T | None]) -> T | None:
        """Read back until ``find`` returns something; return ``None`` if it never does on the whole path."""
        while await self.read_page():
            if (result := find(self.messages)) is not None:
                return result
        if not self.complete:
            raise StoreUnavailable("enough of the conversation")
        return None


class Rewinder:
    def __init__(self, *, outbox: OutboxFile, gateway: StoreGateway, reader: HistoryReader, appender: Appender) -> None:
        self._outbox = outbox
        self._gateway = gateway
        self._reader = reader
        self._appender = appender

    async def rewind(self, conversation_id: str, *, to: str | None, reason: str | None) -> Receipt:
        check_identifier(conversation_id, "conversation_id")
        if to is not None:
            check_identifier(to, "to")
            if await self.is_on_path(conversation_id, to) is False:
                raise InvalidInput("to", "no message on the path of this conversation has this id")
        return await self._appender.write(conversation_id, ConversationRewound(to_message_id=to, reason=reason))

    async def undo(self, conversation_id: str, turns: int) -> Receipt | None:
        if not isinstance(turns, int) or isinstance(turns, bool) or turns < 1:
            raise InvalidInput("turns", "must be a whole number from 1")

        async def attempt(back: _BackwardReader) -> Receipt | None:
            starts = await back.find(lambda messages: _whole_turns(messages, turns))
            if starts is None:  # all of the path was read, so its beginning is the beginning
                starts = _starts(back.messages)[-turns:]
            if not starts:
                return None
            target = back.messages[starts[0] - 1].id if starts[0] else None
            return await self._rewind_unless_changed(conversation_id, target, "undo", back.seen)

        return await self._retry_on_conflict(conversation_id, attempt)

    async def pop(self, conversation_id: str) -> RecordedMessage | None:
        async def attempt(back: _BackwardReader) -> RecordedMessage | None:
            await back.find(lambda messages: True if len(messages) > 1 else None)
            if not back.messages:
                return None
            target = back.messages[-2].id if len(back.messages) > 1 else None
            await self._rewind_unless_changed(conversation_id, target, "pop", back.seen)
            return back.messages[-1]

        return await self._retry_on_conflict(conversation_id, attempt, size=2)

    async def regenerate(self, conversation_id: str) -> tuple[RecordedMessage, ...]:
        async def attempt(back: _BackwardReader) -> tuple[RecordedMessage, ...]:
            asked = await back.find(lambda messages: _last_asked(messages, whole=False))
            if asked is None:
                asked = _last_asked(back.messages, whole=True) or ()
            if asked and back.messages[-1] != asked[-1]:
                await self._rewind_unless_changed(conversation_id, asked[-1].id, "regenerate", back.seen)
            return asked

        return await self._retry_on_conflict(conversation_id, attempt)

    async def _rewind_unless_changed(
        self, conversation_id: str, to: str | None, reason: str, seen: Seen | None
    ) -> Receipt:
        return await self._appender.write(
            conversation_id, ConversationRewound(to_message_id=to, reason=reason), after=seen
        )

    async def _retry_on_conflict(
        self, conversation_id: str, attempt: Callable[[_BackwardReader], Awaitable[T]], *, size: int = MIN_PAGE_SIZE
    ) -> T:
        return await retry_on_conflict(lambda: attempt(_BackwardReader(self._reader, conversation_id, size=size)))

    async def is_on_path(self, conversation_id: str, message_id: str) -> bool | None:
        """Return True if a message is on the path; ``None`` if that cannot be known at present."""
        pending, cut = await self._outbox.read(
            lambda connection: (
                holds_message(connection, conversation_id, message_id),
                cuts_path(connection, conversation_id),
            )
        )
        places = await self._gateway.read(lambda store: store.outbox_access.path_of(conversation_id, (message_id,)))
        there = None if places is None else places.get(message_id)
        # What is pending may have taken it off the path since, or put it back.
        if there is not None and not (cut if there.on_path else pending):
            return there.on_path
        if places == {} and not pending:
            conversation = await self._reader.conversation(conversation_id)
            if conversation is None or not conversation.inherits:
                return False
        back = _BackwardReader(self._reader, conversation_id)
        while await back.read_page():
            if any(message.id == message_id for message in back.messages):
                return True
        return False if back.complete else None


async def retry_on_conflict(attempt: Callable[[], Awaitable[T]]) -> T:
    """Decide from what was read, and again if something was appended in between, which must stay."""
    for _ in range(_MAX_ATTEMPTS - 1):
        try:
            return await attempt()
        except VersionConflict:
            continue
    return await attempt()


def _starts(messages: Sequence[RecordedMessage]) -> list[int]:
    """Return where turns begin: with the first of consecutive user messages."""
    asked = [message.role == "user" for message in messages]
    return [index for index, begins in enumerate(asked) if begins and not (index and asked[index - 1])]


def _whole_turns(messages: Sequence[RecordedMessage], turns: int) -> list[int] | None:
    """Return where the last turns begin, once the message before them is read too."""
    starts = _starts(messages)
    return starts[-turns:] if len(starts) >= turns and starts[-turns] > 0 else None


def _last_asked(messages: Sequence[RecordedMessage], *, whole: bool) -> tuple[RecordedMessage, ...] | None:
    """Return the last run of user messages, once the message before it is known."""
    starts = _starts(messages)
    if not starts:
        return None
    first = starts[-1]
    asked = tuple(takewhile(lambda message: message.role == "user", messages[first:]))
    return asked if first > 0 or whole else None

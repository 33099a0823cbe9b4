"""Change the path of a conversation: rewind it, replace it, or fork it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final, TypeVar
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.lanes import find_lane
from letopis.outbox.event_log.lookups import cuts_path, holds_message
from letopis.outbox.event_log.statements import fetch_one
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.history.append import Appender
from letopis.outbox.history.find_message import MessageFinder
from letopis.outbox.history.read import HistoryReader
from letopis.outbox.history.receipts import Receipt
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.store.errors import ConversationGone, IdReused, InvalidInput, Reuse, StoreUnavailable, VersionConflict
from letopis.store.model.codec import INTEGER_MAX, Limits
from letopis.store.model.conversations import Conversation, RecordedMessage, Seen
from letopis.store.model.event_types import Body, ConversationActivated, ConversationRewound, ConversationStarted
from letopis.store.model.identifiers import ForkPoint, check_identifier, uuid7
from letopis.store.model.messages import Message
from letopis.store.read.reader import Reader

T = TypeVar("T")

MIN_PAGE_SIZE: Final = 16  # messages of the first page back; each page after it is twice as long
MAX_PAGE_SIZE: Final = 1_000
_MAX_ATTEMPTS: Final = 5
_EVENT_AT: Final = "SELECT event_id FROM letopis_outbox_log WHERE conversation_id = ? AND sequence = ?"


class _BackwardReader:
    """Reads the path of a conversation from its end, as far back as needed."""

    def __init__(self, reader: HistoryReader, conversation_id: str, *, size: int = MIN_PAGE_SIZE) -> None:
        self._reader = reader
        self._conversation_id = conversation_id
        self._size = size
        self._next: str | None = None
        self._begun = False
        self.messages: list[RecordedMessage] = []  # in order, the newest last
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


@dataclass(slots=True, kw_only=True, eq=False)
class PathChanger:
    outbox: OutboxFile
    gateway: StoreGateway
    reader: HistoryReader
    finder: MessageFinder
    appender: Appender
    limits: Limits

    async def rewind(self, conversation_id: str, *, to: str | None, reason: str | None) -> Receipt:
        check_identifier(conversation_id, "conversation_id")
        if to is not None:
            check_identifier(to, "to")
            if await self._is_on_path(conversation_id, to) is False:
                raise InvalidInput("to", "no message on the path of this conversation has this id")
        return await self.appender.write(conversation_id, ConversationRewound(to_message_id=to, reason=reason))

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
        body = ConversationRewound.back_to(to, reason)
        return await self.appender.write(conversation_id, body, after=seen)

    async def _retry_on_conflict(
        self, conversation_id: str, attempt: Callable[[_BackwardReader], Awaitable[T]], *, size: int = MIN_PAGE_SIZE
    ) -> T:
        return await _retry_on_conflict(lambda: attempt(_BackwardReader(self.reader, conversation_id, size=size)))

    async def _is_on_path(self, conversation_id: str, message_id: str) -> bool | None:
        """Return True if a message is on the path; ``None`` if that cannot be known at present."""
        pending, cut = await self.outbox.read(
            lambda connection: (
                holds_message(connection, conversation_id, message_id),
                cuts_path(connection, conversation_id),
            )
        )
        runtime = self.gateway.store.runtime
        places = await self.gateway.read(lambda: runtime.read(Reader.path_of, conversation_id, (message_id,)))
        there = None if places is None else places.get(message_id)
        # What is pending may have taken it off the path since, or put it back.
        if there is not None and not (cut if there.on_path else pending):
            return there.on_path
        if places == {} and not pending:
            conversation = await self.reader.conversation(conversation_id)
            if conversation is None or not conversation.inherits:
                return False
        back = _BackwardReader(self.reader, conversation_id)
        while await back.read_page():
            if any(message.id == message_id for message in back.messages):
                return True
        return False if back.complete else None

    async def replace(
        self, conversation_id: str, messages: Iterable[Message], *, owner: str | None, reason: str | None
    ) -> Receipt | None:
        check_identifier(conversation_id, "conversation_id")
        wanted = _checked(messages)

        async def attempt() -> Receipt | None:
            page = await self.reader.messages(conversation_id)
            used = {message.id: message for message in page}
            # New ids are nowhere. The store decides on delivery about those that it cannot tell now.
            if ids := {message.id for message in wanted if message.event_id is None} - used.keys():
                used |= (await self.finder.named(conversation_id, frozenset(ids)))[0]
            # Of a path that is not known whole, nothing is known to stay.
            common = takewhile(lambda pair: _stays(*pair, used), zip(page, wanted, strict=False))
            staying = sum(1 for _ in common) if page.complete else 0
            what: list[Message | Body] = [_unused(message, used, conversation_id) for message in wanted[staying:]]
            if page.items[staying:] or not page.complete:
                what.insert(0, ConversationRewound.back_to(page.items[staying - 1].id if staying else None, reason))
            if not what:
                return None
            prepared = prepare(conversation_id, what, owner=owner, limits=self.limits, after=page.seen)
            return await self.appender.append(prepared)

        return await _retry_on_conflict(attempt)

    async def fork(
        self,
        conversation_id: str | None,
        *,
        of: str,
        at: int | str | None,
        owner: str | None,
        title: str | None,
        activate: bool,
    ) -> Receipt:
        check_identifier(of, "conversation_id")
        if conversation_id is not None:
            check_identifier(conversation_id, "fork_id")
        if isinstance(at, bool) or not isinstance(at, int | str | None):
            raise InvalidInput("at", "must be a version, the id of a message, or None for now")
        parent = await self.reader.conversation(of)
        if parent is None:
            raise self._unknown(InvalidInput("conversation_id", "there is no such conversation"))
        if parent.state == "deleted":
            raise ConversationGone(conversation_id=of)
        point = await self._at_version(of, at) if isinstance(at, int) else await self._fork_point(parent)
        started = ConversationStarted(
            owner_id=parent.owner_id if owner is None else owner, title=title, forked_from=point.to_data()
        )
        bodies: list[Body] = [started]
        if isinstance(at, str):
            if await self._is_on_path(of, check_identifier(at, "at")) is False:
                raise InvalidInput("at", "no message on the path of the conversation has this id")
            bodies.append(ConversationRewound(to_message_id=at))
        if activate:
            bodies.append(ConversationActivated())
        name = str(uuid7()) if conversation_id is None else conversation_id
        if conversation_id is not None and await self.reader.conversation(name) is not None:
            raise InvalidInput("fork_id", "is in use already: a fork needs a new id")
        return await self.appender.write(name, *bodies, owner=started.owner_id)

    async def _fork_point(self, parent: Conversation) -> ForkPoint:
        """Return the point after all events of a conversation so far."""
        name = parent.conversation_id
        event_id, pending = await self.outbox.read(lambda connection: _head(connection, name))
        if pending and event_id is not None:
            return ForkPoint(conversation_id=name, event_id=event_id)
        after = max(parent.version - 1, 0)
        page = await self.gateway.read(lambda: self.gateway.store.events(name, after=after))
        if page:
            # Events that came meanwhile belong to "now" too.
            return ForkPoint(conversation_id=name, version=page[-1].version, event_id=page[-1].event_id)
        if event_id is not None:
            return ForkPoint(conversation_id=name, event_id=event_id)
        raise self._unknown(InvalidInput("conversation_id", "the conversation is empty"))

    async def _at_version(self, name: str, version: int) -> ForkPoint:
        if not 1 <= version <= INTEGER_MAX:
            raise InvalidInput("at", "must be a version, which is a whole number from 1")
        page = await self.gateway.read(lambda: self.gateway.store.events(name, after=version - 1, first=1))
        if not page:
            raise self._unknown(InvalidInput("at", "the history store holds no such version of the conversation"))
        return ForkPoint(conversation_id=name, version=version, event_id=page[0].event_id)

    def _unknown(self, otherwise: InvalidInput) -> Exception:
        """Return the reason why something is not known: the store is unreachable, or ``otherwise``."""
        return StoreUnavailable("what a fork has to name") if self.gateway.unavailable else otherwise


async def _retry_on_conflict(attempt: Callable[[], Awaitable[T]]) -> T:
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


def _stays(there: RecordedMessage, wanted: Message, used: Mapping[str, RecordedMessage]) -> bool:
    """Return True if a message on the path is the wanted one, or a copy of it under another id."""
    return _is_same(there, wanted) and (there.id == wanted.id or wanted.id in used)


def _unused(wanted: Message, used: Mapping[str, RecordedMessage], conversation_id: str) -> Message:
    """Return a message to append; under a new id if its own belongs to the same message elsewhere."""
    there = used.get(wanted.id)
    if there is None:
        return wanted
    if not _is_same(there, wanted):
        raise IdReused(
            conversation_id=conversation_id,
            event_id=there.event_id,
            message_id=wanted.id,
            reuse=Reuse.ERASED if there.redacted else Reuse.OTHER_CONTENT,
        )
    return replace(wanted, id="")


def _is_same(there: RecordedMessage, wanted: Message) -> bool:
    return not there.redacted and replace(there.message, id=wanted.id) == wanted


def _checked(messages: Iterable[Message]) -> tuple[Message, ...]:
    if isinstance(messages, Message | str) or not isinstance(messages, Iterable):
        raise InvalidInput("messages", f"must be messages, for example a list, not {type(messages).__name__}")
    checked = tuple(messages)
    ids = set[str]()
    for message in checked:
        if not isinstance(message, Message):
            raise InvalidInput("messages", f"must all be Message, not {type(message).__name__}")
        if message.id in ids:
            raise InvalidInput("messages", f"has the id {message.id!r} twice: a message is on the path once")
        ids.add(message.id)
    return checked


def _head(connection: sa.Connection, conversation_id: str) -> tuple[UUID | None, bool]:
    """Return the last event in the outbox, ``None`` if it has none or pruned it, and True if it is pending."""
    lane = find_lane(connection, conversation_id)
    row = None if lane is None else fetch_one(connection, _EVENT_AT, (conversation_id, lane.head))
    return (None if row is None else UUID(bytes=row[0])), lane is not None and lane.pending > 0

"""Make given messages the whole path of a conversation, in one append."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from uuid import UUID

from letopis.outbox.event_log.append_encoding import Prepared, prepare
from letopis.outbox.history._append import Appender
from letopis.outbox.history._path.find_message import MessageFinder
from letopis.outbox.history._path.rewind import retry_on_conflict
from letopis.outbox.history._read import HistoryReader
from letopis.outbox.history.receipts import Receipt
from letopis.store.errors import EventIdReused, InvalidInput, Reuse
from letopis.store.model.codec import Limits
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.event_types import Body, ConversationRewound
from letopis.store.model.identifiers import check_identifier
from letopis.store.model.messages import Message


class Replacer:
    def __init__(self, *, reader: HistoryReader, finder: MessageFinder, appender: Appender, limits: Limits) -> None:
        self._reader = reader
        self._finder = finder
        self._appender = appender
        self._limits = limits

    async def replace(
        self, conversation_id: str, messages: Iterable[Message], *, owner: str | None, reason: str | None
    ) -> Receipt | None:
        check_identifier(conversation_id, "conversation_id")
        wanted = _checked(messages)

        async def attempt() -> Receipt | None:
            page = await self._reader.messages(conversation_id)
            # Of a path that is not known whole, nothing is known to stay.
            kept = _count_common(page, wanted) if page.complete else 0
            leaving = page.items[kept:]
            what: list[Message | Body] = list(wanted[kept:])
            if leaving or not page.complete:
                what.insert(0, ConversationRewound(to_message_id=wanted[kept - 1].id if kept else None, reason=reason))
            if not what:
                return None
            known = {message.id: message for message in leaving} | await self._off_path(
                conversation_id, wanted[kept:], leaving
            )
            prepared = prepare(conversation_id, what, owner=owner, limits=self._limits, after=page.seen)
            return await self._appender.append(_with_shown(prepared, known, wanted[kept:]))

        return await retry_on_conflict(attempt)

    async def _off_path(
        self, conversation_id: str, wanted: Iterable[Message], leaving: Iterable[RecordedMessage]
    ) -> dict[str, RecordedMessage]:
        """Return wanted messages that are off the path; the store decides later about those it cannot tell now."""
        there = {message.id for message in leaving}
        # An id that was just made is nowhere.
        ids = [message.id for message in wanted if message.event_id is None and message.id not in there]
        return (await self._finder.named(conversation_id, frozenset(ids)))[0] if ids else {}


def _with_shown(prepared: Prepared, known: Mapping[str, RecordedMessage], wanted: Iterable[Message]) -> Prepared:
    """Return an append that puts back what it takes off the path, or is off it, and what the file does not hold."""
    given = {message.id: message for message in wanted}
    shown: dict[UUID, UUID] = {}
    for event, message_id in zip(prepared.events, prepared.message_ids, strict=True):
        if message_id is None or (there := known.get(message_id)) is None:
            continue
        if _is_same(there, given[message_id]):
            shown[event.event_id] = there.event_id
        elif there.redacted or not there.edited:  # otherwise the file may hold what it was before
            raise EventIdReused(
                conversation_id=prepared.conversation_id,
                event_id=event.event_id,
                message_id=message_id,
                reason=Reuse.ERASED if there.redacted else Reuse.OTHER_CONTENT,
            )
    return replace(prepared, shown=shown)


def _count_common(path: Sequence[RecordedMessage], wanted: Sequence[Message]) -> int:
    """Return how many messages a path begins with that are wanted there."""
    return sum(1 for _ in takewhile(lambda pair: _is_same(*pair), zip(path, wanted, strict=False)))


def _is_same(there: RecordedMessage, wanted: Message) -> bool:
    return not there.redacted and there.message == wanted


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

"""Make given messages the whole path of a conversation, in one append."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import takewhile

from letopis.outbox.event_log.append_encoding import Prepared, prepare
from letopis.outbox.history._append import Appender
from letopis.outbox.history._read import HistoryReader
from letopis.outbox.history._rewind import retry_on_conflict
from letopis.outbox.history.receipts import Receipt
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import Limits
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.event_types import Body, ConversationRewound
from letopis.store.model.identifiers import check_identifier
from letopis.store.model.messages import Message


class Replacer:
    """Replaces the path of conversations."""

    def __init__(self, *, reader: HistoryReader, appender: Appender, limits: Limits) -> None:
        self._reader = reader
        self._appender = appender
        self._limits = limits

    async def replace(
        self, conversation_id: str, messages: Iterable[Message], *, owner: str | None, reason: str | None
    ) -> Receipt | None:
        """Replace the path as ``History.replace`` does."""
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
            prepared = prepare(conversation_id, what, owner=owner, limits=self._limits, after=page.seen)
            return await self._appender.append(_with_shown(prepared, leaving, wanted[kept:]))

        return await retry_on_conflict(attempt)


def _with_shown(prepared: Prepared, leaving: Iterable[RecordedMessage], wanted: Iterable[Message]) -> Prepared:
    """Return an append that puts back what it takes off the path, also what the outbox file does not hold."""
    given = {one.id: one for one in wanted}
    there = {one.id: one.event_id for one in leaving if one.id in given and _is_same(one, given[one.id])}
    shown = {
        event.event_id: there[message_id]
        for event, message_id in zip(prepared.events, prepared.message_ids, strict=True)
        if message_id in there
    }
    return replace(prepared, shown=shown)


def _count_common(path: Sequence[RecordedMessage], wanted: Sequence[Message]) -> int:
    """Return how many messages a path begins with that are wanted there."""
    return sum(1 for _ in takewhile(lambda pair: _is_same(*pair), zip(path, wanted, strict=False)))


def _is_same(there: RecordedMessage, wanted: Message) -> bool:
    return not there.redacted and there.message == wanted


def _checked(messages: Iterable[Message]) -> tuple[Message, ...]:
    if isinstance(messages, Message | str) or not isinstance(messages, Iterable):
        raise InvalidInput("messages", f"must be messages, for example a list, not {type(messages).__name__}")
    found = tuple(messages)
    ids = set[str]()
    for one in found:
        if not isinstance(one, Message):
            raise InvalidInput("messages", f"must all be Message, not {type(one).__name__}")
        if one.id in ids:
            raise InvalidInput("messages", f"has the id {one.id!r} twice: a message is on the path once")
        ids.add(one.id)
    return found

# pyright: reportMissingImports=false
"""Plan the events that make a conversation's path end at the head of its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_ai.conversation_store import ConversationEntry, ConversationRecord

from letopis.adapters.pydantic_ai.entries import is_entry, message_of
from letopis.outbox import History
from letopis.store import Body, ConversationRewound, ConversationStarted, ForkPoint, InvalidInput, Message

_PAGE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class PathChange:
    """What a write appends.

    :ivar replace: the head is on a branch that has left the path, so the path has to be replaced afterwards.
    """

    events: tuple[Message | Body, ...]
    replace: bool = False


async def plan_path(
    history: History, record: ConversationRecord, new_entries: Sequence[ConversationEntry], *, is_new: bool
) -> PathChange:
    """Return what a write has to append.

    :raises LookupError: the entry that the new ones follow is not stored.
    :raises StoreUnavailable: only the history store can tell whether it is.
    :raises InvalidInput: an entry cannot be stored.
    """
    messages = tuple(map(message_of, new_entries))
    parent = new_entries[0].parent_id if new_entries else record.head_id
    if record.head_id is not None and all(record.head_id != one.id for one in messages):
        parent = record.head_id
    if is_new:
        return PathChange(events=(*await _beginning(history, record.conversation_id, parent, messages), *messages))
    place = await _find(history, record.conversation_id, parent)
    if place == "tip":
        return PathChange(events=messages)
    if place == "on path":
        return PathChange(events=(ConversationRewound(to_message_id=parent, reason="branch"), *messages))
    if await history.message(str(parent)) is None:
        raise KeyError(parent)
    return PathChange(events=messages, replace=True)


async def _beginning(
    history: History, conversation_id: str, parent: str | None, messages: Sequence[Message]
) -> tuple[Body, ...]:
    """Return the predecessor of the entries of a conversation that has no record yet."""
    if parent is None:
        return () if messages else (ConversationStarted(),)
    found = await history.message(parent)
    if found is None:
        raise KeyError(parent)
    if await history.chat(conversation_id).conversation() is not None:
        raise InvalidInput("new_conversation_id", "was in use before: a fork needs a new id")
    # Just after its event, an entry was the tip of the path, whatever has happened since.
    point = ForkPoint(conversation_id=found.conversation_id, version=found.version, event_id=found.event_id)
    return (ConversationStarted(forked_from=point.to_data()),)


async def _find(history: History, conversation_id: str, entry_id: str | None) -> str:
    """Return where an entry is: at the tip of the path, on the path before it, or off the path.

    While the history store is unreachable, entries that the outbox does not hold count as on the path; if one is not,
    going back to it has no effect.
    """
    before: str | None = None
    tip = True
    while True:
        page = await history.messages(conversation_id, last=_PAGE, before=before)
        for message in reversed(page):
            if message.id == entry_id:
                return "tip" if tip else "on path"
            tip = tip and not is_entry(message)
        if (before := page.next) is None:
            if entry_id is None:
                return "tip" if tip else "on path"
            return "off path" if page.complete else "on path"

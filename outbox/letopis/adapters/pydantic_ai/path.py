# pyright: reportMissingImports=false
"""Plan the events that make a conversation's path end at the head of its record."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import takewhile

from pydantic_ai.conversation_store import ConversationEntry, ConversationRecord

from letopis.adapters.pydantic_ai.chain import Chain
from letopis.adapters.pydantic_ai.entries import copy_of, id_of, is_entry, message_of, was_entry
from letopis.outbox import History
from letopis.store import (
    Body,
    ConversationRewound,
    ConversationStarted,
    ForkPoint,
    InvalidInput,
    LetopisError,
    Message,
)

logger = logging.getLogger("letopis.adapters.pydantic_ai")

_PAGE = 50


async def plan_path(
    history: History, record: ConversationRecord, new_entries: Sequence[ConversationEntry], *, is_new: bool
) -> tuple[Message | Body, ...]:
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
        return (*await _beginning(history, record.conversation_id, parent, messages), *messages)
    place, shown = await _find(history, record.conversation_id, parent)
    if place == "tip":
        return messages
    if place == "on path":
        target = None if parent is None else shown.get(parent, parent)
        return (ConversationRewound.back_to(target, "branch"), *messages)
    if await history.message(str(parent)) is None:
        raise KeyError(parent)
    return (*await _back_to(history, record.conversation_id, parent, shown), *messages)


async def _back_to(
    history: History, conversation_id: str, entry_id: str | None, shown: Mapping[str, str]
) -> tuple[Message | Body, ...]:
    """Return what brings a branch that has left the path back to it; nothing if it cannot be read at present."""
    chain = Chain(history, entry_id, None)
    try:
        await chain.follow(conversation_id)
    except (LetopisError, LookupError) as error:
        logger.warning("the path of a conversation does not follow its record: %s", error)
        return ()
    if not chain.complete:
        logger.warning("the path of a conversation does not follow its record: the history store is unreachable")
        return ()
    branch = chain.found[::-1]
    common = sum(1 for _ in takewhile(lambda message: id_of(message) in shown, branch))
    target = shown[id_of(branch[common - 1])] if common else None
    return (ConversationRewound(to_message_id=target, reason="branch"), *map(copy_of, branch[common:]))


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


async def _find(history: History, conversation_id: str, entry_id: str | None) -> tuple[str, dict[str, str]]:
    """Return where an entry is, and the messages of the entries read: at the tip of the path, on the path, or off it.

    While the history store is unreachable, entries that the outbox does not hold count as on the path; if one is not,
    going back to it has no effect.
    """
    before: str | None = None
    tip = True
    shown: dict[str, str] = {}
    while True:
        page = await history.messages(conversation_id, last=_PAGE, before=before)
        for message in reversed(page):
            if is_entry(message):
                shown[id_of(message)] = message.id
            if entry_id is not None and (entry_id in shown or was_entry(message, entry_id)):
                shown.setdefault(entry_id, message.id)
                return "tip" if tip else "on path", shown
            tip = tip and not is_entry(message)
        if (before := page.next) is None:
            if entry_id is None:
                return "tip" if tip else "on path", shown
            return "off path" if page.complete else "on path", shown

"""Erase all that an owner said, in the history store and in every outbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Literal

from letopis.outbox.event_log.bound_store import read_binding
from letopis.outbox.history.history import History
from letopis.store.erasures import Erasure
from letopis.store.errors import StoreUnavailable
from letopis.store.model.conversations import Conversation
from letopis.store.model.identifiers import Owner, check_identifier, owner_id

_PAGE: Final = 200
_STATES: Final = ("active", "archived")


async def erase_owner(
    history: History,
    owner: Owner,
    *,
    how: Literal["reset", "delete"],
    reason: str | None = None,
    requested_by: str | None = None,
    erased: Callable[[str], object] = lambda conversation_id: None,
) -> Erasure:
    """Erase all conversations and records of an owner, also those that other outboxes still hold.

    The history store records the erasure first. From then on no outbox delivers anything before it has erased what it
    holds of the owner, pending or not: so nothing that was said before becomes readable later.
    ``history.store.erasures.unacknowledged()`` are the outboxes that have not done so yet. What is said after that is
    new, and stays. Then the conversations that the store and this outbox hold are reset or deleted, as by
    ``Chat.reset`` and ``Chat.delete``. After an interruption, run it again.

    :param how: ``reset`` lets the conversations go on, empty, under their ids; ``delete`` ends them.
    :param reason: kept in the log and in the record. Write no content into it.
    :param requested_by: who asked for it; kept in the record.
    :param erased: called with the id of each conversation.
    :raises Held: a hold forbids it; nothing was erased.
    :raises StoreUnavailable: the history store cannot be read.
    :raises StoreFault: the history store cannot record it.
    """
    whose = check_identifier(owner_id(owner), "owner")
    erasure = await register(history, "owner", whose, how=how, reason=reason, requested_by=requested_by)
    for conversation in await conversations_of(history, whose):
        chat = history.chat(conversation.conversation_id)
        await (chat.delete if how == "delete" else chat.reset)(reason=reason)
        erased(conversation.conversation_id)
    await history.records(owner=whose).erase()
    return erasure


async def register(
    history: History,
    kind: Literal["owner", "conversation"],
    subject: str,
    *,
    how: Literal["reset", "delete"],
    reason: str | None,
    requested_by: str | None = None,
) -> Erasure:
    """Record an erasure in the history store of an outbox."""
    # The numbers that this file knows, and not the store, are of a store that was restored.
    bound = await history.outbox.read(read_binding)
    origin = replace(history.outbox.origin, store_id=bound.store_id, erasures=bound.erasures)
    return await history.store.erasures.register(
        kind, subject, how=how, reason=reason, requested_by=requested_by, origin=origin
    )


async def conversations_of(history: History, owner: str) -> list[Conversation]:
    """Return the living conversations of an owner.

    :raises StoreUnavailable: the history store cannot be read.
    """
    conversations: list[Conversation] = []
    after: str | None = None
    while True:
        page = await history.conversations(owner=owner, after=after, limit=_PAGE, states=_STATES)
        if not page.complete:
            raise StoreUnavailable("all conversations of this owner")
        conversations += page
        if (after := page.next) is None:
            return conversations

"""Erase all that an owner or a person said, in the history store and in every outbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final, Literal

from letopis.outbox.history._conversations import register as register
from letopis.outbox.history.authored import authored
from letopis.outbox.history.history import History
from letopis.store.erasures import Erasure
from letopis.store.errors import Held, StoreUnavailable
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
    erasure = await register(
        history.outbox, history.store, "owner", whose, how=how, reason=reason, requested_by=requested_by
    )
    await _erase_owned(history, erasure, erased)
    return erasure


async def erase_person(
    history: History,
    person: Owner,
    *,
    how: Literal["reset", "delete"],
    reason: str | None = None,
    requested_by: str | None = None,
    erased: Callable[[str], object] = lambda conversation_id: None,
    held: Callable[[Held], object] = lambda error: None,
) -> Erasure:
    """Erase what the owner of this id has, as :func:`erase_owner` does, and the messages by this author elsewhere.

    Each message that the person wrote in conversations of others is redacted; what others wrote there stays.
    Conversations on hold are left as they are. Parameters and errors are those of :func:`erase_owner`.

    :param person: the id of the owner, and the ``author`` of messages.
    :param held: called with the error for each conversation of others that a hold protects.
    """
    whose = check_identifier(owner_id(person), "person")
    erasure = await register(
        history.outbox, history.store, "person", whose, how=how, reason=reason, requested_by=requested_by
    )
    await _erase_owned(history, erasure, erased)
    async for conversation_id, message_ids in shared_messages(history, whose):
        try:
            await history.chat(conversation_id).redact(*message_ids, by=requested_by, reason=reason)
        except Held as error:
            held(error)
        else:
            erased(conversation_id)
    return erasure


async def shared_messages(history: History, person: str) -> AsyncIterator[tuple[str, list[str]]]:
    """Yield conversations of others with ids of a person's messages there that hold content, in pages."""
    # What is pending may be an earlier part of the same erasure: a message that is redacted twice is redacted once.
    async for conversation, messages in authored(history, person, merge=False):
        ids = dict.fromkeys(message.id for message in messages if not message.redacted)
        if ids and conversation.owner_id != person:
            yield conversation.conversation_id, list(ids)


async def _erase_owned(history: History, erasure: Erasure, erased: Callable[[str], object]) -> None:
    for conversation in await conversations_of(history, erasure.subject):
        chat = history.chat(conversation.conversation_id)
        await (chat.delete if erasure.how == "delete" else chat.reset)(reason=erasure.reason)
        erased(conversation.conversation_id)
    await history.records(owner=erasure.subject).erase()


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

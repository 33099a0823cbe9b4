"""Saying: what a bot says goes into the outbox."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from letopis.outbox.append import After, condition, prepare
from letopis.outbox.embedded import Embedded
from letopis.outbox.joining import append_in
from letopis.outbox.receipts import Receipt, receipt_of
from letopis.outbox.targets import holds_message
from letopis.outbox.transaction import Transaction, transaction
from letopis.store.errors import InvalidInput
from letopis.store.events import Event
from letopis.store.identifiers import check_identifier
from letopis.store.messages import Content, Message
from letopis.store.vocabulary import (
    Body,
    ConversationAnnotated,
    ConversationRenamed,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
)

RATING: Final = "rating"
"""The key of the reaction that rates."""


class Saying(Embedded):
    """The part of a history that appends."""

    async def append(
        self,
        conversation_id: str,
        what: Message | Body | Event,
        *more: Message | Body | Event,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        occurred_at: datetime | None = None,
        expected: After | None = None,
        after: After | None = None,
        fail_if_types: Collection[str] | None = None,
    ) -> Receipt:
        """Append what was said, all or nothing; when this returns, neither ``kill -9`` nor a power cut takes it away.

        Concurrent appends share one flush to disk; those of one conversation keep the order of the calls. A message
        whose id the caller chose may be appended again with the same content, which does nothing. (Where its first
        event was let go from the outbox meanwhile, the history store sees to that.)

        When the caller is cancelled, or the file fails, the append may have taken effect: running it again with the
        same events is always safe.

        :param owner: whose conversation it is; said once, it is remembered.
        :param metadata: a JSON object about the events rather than in them.
        :param occurred_at: when it happened, aware; by default now. No order is ever taken from it.
        :param after: what the caller has read, or the receipt of what it said: an answer to that. It is refused where
            a message has been said, edited, redacted or rewound since (or what ``fail_if_types`` names). Where another
            outbox writes the conversation too, the history store looks again: what comes too late there is kept, as a
            message that is ``superseded``, and ``Receipt.superseded()`` tells.
        :param expected: the same, and refused where anything at all has come since.
        :raises InvalidInput: something in it cannot be kept in every store, or the conversation has another owner;
            nothing was written.
        :raises EventIdReused: a message or event id holds other content; nothing was written.
        :raises VersionConflict: somebody else was first; nothing was written.
        :raises ConversationGone: the conversation was deleted; nothing was written.
        :raises OutboxFull: the outbox or its disk is full; nothing was written and nothing was dropped.
        :raises OutboxUnavailable: the outbox file cannot be written.
        :raises Closed: the history is closed, or was opened before this process was forked off.
        """
        prepared = prepare(
            conversation_id,
            (what, *more),
            owner=owner,
            metadata=metadata,
            occurred_at=occurred_at,
            limits=self._limits,
            expects=condition(expected=expected, after=after, fail_if_types=fail_if_types),
        )
        return receipt_of(await self.outbox.append(prepared), self._deliveries)

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction on the outbox file, for the bot's own tables in it and what is said, together.

        It commits when the block ends well; an exception or a cancellation rolls it back. Everybody else who writes
        waits for it meanwhile, so nothing slow belongs inside; after 10 seconds the others are refused.

        :raises OutboxUnavailable: the file is held by somebody else, or the commit ended in an error.
        """
        return transaction(self.outbox, self._deliveries, self._limits)

    async def append_in(
        self,
        connection: AsyncConnection | AsyncSession,
        conversation_id: str,
        what: Message | Body | Event,
        *more: Message | Body | Event,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        occurred_at: datetime | None = None,
        expected: After | None = None,
        after: After | None = None,
        fail_if_types: Collection[str] | None = None,
    ) -> Receipt:
        """Append in a transaction of the caller's, on a connection or session of the caller's on the outbox file.

        It takes effect with the caller's commit, and the relay is woken after that; a rollback leaves nothing. The
        receipt's ``saved()`` is for after the commit. ``history.outbox.engine`` is an engine whose transactions begin
        as they should; with another one, a transaction that reads before its first write may be refused.

        :raises InvalidInput: also where the connection is not on this file, or is not in a transaction.
        :raises OutboxUnavailable: also where the transaction read before it wrote, and another writer came first.
        """
        prepared = prepare(
            conversation_id,
            (what, *more),
            owner=owner,
            metadata=metadata,
            occurred_at=occurred_at,
            limits=self._limits,
            expects=condition(expected=expected, after=after, fail_if_types=fail_if_types),
        )
        void = asyncio.Event()
        return receipt_of(await append_in(self.outbox, connection, prepared, void=void), self._deliveries, void=void)

    async def sent(
        self,
        conversation_id: str,
        message_id: str,
        *,
        platform_ids: Mapping[str, Any] | None = None,
        sent_as: str | None = None,
        file_path: str | None = None,
    ) -> Receipt:
        """Say that the platform took a message: with its ids there, how it went, and the file it went as."""
        return await self.append(
            conversation_id,
            MessageSent(message_id=message_id, platform_ids=platform_ids, sent_as=sent_as, file_path=file_path),
        )

    async def failed(self, conversation_id: str, message_id: str, *, reason: str | None = None) -> Receipt:
        """Say that the platform did not take a message; the message itself stays."""
        return await self.append(conversation_id, MessageFailed(message_id=message_id, reason=reason))

    async def edit(
        self, conversation_id: str, message_id: str, content: Content, *, reason: str | None = None
    ) -> Receipt:
        """Give a message new content; the old one stays in the log. Of a redacted message it changes nothing.

        :raises InvalidInput: there is no such message; nothing was written. (While the history store is away, one that
            the outbox does not hold is taken as being there, and an edit of none has no effect. So with all below.)
        """
        await self._check_target(conversation_id, message_id)
        return await self.append(conversation_id, MessageEdited(message_id=message_id, content=content, reason=reason))

    async def rename(self, conversation_id: str, title: str) -> Receipt:
        """Give a conversation a new title."""
        return await self.append(conversation_id, ConversationRenamed(title=title))

    async def annotate(self, conversation_id: str, metadata: Mapping[str, Any]) -> Receipt:
        """Set keys of the conversation's own metadata; the others stay, and ``None`` removes a key."""
        return await self.append(conversation_id, ConversationAnnotated(metadata=metadata))

    async def redact(
        self, conversation_id: str, message_id: str, *, by: str | None = None, reason: str | None = None
    ) -> Receipt:
        """Take a message's content away for good, in the outbox at once, in the history store with the delivery.

        Its place, role, reactions and token count stay. There is no way back.

        :param by: who asked for it. That and ``reason`` stay in the log.
        :raises InvalidInput: there is no such message; nothing was written.
        """
        await self._check_target(conversation_id, message_id)
        return await self.append(conversation_id, MessageRedacted(message_id=message_id, by=by, reason=reason))

    async def react(
        self,
        conversation_id: str,
        message_id: str,
        key: str,
        *,
        actor: str | None = None,
        value: int | float | str | None = None,
    ) -> Receipt:
        """Put a reaction to a message: one a key and actor, a new ``value`` replaces the old one.

        :param key: what it is, an emoji or a word of 1 to 255 characters. ``actor``: whose it is.
        :raises InvalidInput: there is no such message, or an argument is wrong; nothing was written.
        """
        _check_reaction(key, actor)
        await self._check_target(conversation_id, message_id)
        return await self.append(
            conversation_id, ReactionAdded(message_id=message_id, key=key, actor=actor, value=value)
        )

    async def unreact(self, conversation_id: str, message_id: str, key: str, *, actor: str | None = None) -> Receipt:
        """Take a reaction back; one that is not there is no error.

        :raises InvalidInput: there is no such message, or an argument is wrong; nothing was written.
        """
        _check_reaction(key, actor)
        await self._check_target(conversation_id, message_id)
        return await self.append(conversation_id, ReactionRemoved(message_id=message_id, key=key, actor=actor))

    async def rate(
        self, conversation_id: str, message_id: str, value: int | float | str, *, actor: str | None = None
    ) -> Receipt:
        """Rate a message: a reaction of the key ``rating``, of which an actor has one.

        :raises InvalidInput: there is no such message, or an argument is wrong; nothing was written.
        """
        if value is None:
            raise InvalidInput("value", "must be a number or a text: unreact takes a rating back")
        return await self.react(conversation_id, message_id, RATING, actor=actor, value=value)

    async def _check_target(self, conversation_id: str, message_id: str) -> None:
        """Make sure that a message is there, on the path or off it, as far as that can be known at present.

        :raises InvalidInput: it is not.
        """
        check_identifier(conversation_id, "conversation_id")
        check_identifier(message_id, "message_id")
        # The file first: what is delivered and let go after that is in the store.
        if await self.outbox.read(lambda connection: holds_message(connection, conversation_id, message_id)):
            return
        places = await self._reach.read(lambda store: store.path_of(conversation_id, (message_id,)))
        if places is not None and message_id not in places:
            raise InvalidInput(
                "message_id", "no message of this conversation has this id (one that a fork inherits is its parent's)"
            )


def _check_reaction(key: str, actor: str | None) -> None:
    check_identifier(key, "key")
    if actor is not None:
        check_identifier(actor, "actor")

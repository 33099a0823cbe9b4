"""Offer a conversation history to a bot: appends go into the outbox, reads return all messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Unpack

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from letopis.outbox.concurrency.home_loop import HomeBlock, at_home
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.history.options import AppendOptions, known_owner
from letopis.outbox.history.readable import ReadableHistory
from letopis.outbox.history.receipts import Receipt, check_timeout
from letopis.outbox.telemetry.tracing import appending
from letopis.store.errors import InvalidInput
from letopis.store.model.event_types import Body
from letopis.store.model.events import Event
from letopis.store.model.identifiers import Owner, check_identifier, owner_id
from letopis.store.model.messages import Message, Role

if TYPE_CHECKING:
    from letopis.outbox.history.reply import Reply
    from letopis.outbox.history.transaction import Transaction
    from letopis.store.erasures import Erasure
    from letopis.store.errors import Held


@at_home(besides=("append", "append_in"))
class History(ReadableHistory):
    """A conversation history that never silently loses a message.

    ::

        async with History("bot.outbox.db", store="postgresql://bot@db/history") as history:
            await history.append("chat-1", Message.user("What is tea?"), owner=42)

    ``async with`` opens and closes it; without it, the first use opens it, and :meth:`close` closes it. From then on it
    delivers in the background. The history store need not be reachable: until it is, events are kept in the outbox.

    Any task of any event loop and thread may use it. The outbox is open in one loop, the one that used it first; calls
    from others are carried there, and callbacks run there. If that loop ends, as at the end of ``asyncio.run``, the
    outbox is closed, and the next use opens it again. All histories on one file in one process share one outbox, which
    closes with the last of them. Other processes may have the same file open. The options are those of
    :class:`~letopis.outbox.history.options.Options`.

    :raises ConfigurationError: the path, the URL or an option is wrong.
    """

    async def append(
        self,
        conversation_id: str,
        what: Message | Body | Event,
        *more: Message | Body | Event,
        in_store: bool = False,
        timeout: float | None = 10.0,  # noqa: ASYNC109 - of the delivery, with an error of its own
        **options: Unpack[AppendOptions],
    ) -> Receipt:
        """Append messages or events, all or none; once this returns, they survive ``kill -9`` and a power cut.

        ::

            asked = await history.append("chat-1", Message.user("What is tea?", id="update-17"), owner=42)
            await history.append("chat-1", Message.assistant("A leaf."), after=asked)

        Concurrent appends share one flush to disk; those of one conversation keep the order of the calls. Appending a
        message again under its id, with the same content, has no effect and returns the first receipt, whatever has
        happened since: ``Receipt.superseded()`` tells that it has left the path. To show it again, append it under a
        new id. (If the first event came through another outbox alone, or was pruned here, the history store decides on
        delivery, and sets it aside if it has left the path.)

        After a cancellation or an error of the file it may have taken effect: repeating it is always safe.

        :param owner: whose conversation it is, for example a user id; remembered from then on.
        :param metadata: a JSON object about the events rather than in them.
        :param occurred_at: when it happened, aware; by default now. It does not affect the order.
        :param after: what you have read, or the receipt that this answers. The append is refused if a message was
            appended, edited, redacted or rewound since, or one of ``fail_if_types`` came. If another outbox writes the
            conversation too, the history store checks again, and a late message is kept as ``superseded``.
        :param expected: like ``after``, and refused if any event has come since.
        :param fail_if_types: the event types that count for ``after``.
        :param confirm: ``True`` for messages that the bot sends: until ``Chat.sent`` or ``failed``, the assistant's
            messages of the append are in :meth:`unconfirmed`, and go to the history's ``sender`` after a crash.
        :param in_store: ``True`` to return once the append is in the history store, which needs a relay. With
            ``expected`` or ``after``, the store is asked before anything is written; by default its answer to them
            comes late: see ``Receipt.superseded()``.
        :param timeout: with ``in_store``: seconds to wait for the delivery.
        :raises InvalidInput: something cannot be kept in every store, or the conversation has another owner.
        :raises IdReused: a message or event id holds other content, or its message was erased.
        :raises VersionConflict: another append was first.
        :raises StoreUnavailable: with ``in_store`` and a condition: the history store cannot be asked; nothing was
            written.
        :raises NotSaved: with ``in_store``: written, and not delivered within ``timeout``.
        :raises ConversationGone: the conversation was deleted.
        :raises OutboxFull: the outbox or its disk is full; nothing was dropped.
        :raises OutboxUnavailable: the outbox file cannot be written.
        :raises Closed: the history is closed, or was opened before this process was forked off.
        """
        home = self._home
        if home.loop is None:
            await home.prepare()
        events = (what, *more)
        with appending(conversation_id, events):
            prepared = prepare(conversation_id, events, limits=home.parts.limits, **options)
            timeout = check_timeout(timeout)
            if not isinstance(in_store, bool):
                raise InvalidInput("in_store", f"must be True or False, not {type(in_store).__name__}")
            if not in_store and home.loop is asyncio.get_running_loop():
                return await home.parts.appender.append(prepared)
            return await home.run(lambda: self._parts.appender.append(prepared, in_store=in_store, timeout=timeout))

    async def append_in(
        self,
        connection: AsyncConnection | AsyncSession,
        conversation_id: str,
        what: Message | Body | Event,
        *more: Message | Body | Event,
        **options: Unpack[AppendOptions],
    ) -> Receipt:
        """Append in a transaction of your own, on your own connection or session on the outbox file.

        The append takes effect with your commit, which the relay notices within a quarter of a second; a rollback, of
        the transaction or of a savepoint, leaves nothing. Wait for the receipt's ``saved()`` after the commit only: it
        looks for the event, and does not hear of a rollback. ``history.outbox.engine`` begins its transactions
        correctly; with another engine, a transaction that reads before its first write may be refused. For ORM rows
        beside appends, ``tx.session()`` of :meth:`transaction` needs none of this. Parameters as for :meth:`append`.

        :raises InvalidInput: also if the connection is not on this file, or not in a transaction, or the outbox is open
            in another event loop.
        :raises OutboxUnavailable: also if the transaction read before it wrote, and another writer came first.
        """
        await self._home.open_here("append_in")
        with appending(conversation_id, (what, *more)):
            prepared = prepare(conversation_id, (what, *more), limits=self._parts.limits, **options)
            return await self._parts.appender.append_in(connection, prepared)

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction on the outbox file, in which your own tables and appends are written together.

        ::

            async with history.transaction() as tx:
                await tx.execute(sa.text("UPDATE credits SET rest = rest - 1 WHERE user = 42"))
                await tx.append("chat-1", Message.user("What is tea?"))

        It commits when the block ends well; an exception or a cancellation rolls it back. All other writers wait for it
        meanwhile, so await nothing slow inside; after 10 seconds they are refused.

        :raises OutboxUnavailable: another writer holds the file, or the commit ended in an error.
        """
        from letopis.outbox.history.transaction import transaction

        return HomeBlock(self._find_home, lambda: transaction(self._parts.appender), holds=True)

    def reply(
        self,
        conversation_id: str,
        *,
        owner: Owner | None = None,
        message_id: str | None = None,
        role: Role = "assistant",
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        every: float | None = 0.3,
        confirm: bool = True,
    ) -> AbstractAsyncContextManager[Reply]:
        """Write a reply piece by piece, for the time of an ``async with`` block.

        ::

            async with history.reply("chat-1") as reply:
                async for piece in model.stream(...):
                    await reply.add(piece)
            await reply.sent()

        Meanwhile it is kept as a draft in the outbox file, beside the log. Leaving the block appends it as one message,
        unless it is empty. An exception or a cancellation appends what was written so far, with the status
        ``interrupted``, and goes on. After a crash, a history that has the file open does so within a minute, or the
        next one that opens it.

        Confirm the reply with its ``sent`` or ``failed``, inside the block or after it. ``role``, ``name`` and
        ``metadata`` are the message's.

        :param owner: whose conversation it is; remembered from then on.
        :param message_id: of the message that it becomes; by default new.
        :param every: seconds between two checkpoints of the draft, at least; with ``None`` there are none, and a crash
            takes all.
        :param confirm: ``False`` for replies that are read where they are written, as on a web page: they never appear
            in :meth:`unconfirmed`.
        :raises InvalidInput: an argument is wrong, the conversation has another owner, or another reply is being
            written under this message id.
        :raises IdReused: the outbox holds a message with this id already.
        :raises ConversationGone: the conversation was deleted.
        :raises OutboxUnavailable: the outbox file cannot be read, or no file can be created beside it.
        :raises Closed: the history is closed, or was opened before this process was forked off.
        :raises LetopisError: on leaving, as for ``Reply.finish()``.
        """
        whose = owner_id(owner)
        return HomeBlock(
            self._find_home,
            lambda: self._parts.replies.reply(
                conversation_id,
                owner=whose,
                message_id=message_id,
                role=role,
                name=name,
                metadata=metadata,
                every=every,
                confirm=confirm,
            ),
            holds=False,
        )

    async def start(
        self,
        owner: Owner,
        *,
        conversation_id: str | None = None,
        title: str | None = None,
        activate: bool = True,
        metadata: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Begin a conversation; the receipt holds its id. Starting it again under the same id is safe.

        Its number, the owner's next one, is given by the history store and is ``None`` until the delivery.

        :param conversation_id: by default a new UUIDv7.
        :param activate: make it the owner's active conversation.
        :raises InvalidInput: an argument is wrong, or the conversation has another owner; nothing was written.
        :raises ConversationGone: it was deleted; nothing was written.
        """
        return await self._parts.conversations.start(
            known_owner(owner), conversation_id=conversation_id, title=title, activate=activate, metadata=metadata
        )

    async def erase(
        self,
        *,
        owner: Owner | None = None,
        person: Owner | None = None,
        how: Literal["reset", "delete"],
        reason: str | None = None,
        requested_by: str | None = None,
        answers: bool = False,
        erased: Callable[[str], object] | None = None,
        held: Callable[[Held], object] | None = None,
    ) -> Erasure:
        """Erase all conversations and records of an owner, or what a person said, also where other outboxes hold it.

        The history store records the erasure first. From then on no outbox delivers anything before it has erased what
        it holds of it, pending or not: so nothing that was said before becomes readable later.
        ``history.store.erasures.unacknowledged()`` are the outboxes that have not done so yet. What is said after that
        is new, and stays. Then the conversations that the store and this outbox hold are reset or deleted, as by
        ``Chat.reset`` and ``Chat.delete``; a reset reaches as far as the conversation had come when the erasure was
        recorded. After an interruption, run it again.

        :param owner: whose conversations and records to erase.
        :param person: instead of ``owner``: the owner of this id, and the messages by this ``author`` in conversations
            of others, each of which is redacted. What others wrote there stays, also the bot's answers, which may quote
            the person; conversations on hold are left as they are.
        :param how: ``reset`` lets the conversations go on, empty, under their ids; ``delete`` ends them.
        :param reason: kept in the log and in the record. Write no content into it.
        :param requested_by: who asked for it; kept in the record.
        :param answers: with ``person``: erase the answers to these messages as well, which are those whose metadata
            says with ``answers``, at the top or under ``telegram``, the id of a message of the person, as the Telegram
            adapters record.
        :param erased: called with the id of each conversation.
        :param held: with ``person``: called with the error for each conversation of others that a hold protects.
        :raises InvalidInput: not one of ``owner`` and ``person`` is given, or an argument is wrong.
        :raises Held: a hold forbids it; nothing was erased.
        :raises StoreUnavailable: the history store cannot be read.
        :raises StoreFault: the history store cannot record it.
        """
        from letopis.outbox.history.erasing import erase

        if (owner is None) == (person is None):
            raise InvalidInput("owner", "give either an owner or a person")
        if answers and person is None:
            raise InvalidInput("answers", "are those to a person")
        kind: Literal["owner", "person"] = "owner" if person is None else "person"
        subject = check_identifier(owner_id(owner if person is None else person), kind)
        about: dict[str, Any] = {"how": how, "reason": reason, "requested_by": requested_by, "answers": answers}
        return await erase(self, kind, subject, **about, erased=erased, held=held)

    async def export(self, file: BinaryIO, *, person: Owner) -> int:
        """Write what the history has of a person as JSON Lines, and return the number of lines.

        ::

            with open("42.jsonl", "wb") as file:
                await history.export(file, person=42)

        These are the messages and records of the owner of this id, also messages off the path and pending ones, and the
        messages by this ``author`` in conversations of others, with their deliveries; nothing that others wrote there.

        :param file: a binary file, which is written page by page in a thread.
        :param person: the id of the owner, and the ``author`` of messages.
        :raises InvalidInput: ``person`` cannot be one.
        :raises StoreUnavailable: the history store cannot be read, so something would be missing; some lines may be
            written.
        """
        from letopis.outbox.history.exporter import export_person

        return await export_person(self, file, check_identifier(owner_id(person), "person"))

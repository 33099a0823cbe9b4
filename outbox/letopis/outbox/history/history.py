"""Offer a conversation history to a bot: appends go into the outbox, reads return all messages."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from letopis.outbox.concurrency.home_loop import HomeBlock, at_home
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.history.chat import Chat
from letopis.outbox.history.lifecycle import Lifecycle
from letopis.outbox.history.options import DEFAULT_PAGE_SIZE, AppendOptions, known_owner
from letopis.outbox.history.receipts import Receipt, check_timeout
from letopis.outbox.history.records import AllRecords
from letopis.outbox.telemetry.tracing import appending
from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.event_types import Body
from letopis.store.model.events import Event
from letopis.store.model.identifiers import Owner, owner_id
from letopis.store.model.messages import Message, Role
from letopis.store.read.paging import DEFAULT_STATES, AsOf

if TYPE_CHECKING:
    from letopis.outbox.history.reply import Reply
    from letopis.outbox.history.transaction import Transaction
    from letopis.store.rules.context_window import Context, TokenCounter
    from letopis.store.rules.filter import Filter
    from letopis.store.rules.statistics import Statistics
    from letopis.store.search.results import Hit


@at_home(besides=("append", "append_in"))
class History(Lifecycle):
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
        confirm: Literal["store"] | None = None,
        timeout: float | None = 10.0,  # noqa: ASYNC109 - of the confirmation, with an error of its own
        **options: Unpack[AppendOptions],
    ) -> Receipt:
        """Append messages or events, all or none; once this returns, they survive ``kill -9`` and a power cut.

        ::

            asked = await history.append("chat-1", Message.user("What is tea?", id="update-17"), owner=42)
            await history.append("chat-1", Message.assistant("A leaf."), after=asked)

        Concurrent appends share one flush to disk; those of one conversation keep the order of the calls. Appending a
        message again under its id, with the same content, has no effect while it is on the path, and puts it back at
        the end if it was popped, undone or cleared: as it was appended first, without later edits and reactions. Of a
        message that was delivered, the history store is asked, because another outbox may have taken it off the path;
        while it does not answer, it decides on delivery. (If the first event came through another outbox alone, or was
        pruned here, one that has left the path is ``superseded``.)

        After a cancellation or an error of the file it may have taken effect: repeating it is always safe.

        :param owner: whose conversation it is, for example a user id; remembered from then on.
        :param metadata: a JSON object about the events rather than in them.
        :param occurred_at: when it happened, aware; by default now. It does not affect the order.
        :param after: what you have read, or the receipt that this answers. The append is refused if a message was
            appended, edited, redacted or rewound since, or one of ``fail_if_types`` came. If another outbox writes the
            conversation too, the history store checks again, and a late message is kept as ``superseded``.
        :param expected: like ``after``, and refused if any event has come since.
        :param fail_if_types: the event types that count for ``after``.
        :param confirm: ``"store"`` to ask the history store before anything is written, and to return once it has the
            append and lets it stand. Needs ``expected`` or ``after``, and a relay. By default, the answer comes late:
            see ``Receipt.superseded()``.
        :param timeout: with ``confirm``: seconds to wait for the delivery.
        :raises InvalidInput: something cannot be kept in every store, or the conversation has another owner.
        :raises EventIdReused: a message or event id holds other content, or its message was erased.
        :raises VersionConflict: another append was first.
        :raises StoreUnavailable: with ``confirm``: the history store cannot be asked; nothing was written.
        :raises NotConfirmed: with ``confirm``: written, and not delivered within ``timeout``.
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
            prepared = prepare(conversation_id, events, limits=home.parts.limits, on_path=(), **options)
            timeout = check_timeout(timeout)
            if confirm not in (None, "store"):
                raise InvalidInput("confirm", "must be 'store' or None")
            if confirm is None and home.loop is asyncio.get_running_loop():
                return await home.parts.appender.append(prepared)
            return await home.run(lambda: self._parts.appender.append(prepared, confirm=confirm, timeout=timeout))

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
            prepared = prepare(conversation_id, (what, *more), limits=self._parts.limits, on_path=(), **options)
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

        return HomeBlock(
            self._find_home, lambda: transaction(self.outbox, self._parts.deliveries, self._parts.limits), holds=True
        )

    @property
    def records(self) -> AllRecords:
        """What frameworks keep beside the messages: call it for the records of a conversation, an owner or a space."""
        return AllRecords(self._home)

    def chat(self, conversation_id: str) -> Chat:
        """Return a conversation, with what changes it and reads more of it than its messages."""
        return Chat(conversation_id, self._home)

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
        :raises EventIdReused: the outbox holds a message with this id already.
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

    async def messages(
        self,
        conversation_id: str,
        *,
        last: int | None = DEFAULT_PAGE_SIZE,
        first: int | None = None,
        before: int | str | None = None,
        after: int | str | None = None,
        every: bool = False,
        where: Filter | None = None,
        offset: int = 0,
        as_of: AsOf | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - for one request to the store, with an error of its own
    ) -> Page[RecordedMessage]:
        """Return the newest ``last`` messages, or the ``first``, oldest first, pending ones included.

        Page backward with ``before=page.next``, or forward with ``first=50, after=page.next``. ``last=None`` returns
        all messages. Those that a fork inherits come first, with the id and the versions of their own conversation.
        While the history store is unreachable, the page holds what the outbox retains, and its ``complete`` is
        ``False``; so it is while an ancestor of a fork is neither here nor there.

        :param before: the ``next`` of a page, or a version of the conversation itself.
        :param after: the ``next`` of a page, or a version of the conversation itself.
        :param every: include its own messages that left the active path: rewound, or superseded.
        :param where: return only messages that this filter wants. All messages up to the last one that is returned are
            read, in pages; the last page may be empty.
        :param offset: leave out as many of them, the newest with ``last`` and the oldest with ``first``; they are read.
        :param as_of: as they were after this version, or after the last event that occurred by this moment. Pending
            events have no version and belong to moments only. Content that was erased since is not returned.
        :param timeout: with ``as_of``: seconds that the history store may take, instead of ``read_timeout``.
        :raises InvalidInput: an argument is wrong.
        :raises ReadTimeout: the past could not be read in that time.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self._parts.reader.messages(
            conversation_id,
            last=None if first is not None and last == DEFAULT_PAGE_SIZE else last,
            first=first,
            before=before,
            after=after,
            every=every,
            where=where,
            offset=offset,
            as_of=as_of,
            timeout=timeout,
        )

    async def message(self, message_id: str) -> RecordedMessage | None:
        """Return one message of any conversation by its id, as ``Chat.message`` does within one.

        :raises InvalidInput: an argument is wrong, or several conversations have a message of this id.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not hold the message.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self._parts.finder.find(message_id, None)

    async def context(
        self,
        conversation_id: str,
        *,
        last: int | None = None,
        turns: int | None = None,
        tokens: int | None = None,
        count: TokenCounter | None = None,
        keep_system: bool = True,
        until: str | None = None,
    ) -> Context:
        """Return the newest part of a conversation that fits a model, pending messages included.

        ::

            context = await history.context("chat-1", turns=20)
            answer = await model.complete(context.messages)
            await history.append("chat-1", Message.assistant(answer), after=context)

        The limits, and how tool calls stay with their results, are those of
        :func:`letopis.store.rules.context_window.window`. Only as much is read as the window needs, and the beginning
        for its system messages; so of a long conversation ``orphans`` is not known, and a call whose result was
        recorded long before it counts as interrupted. While the history store is unreachable, ``reached`` is ``False``.

        :param until: the id of the message that the window ends with, such as the question to answer if later messages
            may be recorded already; by default the newest. ``seen`` covers the later ones, too.
        :raises InvalidInput: a limit is wrong, the system messages alone exceed it, or ``until`` is not on the path or
            is redacted.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not hold ``until``.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        from letopis.outbox.history.context import read_window
        from letopis.store.rules.context_window import WindowBudget

        budget = WindowBudget(last=last, turns=turns, tokens=tokens, count=count, keep_system=keep_system)
        return await read_window(self._parts.reader, conversation_id, budget, until)

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

    @overload
    async def active(self, owner: Owner, *, create: Literal[True] = True) -> Conversation: ...

    @overload
    async def active(self, owner: Owner, *, create: bool) -> Conversation | None: ...

    async def active(self, owner: Owner, *, create: bool = True) -> Conversation | None:
        """Return the owner's active conversation, pending events included; begin one if there is none.

        Concurrent calls of this history begin only one; two processes may each begin one, of which one is active.
        While the history store is unreachable, it is the one that this outbox activated last, or the owner's
        conversation with the newest activity in it.

        :param create: ``False`` to return ``None`` if there is none.
        :raises InvalidInput: ``owner`` cannot be one.
        """
        return await self._parts.conversations.active(known_owner(owner), create=create)

    async def conversations(
        self,
        *,
        owner: Owner | None = None,
        after: str | None = None,
        limit: int = 50,
        states: Collection[str] = DEFAULT_STATES,
        oldest_first: bool = False,
    ) -> Page[Conversation]:
        """Return a page of conversations by last activity, the newest first, pending ones included.

        With ``owner``, only that owner's conversations, the active one first. A page may hold fewer than ``limit``
        although there are more: go on while ``next`` is not ``None``. A conversation that is written to meanwhile moves
        to the front, so later pages may miss it.

        :param after: the ``next`` of the page before.
        :param states: which to return: ``active``, ``archived``, ``deleted``.
        :param oldest_first: begin with the oldest activity, also of an owner's conversations. One that is written to
            meanwhile moves to the end, and shows again.
        :raises InvalidInput: an argument is wrong.
        """
        if owner is not None and not oldest_first:
            return await self._parts.conversations.list_of(known_owner(owner), after=after, limit=limit, states=states)
        return await self._parts.reader.conversations(
            owner=owner_id(owner), after=after, limit=limit, states=states, oldest_first=bool(oldest_first)
        )

    async def search(
        self,
        query: str,
        *,
        owner: Owner | None = None,
        conversation: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> Page[Hit]:
        """Return a page of the messages that contain all words of ``query``, the best ones first.

        ::

            for hit in await history.search('green tea "no sugar" -coffee', owner=42):
                print(hit.message.text)

        ``"quoted words"`` match literally and next to each other, and ``-word`` excludes a word. Case, accents and the
        dots of ``ё`` do not matter; Russian and English words match in their other forms.

        Pending messages are found too, and come first, the newest first. Edits, redactions, rewinds and deletions that
        were made here count at once.

        Pages show what was there when the first one was made, each message once. A page may hold fewer than ``limit``:
        go on while there is a ``next``. ``complete`` is ``False`` while the history store is unreachable (only the
        outbox is searched then), while its index is being built (``unindexed`` events were not searched), or with more
        than 10,000 pending events.

        :param owner: search only this owner's conversations.
        :param conversation: search only this conversation.
        :param after: the ``next`` of the page before, of the same search.
        :raises InvalidInput: ``query`` has no word, more than 1,000 characters or more than 32 words, or another
            argument is wrong.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self._parts.search.search(
            query, owner=owner_id(owner), conversation=conversation, limit=limit, after=after
        )

    async def statistics(
        self,
        *,
        owner: Owner | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        by: str | None = None,
    ) -> Statistics:
        """Count the messages of a period, of one owner or of all, pending ones included, each once.

        Each message of the period is read, page by page, which takes long for all owners of a large store. While the
        history store is unreachable, only the outbox is counted, and ``complete`` is ``False``.

        :param since: the first moment of the period, aware; compared with ``occurred_at``.
        :param until: the first moment after the period, aware.
        :param by: a key of the messages' metadata, by whose values the figures are also grouped.
        :raises InvalidInput: an argument is wrong, or the key has more than 10,000 values.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self._parts.counter.statistics(owner=owner_id(owner), since=since, until=until, by=by)

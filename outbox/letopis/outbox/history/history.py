"""Offer a conversation history to a bot: appends go into the outbox, reads return all messages."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload

from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from letopis.outbox.alerting.channels import Channel
from letopis.outbox.alerting.incidents import Rules
from letopis.outbox.alerting.notifications import Callback
from letopis.outbox.alerting.texts import Style
from letopis.outbox.concurrency.home_loop import HomeBlock, HomeLoop, at_home
from letopis.outbox.event_log.append_encoding import After, prepare
from letopis.outbox.event_log.retention import Retention
from letopis.outbox.file.limits import Bounds
from letopis.outbox.history._append import RATING_KEY
from letopis.outbox.history.context import ending_with, read_context, read_transcript
from letopis.outbox.history.receipts import POLL_MAX_SECONDS, POLL_MIN_SECONDS, Receipt, check_timeout, is_drained
from letopis.outbox.history.records import Records, scope_from
from letopis.outbox.history.reply import Reply
from letopis.outbox.history.transaction import Transaction, transaction
from letopis.outbox.history.unconfirmed import OnUnconfirmed, Unconfirmed
from letopis.outbox.operations.status import Status, read_status
from letopis.outbox.retry.policy import RetryPolicy
from letopis.outbox.telemetry.tracing import appending
from letopis.store.conversation_store import ConversationStore
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import DEFAULT_LIMITS, Limits
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.event_types import (
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
from letopis.store.model.events import Event, RecordedEvent, utc_now
from letopis.store.model.identifiers import Owner, check_identifier, owner_id
from letopis.store.model.messages import Message, Role
from letopis.store.model.parts import Content
from letopis.store.model.records import Record, Scope, Tag
from letopis.store.model.upcasters import NO_UPCASTERS, Upcasters
from letopis.store.read.paging import DEFAULT_STATES, AsOf
from letopis.store.rules.context_window import Context, TokenCounter, WindowBudget
from letopis.store.rules.filter import Filter
from letopis.store.rules.statistics import Period, Statistics
from letopis.store.search.results import Hit

if TYPE_CHECKING:
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.history._opening import Parts
    from letopis.outbox.relay.relay import Relay

DEFAULT_PAGE_SIZE: Final = 50
"""Messages of a page if the caller does not ask for a number."""
_POLICY: Final = RetryPolicy()
_RETENTION: Final = Retention()
_BOUNDS: Final = Bounds()
_RULES: Final = Rules()


@at_home(besides=("append", "append_in", "close"))
class History:
    """A conversation history that never silently loses a message.

    ::

        history = History("bot.outbox.db", store="postgresql://bot@db/history")
        await history.append("chat-1", Message.user("What is tea?"), owner=42)
        await history.close()

    The first use opens it; :meth:`prepare` does so at once, and ``async with`` opens and closes it. From then on it
    delivers in the background. The history store need not be reachable: until it is, events are kept in the outbox.

    Any task of any event loop and thread may use it. The outbox is open in one loop, the one that used it first; calls
    from others are carried there, and callbacks run there. If that loop ends, as at the end of ``asyncio.run``, the
    outbox is closed, and the next use opens it again. All histories on one file in one process share one outbox, which
    closes with the last of them. Other processes may have the same file open.

    :param path: the outbox, a file on a local disk, created with mode 0600. It may be the bot's own SQLite
        database.
    :param store: the history store, by URL or path; by default an SQLite file beside the outbox (``bot.outbox.db`` and
        ``bot.history.db``). Your own :class:`ConversationStore` is not closed, and belongs to one event loop. The first
        delivery binds the outbox to its store; a relay with another store delivers nothing.
    :param relay: ``False`` if another process delivers, for example ``letopis relay``.
    :param watch: ``False`` to send no notifications of stuck messages, for a program that only reads.
    :param create: ``False`` to refuse an outbox that does not exist.
    :param policy: how events that the store refuses are retried before they block their conversation.
    :param retention: how long delivered events stay readable in the outbox.
    :param limits: how large and how deep an event may be.
    :param max_events: events in the outbox beyond which appends raise ``OutboxFull``.
    :param max_bytes: bytes of the outbox beyond which appends raise ``OutboxFull``.
    :param min_free_bytes: bytes of the outbox's disk that appends leave free, for delivering what is pending.
    :param upcasters: how older versions of your own events are read.
    :param on_stuck: called with an ``Incident`` once for each user whose messages are stuck, in this process, also
        if another process delivers or none does.
    :param on_recovered: called with the same ``Incident`` once the messages are saved.
    :param on_unconfirmed: called once after opening with a tuple of ``Unconfirmed``: the replies whose process
        ended before it confirmed them. See :meth:`reply`.
    :param channels: addresses of operators to notify: ``https://`` is a webhook, others are for Apprise (extra
        ``letopis[alerts]``). The result of ``open_channels`` is accepted too.
    :param rules: thresholds for incidents and alerts, in seconds.
    :param locale: the language of the texts of incidents.
    :param style: ``plain``, or ``seed`` for the older sentence.
    :param read_timeout: seconds that a read waits for the store before it is answered from the outbox.
    :param own_thread: keep the outbox open in an event loop and a thread of its own, for programs whose loops come and
        go or are blocked. Each call then crosses two threads, and callbacks run there.
    :param now: the clock.
    :raises ConfigurationError: the path, the URL or an option is wrong.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        store: str | URL | os.PathLike[str] | ConversationStore | None = None,
        relay: bool = True,
        watch: bool = True,
        create: bool = True,
        policy: RetryPolicy = _POLICY,
        retention: Retention = _RETENTION,
        limits: Limits = DEFAULT_LIMITS,
        max_events: int | None = _BOUNDS.max_events,
        max_bytes: int | None = _BOUNDS.max_bytes,
        min_free_bytes: int | None = _BOUNDS.min_free_bytes,
        upcasters: Upcasters = NO_UPCASTERS,
        on_stuck: Callback | None = None,
        on_recovered: Callback | None = None,
        on_unconfirmed: OnUnconfirmed | None = None,
        channels: Iterable[str | Channel] = (),
        rules: Rules = _RULES,
        locale: str | None = None,
        style: Style = "plain",
        read_timeout: float = 3.0,
        own_thread: bool = False,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        # With the first history rather than with its class: the relay, the readers and what else works in one.
        from letopis.outbox.history._settings import HistorySettings, Options
        from letopis.outbox.history.sharing import SharedAccess

        options = Options(
            relay=relay,
            watch=watch,
            create=create,
            policy=policy,
            retention=retention,
            limits=limits,
            bounds=Bounds(max_events=max_events, max_bytes=max_bytes, min_free_bytes=min_free_bytes),
            upcasters=upcasters,
            on_stuck=on_stuck,
            on_recovered=on_recovered,
            on_unconfirmed=on_unconfirmed,
            channels=channels,
            rules=rules,
            locale=locale,
            style=style,
            read_timeout=read_timeout,
            own_thread=own_thread,
            now=now,
        )
        self._home = SharedAccess(HistorySettings.of(path, store, options))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        store: str | URL | os.PathLike[str] | ConversationStore | None = None,
        relay: bool = True,
        watch: bool = True,
        create: bool = True,
        policy: RetryPolicy = _POLICY,
        retention: Retention = _RETENTION,
        limits: Limits = DEFAULT_LIMITS,
        max_events: int | None = _BOUNDS.max_events,
        max_bytes: int | None = _BOUNDS.max_bytes,
        min_free_bytes: int | None = _BOUNDS.min_free_bytes,
        upcasters: Upcasters = NO_UPCASTERS,
        on_stuck: Callback | None = None,
        on_recovered: Callback | None = None,
        on_unconfirmed: OnUnconfirmed | None = None,
        channels: Iterable[str | Channel] = (),
        rules: Rules = _RULES,
        locale: str | None = None,
        style: Style = "plain",
        read_timeout: float = 3.0,
        own_thread: bool = False,
        now: Callable[[], datetime] = utc_now,
    ) -> AbstractAsyncContextManager[History]:
        """Open a history for the time of an ``async with`` block, and deliver in the background meanwhile.

        ::

            async with History.open("bot.outbox.db", store="postgresql://bot@db/history") as history:
                await history.append("chat-1", Message.user("What is tea?"), owner=42)

        Leaving the block waits some seconds for the batch in flight; the rest stays on disk for the next start, or for
        ``letopis relay``. Parameters as for the class.

        :raises ConfigurationError: the path, the URL or an option is wrong.
        :raises OutboxUnavailable: the file cannot be used at present.
        """
        return cls(
            path,
            store=store,
            relay=relay,
            watch=watch,
            create=create,
            policy=policy,
            retention=retention,
            limits=limits,
            max_events=max_events,
            max_bytes=max_bytes,
            min_free_bytes=min_free_bytes,
            upcasters=upcasters,
            on_stuck=on_stuck,
            on_recovered=on_recovered,
            on_unconfirmed=on_unconfirmed,
            channels=channels,
            rules=rules,
            locale=locale,
            style=style,
            read_timeout=read_timeout,
            own_thread=own_thread,
            now=now,
        )

    async def __aenter__(self) -> Self:
        try:
            await self.prepare()
        except BaseException:  # a cancellation too, also one that comes when it is open
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def prepare(self) -> None:
        """Open the outbox now instead of on the first use. Idempotent.

        A failure leaves nothing open, and the next use tries again.

        :raises ConfigurationError: the file cannot be an outbox, or it is open in this process with other options.
        :raises OutboxUnavailable: the file cannot be used at present.
        :raises Closed: the history is closed, or was opened before this process was forked off.
        """

    async def close(self) -> None:
        """Close the history; nothing has to be delivered first. Idempotent; from any task, event loop and thread.

        The last history on a file closes its outbox: that cuts off open replies, and waits some seconds for the batch
        in flight; the rest stays on disk.

        :raises OutboxUnavailable: this task holds a transaction on the outbox, or the loop that the outbox is open in
            stands still.
        """
        await self._home.close()

    @property
    def outbox(self) -> OutboxFile:
        """The outbox file, once it is open; to be used in the event loop that it is open in."""
        return self._parts.outbox

    @property
    def store(self) -> ConversationStore:
        """The history store, once the outbox is open; to be used in the event loop that it is open in."""
        return self._parts.store

    @property
    def relay(self) -> Relay | None:
        """The relay of this process, once the outbox is open; ``None`` if another process delivers."""
        return self._parts.relay

    @property
    def _parts(self) -> Parts:
        return self._home.parts

    async def _find_home(self) -> HomeLoop:
        return await self._home.prepare()

    # Append.

    async def append(
        self,
        conversation_id: str,
        what: Message | Body | Event,
        *more: Message | Body | Event,
        owner: Owner | None = None,
        metadata: Mapping[str, Any] | None = None,
        occurred_at: datetime | None = None,
        expected: After | None = None,
        after: After | None = None,
        fail_if_types: Collection[str] | None = None,
        confirm: Literal["store"] | None = None,
        timeout: float | None = 10.0,  # noqa: ASYNC109 - of the confirmation, with an error of its own
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

        After a cancellation or an error of the file the append may have taken effect: repeating it with the same
        events is always safe.

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
            prepared = prepare(
                conversation_id,
                events,
                limits=home.parts.limits,
                owner=owner,
                metadata=metadata,
                occurred_at=occurred_at,
                expected=expected,
                after=after,
                fail_if_types=fail_if_types,
                on_path=(),
            )
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
        owner: Owner | None = None,
        metadata: Mapping[str, Any] | None = None,
        occurred_at: datetime | None = None,
        expected: After | None = None,
        after: After | None = None,
        fail_if_types: Collection[str] | None = None,
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
            prepared = prepare(
                conversation_id,
                (what, *more),
                limits=self._parts.limits,
                owner=owner,
                metadata=metadata,
                occurred_at=occurred_at,
                expected=expected,
                after=after,
                fail_if_types=fail_if_types,
                on_path=(),
            )
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

        def make() -> AbstractAsyncContextManager[Transaction]:
            return transaction(self.outbox, self._parts.deliveries, self._parts.limits)

        return HomeBlock(self._find_home, make, holds=True)

    def records(
        self,
        scope: Scope | None = None,
        *,
        conversation: str | None = None,
        owner: Owner | None = None,
        space: str | None = None,
        new: bool = False,
    ) -> Records:
        """Return the records of a conversation, an owner or a space: what a framework keeps beside the messages.

        ::

            await history.records(conversation="chat-1").put(("state",), "step", {"at": 3})

        :param scope: that of a record that was found, instead of a name.
        :param space: a name of your choice for records that belong to neither, for example an application's memory.
        :param new: you say that the scope is new. While the history store is unavailable, a record that the outbox does
            not know then does not exist, instead of raising ``StoreUnavailable``, so that a new conversation can begin.
            If it exists after all, it and the new ones are kept side by side, and conditions are decided on delivery.
        :raises InvalidInput: none or several are named, or the name cannot be one.
        """
        return Records(scope_from(scope, conversation=conversation, owner=owner, space=space), self._home, new=new)

    async def find_records(
        self,
        tags: Mapping[str, Tag],
        *,
        end: str | None = None,
        reverse: bool = False,
        limit: int = 100,
        after: str | None = None,
    ) -> Page[Record]:
        """Return the records of all scopes that have all these tags, without their values, pending ones included.

        :param end: only records with lower keys.
        :param reverse: in the order of the keys, the highest first, instead of by scope and namespace.
        :param after: the ``next`` of the page before.
        :raises StoreUnavailable: the history store does not answer.
        :raises InvalidInput: no tag is named, or an argument cannot be one.
        """
        return await self._parts.record_reads.find(tags, limit=limit, after=after, reverse=reverse, end=end)

    async def record_scopes(self, *, limit: int = 100, after: str | None = None) -> Page[Scope]:
        """Return the conversations, owners and spaces that have records, pending ones included, in a fixed order.

        What is about to be deleted may still be named: its list is empty.

        :param after: the ``next`` of the page before.
        :raises StoreUnavailable: the history store does not answer.
        :raises InvalidInput: an argument cannot be one.
        """
        return await self._parts.record_reads.scopes(limit=limit, after=after)

    async def sent(
        self,
        conversation_id: str,
        message_id: str,
        *,
        platform_ids: Mapping[str, Any] | None = None,
        sent_as: str | None = None,
        file_path: str | None = None,
    ) -> Receipt:
        """Record that the platform accepted a message.

        :param platform_ids: the ids that the platform gave it.
        :param sent_as: how it was sent, for example ``file``.
        :param file_path: the file that it was sent as.
        :raises InvalidInput: there is no such message, or an argument cannot be kept; nothing was written.
        """
        body = MessageSent(message_id=message_id, platform_ids=platform_ids, sent_as=sent_as, file_path=file_path)
        return await self._parts.appender.change(conversation_id, body)

    async def failed(self, conversation_id: str, message_id: str, *, reason: str | None = None) -> Receipt:
        """Record that the platform rejected a message; the message itself stays.

        :raises InvalidInput: there is no such message, or an argument cannot be kept; nothing was written.
        """
        return await self._parts.appender.change(conversation_id, MessageFailed(message_id=message_id, reason=reason))

    async def edit(
        self, conversation_id: str, message_id: str, content: Content, *, reason: str | None = None
    ) -> Receipt:
        """Give a message new content; the log keeps the old one.

        If another outbox has redacted the message meanwhile, the edit is set aside on delivery: see
        ``Receipt.superseded()``.

        :raises InvalidInput: there is no such message, or its content was erased; nothing was written. While the
            history store is unreachable, a message that the outbox does not hold is assumed to exist, here and in all
            methods that name a message; if it does not, the event has no effect.
        """
        body = MessageEdited(message_id=message_id, content=content, reason=reason)
        return await self._parts.appender.change(conversation_id, body)

    async def redact(
        self, conversation_id: str, message_id: str, *more: str, by: str | None = None, reason: str | None = None
    ) -> Receipt:
        """Erase the content of messages for good, in the outbox at once, in the history store with the delivery.

        Their places, roles, reactions and token counts stay. Of several messages, all are erased or none.

        :param more: ids of further messages of the conversation.
        :param by: who asked for it; kept in the log.
        :param reason: kept in the log.
        :raises InvalidInput: there is no such message; nothing was written.
        """
        ids = dict.fromkeys(check_identifier(one, "message_id") for one in (message_id, *more))
        bodies = (MessageRedacted(message_id=one, by=by, reason=reason) for one in ids)
        return await self._parts.appender.change(conversation_id, *bodies)

    async def react(
        self,
        conversation_id: str,
        message_id: str,
        key: str,
        *,
        actor: str | None = None,
        value: int | float | str | None = None,
    ) -> Receipt:
        """Add a reaction to a message; a new ``value`` replaces the old one of the same key and actor.

        :param key: an emoji or a word, of 1 to 255 characters.
        :param actor: who reacts.
        :raises InvalidInput: there is no such message, or an argument is wrong; nothing was written.
        """
        body = ReactionAdded(message_id=message_id, key=key, actor=actor, value=value)
        return await self._parts.appender.change(conversation_id, body)

    async def unreact(self, conversation_id: str, message_id: str, key: str, *, actor: str | None = None) -> Receipt:
        """Remove a reaction; removing one that is not there is no error.

        :raises InvalidInput: there is no such message, or an argument is wrong; nothing was written.
        """
        return await self._parts.appender.change(
            conversation_id, ReactionRemoved(message_id=message_id, key=key, actor=actor)
        )

    async def rate(
        self, conversation_id: str, message_id: str, value: int | float | str, *, actor: str | None = None
    ) -> Receipt:
        """Rate a message: a reaction with the key ``rating``, one for each actor.

        :raises InvalidInput: there is no such message, or an argument is wrong; nothing was written.
        """
        if value is None:
            raise InvalidInput("value", "must be a number or a text: unreact takes a rating back")
        return await self.react(conversation_id, message_id, RATING_KEY, actor=actor, value=value)

    # Replies.

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

        Confirm the reply with its ``sent`` or ``failed``, inside the block or after it.

        :param owner: whose conversation it is; remembered from then on.
        :param message_id: of the message that it becomes; by default a new one.
        :param role: of the message.
        :param name: of the message.
        :param metadata: of the message.
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
        owner = owner_id(owner)

        def make() -> AbstractAsyncContextManager[Reply]:
            return self._parts.replies.reply(
                conversation_id,
                owner=owner,
                message_id=message_id,
                role=role,
                name=name,
                metadata=metadata,
                every=every,
                confirm=confirm,
            )

        return HomeBlock(self._find_home, make, holds=False)

    async def unconfirmed(self, *, owner: Owner | None = None) -> tuple[Unconfirmed, ...]:
        """Return the replies that were neither confirmed as sent nor as failed, the oldest first.

        These are the replies of this outbox, also those that are being sent at this moment, which are not
        ``abandoned``. ``sent`` or ``failed`` takes a reply off the list. After 30 days it leaves the list too, once the
        outbox does not hold the message any more.

        :raises InvalidInput: the owner is wrong.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self._parts.replies.unconfirmed(owner=owner_id(owner))

    # Read.

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

    async def message(self, message_id: str, *, conversation: str | None = None) -> RecordedMessage | None:
        """Return one message by its id, on the path or off it, pending events included; ``None`` if there is none.

        An inherited message is its own conversation's. Without ``conversation``, all that is pending in the outbox is
        read, which takes a millisecond for a few thousand events.

        :param conversation: the conversation that it is in; by default it is looked for in all.
        :raises InvalidInput: an argument is wrong, or several conversations have a message of this id.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not hold the message.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self._parts.finder.find(message_id, conversation)

    async def count(self, conversation_id: str, *, where: Filter | None = None) -> int:
        """Count the messages on the path, pending and inherited ones included.

        Without a filter, and where nothing is inherited, the count is kept, and not made by reading all messages.

        :param where: count only messages that this filter wants.
        :raises InvalidInput: an argument is wrong.
        :raises StoreUnavailable: the history store is unreachable, so that not all messages are known.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self._parts.reader.count(conversation_id, where=where)

    async def conversation(
        self,
        conversation_id: str,
        *,
        as_of: AsOf | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - for one request to the store, with an error of its own
    ) -> Conversation | None:
        """Return a conversation, pending events included; ``None`` if there is none.

        While the history store is unreachable, it is what the outbox retains, which may be less than all.

        :param as_of: as it was after this version, or after the last event that occurred by this moment; ``None`` is
            returned if it had not begun. All its events up to there are read, which takes seconds for hundreds of
            thousands. ``active`` is not known of the past.
        :param timeout: with ``as_of``: seconds that the history store may take, instead of ``read_timeout``.
        :raises InvalidInput: an argument is wrong.
        :raises ReadTimeout: the past could not be read in that time.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not hold that past.
        """
        return await self._parts.reader.conversation(conversation_id, as_of=as_of, timeout=timeout)

    async def events(
        self,
        conversation_id: str,
        *,
        after: int | str = 0,
        limit: int = 500,
        last: int | None = None,
        before: int | str | None = None,
        types: Collection[str] | None = None,
    ) -> Page[RecordedEvent]:
        """Return a page of a conversation's events, in order, pending ones (no version yet) last.

        By default the first ``limit`` after a version; with ``last``, the newest ones. Page forward with
        ``after=page.next``, or backward with ``last=50, before=page.next``.

        :param after: the ``next`` of the page before, or a version.
        :param last: return the newest events, as many as this.
        :param before: with ``last``: the ``next`` of the page, or a version.
        :param types: return only events of these types.
        :raises InvalidInput: an argument is wrong.
        """
        return await self._parts.reader.events(
            conversation_id, after=after, limit=limit, last=last, before=before, types=types
        )

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
        budget = WindowBudget(last=last, turns=turns, tokens=tokens, count=count, keep_system=keep_system)

        async def read(**window: Any) -> Page[RecordedMessage]:
            return await self._parts.reader.messages(conversation_id, **window)

        if until is None:
            return await read_context(read, budget)
        return await read_context(read, budget, ending_with(check_identifier(until, "until")))

    async def transcript(
        self, conversation_id: str, *, last: int | None = None, locale: str | None = None, tz: tzinfo = UTC
    ) -> str:
        """Return a conversation as text; empty if there is none. All of it is read into memory.

        :param last: only the newest ``last`` messages.
        :param locale: ``ru`` for Russian, as platforms give it; everything else is English.
        :param tz: the time zone of the times.
        :raises InvalidInput: an argument is wrong.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await read_transcript(self._parts.reader, conversation_id, last=last, locale=locale, tz=tz)

    # Chats: an owner's conversations.

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
            _required(owner), conversation_id=conversation_id, title=title, activate=activate, metadata=metadata
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
        return await self._parts.conversations.active(_required(owner), create=create)

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
            return await self._parts.conversations.list_of(_required(owner), after=after, limit=limit, states=states)
        return await self._parts.reader.conversations(
            owner=owner_id(owner), after=after, limit=limit, states=states, oldest_first=bool(oldest_first)
        )

    async def activate(self, conversation_id: str, *, owner: Owner | None = None) -> Receipt:
        """Make a conversation its owner's active one; an archived one returns to the everyday list.

        Of the activations of one outbox the last one wins, whatever is delivered first.

        :param owner: the owner, if the conversation has none yet.
        :raises InvalidInput: there is no such conversation, or it has no owner; nothing was written.
        :raises ConversationGone: it was deleted; nothing was written. The methods below raise both, too.
        """
        return await self._parts.conversations.activate(conversation_id, owner=owner_id(owner))

    async def archive(self, conversation_id: str, *, reason: str | None = None) -> Receipt:
        """Take a conversation out of the everyday list; none of its content is lost.

        If it was active, the owner's live conversation with the newest activity until then becomes active, if there is
        one.
        """
        return await self._parts.conversations.archive(conversation_id, reason=reason)

    async def restore(self, conversation_id: str) -> Receipt:
        """Put an archived conversation back into the everyday list; it does not become the active one."""
        return await self._parts.conversations.restore(conversation_id)

    async def delete(self, conversation_id: str, *, reason: str | None = None) -> Receipt:
        """Delete a conversation for good; its id and number are never used again.

        Once the receipt is ``saved()``, none of its content can be read. The bytes of more than 2,000 events are erased
        in steps after that: ``store_tasks`` of the status counts them. Nothing can be appended to it. Forks keep what
        they read of it. If it was active, the next one becomes active, as for :meth:`archive`.

        :param reason: kept in the log.
        """
        return await self._parts.conversations.delete(conversation_id, reason=reason)

    async def reset(self, conversation_id: str, *, reason: str | None = None) -> Receipt:
        """Erase a conversation as :meth:`delete` does, and let it go on, empty, under the same id.

        Its messages, title and metadata are erased with the delivery. The owner, the number and the counts of tokens
        stay, and versions go on. Forks keep what they read of it. Ids of erased messages are never used again.

        :param reason: kept in the log.
        """
        return await self._parts.conversations.reset(conversation_id, reason=reason)

    async def rename(self, conversation_id: str, title: str) -> Receipt:
        """Give a conversation a new title."""
        return await self._parts.appender.write(conversation_id, ConversationRenamed(title=title))

    async def annotate(self, conversation_id: str, metadata: Mapping[str, Any]) -> Receipt:
        """Set keys of the conversation's own metadata; other keys stay.

        ``None`` removes a key, and :data:`~letopis.store.NULL` stores a null.
        """
        return await self._parts.appender.write(conversation_id, ConversationAnnotated(metadata=metadata))

    # Rewind and fork. While the history store is unreachable, these work as far as the outbox reaches back.

    async def rewind(self, conversation_id: str, *, to: str | None, reason: str | None = None) -> Receipt:
        """Take the messages after one off the path, or all of them with ``to=None``. The log keeps them.

        While the history store is unreachable, a target that the outbox does not hold is assumed to exist; if it does
        not, the rewind has no effect.

        :param to: the id of the last message that stays; in a fork also of an inherited one.
        :raises InvalidInput: there is no such message on the path; nothing was written.
        """
        return await self._parts.rewinder.rewind(conversation_id, to=to, reason=reason)

    async def clear(self, conversation_id: str, *, reason: str | None = "clear") -> Receipt:
        """Take all messages off the path, also inherited ones. The log keeps them."""
        return await self._parts.rewinder.rewind(conversation_id, to=None, reason=reason)

    async def undo(self, conversation_id: str, turns: int = 1) -> Receipt | None:
        """Take the last turns off the path. A turn begins with a user message; consecutive ones begin one turn.

        If there are fewer turns, all of them go; what comes before the first one, such as a system message, stays.
        Without any turn, nothing is written and ``None`` is returned.

        :raises InvalidInput: ``turns`` is not a whole number from 1.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not reach back far enough.
        :raises VersionConflict: messages came faster than they could be read; nothing was written.
        """
        return await self._parts.rewinder.undo(conversation_id, turns)

    async def replace(
        self, conversation_id: str, messages: Iterable[Message], *, owner: Owner | None = None, reason: str = "replace"
    ) -> Receipt | None:
        """Make ``messages`` the whole path, in one append: all of it or nothing.

        What the path begins with already stays untouched: the first messages that have the same id and content. The
        rest leaves the path, and the rest of ``messages`` is appended or, where it was there before, put back. If
        nothing differs, nothing is written and ``None`` is returned, so a retry is safe if the ids are yours.

        If another outbox writes to the conversation before the delivery, the history store sets all of it aside: see
        ``Receipt.superseded()``. Another outbox reads the old path or the new one; of more than 5,000 messages, or
        16 MiB, it may read the first ones without the rest for a moment.

        While the history store is unreachable, messages that the outbox file no longer holds cannot be recognised.
        Those that the store already has are off the path once all is delivered: see ``Receipt.superseded()``.

        :param messages: with ids of their own; none takes all messages off the path.
        :param owner: whose conversation it is; remembered from then on.
        :param reason: kept in the log.
        :raises InvalidInput: an id occurs twice, or something cannot be kept; nothing was written.
        :raises EventIdReused: an id holds other content, or its message was erased; nothing was written. A message that
            is on the path may come with the content that is shown, edits included.
        :raises VersionConflict: messages came faster than they could be read; nothing was written.
        :raises ConversationGone: the conversation was deleted; nothing was written.
        """
        return await self._parts.replacer.replace(conversation_id, messages, owner=owner_id(owner), reason=reason)

    async def pop(self, conversation_id: str) -> RecordedMessage | None:
        """Take the last message off the path and return it; ``None`` if there is none.

        :raises StoreUnavailable: the history store is unreachable, and the outbox does not hold the message before it.
        :raises VersionConflict: messages came faster than they could be read; nothing was written.
        """
        return await self._parts.rewinder.pop(conversation_id)

    async def regenerate(self, conversation_id: str) -> tuple[RecordedMessage, ...]:
        """Take the last answer off the path, and return the user messages that are to be answered again.

        Everything after the last user message leaves the path, tool calls and results too. Consecutive user messages
        before the answer are returned together, oldest first. If they have no answer yet, nothing is written; without a
        user message, the tuple is empty and nothing is written.

        :raises StoreUnavailable: the history store is unreachable, and the outbox does not reach back far enough.
        :raises VersionConflict: messages came faster than they could be read; nothing was written.
        """
        return await self._parts.rewinder.regenerate(conversation_id)

    async def fork(
        self,
        conversation_id: str | None = None,
        *,
        of: str,
        at: int | str | None = None,
        owner: Owner | None = None,
        title: str | None = None,
        activate: bool = False,
    ) -> Receipt:
        """Begin a conversation that reads another one up to a point; the receipt holds its id.

        Nothing is copied: ``messages`` of the fork returns those of its parent first. Later events of the parent do not
        show in the fork, except that redacted content is gone here too. If the parent is deleted, the fork keeps what
        it reads, once the history store has both.

        :param conversation_id: of the fork; by default a new UUIDv7.
        :param of: the parent, which may be a fork.
        :param at: the fork point: now (``None``), a version, or the id of the last message to inherit.
        :param owner: by default the parent's.
        :param activate: make the fork its owner's active conversation.
        :raises InvalidInput: there is no such parent, version or message, or the fork's id is in use; nothing was
            written.
        :raises ConversationGone: the parent was deleted; nothing was written.
        :raises StoreUnavailable: the history store is unreachable, and the outbox does not hold the fork point.
        """
        return await self._parts.forker.fork(
            conversation_id, of=of, at=at, owner=owner_id(owner), title=title, activate=activate
        )

    # Search and statistics.

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
        return await self._parts.counter.statistics(Period.of(owner=owner_id(owner), since=since, until=until, by=by))

    # Operate.

    async def status(self) -> Status:
        """Return the state of the outbox and the relay, without contacting the history store.

        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self.outbox.read(lambda connection: read_status(connection, now_us=self.outbox.now_us()))

    async def drained(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the answer is False, no error
        """Wait until nothing is pending, at most ``timeout`` seconds, and return True if that is so.

        Returns False at once if all pending events wait for an operator. Without a relay, here or in another process,
        it waits for ever: give a timeout.

        :raises InvalidInput: ``timeout`` is not a number of seconds.
        """
        timeout = check_timeout(timeout)
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        pause = POLL_MIN_SECONDS
        while True:
            seen = self.outbox.changed.generation
            done = await self.outbox.read(is_drained)
            if done is not False:
                return done is True
            left = pause if deadline is None else min(pause, deadline - loop.time())
            if left <= 0:
                return False
            try:
                async with asyncio.timeout(left):
                    await self.outbox.changed.wait(after=seen)
            except TimeoutError:
                pause = min(pause * 1.5, POLL_MAX_SECONDS)


def _required(owner: Owner) -> str:
    found = owner_id(owner)
    if found is None:
        raise InvalidInput("owner", "must be text or a whole number, not None")
    return found

"""Blocking: the history for programs without asyncio, each method one call into an event loop of its own.

Written by `python -m tests.blocking_face` from the asynchronous classes, and not edited by hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, tzinfo
from functools import partial
from typing import Any

from sqlalchemy.engine import URL

from letopis.outbox.alerts import Channel
from letopis.outbox.append import After
from letopis.outbox.backoff import RetryPolicy
from letopis.outbox.blocking_parts import BlockingReceipt, BlockingReply, BlockingTransaction, Face
from letopis.outbox.history import _BOUNDS, _POLICY, _RETENTION, _RULES, History
from letopis.outbox.incidents import Rules
from letopis.outbox.portal import Block, Opening, Portal
from letopis.outbox.replies import OnUnconfirmed, Unconfirmed
from letopis.outbox.status import Status
from letopis.outbox.tail import Retention
from letopis.outbox.texts import Style
from letopis.outbox.watch import Callback
from letopis.store.asking import EVERYDAY
from letopis.store.codec import DEFAULT_LIMITS, Limits
from letopis.store.context import Context, Count
from letopis.store.conversation import Conversation, Page, RecordedMessage
from letopis.store.errors import ConfigurationError
from letopis.store.events import Event, RecordedEvent, utc_now
from letopis.store.history import ConversationStore
from letopis.store.messages import Content, Message
from letopis.store.search.hits import Hit
from letopis.store.statistics import Statistics
from letopis.store.timetravel import AsOf
from letopis.store.upcasters import NO_UPCASTERS, Upcasters
from letopis.store.vocabulary import Body


class BlockingHistory(Face):
    """A :class:`History` whose methods wait, for programs without asyncio. Open it with :meth:`open`.

    To be used by any number of threads, but by none that runs an event loop, nor in a process that was forked off. A
    thread that is interrupted while it waits, as by Ctrl-C, cancels what it waited for: the file stays consistent, and
    what was being appended may have taken effect.
    """

    __slots__ = ("_history",)

    def __init__(self, portal: Portal, history: History) -> None:
        super().__init__(portal)
        self._history = history

    def messages(
        self,
        conversation_id: str,
        *,
        last: int | None = None,
        first: int | None = None,
        before: int | str | None = None,
        after: int | str | None = None,
        every: bool = False,
        as_of: AsOf | None = None,
    ) -> Page[RecordedMessage]:
        """Return messages, oldest first, with what is not saved yet: the newest ``last``, the ``first``, or all.

        See :meth:`History.messages`.
        """
        return self._portal.call(
            self._history.messages,
            conversation_id,
            last=last,
            first=first,
            before=before,
            after=after,
            every=every,
            as_of=as_of,
        )

    def conversation(self, conversation_id: str, *, as_of: AsOf | None = None) -> Conversation | None:
        """Return a conversation with what is not saved yet; ``None`` where there is none.

        See :meth:`History.conversation`.
        """
        return self._portal.call(self._history.conversation, conversation_id, as_of=as_of)

    def conversations(
        self, *, owner: str | None = None, after: str | None = None, limit: int = 50, states: Collection[str] = EVERYDAY
    ) -> Page[Conversation]:
        """Return a page of conversations, of one owner or of all, the newest activity first, unsaved ones included.

        See :meth:`History.conversations`.
        """
        return self._portal.call(self._history.conversations, owner=owner, after=after, limit=limit, states=states)

    def events(self, conversation_id: str, *, after: int | str = 0, limit: int = 500) -> Page[RecordedEvent]:
        """Return a page of a conversation's events after a version, in order, unsaved ones (no version yet) last.

        See :meth:`History.events`.
        """
        return self._portal.call(self._history.events, conversation_id, after=after, limit=limit)

    def context(
        self,
        conversation_id: str,
        *,
        last: int | None = None,
        turns: int | None = None,
        tokens: int | None = None,
        count: Count | None = None,
        keep_system: bool = True,
    ) -> Context:
        """Return the newest part of a conversation that fits, for a model; unsaved messages are in it.

        See :meth:`History.context`.
        """
        return self._portal.call(
            self._history.context,
            conversation_id,
            last=last,
            turns=turns,
            tokens=tokens,
            count=count,
            keep_system=keep_system,
        )

    def transcript(
        self, conversation_id: str, *, last: int | None = None, locale: str | None = None, tz: tzinfo = UTC
    ) -> str:
        """Return a conversation as text for people; empty where there is none.

        See :meth:`History.transcript`.
        """
        return self._portal.call(self._history.transcript, conversation_id, last=last, locale=locale, tz=tz)

    def search(
        self,
        query: str,
        *,
        owner: str | None = None,
        conversation: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> Page[Hit]:
        """Return a page of messages that have all words of ``query``, in any form of them, the best ones first.

        See :meth:`History.search`.
        """
        return self._portal.call(
            self._history.search, query, owner=owner, conversation=conversation, limit=limit, after=after
        )

    def append(
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
    ) -> BlockingReceipt:
        """Append what was said, all or nothing; when this returns, neither ``kill -9`` nor a power cut takes it away.

        See :meth:`History.append`.
        """
        return self._said(
            self._history.append,
            conversation_id,
            what,
            *more,
            owner=owner,
            metadata=metadata,
            occurred_at=occurred_at,
            expected=expected,
            after=after,
            fail_if_types=fail_if_types,
        )

    def transaction(self) -> AbstractContextManager[BlockingTransaction]:
        """Open a transaction on the outbox file, for the bot's own tables in it and what is said, together.

        See :meth:`History.transaction`.
        """
        return Block(
            self._portal, lambda: self._history.transaction(), lambda found: BlockingTransaction(self._portal, found)
        )

    def sent(
        self,
        conversation_id: str,
        message_id: str,
        *,
        platform_ids: Mapping[str, Any] | None = None,
        sent_as: str | None = None,
        file_path: str | None = None,
    ) -> BlockingReceipt:
        """Say that the platform took a message: with its ids there, how it went, and the file it went as.

        See :meth:`History.sent`.
        """
        return self._said(
            self._history.sent,
            conversation_id,
            message_id,
            platform_ids=platform_ids,
            sent_as=sent_as,
            file_path=file_path,
        )

    def failed(self, conversation_id: str, message_id: str, *, reason: str | None = None) -> BlockingReceipt:
        """Say that the platform did not take a message; the message itself stays.

        See :meth:`History.failed`.
        """
        return self._said(self._history.failed, conversation_id, message_id, reason=reason)

    def edit(
        self, conversation_id: str, message_id: str, content: Content, *, reason: str | None = None
    ) -> BlockingReceipt:
        """Give a message new content; the old one stays in the log. Of a redacted message it changes nothing.

        See :meth:`History.edit`.
        """
        return self._said(self._history.edit, conversation_id, message_id, content, reason=reason)

    def rename(self, conversation_id: str, title: str) -> BlockingReceipt:
        """Give a conversation a new title.

        See :meth:`History.rename`.
        """
        return self._said(self._history.rename, conversation_id, title)

    def annotate(self, conversation_id: str, metadata: Mapping[str, Any]) -> BlockingReceipt:
        """Set keys of the conversation's own metadata; the others stay, and ``None`` removes a key.

        See :meth:`History.annotate`.
        """
        return self._said(self._history.annotate, conversation_id, metadata)

    def redact(
        self, conversation_id: str, message_id: str, *, by: str | None = None, reason: str | None = None
    ) -> BlockingReceipt:
        """Take a message's content away for good, in the outbox at once, in the history store with the delivery.

        See :meth:`History.redact`.
        """
        return self._said(self._history.redact, conversation_id, message_id, by=by, reason=reason)

    def react(
        self,
        conversation_id: str,
        message_id: str,
        key: str,
        *,
        actor: str | None = None,
        value: int | float | str | None = None,
    ) -> BlockingReceipt:
        """Put a reaction to a message: one a key and actor, a new ``value`` replaces the old one.

        See :meth:`History.react`.
        """
        return self._said(self._history.react, conversation_id, message_id, key, actor=actor, value=value)

    def unreact(self, conversation_id: str, message_id: str, key: str, *, actor: str | None = None) -> BlockingReceipt:
        """Take a reaction back; one that is not there is no error.

        See :meth:`History.unreact`.
        """
        return self._said(self._history.unreact, conversation_id, message_id, key, actor=actor)

    def rate(
        self, conversation_id: str, message_id: str, value: int | float | str, *, actor: str | None = None
    ) -> BlockingReceipt:
        """Rate a message: a reaction of the key ``rating``, of which an actor has one.

        See :meth:`History.rate`.
        """
        return self._said(self._history.rate, conversation_id, message_id, value, actor=actor)

    def reply(
        self,
        conversation_id: str,
        *,
        owner: str | None = None,
        message_id: str | None = None,
        role: str = "assistant",
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        every: float | None = 0.3,
    ) -> AbstractContextManager[BlockingReply]:
        """Write a reply piece by piece, for the time of a ``with`` block.

        See :meth:`History.reply`.
        """
        return Block(
            self._portal,
            lambda: self._history.reply(
                conversation_id,
                owner=owner,
                message_id=message_id,
                role=role,
                name=name,
                metadata=metadata,
                every=every,
            ),
            lambda found: BlockingReply(self._portal, found),
        )

    def unconfirmed(self, *, owner: str | None = None) -> tuple[Unconfirmed, ...]:
        """Return the replies of which nobody has said that they were sent, or were not, the oldest first.

        See :meth:`History.unconfirmed`.
        """
        return self._portal.call(self._history.unconfirmed, owner=owner)

    def fork(
        self,
        conversation_id: str | None = None,
        *,
        of: str,
        at: int | str | None = None,
        owner: str | None = None,
        title: str | None = None,
        activate: bool = False,
    ) -> BlockingReceipt:
        """Begin a conversation that reads another one up to a point; the receipt holds its id.

        See :meth:`History.fork`.
        """
        return self._said(
            self._history.fork, conversation_id, of=of, at=at, owner=owner, title=title, activate=activate
        )

    def rewind(self, conversation_id: str, *, to: str | None, reason: str | None = None) -> BlockingReceipt:
        """Take the messages after one off the path; with ``to=None`` all of them. The log keeps them.

        See :meth:`History.rewind`.
        """
        return self._said(self._history.rewind, conversation_id, to=to, reason=reason)

    def clear(self, conversation_id: str, *, reason: str | None = "clear") -> BlockingReceipt:
        """Take all messages off the path, those that a fork inherits too. The log keeps them.

        See :meth:`History.clear`.
        """
        return self._said(self._history.clear, conversation_id, reason=reason)

    def undo(self, conversation_id: str, turns: int = 1) -> BlockingReceipt | None:
        """Take the last turns off the path: back to before the last user message, or the last ``turns`` of them.

        See :meth:`History.undo`.
        """
        found = self._portal.call(self._history.undo, conversation_id, turns)
        return None if found is None else BlockingReceipt(self._portal, found)

    def pop(self, conversation_id: str) -> RecordedMessage | None:
        """Take the last message off the path and return it; ``None`` where there is none.

        See :meth:`History.pop`.
        """
        return self._portal.call(self._history.pop, conversation_id)

    def regenerate(self, conversation_id: str) -> tuple[RecordedMessage, ...]:
        """Take the last answer off the path, and return the messages that are to be answered again.

        See :meth:`History.regenerate`.
        """
        return self._portal.call(self._history.regenerate, conversation_id)

    def start(
        self,
        owner: str,
        *,
        conversation_id: str | None = None,
        title: str | None = None,
        activate: bool = True,
        metadata: Mapping[str, Any] | None = None,
    ) -> BlockingReceipt:
        """Begin a conversation; the receipt holds its id.

        See :meth:`History.start`.
        """
        return self._said(
            self._history.start,
            owner,
            conversation_id=conversation_id,
            title=title,
            activate=activate,
            metadata=metadata,
        )

    def active(self, owner: str, *, create: bool = True) -> Conversation | None:
        """Return the owner's active conversation, what is pending included; where there is none, begin one.

        See :meth:`History.active`.
        """
        return self._portal.call(self._history.active, owner, create=create)

    def activate(self, conversation_id: str, *, owner: str | None = None) -> BlockingReceipt:
        """Make a conversation its owner's active one; an archived one is in the everyday list again.

        See :meth:`History.activate`.
        """
        return self._said(self._history.activate, conversation_id, owner=owner)

    def archive(self, conversation_id: str, *, reason: str | None = None) -> BlockingReceipt:
        """Take a conversation out of the everyday list; nothing of it is lost.

        See :meth:`History.archive`.
        """
        return self._said(self._history.archive, conversation_id, reason=reason)

    def restore(self, conversation_id: str) -> BlockingReceipt:
        """Put an archived conversation back into the everyday list; it does not become the active one.

        See :meth:`History.restore`.
        """
        return self._said(self._history.restore, conversation_id)

    def delete(self, conversation_id: str, *, reason: str | None = None) -> BlockingReceipt:
        """Delete a conversation: its content goes for good, with the delivery; its id and number are never used again.

        See :meth:`History.delete`.
        """
        return self._said(self._history.delete, conversation_id, reason=reason)

    def chats(
        self, owner: str, *, after: str | None = None, limit: int = 50, states: Collection[str] = EVERYDAY
    ) -> Page[Conversation]:
        """Return a page of an owner's conversations: the active one first, then by last activity, unsaved included.

        See :meth:`History.chats`.
        """
        return self._portal.call(self._history.chats, owner, after=after, limit=limit, states=states)

    def statistics(
        self,
        *,
        owner: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        by: str | None = None,
    ) -> Statistics:
        """Count what was said in a period, of one owner or of all, unsaved messages included, each once.

        See :meth:`History.statistics`.
        """
        return self._portal.call(self._history.statistics, owner=owner, since=since, until=until, by=by)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        store: str | URL | os.PathLike[str] | None = None,
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
        now: Callable[[], datetime] = utc_now,
    ) -> AbstractContextManager[BlockingHistory]:
        """Open a history for the time of a ``with`` block; deliver in the background meanwhile.

        See :meth:`History.open`.
        """
        if isinstance(store, ConversationStore):
            raise ConfigurationError("a ConversationStore belongs to an event loop: give its URL or path")
        return Opening(
            partial(
                History.open,
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
                now=now,
            ),
            lambda portal, found: BlockingHistory(portal, found),
        )

    def status(self) -> Status:
        """Return how outbox and relay are; does not ask the history store.

        See :meth:`History.status`.
        """
        return self._portal.call(self._history.status)

    def drained(self, timeout: float | None = None) -> bool:
        """Wait until nothing is pending, at most ``timeout`` seconds; whether that is so.

        See :meth:`History.drained`.
        """
        return self._portal.call(self._history.drained, timeout)

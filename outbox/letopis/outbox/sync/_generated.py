"""Offer the history to programs without asyncio, each method one call into an event loop of its own.

Written by `python -m tests.support.sync_api` from the asynchronous classes, and not edited by hand.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, tzinfo
from typing import Any, Literal, ParamSpec, Self, overload
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import URL

from letopis.outbox.alerting.channels import Channel
from letopis.outbox.alerting.incidents import Rules
from letopis.outbox.alerting.notifications import Callback
from letopis.outbox.alerting.texts import Style
from letopis.outbox.event_log.append_condition import After
from letopis.outbox.event_log.retention import Retention
from letopis.outbox.history.history import _BOUNDS, _POLICY, _RETENTION, _RULES, DEFAULT_PAGE_SIZE, History
from letopis.outbox.history.receipts import Receipt
from letopis.outbox.history.records import OnExists, RecordPut, RecordReceipt, Records
from letopis.outbox.history.reply import Reply
from letopis.outbox.history.transaction import Transaction
from letopis.outbox.history.unconfirmed import OnUnconfirmed, Unconfirmed
from letopis.outbox.operations.status import Status
from letopis.outbox.retry.policy import RetryPolicy
from letopis.outbox.sync.portal import Block, InsideLoop, Portal
from letopis.store.conversation_store import ConversationStore
from letopis.store.errors import ConfigurationError
from letopis.store.model.codec import DEFAULT_LIMITS, Limits
from letopis.store.model.conversations import Conversation, Page, RecordedMessage, Saved, Seen
from letopis.store.model.event_types import Body
from letopis.store.model.events import Event, RecordedEvent, utc_now
from letopis.store.model.identifiers import Owner
from letopis.store.model.messages import Message, Role
from letopis.store.model.parts import Content, Part
from letopis.store.model.records import ANY, Condition, Namespace, Record, Scope, Tag
from letopis.store.model.upcasters import NO_UPCASTERS, Upcasters
from letopis.store.read.paging import DEFAULT_STATES, AsOf
from letopis.store.rules.context_window import Context, TokenCounter
from letopis.store.rules.filter import Filter
from letopis.store.rules.statistics import Statistics
from letopis.store.search.results import Hit

P = ParamSpec("P")


class SyncBase:
    """What the synchronous classes share: the portal that they call through."""

    __slots__ = ("_portal",)

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    def _inner(self, given: Any) -> Any:
        return getattr(given, "_reply", getattr(given, "_records", given))

    def _call_receipt(
        self, fn: Callable[P, Awaitable[Receipt]], /, *args: P.args, **kwargs: P.kwargs
    ) -> BlockingReceipt:
        return BlockingReceipt(self._portal, self._portal.call(fn, *args, **kwargs))


class BlockingReceipt(SyncBase):
    """What ``BlockingHistory.append`` gives back: a :class:`Receipt` whose methods wait.

    Equal to another one of the same events.
    """

    __slots__ = ("_receipt",)

    def __init__(self, portal: Portal, receipt: Receipt) -> None:
        super().__init__(portal)
        self._receipt = receipt

    def __eq__(self, other: object) -> bool:
        return self._receipt == other._receipt if isinstance(other, BlockingReceipt) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._receipt)

    def __repr__(self) -> str:
        return f"Blocking{self._receipt!r}"

    @property
    def conversation_id(self) -> str:
        """The conversation that the events belong to.

        See :meth:`Receipt.conversation_id`.
        """
        return self._receipt.conversation_id

    @property
    def event_ids(self) -> tuple[UUID, ...]:
        """The ids of the events in the order of the call; appending the same events again is always safe.

        See :meth:`Receipt.event_ids`.
        """
        return self._receipt.event_ids

    @property
    def message_ids(self) -> tuple[str, ...]:
        """The ids of all messages among them, in the order of the call.

        See :meth:`Receipt.message_ids`.
        """
        return self._receipt.message_ids

    @property
    def sequence(self) -> int:
        """The place of the last event in its conversation in this outbox.

        See :meth:`Receipt.sequence`.
        """
        return self._receipt.sequence

    @property
    def message_id(self) -> str | None:
        """The id of the last message; ``None`` if there is none.

        See :meth:`Receipt.message_id`.
        """
        return self._receipt.message_id

    def saved(self, timeout: float | None = None) -> bool:
        """Wait until the history store holds the events, at most ``timeout`` seconds; with 0, look once.

        See :meth:`Receipt.saved`.
        """
        return self._portal.call(self._receipt.saved, timeout)

    @property
    def seen(self) -> Seen:
        """How much of the conversation this outbox holds with these events: give it as ``after=`` of an answer.

        See :meth:`Receipt.seen`.
        """
        return self._receipt.seen

    def superseded(self, timeout: float | None = None) -> bool:
        """Wait until the events are delivered, and return True if the history store has set any of them aside.

        See :meth:`Receipt.superseded`.
        """
        return self._portal.call(self._receipt.superseded, timeout)

    def state(self) -> Saved:
        """Return how far the events have got: saved, pending or blocked; blocked also if an operator skipped the last.

        See :meth:`Receipt.state`.
        """
        return self._portal.call(self._receipt.state)


class BlockingRecordReceipt(SyncBase):
    """What ``BlockingRecords.put`` gives back: a :class:`RecordReceipt` whose methods wait."""

    __slots__ = ("_recordreceipt",)

    def __init__(self, portal: Portal, recordreceipt: RecordReceipt) -> None:
        super().__init__(portal)
        self._recordreceipt = recordreceipt

    @property
    def revision(self) -> UUID | None:
        """See :class:`RecordReceipt`."""
        return self._recordreceipt.revision

    @property
    def kept(self) -> bool:
        """See :class:`RecordReceipt`."""
        return self._recordreceipt.kept

    def saved(self, timeout: float | None = None) -> bool:
        """Wait until the history store has applied the change, as ``Receipt.saved`` does.

        See :meth:`RecordReceipt.saved`.
        """
        return self._portal.call(self._recordreceipt.saved, timeout)

    def superseded(self, timeout: float | None = None) -> bool:
        """Wait for the delivery, and return ``True`` if another outbox was first, so that the change has no effect.

        See :meth:`RecordReceipt.superseded`.
        """
        return self._portal.call(self._recordreceipt.superseded, timeout)

    def state(self) -> Saved:
        """Return how far the change has got: saved, pending or blocked.

        See :meth:`RecordReceipt.state`.
        """
        return self._portal.call(self._recordreceipt.state)


class BlockingRecords(SyncBase):
    """The records of one scope: :class:`Records` whose methods wait. Any number of threads may use it."""

    __slots__ = ("_records",)

    def __init__(self, portal: Portal, records: Records) -> None:
        super().__init__(portal)
        self._records = records

    def put(
        self,
        namespace: Sequence[str],
        key: str,
        value: Any,
        *,
        expected: Condition | UUID = ANY,
        on_exists: OnExists = "raise",
        tags: Mapping[str, Tag] | None = None,
    ) -> BlockingRecordReceipt:
        """Put a value under a key.

        See :meth:`Records.put`.
        """
        return BlockingRecordReceipt(
            self._portal,
            self._portal.call(
                self._records.put, namespace, key, value, expected=expected, on_exists=on_exists, tags=tags
            ),
        )

    def put_many(self, puts: Sequence[RecordPut]) -> Sequence[BlockingRecordReceipt]:
        """Put several values, all or none, in order.

        See :meth:`Records.put_many`.
        """
        return [BlockingRecordReceipt(self._portal, one) for one in self._portal.call(self._records.put_many, puts)]

    def get(self, namespace: Sequence[str], key: str) -> Record | None:
        """Return a record; ``None`` only if it is known that there is none.

        See :meth:`Records.get`.
        """
        return self._portal.call(self._records.get, namespace, key)

    def get_many(self, keys: Sequence[tuple[Sequence[str], str]]) -> Sequence[Record | None]:
        """Return records in the order of their keys, all as of one moment.

        See :meth:`Records.get_many`.
        """
        return self._portal.call(self._records.get_many, keys)

    def delete(self, namespace: Sequence[str], key: str, *, expected: Condition | UUID = ANY) -> BlockingRecordReceipt:
        """Delete a record, or do nothing if there is none.

        See :meth:`Records.delete`.
        """
        return BlockingRecordReceipt(
            self._portal, self._portal.call(self._records.delete, namespace, key, expected=expected)
        )

    def delete_many(self, keys: Sequence[tuple[Sequence[str], str]]) -> Sequence[BlockingRecordReceipt]:
        """Delete several records, all or none; those that are not there are no error.

        See :meth:`Records.delete_many`.
        """
        return [BlockingRecordReceipt(self._portal, one) for one in self._portal.call(self._records.delete_many, keys)]

    def delete_where(
        self,
        prefix: Sequence[str] = (),
        *,
        start: str | None = None,
        end: str | None = None,
        tags: Mapping[str, Tag] | None = None,
    ) -> BlockingRecordReceipt:
        """Delete all records in a namespace and below it; in the whole scope by default.

        See :meth:`Records.delete_where`.
        """
        return BlockingRecordReceipt(
            self._portal, self._portal.call(self._records.delete_where, prefix, start=start, end=end, tags=tags)
        )

    def erase(self) -> BlockingRecordReceipt:
        """Delete all records of the scope, and everything that the outbox and the history store could tell of them.

        See :meth:`Records.erase`.
        """
        return BlockingRecordReceipt(self._portal, self._portal.call(self._records.erase))

    def list(
        self,
        prefix: Sequence[str] = (),
        *,
        start: str | None = None,
        end: str | None = None,
        tags: Mapping[str, Tag] | None = None,
        reverse: bool = False,
        limit: int = 100,
        after: str | None = None,
        values: bool = True,
        incomplete: bool = False,
    ) -> Page[Record]:
        """Return records in a namespace and below it, in the order of the bytes of namespace and key.

        See :meth:`Records.list`.
        """
        return self._portal.call(
            self._records.list,
            prefix,
            start=start,
            end=end,
            tags=tags,
            reverse=reverse,
            limit=limit,
            after=after,
            values=values,
            incomplete=incomplete,
        )

    def namespaces(self, prefix: Sequence[str] = ()) -> Sequence[Namespace]:
        """Return the namespaces that hold a record, in order; their records are read without values.

        See :meth:`Records.namespaces`.
        """
        return self._portal.call(self._records.namespaces, prefix)


class BlockingTransaction(SyncBase):
    """An open transaction: a :class:`Transaction` whose methods wait. Used by one thread at a time."""

    __slots__ = ("_transaction",)

    def __init__(self, portal: Portal, transaction: Transaction) -> None:
        super().__init__(portal)
        self._transaction = transaction

    def execute(
        self, statement: sa.Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> sa.CursorResult[Any]:
        """Run a statement on the bot's own tables and return its result, already fetched.

        See :meth:`Transaction.execute`.
        """
        return self._portal.call(self._transaction.execute, statement, parameters)

    def scalar(self, statement: sa.Executable, parameters: Mapping[str, Any] | None = None) -> Any:
        """Run a statement and return the first column of its first row, or ``None``.

        See :meth:`Transaction.scalar`.
        """
        return self._portal.call(self._transaction.scalar, statement, parameters)

    def append(
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
    ) -> BlockingReceipt:
        """Append as ``History.append`` does; the events are durable once the transaction has committed.

        See :meth:`Transaction.append`.
        """
        return self._call_receipt(
            self._transaction.append,
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

    def put(
        self,
        records: BlockingRecords,
        namespace: Sequence[str],
        key: str,
        value: Any,
        *,
        expected: Condition | UUID = ANY,
        on_exists: OnExists = "raise",
        tags: Mapping[str, Tag] | None = None,
    ) -> BlockingRecordReceipt:
        """Put a record as ``Records.put`` does, together with everything else in the transaction.

        See :meth:`Transaction.put`.
        """
        return BlockingRecordReceipt(
            self._portal,
            self._portal.call(
                self._transaction.put,
                self._inner(records),
                namespace,
                key,
                value,
                expected=expected,
                on_exists=on_exists,
                tags=tags,
            ),
        )

    def delete_record(
        self, records: BlockingRecords, namespace: Sequence[str], key: str, *, expected: Condition | UUID = ANY
    ) -> BlockingRecordReceipt:
        """Delete a record as ``Records.delete`` does, together with everything else in the transaction.

        See :meth:`Transaction.delete_record`.
        """
        return BlockingRecordReceipt(
            self._portal,
            self._portal.call(self._transaction.delete_record, self._inner(records), namespace, key, expected=expected),
        )

    def finish(
        self,
        reply: BlockingReply,
        *,
        tokens: int | None = None,
        usage: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> BlockingReceipt:
        """Finish a reply of ``History.reply()`` in this transaction, as ``Reply.finish`` does outside one.

        See :meth:`Transaction.finish`.
        """
        return self._call_receipt(
            self._transaction.finish, self._inner(reply), tokens=tokens, usage=usage, metadata=metadata
        )


class BlockingReply(SyncBase):
    """A reply that is being written: a :class:`Reply` whose methods wait. Used by one thread at a time."""

    __slots__ = ("_reply",)

    def __init__(self, portal: Portal, reply: Reply) -> None:
        super().__init__(portal)
        self._reply = reply

    @property
    def conversation_id(self) -> str:
        """See :class:`Reply`."""
        return self._reply.conversation_id

    @property
    def message_id(self) -> str:
        """See :class:`Reply`."""
        return self._reply.message_id

    @property
    def event_id(self) -> UUID:
        """See :class:`Reply`."""
        return self._reply.event_id

    @property
    def text(self) -> str:
        """The visible text so far.

        See :meth:`Reply.text`.
        """
        return self._reply.text

    @property
    def kept(self) -> int:
        """How many characters of the text are on disk, so that a crash does not take them.

        See :meth:`Reply.kept`.
        """
        return self._reply.kept

    @property
    def receipt(self) -> BlockingReceipt | None:
        """The receipt of the message; ``None`` until there is one.

        See :meth:`Reply.receipt`.
        """
        found = self._reply.receipt
        return None if found is None else BlockingReceipt(self._portal, found)

    @property
    def interrupted(self) -> bool:
        """Whether the reply was cut off, so that its message is incomplete.

        See :meth:`Reply.interrupted`.
        """
        return self._reply.interrupted

    def add(self, what: str | Part) -> None:
        """Add a piece of text, or a part such as a file or a tool call. Does not wait for the disk.

        See :meth:`Reply.add`.
        """
        return self._portal.call(self._reply.add, what)

    def finish(
        self,
        *,
        tokens: int | None = None,
        usage: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> BlockingReceipt:
        """Append the message durably: once this returns, it survives ``kill -9`` and a power cut.

        See :meth:`Reply.finish`.
        """
        return self._call_receipt(self._reply.finish, tokens=tokens, usage=usage, metadata=metadata)

    def sent(
        self, *, platform_ids: Mapping[str, Any] | None = None, sent_as: str | None = None, file_path: str | None = None
    ) -> BlockingReceipt:
        """Record that the platform accepted the reply, as ``History.sent`` does. Finishes the reply if needed.

        See :meth:`Reply.sent`.
        """
        return self._call_receipt(self._reply.sent, platform_ids=platform_ids, sent_as=sent_as, file_path=file_path)

    def failed(self, *, reason: str | None = None) -> BlockingReceipt:
        """Record that the platform rejected the reply; the message stays. Finishes the reply if needed.

        See :meth:`Reply.failed`.
        """
        return self._call_receipt(self._reply.failed, reason=reason)


class BlockingHistory(SyncBase):
    """A :class:`History` whose methods wait, for programs without asyncio. Open it with :meth:`open`.

    ::

        history = BlockingHistory.open("bot.outbox.db")
        history.append("chat-1", Message.user("What is tea?"))
        history.close()

    Use it as a context manager, or close it. Any number of threads may use it, except forked children; threads that run
    an event loop only with ``inside_loop="block"``. A thread whose wait is interrupted, as by Ctrl-C, cancels what it
    waited for: the file stays consistent, and an append may have taken effect.
    """

    __slots__ = ("_history",)

    def __init__(self, portal: Portal, history: History) -> None:
        super().__init__(portal)
        self._history = history

    def close(self) -> None:
        """Close the history as the end of an ``async with`` block closes a :class:`History`. Idempotent."""
        self._portal.close()

    def __enter__(self) -> Self:
        self._portal.check()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        own_thread: bool = False,
        now: Callable[[], datetime] = utc_now,
        inside_loop: InsideLoop = "refuse",
    ) -> Self:
        """Open a history for the time of a ``with`` block, and deliver in the background meanwhile.

        See :meth:`History.open`.

        :param inside_loop: ``block`` to allow calls in threads that run an event loop. Each blocks that loop.
        :raises InEventLoop: this thread runs an event loop and may not block it, or the outbox is open in that loop.
        """
        if isinstance(store, ConversationStore):
            raise ConfigurationError("a ConversationStore belongs to an event loop: give its URL or path")
        portal = Portal(inside_loop=inside_loop)
        opened = History(
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
        return cls(portal, portal.open(lambda: opened, home_loop=lambda: opened._home.home_loop))

    def append(
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
        timeout: float | None = 10.0,
    ) -> BlockingReceipt:
        """Append messages or events, all or none; once this returns, they survive ``kill -9`` and a power cut.

        See :meth:`History.append`.
        """
        return self._call_receipt(
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
            confirm=confirm,
            timeout=timeout,
        )

    def transaction(self) -> AbstractContextManager[BlockingTransaction]:
        """Open a transaction on the outbox file, in which your own tables and appends are written together.

        See :meth:`History.transaction`.
        """
        return Block(
            self._portal, lambda: self._history.transaction(), lambda found: BlockingTransaction(self._portal, found)
        )

    def records(
        self,
        scope: Scope | None = None,
        *,
        conversation: str | None = None,
        owner: Owner | None = None,
        space: str | None = None,
        new: bool = False,
    ) -> BlockingRecords:
        """Return the records of a conversation, an owner or a space: what a framework keeps beside the messages.

        See :meth:`History.records`.
        """
        return BlockingRecords(
            self._portal, self._history.records(scope, conversation=conversation, owner=owner, space=space, new=new)
        )

    def find_records(
        self,
        tags: Mapping[str, Tag],
        *,
        end: str | None = None,
        reverse: bool = False,
        limit: int = 100,
        after: str | None = None,
    ) -> Page[Record]:
        """Return the records of all scopes that have all these tags, without their values, pending ones included.

        See :meth:`History.find_records`.
        """
        return self._portal.call(self._history.find_records, tags, end=end, reverse=reverse, limit=limit, after=after)

    def record_scopes(self, *, limit: int = 100, after: str | None = None) -> Page[Scope]:
        """Return the conversations, owners and spaces that have records, pending ones included, in a fixed order.

        See :meth:`History.record_scopes`.
        """
        return self._portal.call(self._history.record_scopes, limit=limit, after=after)

    def sent(
        self,
        conversation_id: str,
        message_id: str,
        *,
        platform_ids: Mapping[str, Any] | None = None,
        sent_as: str | None = None,
        file_path: str | None = None,
    ) -> BlockingReceipt:
        """Record that the platform accepted a message.

        See :meth:`History.sent`.
        """
        return self._call_receipt(
            self._history.sent,
            conversation_id,
            message_id,
            platform_ids=platform_ids,
            sent_as=sent_as,
            file_path=file_path,
        )

    def failed(self, conversation_id: str, message_id: str, *, reason: str | None = None) -> BlockingReceipt:
        """Record that the platform rejected a message; the message itself stays.

        See :meth:`History.failed`.
        """
        return self._call_receipt(self._history.failed, conversation_id, message_id, reason=reason)

    def edit(
        self, conversation_id: str, message_id: str, content: Content, *, reason: str | None = None
    ) -> BlockingReceipt:
        """Give a message new content; the log keeps the old one.

        See :meth:`History.edit`.
        """
        return self._call_receipt(self._history.edit, conversation_id, message_id, content, reason=reason)

    def redact(
        self, conversation_id: str, message_id: str, *more: str, by: str | None = None, reason: str | None = None
    ) -> BlockingReceipt:
        """Erase the content of messages for good, in the outbox at once, in the history store with the delivery.

        See :meth:`History.redact`.
        """
        return self._call_receipt(self._history.redact, conversation_id, message_id, *more, by=by, reason=reason)

    def react(
        self,
        conversation_id: str,
        message_id: str,
        key: str,
        *,
        actor: str | None = None,
        value: int | float | str | None = None,
    ) -> BlockingReceipt:
        """Add a reaction to a message; a new ``value`` replaces the old one of the same key and actor.

        See :meth:`History.react`.
        """
        return self._call_receipt(self._history.react, conversation_id, message_id, key, actor=actor, value=value)

    def unreact(self, conversation_id: str, message_id: str, key: str, *, actor: str | None = None) -> BlockingReceipt:
        """Remove a reaction; removing one that is not there is no error.

        See :meth:`History.unreact`.
        """
        return self._call_receipt(self._history.unreact, conversation_id, message_id, key, actor=actor)

    def rate(
        self, conversation_id: str, message_id: str, value: int | float | str, *, actor: str | None = None
    ) -> BlockingReceipt:
        """Rate a message: a reaction with the key ``rating``, one for each actor.

        See :meth:`History.rate`.
        """
        return self._call_receipt(self._history.rate, conversation_id, message_id, value, actor=actor)

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
                confirm=confirm,
            ),
            lambda found: BlockingReply(self._portal, found),
        )

    def unconfirmed(self, *, owner: Owner | None = None) -> tuple[Unconfirmed, ...]:
        """Return the replies that were neither confirmed as sent nor as failed, the oldest first.

        See :meth:`History.unconfirmed`.
        """
        return self._portal.call(self._history.unconfirmed, owner=owner)

    def messages(
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
        timeout: float | None = None,
    ) -> Page[RecordedMessage]:
        """Return the newest ``last`` messages, or the ``first``, oldest first, pending ones included.

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
            where=where,
            offset=offset,
            as_of=as_of,
            timeout=timeout,
        )

    def message(self, message_id: str, *, conversation: str | None = None) -> RecordedMessage | None:
        """Return one message by its id, on the path or off it, pending events included; ``None`` if there is none.

        See :meth:`History.message`.
        """
        return self._portal.call(self._history.message, message_id, conversation=conversation)

    def count(self, conversation_id: str, *, where: Filter | None = None) -> int:
        """Count the messages on the path, pending and inherited ones included.

        See :meth:`History.count`.
        """
        return self._portal.call(self._history.count, conversation_id, where=where)

    def conversation(
        self, conversation_id: str, *, as_of: AsOf | None = None, timeout: float | None = None
    ) -> Conversation | None:
        """Return a conversation, pending events included; ``None`` if there is none.

        See :meth:`History.conversation`.
        """
        return self._portal.call(self._history.conversation, conversation_id, as_of=as_of, timeout=timeout)

    def events(
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

        See :meth:`History.events`.
        """
        return self._portal.call(
            self._history.events, conversation_id, after=after, limit=limit, last=last, before=before, types=types
        )

    def context(
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
            until=until,
        )

    def transcript(
        self, conversation_id: str, *, last: int | None = None, locale: str | None = None, tz: tzinfo = UTC
    ) -> str:
        """Return a conversation as text; empty if there is none. All of it is read into memory.

        See :meth:`History.transcript`.
        """
        return self._portal.call(self._history.transcript, conversation_id, last=last, locale=locale, tz=tz)

    def start(
        self,
        owner: Owner,
        *,
        conversation_id: str | None = None,
        title: str | None = None,
        activate: bool = True,
        metadata: Mapping[str, Any] | None = None,
    ) -> BlockingReceipt:
        """Begin a conversation; the receipt holds its id. Starting it again under the same id is safe.

        See :meth:`History.start`.
        """
        return self._call_receipt(
            self._history.start,
            owner,
            conversation_id=conversation_id,
            title=title,
            activate=activate,
            metadata=metadata,
        )

    @overload
    def active(self, owner: Owner, *, create: Literal[True] = True) -> Conversation: ...

    @overload
    def active(self, owner: Owner, *, create: bool) -> Conversation | None: ...

    def active(self, owner: Owner, *, create: bool = True) -> Conversation | None:
        """Return the owner's active conversation, pending events included; begin one if there is none.

        See :meth:`History.active`.
        """
        return self._portal.call(self._history.active, owner, create=create)

    def conversations(
        self,
        *,
        owner: Owner | None = None,
        after: str | None = None,
        limit: int = 50,
        states: Collection[str] = DEFAULT_STATES,
        oldest_first: bool = False,
    ) -> Page[Conversation]:
        """Return a page of conversations by last activity, the newest first, pending ones included.

        See :meth:`History.conversations`.
        """
        return self._portal.call(
            self._history.conversations, owner=owner, after=after, limit=limit, states=states, oldest_first=oldest_first
        )

    def activate(self, conversation_id: str, *, owner: Owner | None = None) -> BlockingReceipt:
        """Make a conversation its owner's active one; an archived one returns to the everyday list.

        See :meth:`History.activate`.
        """
        return self._call_receipt(self._history.activate, conversation_id, owner=owner)

    def archive(self, conversation_id: str, *, reason: str | None = None) -> BlockingReceipt:
        """Take a conversation out of the everyday list; none of its content is lost.

        See :meth:`History.archive`.
        """
        return self._call_receipt(self._history.archive, conversation_id, reason=reason)

    def restore(self, conversation_id: str) -> BlockingReceipt:
        """Put an archived conversation back into the everyday list; it does not become the active one.

        See :meth:`History.restore`.
        """
        return self._call_receipt(self._history.restore, conversation_id)

    def delete(self, conversation_id: str, *, reason: str | None = None) -> BlockingReceipt:
        """Delete a conversation for good; its id and number are never used again.

        See :meth:`History.delete`.
        """
        return self._call_receipt(self._history.delete, conversation_id, reason=reason)

    def reset(self, conversation_id: str, *, reason: str | None = None) -> BlockingReceipt:
        """Erase a conversation as :meth:`delete` does, and let it go on, empty, under the same id.

        See :meth:`History.reset`.
        """
        return self._call_receipt(self._history.reset, conversation_id, reason=reason)

    def rename(self, conversation_id: str, title: str) -> BlockingReceipt:
        """Give a conversation a new title.

        See :meth:`History.rename`.
        """
        return self._call_receipt(self._history.rename, conversation_id, title)

    def annotate(self, conversation_id: str, metadata: Mapping[str, Any]) -> BlockingReceipt:
        """Set keys of the conversation's own metadata; other keys stay.

        See :meth:`History.annotate`.
        """
        return self._call_receipt(self._history.annotate, conversation_id, metadata)

    def rewind(self, conversation_id: str, *, to: str | None, reason: str | None = None) -> BlockingReceipt:
        """Take the messages after one off the path, or all of them with ``to=None``. The log keeps them.

        See :meth:`History.rewind`.
        """
        return self._call_receipt(self._history.rewind, conversation_id, to=to, reason=reason)

    def clear(self, conversation_id: str, *, reason: str | None = "clear") -> BlockingReceipt:
        """Take all messages off the path, also inherited ones. The log keeps them.

        See :meth:`History.clear`.
        """
        return self._call_receipt(self._history.clear, conversation_id, reason=reason)

    def undo(self, conversation_id: str, turns: int = 1) -> BlockingReceipt | None:
        """Take the last turns off the path. A turn begins with a user message; consecutive ones begin one turn.

        See :meth:`History.undo`.
        """
        found = self._portal.call(self._history.undo, conversation_id, turns)
        return None if found is None else BlockingReceipt(self._portal, found)

    def replace(
        self, conversation_id: str, messages: Iterable[Message], *, owner: Owner | None = None, reason: str = "replace"
    ) -> BlockingReceipt | None:
        """Make ``messages`` the whole path, in one append: all of it or nothing.

        See :meth:`History.replace`.
        """
        found = self._portal.call(self._history.replace, conversation_id, messages, owner=owner, reason=reason)
        return None if found is None else BlockingReceipt(self._portal, found)

    def pop(self, conversation_id: str) -> RecordedMessage | None:
        """Take the last message off the path and return it; ``None`` if there is none.

        See :meth:`History.pop`.
        """
        return self._portal.call(self._history.pop, conversation_id)

    def regenerate(self, conversation_id: str) -> tuple[RecordedMessage, ...]:
        """Take the last answer off the path, and return the user messages that are to be answered again.

        See :meth:`History.regenerate`.
        """
        return self._portal.call(self._history.regenerate, conversation_id)

    def fork(
        self,
        conversation_id: str | None = None,
        *,
        of: str,
        at: int | str | None = None,
        owner: Owner | None = None,
        title: str | None = None,
        activate: bool = False,
    ) -> BlockingReceipt:
        """Begin a conversation that reads another one up to a point; the receipt holds its id.

        See :meth:`History.fork`.
        """
        return self._call_receipt(
            self._history.fork, conversation_id, of=of, at=at, owner=owner, title=title, activate=activate
        )

    def search(
        self,
        query: str,
        *,
        owner: Owner | None = None,
        conversation: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> Page[Hit]:
        """Return a page of the messages that contain all words of ``query``, the best ones first.

        See :meth:`History.search`.
        """
        return self._portal.call(
            self._history.search, query, owner=owner, conversation=conversation, limit=limit, after=after
        )

    def statistics(
        self,
        *,
        owner: Owner | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        by: str | None = None,
    ) -> Statistics:
        """Count the messages of a period, of one owner or of all, pending ones included, each once.

        See :meth:`History.statistics`.
        """
        return self._portal.call(self._history.statistics, owner=owner, since=since, until=until, by=by)

    def status(self) -> Status:
        """Return the state of the outbox and the relay, without contacting the history store.

        See :meth:`History.status`.
        """
        return self._portal.call(self._history.status)

    def drained(self, timeout: float | None = None) -> bool:
        """Wait until nothing is pending, at most ``timeout`` seconds, and return True if that is so.

        See :meth:`History.drained`.
        """
        return self._portal.call(self._history.drained, timeout)

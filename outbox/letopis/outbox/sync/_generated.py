"""Offer the history to programs without asyncio, each method one call into an event loop of its own.

Written by `python -m tests.support.sync_api` from the asynchronous classes, and not edited by hand.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from datetime import UTC, datetime, tzinfo
from typing import Any, Generic, Literal, ParamSpec, Self, TypeVar, Unpack, overload
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import URL

from letopis.outbox.history.chat import Chat
from letopis.outbox.history.history import History
from letopis.outbox.history.options import DEFAULT_PAGE_SIZE, AppendOptions, Options, Unconfirmed, keywords_of
from letopis.outbox.history.receipts import Receipt
from letopis.outbox.history.records import AllRecords, OnExists, RecordPut, RecordReceipt, Records
from letopis.outbox.history.reply import Reply
from letopis.outbox.history.transaction import Transaction
from letopis.outbox.operations.status import Status
from letopis.outbox.sync.portal import Block, InsideLoop, Portal
from letopis.store.conversation_store import ConversationStore
from letopis.store.errors import ConfigurationError
from letopis.store.model.conversations import Conversation, Page, RecordedMessage, Saved, Seen
from letopis.store.model.event_types import Body
from letopis.store.model.events import Event, RecordedEvent
from letopis.store.model.identifiers import Owner
from letopis.store.model.messages import Message, Role
from letopis.store.model.parts import Content, Part
from letopis.store.model.records import ANY, Condition, Namespace, Record, Scope, Tag
from letopis.store.read.paging import DEFAULT_STATES, AsOf
from letopis.store.rules.context_window import Context, TokenCounter
from letopis.store.rules.filter import Filter
from letopis.store.rules.statistics import Statistics
from letopis.store.search.results import Hit

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BlockingOptions(Options):
    """What ``BlockingHistory(...)`` is given."""

    store: str | URL | os.PathLike[str] | None = None
    inside_loop: InsideLoop = "refuse"

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        if isinstance(self.store, ConversationStore):
            raise ConfigurationError("a ConversationStore belongs to an event loop: give its URL or path")


class SyncBase(Generic[T]):
    """What the synchronous classes share: an asynchronous object, and the portal that they call it through."""

    __slots__ = ("_inner", "_portal")

    def __init__(self, portal: Portal, inner: T) -> None:
        self._portal = portal
        self._inner = inner

    @staticmethod
    def _inner_of(given: Any) -> Any:
        return getattr(given, "_inner", given)  # what is no twin is refused by the method that it is handed to

    def _call_receipt(
        self, fn: Callable[P, Awaitable[Receipt]], /, *args: P.args, **kwargs: P.kwargs
    ) -> BlockingReceipt:
        return BlockingReceipt(self._portal, self._portal.call(fn, *args, **kwargs))


class BlockingReceipt(SyncBase[Receipt]):
    """What ``BlockingHistory.append`` gives back: a :class:`Receipt` whose methods wait.

    Equal to another one of the same events.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self._inner == other._inner if isinstance(other, BlockingReceipt) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._inner)

    def __repr__(self) -> str:
        return f"Blocking{self._inner!r}"

    @property
    def conversation_id(self) -> str:
        """As :meth:`Receipt.conversation_id`."""
        return self._inner.conversation_id

    @property
    def event_ids(self) -> tuple[UUID, ...]:
        """As :meth:`Receipt.event_ids`."""
        return self._inner.event_ids

    @property
    def message_ids(self) -> tuple[str, ...]:
        """As :meth:`Receipt.message_ids`."""
        return self._inner.message_ids

    @property
    def sequence(self) -> int:
        """As :meth:`Receipt.sequence`."""
        return self._inner.sequence

    @property
    def message_id(self) -> str | None:
        """As :meth:`Receipt.message_id`."""
        return self._inner.message_id

    def saved(self, timeout: float | None = None) -> bool:
        """As :meth:`Receipt.saved`; waits."""
        return self._portal.call(self._inner.saved, timeout)

    @property
    def seen(self) -> Seen:
        """As :meth:`Receipt.seen`."""
        return self._inner.seen

    def superseded(self, timeout: float | None = None) -> bool:
        """As :meth:`Receipt.superseded`; waits."""
        return self._portal.call(self._inner.superseded, timeout)

    def state(self) -> Saved:
        """As :meth:`Receipt.state`; waits."""
        return self._portal.call(self._inner.state)


class BlockingRecordReceipt(SyncBase[RecordReceipt]):
    """What ``BlockingRecords.put`` gives back: a :class:`RecordReceipt` whose methods wait."""

    __slots__ = ()

    @property
    def revision(self) -> UUID | None:
        """As in :class:`RecordReceipt`."""
        return self._inner.revision

    @property
    def kept(self) -> bool:
        """As in :class:`RecordReceipt`."""
        return self._inner.kept

    def saved(self, timeout: float | None = None) -> bool:
        """As :meth:`RecordReceipt.saved`; waits."""
        return self._portal.call(self._inner.saved, timeout)

    def superseded(self, timeout: float | None = None) -> bool:
        """As :meth:`RecordReceipt.superseded`; waits."""
        return self._portal.call(self._inner.superseded, timeout)

    def state(self) -> Saved:
        """As :meth:`RecordReceipt.state`; waits."""
        return self._portal.call(self._inner.state)


class BlockingRecords(SyncBase[Records]):
    """The records of one scope: :class:`Records` whose methods wait. Any number of threads may use it."""

    __slots__ = ()

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
        """As :meth:`Records.put`; waits."""
        return BlockingRecordReceipt(
            self._portal,
            self._portal.call(
                self._inner.put, namespace, key, value, expected=expected, on_exists=on_exists, tags=tags
            ),
        )

    def put_many(self, puts: Sequence[RecordPut]) -> Sequence[BlockingRecordReceipt]:
        """As :meth:`Records.put_many`; waits."""
        return [BlockingRecordReceipt(self._portal, item) for item in self._portal.call(self._inner.put_many, puts)]

    def get(self, namespace: Sequence[str], key: str) -> Record | None:
        """As :meth:`Records.get`; waits."""
        return self._portal.call(self._inner.get, namespace, key)

    def get_many(self, keys: Sequence[tuple[Sequence[str], str]]) -> Sequence[Record | None]:
        """As :meth:`Records.get_many`; waits."""
        return self._portal.call(self._inner.get_many, keys)

    def delete(self, namespace: Sequence[str], key: str, *, expected: Condition | UUID = ANY) -> BlockingRecordReceipt:
        """As :meth:`Records.delete`; waits."""
        return BlockingRecordReceipt(
            self._portal, self._portal.call(self._inner.delete, namespace, key, expected=expected)
        )

    def delete_many(
        self, keys: Sequence[tuple[Sequence[str], str]], *, unchanged: Sequence[Record] = ()
    ) -> Sequence[BlockingRecordReceipt]:
        """As :meth:`Records.delete_many`; waits."""
        return [
            BlockingRecordReceipt(self._portal, item)
            for item in self._portal.call(self._inner.delete_many, keys, unchanged=unchanged)
        ]

    def delete_where(
        self,
        prefix: Sequence[str] = (),
        *,
        start: str | None = None,
        end: str | None = None,
        tags: Mapping[str, Tag] | None = None,
    ) -> BlockingRecordReceipt:
        """As :meth:`Records.delete_where`; waits."""
        return BlockingRecordReceipt(
            self._portal, self._portal.call(self._inner.delete_where, prefix, start=start, end=end, tags=tags)
        )

    def erase(self) -> BlockingRecordReceipt:
        """As :meth:`Records.erase`; waits."""
        return BlockingRecordReceipt(self._portal, self._portal.call(self._inner.erase))

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
        """As :meth:`Records.list`; waits."""
        return self._portal.call(
            self._inner.list,
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
        """As :meth:`Records.namespaces`; waits."""
        return self._portal.call(self._inner.namespaces, prefix)


class BlockingAllRecords(SyncBase[AllRecords]):
    """What frameworks keep beside the messages: :class:`AllRecords` whose methods wait."""

    __slots__ = ()

    def __call__(
        self,
        scope: Scope | None = None,
        *,
        conversation: str | None = None,
        owner: Owner | None = None,
        space: str | None = None,
        new: bool = False,
    ) -> BlockingRecords:
        """As :meth:`AllRecords.__call__`."""
        return BlockingRecords(
            self._portal, self._inner.__call__(scope, conversation=conversation, owner=owner, space=space, new=new)
        )

    def find(
        self,
        tags: Mapping[str, Tag],
        *,
        end: str | None = None,
        reverse: bool = False,
        limit: int = 100,
        after: str | None = None,
    ) -> Page[Record]:
        """As :meth:`AllRecords.find`; waits."""
        return self._portal.call(self._inner.find, tags, end=end, reverse=reverse, limit=limit, after=after)

    def scopes(self, *, limit: int = 100, after: str | None = None) -> Page[Scope]:
        """As :meth:`AllRecords.scopes`; waits."""
        return self._portal.call(self._inner.scopes, limit=limit, after=after)


class BlockingChat(SyncBase[Chat]):
    """One conversation of a history: a :class:`Chat` whose methods wait. Any number of threads may use it."""

    __slots__ = ()

    @property
    def conversation_id(self) -> str:
        """As in :class:`Chat`."""
        return self._inner.conversation_id

    def conversation(self, *, as_of: AsOf | None = None, timeout: float | None = None) -> Conversation | None:
        """As :meth:`Chat.conversation`; waits."""
        return self._portal.call(self._inner.conversation, as_of=as_of, timeout=timeout)

    def message(self, message_id: str) -> RecordedMessage | None:
        """As :meth:`Chat.message`; waits."""
        return self._portal.call(self._inner.message, message_id)

    def count(self, *, where: Filter | None = None) -> int:
        """As :meth:`Chat.count`; waits."""
        return self._portal.call(self._inner.count, where=where)

    def events(
        self,
        *,
        after: int | str = 0,
        limit: int = 500,
        last: int | None = None,
        before: int | str | None = None,
        types: Collection[str] | None = None,
    ) -> Page[RecordedEvent]:
        """As :meth:`Chat.events`; waits."""
        return self._portal.call(self._inner.events, after=after, limit=limit, last=last, before=before, types=types)

    def transcript(self, *, last: int | None = None, locale: str | None = None, tz: tzinfo = UTC) -> str:
        """As :meth:`Chat.transcript`; waits."""
        return self._portal.call(self._inner.transcript, last=last, locale=locale, tz=tz)

    def edit(self, message_id: str, content: Content, *, reason: str | None = None) -> BlockingReceipt:
        """As :meth:`Chat.edit`; waits."""
        return self._call_receipt(self._inner.edit, message_id, content, reason=reason)

    def redact(self, message_id: str, *more: str, by: str | None = None, reason: str | None = None) -> BlockingReceipt:
        """As :meth:`Chat.redact`; waits."""
        return self._call_receipt(self._inner.redact, message_id, *more, by=by, reason=reason)

    def react(
        self, message_id: str, key: str, *, actor: str | None = None, value: int | float | str | None = None
    ) -> BlockingReceipt:
        """As :meth:`Chat.react`; waits."""
        return self._call_receipt(self._inner.react, message_id, key, actor=actor, value=value)

    def unreact(self, message_id: str, key: str, *, actor: str | None = None) -> BlockingReceipt:
        """As :meth:`Chat.unreact`; waits."""
        return self._call_receipt(self._inner.unreact, message_id, key, actor=actor)

    def sent(
        self,
        message_id: str,
        *,
        platform_ids: Mapping[str, Any] | None = None,
        sent_as: str | None = None,
        file_path: str | None = None,
    ) -> BlockingReceipt:
        """As :meth:`Chat.sent`; waits."""
        return self._call_receipt(
            self._inner.sent, message_id, platform_ids=platform_ids, sent_as=sent_as, file_path=file_path
        )

    def failed(self, message_id: str, *, reason: str | None = None) -> BlockingReceipt:
        """As :meth:`Chat.failed`; waits."""
        return self._call_receipt(self._inner.failed, message_id, reason=reason)

    def send(self, message_id: str) -> bool:
        """As :meth:`Chat.send`; waits."""
        return self._portal.call(self._inner.send, message_id)

    def rename(self, title: str) -> BlockingReceipt:
        """As :meth:`Chat.rename`; waits."""
        return self._call_receipt(self._inner.rename, title)

    def annotate(self, metadata: Mapping[str, Any]) -> BlockingReceipt:
        """As :meth:`Chat.annotate`; waits."""
        return self._call_receipt(self._inner.annotate, metadata)

    def tag(self, *tags: str, remove: Sequence[str] = ()) -> BlockingReceipt:
        """As :meth:`Chat.tag`; waits."""
        return self._call_receipt(self._inner.tag, *tags, remove=remove)

    def activate(self, *, owner: Owner | None = None) -> BlockingReceipt:
        """As :meth:`Chat.activate`; waits."""
        return self._call_receipt(self._inner.activate, owner=owner)

    def archive(self, *, reason: str | None = None) -> BlockingReceipt:
        """As :meth:`Chat.archive`; waits."""
        return self._call_receipt(self._inner.archive, reason=reason)

    def restore(self) -> BlockingReceipt:
        """As :meth:`Chat.restore`; waits."""
        return self._call_receipt(self._inner.restore)

    def delete(self, *, reason: str | None = None) -> BlockingReceipt:
        """As :meth:`Chat.delete`; waits."""
        return self._call_receipt(self._inner.delete, reason=reason)

    def reset(self, *, reason: str | None = None) -> BlockingReceipt:
        """As :meth:`Chat.reset`; waits."""
        return self._call_receipt(self._inner.reset, reason=reason)

    def rewind(self, *, to: str | None, reason: str | None = None) -> BlockingReceipt:
        """As :meth:`Chat.rewind`; waits."""
        return self._call_receipt(self._inner.rewind, to=to, reason=reason)

    def undo(self, turns: int = 1) -> BlockingReceipt | None:
        """As :meth:`Chat.undo`; waits."""
        value = self._portal.call(self._inner.undo, turns)
        return None if value is None else BlockingReceipt(self._portal, value)

    def pop(self) -> RecordedMessage | None:
        """As :meth:`Chat.pop`; waits."""
        return self._portal.call(self._inner.pop)

    def regenerate(self) -> tuple[RecordedMessage, ...]:
        """As :meth:`Chat.regenerate`; waits."""
        return self._portal.call(self._inner.regenerate)

    def replace(
        self, messages: Iterable[Message], *, owner: Owner | None = None, reason: str = "replace"
    ) -> BlockingReceipt | None:
        """As :meth:`Chat.replace`; waits."""
        value = self._portal.call(self._inner.replace, messages, owner=owner, reason=reason)
        return None if value is None else BlockingReceipt(self._portal, value)

    def fork(
        self,
        fork_id: str | None = None,
        *,
        at: int | str | None = None,
        owner: Owner | None = None,
        title: str | None = None,
        activate: bool = False,
    ) -> BlockingReceipt:
        """As :meth:`Chat.fork`; waits."""
        return self._call_receipt(self._inner.fork, fork_id, at=at, owner=owner, title=title, activate=activate)


class BlockingTransaction(SyncBase[Transaction]):
    """An open transaction: a :class:`Transaction` whose methods wait. Used by one thread at a time."""

    __slots__ = ()

    def execute(
        self, statement: sa.Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> sa.CursorResult[Any]:
        """As :meth:`Transaction.execute`; waits."""
        return self._portal.call(self._inner.execute, statement, parameters)

    def scalar(self, statement: sa.Executable, parameters: Mapping[str, Any] | None = None) -> Any:
        """As :meth:`Transaction.scalar`; waits."""
        return self._portal.call(self._inner.scalar, statement, parameters)

    def append(
        self,
        conversation_id: str,
        what: Message | Body | Event,
        *more: Message | Body | Event,
        **options: Unpack[AppendOptions],
    ) -> BlockingReceipt:
        """As :meth:`Transaction.append`; waits."""
        return self._call_receipt(self._inner.append, conversation_id, what, *more, **options)

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
        """As :meth:`Transaction.put`; waits."""
        return BlockingRecordReceipt(
            self._portal,
            self._portal.call(
                self._inner.put,
                self._inner_of(records),
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
        """As :meth:`Transaction.delete_record`; waits."""
        return BlockingRecordReceipt(
            self._portal,
            self._portal.call(self._inner.delete_record, self._inner_of(records), namespace, key, expected=expected),
        )

    def finish(
        self,
        reply: BlockingReply,
        *,
        tokens: int | None = None,
        usage: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> BlockingReceipt:
        """As :meth:`Transaction.finish`; waits."""
        return self._call_receipt(
            self._inner.finish, self._inner_of(reply), tokens=tokens, usage=usage, metadata=metadata
        )


class BlockingReply(SyncBase[Reply]):
    """A reply that is being written: a :class:`Reply` whose methods wait. Used by one thread at a time."""

    __slots__ = ()

    @property
    def conversation_id(self) -> str:
        """As in :class:`Reply`."""
        return self._inner.conversation_id

    @property
    def message_id(self) -> str:
        """As in :class:`Reply`."""
        return self._inner.message_id

    @property
    def event_id(self) -> UUID:
        """As in :class:`Reply`."""
        return self._inner.event_id

    @property
    def text(self) -> str:
        """As :meth:`Reply.text`."""
        return self._inner.text

    @property
    def kept(self) -> int:
        """As :meth:`Reply.kept`."""
        return self._inner.kept

    @property
    def receipt(self) -> BlockingReceipt | None:
        """As :meth:`Reply.receipt`."""
        value = self._inner.receipt
        return None if value is None else BlockingReceipt(self._portal, value)

    @property
    def interrupted(self) -> bool:
        """As :meth:`Reply.interrupted`."""
        return self._inner.interrupted

    def add(self, what: str | Part) -> None:
        """As :meth:`Reply.add`; waits."""
        return self._portal.call(self._inner.add, what)

    def finish(
        self,
        *,
        tokens: int | None = None,
        usage: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> BlockingReceipt:
        """As :meth:`Reply.finish`; waits."""
        return self._call_receipt(self._inner.finish, tokens=tokens, usage=usage, metadata=metadata)

    def sent(
        self, *, platform_ids: Mapping[str, Any] | None = None, sent_as: str | None = None, file_path: str | None = None
    ) -> BlockingReceipt:
        """As :meth:`Reply.sent`; waits."""
        return self._call_receipt(self._inner.sent, platform_ids=platform_ids, sent_as=sent_as, file_path=file_path)

    def failed(self, *, reason: str | None = None) -> BlockingReceipt:
        """As :meth:`Reply.failed`; waits."""
        return self._call_receipt(self._inner.failed, reason=reason)

    def send(self) -> bool:
        """As :meth:`Reply.send`; waits."""
        return self._portal.call(self._inner.send)


class BlockingHistory(SyncBase[History]):
    """A :class:`History` whose methods wait, for programs without asyncio, open as soon as it is made.

    ::

        with BlockingHistory("bot.outbox.db") as history:
            history.append("chat-1", Message.user("What is tea?"))

    Use it as a context manager, or close it. Options as for :class:`History`; ``inside_loop="block"`` allows calls in
    threads that run an event loop, and each blocks that loop. The store is named by URL or path. Any number of threads
    may use it, except forked children. A thread whose wait is interrupted, as by Ctrl-C, cancels what it waited for:
    the file stays consistent, and an append may have taken effect.

    :raises InEventLoop: this thread runs an event loop and may not block it, or the outbox is open in that loop.
    :raises ConfigurationError: the path, the URL or an option is wrong.
    :raises OutboxUnavailable: the file cannot be used at present.
    """

    __slots__ = ()

    @keywords_of(BlockingOptions)
    def __init__(self, options: BlockingOptions) -> None:
        given = {option.name: getattr(options, option.name) for option in fields(Options)}
        history = History(**given)
        super().__init__(Portal(history._home, inside_loop=options.inside_loop), history)
        self._portal.open()

    def close(self) -> None:
        """Close the history as the end of an ``async with`` block closes a :class:`History`. Idempotent."""
        self._portal.close()

    def __enter__(self) -> Self:
        self._portal.check()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def status(self) -> Status:
        """As :meth:`History.status`; waits."""
        return self._portal.call(self._inner.status)

    def drained(self, timeout: float | None = None) -> bool:
        """As :meth:`History.drained`; waits."""
        return self._portal.call(self._inner.drained, timeout)

    def unconfirmed(self, *, owner: Owner | None = None) -> tuple[Unconfirmed, ...]:
        """As :meth:`History.unconfirmed`; waits."""
        return self._portal.call(self._inner.unconfirmed, owner=owner)

    def append(
        self,
        conversation_id: str,
        what: Message | Body | Event,
        *more: Message | Body | Event,
        confirm: Literal["store"] | None = None,
        timeout: float | None = 10.0,
        **options: Unpack[AppendOptions],
    ) -> BlockingReceipt:
        """As :meth:`History.append`; waits."""
        return self._call_receipt(
            self._inner.append, conversation_id, what, *more, confirm=confirm, timeout=timeout, **options
        )

    def transaction(self) -> AbstractContextManager[BlockingTransaction]:
        """As :meth:`History.transaction`; waits."""
        return Block(
            self._portal, lambda: self._inner.transaction(), lambda value: BlockingTransaction(self._portal, value)
        )

    @property
    def records(self) -> BlockingAllRecords:
        """As :meth:`History.records`."""
        return BlockingAllRecords(self._portal, self._inner.records)

    def chat(self, conversation_id: str) -> BlockingChat:
        """As :meth:`History.chat`."""
        return BlockingChat(self._portal, self._inner.chat(conversation_id))

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
        """As :meth:`History.reply`; waits."""
        return Block(
            self._portal,
            lambda: self._inner.reply(
                conversation_id,
                owner=owner,
                message_id=message_id,
                role=role,
                name=name,
                metadata=metadata,
                every=every,
                confirm=confirm,
            ),
            lambda value: BlockingReply(self._portal, value),
        )

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
        """As :meth:`History.messages`; waits."""
        return self._portal.call(
            self._inner.messages,
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

    def message(self, message_id: str) -> RecordedMessage | None:
        """As :meth:`History.message`; waits."""
        return self._portal.call(self._inner.message, message_id)

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
        """As :meth:`History.context`; waits."""
        return self._portal.call(
            self._inner.context,
            conversation_id,
            last=last,
            turns=turns,
            tokens=tokens,
            count=count,
            keep_system=keep_system,
            until=until,
        )

    def start(
        self,
        owner: Owner,
        *,
        conversation_id: str | None = None,
        title: str | None = None,
        activate: bool = True,
        metadata: Mapping[str, Any] | None = None,
    ) -> BlockingReceipt:
        """As :meth:`History.start`; waits."""
        return self._call_receipt(
            self._inner.start, owner, conversation_id=conversation_id, title=title, activate=activate, metadata=metadata
        )

    @overload
    def active(self, owner: Owner, *, create: Literal[True] = True) -> Conversation: ...

    @overload
    def active(self, owner: Owner, *, create: bool) -> Conversation | None: ...

    def active(self, owner: Owner, *, create: bool = True) -> Conversation | None:
        """As :meth:`History.active`; waits."""
        return self._portal.call(self._inner.active, owner, create=create)

    def conversations(
        self,
        *,
        owner: Owner | None = None,
        after: str | None = None,
        limit: int = 50,
        states: Collection[str] = DEFAULT_STATES,
        oldest_first: bool = False,
    ) -> Page[Conversation]:
        """As :meth:`History.conversations`; waits."""
        return self._portal.call(
            self._inner.conversations, owner=owner, after=after, limit=limit, states=states, oldest_first=oldest_first
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
        """As :meth:`History.search`; waits."""
        return self._portal.call(
            self._inner.search, query, owner=owner, conversation=conversation, limit=limit, after=after
        )

    def statistics(
        self,
        *,
        owner: Owner | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        by: str | None = None,
    ) -> Statistics:
        """As :meth:`History.statistics`; waits."""
        return self._portal.call(self._inner.statistics, owner=owner, since=since, until=until, by=by)

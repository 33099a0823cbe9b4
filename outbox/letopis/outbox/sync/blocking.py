"""Offer the history to programs without asyncio, each method one call into an event loop of its own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, fields
from functools import partial, wraps
from operator import attrgetter
from types import GenericAlias
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Self, TypeVar, overload
from uuid import UUID

from sqlalchemy.engine import URL

from letopis.outbox.history.chat import Chat
from letopis.outbox.history.history import History
from letopis.outbox.history.options import Options, keywords_of
from letopis.outbox.history.receipts import Receipt
from letopis.outbox.history.records import AllRecords, OnExists, RecordReceipt, Records
from letopis.outbox.history.reply import Reply
from letopis.outbox.history.transaction import Transaction
from letopis.outbox.sync.portal import Block, InsideLoop, Portal
from letopis.store.conversation_store import ConversationStore
from letopis.store.errors import ConfigurationError
from letopis.store.model.conversations import Conversation, Seen
from letopis.store.model.identifiers import Owner
from letopis.store.model.records import ANY, Condition, Scope, Tag

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")
Twin = TypeVar("Twin")


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


class Same(Generic[T]):
    """An attribute of the asynchronous object. Its class gets a property in place of this."""

    def __set_name__(self, owner: type, name: str) -> None:
        setattr(owner, name, property(attrgetter(f"_inner.{name}"), doc=f"As in :class:`{_plain_name(owner)}`."))

    def __get__(self, instance: object, owner: type) -> T:
        raise NotImplementedError  # type checkers see this, and callers the property


class Waiting(Generic[P, T]):
    """A method that waits for one of the asynchronous object. Its class gets a function in place of this."""

    def __init__(
        self, method: Callable[..., Any], carry: Callable[[Portal, Callable[[], Any]], T], returns: object = None
    ) -> None:
        self._method = method
        self._carry = carry  # calls the method through the portal, and returns what it gives on this side
        self._returns = returns  # the annotation of the result, if it is not that of the method

    def __set_name__(self, owner: type, name: str) -> None:
        carry = self._carry

        @wraps(self._method)
        def waiting(twin: SyncBase[Any], /, *args: Any, **kwargs: Any) -> T:
            return carry(twin._portal, partial(getattr(twin._inner, name), *args, **kwargs))

        waiting.__doc__ = f"As :meth:`{_plain_name(owner)}.{name}`; waits."
        waiting.__module__, waiting.__qualname__ = owner.__module__, f"{owner.__qualname__}.{name}"
        if self._returns is not None:
            waiting.__annotations__ = {**self._method.__annotations__, "return": self._returns}
            signature = inspect.signature(self._method)
            vars(waiting)["__signature__"] = signature.replace(return_annotation=self._returns)
        setattr(owner, name, waiting)

    @overload
    def __get__(self, instance: None, owner: type) -> Callable[Concatenate[Any, P], T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Callable[P, T]: ...

    def __get__(self, instance: object, owner: type) -> Callable[..., T]:
        raise NotImplementedError  # type checkers see this, and callers the function


def _plain_name(twin: type) -> str:
    return twin.__name__.removeprefix("Blocking")


def waits(method: Callable[Concatenate[Any, P], Awaitable[T]]) -> Waiting[P, T]:
    """Return the twin of a method whose result is the same on both sides."""
    return Waiting(method, Portal.call)


def gives(method: Callable[Concatenate[Any, P], Awaitable[V]], twin: Callable[[Portal, V], Twin]) -> Waiting[P, Twin]:
    """Return the twin of a method whose result has a twin."""
    return Waiting(method, lambda portal, work: twin(portal, portal.call(work)), twin)


def may_give(
    method: Callable[Concatenate[Any, P], Awaitable[V | None]], twin: Callable[[Portal, V], Twin]
) -> Waiting[P, Twin | None]:
    """Return the twin of a method whose result, if any, has a twin."""

    def carry(portal: Portal, work: Callable[[], Awaitable[V | None]]) -> Twin | None:
        return None if (value := portal.call(work)) is None else twin(portal, value)

    kind: Any = twin
    return Waiting(method, carry, kind | None)


def gives_each(
    method: Callable[Concatenate[Any, P], Awaitable[Sequence[V]]], twin: Callable[[Portal, V], Twin]
) -> Waiting[P, Sequence[Twin]]:
    """Return the twin of a method each of whose results has a twin."""
    returns = GenericAlias(Sequence, twin)
    return Waiting(method, lambda portal, work: [twin(portal, value) for value in portal.call(work)], returns)


def opens(
    method: Callable[Concatenate[Any, P], AbstractAsyncContextManager[V]], twin: Callable[[Portal, V], Twin]
) -> Waiting[P, AbstractContextManager[Twin]]:
    """Return the twin of a method for ``async with``, which is for ``with``."""
    returns = GenericAlias(AbstractContextManager, twin)
    return Waiting(method, lambda portal, work: Block(portal, work, partial(twin, portal)), returns)


class BlockingReceipt(SyncBase[Receipt]):
    """What ``BlockingHistory.append`` gives back: a :class:`Receipt` whose methods wait.

    Equal to another one of the same events.
    """

    __slots__ = ()

    conversation_id = Same[str]()
    event_ids = Same[tuple[UUID, ...]]()
    message_ids = Same[tuple[str, ...]]()
    sequence = Same[int]()
    message_id = Same[str | None]()
    seen = Same[Seen]()
    saved = waits(Receipt.saved)
    superseded = waits(Receipt.superseded)
    state = waits(Receipt.state)

    def __eq__(self, other: object) -> bool:
        return self._inner == other._inner if isinstance(other, BlockingReceipt) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._inner)

    def __repr__(self) -> str:
        return f"Blocking{self._inner!r}"


class BlockingRecordReceipt(SyncBase[RecordReceipt]):
    """What ``BlockingRecords.put`` gives back: a :class:`RecordReceipt` whose methods wait."""

    __slots__ = ()

    revision = Same[UUID | None]()
    kept = Same[bool]()
    saved = waits(RecordReceipt.saved)
    superseded = waits(RecordReceipt.superseded)
    state = waits(RecordReceipt.state)


class BlockingRecords(SyncBase[Records]):
    """The records of one scope: :class:`Records` whose methods wait. Any number of threads may use it."""

    __slots__ = ()

    put = gives(Records.put, BlockingRecordReceipt)
    put_many = gives_each(Records.put_many, BlockingRecordReceipt)
    get = waits(Records.get)
    get_many = waits(Records.get_many)
    delete = gives(Records.delete, BlockingRecordReceipt)
    delete_many = gives_each(Records.delete_many, BlockingRecordReceipt)
    delete_where = gives(Records.delete_where, BlockingRecordReceipt)
    erase = gives(Records.erase, BlockingRecordReceipt)
    list = waits(Records.list)
    namespaces = waits(Records.namespaces)


class BlockingAllRecords(SyncBase[AllRecords]):
    """What frameworks keep beside the messages: :class:`AllRecords` whose methods wait."""

    __slots__ = ()

    find = waits(AllRecords.find)
    scopes = waits(AllRecords.scopes)

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
        inner = self._inner(scope, conversation=conversation, owner=owner, space=space, new=new)
        return BlockingRecords(self._portal, inner)


class BlockingChat(SyncBase[Chat]):
    """One conversation of a history: a :class:`Chat` whose methods wait. Any number of threads may use it."""

    __slots__ = ()

    conversation_id = Same[str]()
    conversation = waits(Chat.conversation)
    message = waits(Chat.message)
    count = waits(Chat.count)
    events = waits(Chat.events)
    answers = waits(Chat.answers)
    transcript = waits(Chat.transcript)
    edit = gives(Chat.edit, BlockingReceipt)
    redact = gives(Chat.redact, BlockingReceipt)
    react = gives(Chat.react, BlockingReceipt)
    unreact = gives(Chat.unreact, BlockingReceipt)
    sent = gives(Chat.sent, BlockingReceipt)
    failed = gives(Chat.failed, BlockingReceipt)
    send = waits(Chat.send)
    rename = gives(Chat.rename, BlockingReceipt)
    annotate = gives(Chat.annotate, BlockingReceipt)
    tag = gives(Chat.tag, BlockingReceipt)
    activate = gives(Chat.activate, BlockingReceipt)
    archive = gives(Chat.archive, BlockingReceipt)
    restore = gives(Chat.restore, BlockingReceipt)
    delete = gives(Chat.delete, BlockingReceipt)
    reset = gives(Chat.reset, BlockingReceipt)
    rewind = gives(Chat.rewind, BlockingReceipt)
    undo = may_give(Chat.undo, BlockingReceipt)
    pop = waits(Chat.pop)
    regenerate = waits(Chat.regenerate)
    replace = may_give(Chat.replace, BlockingReceipt)
    fork = gives(Chat.fork, BlockingReceipt)


class BlockingReply(SyncBase[Reply]):
    """A reply that is being written: a :class:`Reply` whose methods wait. Used by one thread at a time."""

    __slots__ = ()

    conversation_id = Same[str]()
    message_id = Same[str]()
    event_id = Same[UUID]()
    text = Same[str]()
    kept = Same[int]()
    interrupted = Same[bool]()
    add = waits(Reply.add)
    finish = gives(Reply.finish, BlockingReceipt)
    sent = gives(Reply.sent, BlockingReceipt)
    failed = gives(Reply.failed, BlockingReceipt)
    send = waits(Reply.send)

    @property
    def receipt(self) -> BlockingReceipt | None:
        """As :meth:`Reply.receipt`."""
        value = self._inner.receipt
        return None if value is None else BlockingReceipt(self._portal, value)


class BlockingTransaction(SyncBase[Transaction]):
    """An open transaction: a :class:`Transaction` whose methods wait. Used by one thread at a time."""

    __slots__ = ()

    execute = waits(Transaction.execute)
    scalar = waits(Transaction.scalar)
    append = gives(Transaction.append, BlockingReceipt)

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
        options: dict[str, Any] = {"expected": expected, "on_exists": on_exists, "tags": tags}
        put = self._portal.call(self._inner.put, self._inner_of(records), namespace, key, value, **options)
        return BlockingRecordReceipt(self._portal, put)

    def delete_record(
        self, records: BlockingRecords, namespace: Sequence[str], key: str, *, expected: Condition | UUID = ANY
    ) -> BlockingRecordReceipt:
        """As :meth:`Transaction.delete_record`; waits."""
        delete = self._inner.delete_record
        deleted = self._portal.call(delete, self._inner_of(records), namespace, key, expected=expected)
        return BlockingRecordReceipt(self._portal, deleted)

    def finish(
        self,
        reply: BlockingReply,
        *,
        tokens: int | None = None,
        usage: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> BlockingReceipt:
        """As :meth:`Transaction.finish`; waits."""
        options: dict[str, Any] = {"tokens": tokens, "usage": usage, "metadata": metadata}
        return BlockingReceipt(self._portal, self._portal.call(self._inner.finish, self._inner_of(reply), **options))


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

    # `append_in` takes asyncio's connections and sessions, and `outbox`, `relay` and `store` belong to an event loop:
    # a caller that has one uses `History` there. What `prepare` does is done when this is made.

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

    status = waits(History.status)
    drained = waits(History.drained)
    unconfirmed = waits(History.unconfirmed)
    append = gives(History.append, BlockingReceipt)
    transaction = opens(History.transaction, BlockingTransaction)
    reply = opens(History.reply, BlockingReply)
    messages = waits(History.messages)
    message = waits(History.message)
    context = waits(History.context)
    erase = waits(History.erase)
    export = waits(History.export)
    start = gives(History.start, BlockingReceipt)
    conversations = waits(History.conversations)
    search = waits(History.search)
    statistics = waits(History.statistics)

    @property
    def records(self) -> BlockingAllRecords:
        """As :meth:`History.records`."""
        return BlockingAllRecords(self._portal, self._inner.records)

    def chat(self, conversation_id: str) -> BlockingChat:
        """As :meth:`History.chat`."""
        return BlockingChat(self._portal, self._inner.chat(conversation_id))

    @overload
    def active(self, owner: Owner, *, create: Literal[True] = True) -> Conversation: ...

    @overload
    def active(self, owner: Owner, *, create: bool) -> Conversation | None: ...

    def active(self, owner: Owner, *, create: bool = True) -> Conversation | None:
        """As :meth:`History.active`; waits."""
        return self._portal.call(self._inner.active, owner, create=create)

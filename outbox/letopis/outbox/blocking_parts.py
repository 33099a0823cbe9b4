"""What a blocking history gives out: receipts, transactions and replies whose methods wait.

Written by `python -m tests.blocking_face` from the asynchronous classes, and not edited by hand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, ParamSpec
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.append import After
from letopis.outbox.portal import Portal
from letopis.outbox.receipts import Receipt
from letopis.outbox.reply import Reply
from letopis.outbox.transaction import Transaction
from letopis.store.conversation import Saved, Seen
from letopis.store.events import Event
from letopis.store.messages import Message, Part
from letopis.store.vocabulary import Body

P = ParamSpec("P")


class Face:
    """What the blocking classes share: the event loop that they call into."""

    __slots__ = ("_portal",)

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    def _said(self, fn: Callable[P, Awaitable[Receipt]], /, *args: P.args, **kwargs: P.kwargs) -> BlockingReceipt:
        return BlockingReceipt(self._portal, self._portal.call(fn, *args, **kwargs))


class BlockingReceipt(Face):
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
        """See :class:`Receipt`."""
        return self._receipt.conversation_id

    @property
    def event_ids(self) -> tuple[UUID, ...]:
        """See :class:`Receipt`."""
        return self._receipt.event_ids

    @property
    def message_id(self) -> str | None:
        """See :class:`Receipt`."""
        return self._receipt.message_id

    @property
    def sequence(self) -> int:
        """See :class:`Receipt`."""
        return self._receipt.sequence

    def saved(self, timeout: float | None = None) -> bool:
        """Wait until the history store holds the events, at most ``timeout`` seconds.

        See :meth:`Receipt.saved`.
        """
        return self._portal.call(self._receipt.saved, timeout)

    @property
    def seen(self) -> Seen:
        """What to append after, for an answer to this: the conversation as far as this outbox holds it.

        See :meth:`Receipt.seen`.
        """
        return self._receipt.seen

    def superseded(self, timeout: float | None = None) -> bool:
        """Wait until the events are saved, as ``saved()`` does; whether the history store has put any of them aside.

        See :meth:`Receipt.superseded`.
        """
        return self._portal.call(self._receipt.superseded, timeout)

    def state(self) -> Saved:
        """Return how far the events have got: saved, pending or blocked; blocked also where a person skipped the last.

        See :meth:`Receipt.state`.
        """
        return self._portal.call(self._receipt.state)


class BlockingTransaction(Face):
    """An open transaction: a :class:`Transaction` whose methods wait. Used by one thread at a time."""

    __slots__ = ("_transaction",)

    def __init__(self, portal: Portal, transaction: Transaction) -> None:
        super().__init__(portal)
        self._transaction = transaction

    def execute(
        self, statement: sa.Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> sa.CursorResult[Any]:
        """Run a statement on the bot's own tables and return its result, fetched already.

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
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        occurred_at: datetime | None = None,
        expected: After | None = None,
        after: After | None = None,
        fail_if_types: Collection[str] | None = None,
    ) -> BlockingReceipt:
        """Append as ``History.append`` does, with the transaction: it is durable once that has committed.

        See :meth:`Transaction.append`.
        """
        return self._said(
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


class BlockingReply(Face):
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
        """The words for people so far.

        See :meth:`Reply.text`.
        """
        return self._reply.text

    @property
    def kept(self) -> int:
        """How many characters of the text are on disk by now, so that a crash does not take them.

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
        """Whether it was cut off, and its message is as far as it came.

        See :meth:`Reply.interrupted`.
        """
        return self._reply.interrupted

    def add(self, what: str | Part) -> None:
        """Say more: a piece of text, or a part such as a file or a tool call.

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
        """Append the message; when this returns, neither ``kill -9`` nor a power cut takes it away.

        See :meth:`Reply.finish`.
        """
        return self._said(self._reply.finish, tokens=tokens, usage=usage, metadata=metadata)

    def sent(
        self, *, platform_ids: Mapping[str, Any] | None = None, sent_as: str | None = None, file_path: str | None = None
    ) -> BlockingReceipt:
        """Say that the platform took the reply, as ``History.sent`` does; finishes it first where it is not.

        See :meth:`Reply.sent`.
        """
        return self._said(self._reply.sent, platform_ids=platform_ids, sent_as=sent_as, file_path=file_path)

    def failed(self, *, reason: str | None = None) -> BlockingReceipt:
        """Say that the platform did not take the reply; finishes it first where it is not. The message stays.

        See :meth:`Reply.failed`.
        """
        return self._said(self._reply.failed, reason=reason)

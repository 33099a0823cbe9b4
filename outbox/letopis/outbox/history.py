"""The history as a bot sees it: what it says goes into the outbox, what it reads is all that was said."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from letopis.outbox.alerts import Channel, open_channels
from letopis.outbox.append import prepare
from letopis.outbox.backoff import RetryPolicy
from letopis.outbox.bounds import Bounds
from letopis.outbox.breaker import Breaker
from letopis.outbox.file import OutboxFile, outbox_path
from letopis.outbox.incidents import BreakerView, Rules
from letopis.outbox.joining import append_in
from letopis.outbox.overlay import Key, Overtaken, conversation_over, events_over, list_over, messages_over
from letopis.outbox.reach import Reach
from letopis.outbox.receipts import FASTEST, SLOWEST, Deliveries, Receipt, receipt_of, waiting_for_nothing
from letopis.outbox.relay import Relay
from letopis.outbox.status import Status, read_status
from letopis.outbox.tail import Pruner, Retention
from letopis.outbox.texts import Style
from letopis.outbox.transaction import Transaction, transaction
from letopis.outbox.watch import Callback, Watch, breaker_view
from letopis.store.codec import DEFAULT_LIMITS, Limits
from letopis.store.conversation import Conversation, Page, RecordedMessage
from letopis.store.errors import Closed, ConfigurationError
from letopis.store.events import Event, RecordedEvent, utc_now
from letopis.store.history import ConversationStore
from letopis.store.identifiers import check_identifier
from letopis.store.messages import Content, Message
from letopis.store.reads import StoreView, Window, check_count, check_place, read_conversations_cursor
from letopis.store.shield import uninterrupted
from letopis.store.upcasters import NO_UPCASTERS, Upcasters
from letopis.store.urls import normalise_url
from letopis.store.vocabulary import Body, ConversationRenamed, MessageEdited, MessageFailed, MessageSent

T = TypeVar("T")
V = TypeVar("V")
logger = logging.getLogger("letopis.outbox.history")

GRACE: Final = 5.0
"""Seconds that the relay has to finish its batch when the history is closed; what it does not, it does next time."""
AT_ONCE: Final = 4
"""Conversations of a page that are completed at the same time."""
_POLICY: Final = RetryPolicy()
_RETENTION: Final = Retention()
_BOUNDS: Final = Bounds()
_RULES: Final = Rules()


class History:
    """A conversation history that never silently loses what was said. Open it with :meth:`open`.

    To be used by any number of tasks of one event loop. Other processes may have the same outbox open.

    :ivar outbox: the outbox file.
    :ivar store: the history store.
    :ivar relay: the relay of this process; ``None`` where another process delivers.
    """

    def __init__(
        self,
        *,
        outbox: OutboxFile,
        store: ConversationStore,
        relay: Relay | None,
        limits: Limits,
        upcasters: Upcasters,
        read_timeout: float,
    ) -> None:
        self.outbox = outbox
        self.store = store
        self.relay = relay
        self._limits = limits
        self._upcasters = upcasters
        self._deliveries = Deliveries(outbox)
        self._reach = Reach(store, breaker=self._breaker, deadline=read_timeout)

    @classmethod
    @asynccontextmanager
    async def open(
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
        channels: Iterable[str | Channel] = (),
        rules: Rules = _RULES,
        locale: str | None = None,
        style: Style = "plain",
        read_timeout: float = 3.0,
        now: Callable[[], datetime] = utc_now,
    ) -> AsyncIterator[History]:
        """Open a history for the time of an ``async with`` block; deliver in the background meanwhile.

        The history store need not be reachable, now or later: what is said is kept in the outbox until it is. Leaving
        the block lets the batch in flight finish, for some seconds, and delivers no more: the rest is on disk, and is
        delivered when the outbox is opened again, or by ``letopis relay``.

        :param path: the outbox, a file on a local disk; created with mode 0600. It may be the bot's own SQLite
            database.
        :param store: the history store, by URL or path; by default an SQLite file beside the outbox (``bot.outbox.db``
            and ``bot.history.db``). A :class:`ConversationStore` of the caller's is not closed.
        :param relay: ``False`` where another process delivers, for example ``letopis relay``.
        :param watch: ``False`` to look and tell nobody of what is stuck, for a program that only reads.
        :param policy: how events that the store refuses are tried again before they block their conversation.
        :param retention: how long delivered events stay readable in the outbox.
        :param max_events, max_bytes: how much may be in the outbox before new appends are refused with ``OutboxFull``.
        :param min_free_bytes: how much of the outbox's disk new appends leave free, for delivering what is pending.
        :param on_stuck: told once of each user whose messages are stuck: called with an ``Incident``, in this process,
            also when the relay is another one or dead. ``on_recovered``: of the same, once they are saved.
        :param channels: addresses of the operators who are told as well: ``https://`` is a webhook, anything else one
            for Apprise (extra ``letopis[alerts]``). What ``open_channels`` returns is taken too.
        :param rules: how patient people are.
        :param locale: the language of the texts of incidents. ``style``: ``plain``, or ``seed`` for the older sentence.
        :param read_timeout: seconds that a read waits for the store before it is answered from the outbox.
        :raises ConfigurationError: the path, the URL or an option is wrong.
        :raises OutboxUnavailable: the file cannot be used at present.
        """
        _check_callback("on_stuck", on_stuck)
        _check_callback("on_recovered", on_recovered)
        where = outbox_path(path)
        operators = await _opened(channels)
        own = not isinstance(store, ConversationStore)
        if isinstance(store, ConversationStore):
            check_apart(where, store.url)
            keeping = store
        else:
            url = normalise_url(store_beside(where) if store is None else store)
            check_apart(where, url)
            keeping = ConversationStore(url, upcasters=upcasters, now=now)
        bounds = Bounds(max_events=max_events, max_bytes=max_bytes, min_free_bytes=min_free_bytes)
        outbox = await OutboxFile.open(where, create=create, bounds=bounds, now=now)
        working = (
            Relay(
                outbox,
                keeping,
                policy=policy,
                holder="bot",
                chores=(Pruner(retention, outbox.now_us),),
                stop_timeout=2.0,
                now=now,
            )
            if relay
            else None
        )
        history = cls(
            outbox=outbox,
            store=keeping,
            relay=working,
            limits=limits,
            upcasters=upcasters,
            read_timeout=read_timeout,
        )
        watching = Watch(
            outbox,
            on_stuck=on_stuck,
            on_recovered=on_recovered,
            channels=operators,
            rules=rules,
            breaker=history._breaker_view,
            locale=locale,
            style=style,
            now=now,
        )
        # Plain tasks and not a task group, which would wrap every exception of the block in a group.
        loop = asyncio.get_running_loop()
        watchers, relays = [], []
        if watch:
            watchers.append(loop.create_task(_kept_running(watching.run, "watch"), name="letopis-watch"))
        if working is not None:
            relays.append(loop.create_task(_kept_running(working.run, "relay"), name="letopis-relay"))
        try:
            yield history
        finally:
            await uninterrupted(history._close(watchers, relays, close_store=own))

    # Saying.

    async def append(
        self,
        conversation_id: str,
        what: Message | Body | Event,
        *more: Message | Body | Event,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        occurred_at: datetime | None = None,
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
        :raises InvalidInput: something in it cannot be kept in every store, or the conversation has another owner;
            nothing was written.
        :raises EventIdReused: a message or event id holds other content; nothing was written.
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
        """Give a message new content; the old one stays in the log."""
        return await self.append(conversation_id, MessageEdited(message_id=message_id, content=content, reason=reason))

    async def rename(self, conversation_id: str, title: str) -> Receipt:
        """Give a conversation a new title."""
        return await self.append(conversation_id, ConversationRenamed(title=title))

    # Reading.

    async def messages(
        self,
        conversation_id: str,
        *,
        last: int | None = None,
        first: int | None = None,
        before: int | str | None = None,
        after: int | str | None = None,
    ) -> Page[RecordedMessage]:
        """Return messages, oldest first, with what is not saved yet: the newest ``last``, the ``first``, or all.

        ``before`` and ``after`` are the ``next`` of a page, or versions. While the history store is away, what the
        outbox still holds is returned, with ``complete`` set to ``False``.

        :raises InvalidInput: an argument is wrong.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        check_identifier(conversation_id, "conversation_id")
        window = Window.of(last=last, first=first, before=before, after=after)
        origin_id = self.outbox.origin.origin_id
        return await self._read(
            lambda store: store.view(
                conversation_id, origin_id=origin_id, last=last, first=first, before=before, after=after
            ),
            lambda connection, view: messages_over(
                connection, conversation_id, view, window, origin_id=origin_id, upcasters=self._upcasters
            ),
        )

    async def conversation(self, conversation_id: str) -> Conversation | None:
        """Return a conversation with what is not saved yet; ``None`` where there is none.

        While the history store is away it is what the outbox still holds of it, which may be less than all.
        """
        check_identifier(conversation_id, "conversation_id")
        origin_id = self.outbox.origin.origin_id
        return await self._read(
            lambda store: store.view(conversation_id, origin_id=origin_id, last=1),
            lambda connection, view: conversation_over(
                connection, conversation_id, view, origin_id=origin_id, upcasters=self._upcasters
            ),
        )

    async def conversations(
        self, *, owner: str | None = None, after: str | None = None, limit: int = 50
    ) -> Page[Conversation]:
        """Return a page of conversations, of one owner or of all, the newest activity first, unsaved ones included.

        A page may hold fewer than ``limit`` although there are more: go on while ``next`` is not ``None``. A
        conversation that becomes active while pages are turned moves to the front, so later pages may miss it.

        :param after: the ``next`` of the page before.
        :raises InvalidInput: an argument is wrong.
        """
        check_count(limit, "limit")
        if owner is not None:
            check_identifier(owner, "owner")
        key = None
        if after is not None:
            updated_at, conversation_id = read_conversations_cursor(after)
            key = Key(updated_at=updated_at, conversation_id=conversation_id)
        page = await self._reach.read(lambda store: store.conversations(owner=owner, after=after, limit=limit))
        listed = await self.outbox.read(
            lambda connection: list_over(connection, page, owner=owner, after=key, limit=limit)
        )
        gate = asyncio.Semaphore(AT_ONCE)

        async def complete(conversation_id: str, held: Conversation | None) -> Conversation | None:
            if held is not None:
                return held
            async with gate:
                return await self.conversation(conversation_id)

        found = await asyncio.gather(*(complete(*item) for item in listed.items))
        return Page(tuple(one for one in found if one is not None), next=listed.next, complete=page is not None)

    async def events(self, conversation_id: str, *, after: int | str = 0, limit: int = 500) -> Page[RecordedEvent]:
        """Return a page of a conversation's events after a version, in order, unsaved ones (no version yet) last.

        :param after: the ``next`` of the page before, or a version.
        :raises InvalidInput: an argument is wrong.
        """
        check_identifier(conversation_id, "conversation_id")
        check_count(limit, "limit")
        start = check_place(after, "after") or 0
        origin_id = self.outbox.origin.origin_id

        async def ask(store: ConversationStore) -> tuple[StoreView, Page[RecordedEvent]]:
            # How far the lane had got is read first: what arrives after that is found in both, and told by its id.
            view = await store.view(conversation_id, origin_id=origin_id, last=1)
            return view, await store.events(conversation_id, after=start, limit=limit)

        def lay(connection: sa.Connection, found: tuple[StoreView, Page[RecordedEvent]] | None) -> Page[RecordedEvent]:
            nothing: Page[RecordedEvent] = Page(())
            view, page = (None, nothing) if found is None else found
            return events_over(connection, conversation_id, view, page, after=start, limit=limit, origin_id=origin_id)

        return await self._read(ask, lay)

    async def status(self) -> Status:
        """Return how outbox and relay are; does not ask the history store.

        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self.outbox.read(lambda connection: read_status(connection, now_us=self.outbox.now_us()))

    async def drained(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the answer is False, no error
        """Wait until nothing is pending, at most ``timeout`` seconds; whether that is so.

        Returns ``False`` at once where all that is pending waits for a person. Without a relay, here or in another
        process, it waits for nothing: give a timeout.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        pause = FASTEST
        while True:
            rings = self.outbox.changed.rings
            done = await self.outbox.read(waiting_for_nothing)
            if done is not False:
                return done is True
            left = pause if deadline is None else min(pause, deadline - loop.time())
            if left <= 0:
                return False
            try:
                async with asyncio.timeout(left):
                    await self.outbox.changed.wait(rings)
            except TimeoutError:
                pause = min(pause * 1.5, SLOWEST)

    async def _read(
        self,
        ask: Callable[[ConversationStore], Coroutine[Any, Any, V]],
        lay: Callable[[sa.Connection, V | None], T],
    ) -> T:
        """Read the store, then lay over it what the outbox holds beyond."""
        for _ in range(3):
            found = await self._reach.read(ask)
            try:
                return await self.outbox.read(lambda connection, held=found: lay(connection, held))  # type: ignore[misc]
            except Overtaken:
                continue
        # The store has lost events that the outbox does not hold any more either: a restored backup. What is here:
        return await self.outbox.read(lambda connection: lay(connection, None))

    def _breaker(self) -> Breaker | None:
        return self.relay.breaker if self.relay is not None and self.relay.lease.held else None

    def _breaker_view(self) -> BreakerView | None:
        breaker = self._breaker()
        return None if breaker is None else breaker_view(breaker)

    async def _close(
        self, watching: list[asyncio.Task[None]], delivering: list[asyncio.Task[None]], *, close_store: bool
    ) -> None:
        try:
            for task in watching:
                task.cancel()
            if self.relay is not None and delivering:
                self.relay.stop()
                # A store that is away would not answer in time either.
                await asyncio.wait(delivering, timeout=GRACE if self.relay.breaker.closed else 0.1)
                for task in delivering:
                    task.cancel()
            await asyncio.gather(*watching, *delivering, return_exceptions=True)
            await self._deliveries.close()
            await self._reach.close()
            if close_store:
                await self.store.close()
        finally:
            await self.outbox.close()


def _check_callback(name: str, callback: object) -> None:
    # Else it would come out when the first person is to be told.
    if callback is not None and not callable(callback):
        raise ConfigurationError(f"{name} must be a function that takes an Incident, not {type(callback).__name__}")


async def _opened(channels: Iterable[str | Channel]) -> tuple[Channel, ...]:
    """Open the channels that are given by their addresses; in a thread, for Apprise takes a second to import."""
    given = list(channels)
    addresses = [one for one in given if isinstance(one, str)]
    opened = await asyncio.to_thread(open_channels, addresses) if addresses else ()
    return (*opened, *(one for one in given if not isinstance(one, str)))


def store_beside(path: str | os.PathLike[str]) -> Path:
    """Return where the history store of an outbox lies by default: ``bot.outbox.db`` and ``bot.history.db``."""
    where = outbox_path(path)
    stem = where.name.removesuffix(".db").removesuffix(".outbox")
    return where.with_name("history.db" if stem in ("outbox", "") else f"{stem}.history.db")


def check_apart(outbox: Path, url: URL) -> None:
    """Make sure that an outbox does not deliver into itself.

    :raises ConfigurationError: the store is the outbox file.
    """
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    if os.path.realpath(url.database) == os.path.realpath(outbox):
        raise ConfigurationError("the outbox and the history store are the same file: give each a file of its own")


async def _kept_running(run: Callable[[], Awaitable[None]], name: str) -> None:
    """Run a loop of ours; when it fails all the same, say so and start it again."""
    pause = 1.0
    while True:
        try:
            await run()
        except Closed:
            return
        except Exception:  # whatever it was, a bot must not go on without its relay
            logger.exception("the %s failed and is started again in %g s", name, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 60.0)
        else:
            return

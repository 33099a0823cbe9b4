"""Open and close what a history consists of: the outbox, the history store, the relay, and their background tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any, Final

from sqlalchemy.engine import URL

from letopis.outbox.alerting.channels import Channel, open_channels
from letopis.outbox.alerting.incidents import Rules
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.file.inspection import check_apart, outbox_path, store_beside
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.history.append import Appender
from letopis.outbox.history.conversations import Conversations
from letopis.outbox.history.find_message import MessageFinder
from letopis.outbox.history.open_replies import Replies
from letopis.outbox.history.options import Options
from letopis.outbox.history.path import PathChanger
from letopis.outbox.history.read import HistoryReader
from letopis.outbox.history.receipts import Deliveries
from letopis.outbox.history.search import Search
from letopis.outbox.history.statistics import MessageCounter
from letopis.outbox.operations.delivery import Deliverer, DeliveryOptions
from letopis.outbox.pending_reads.contents import ContentReads
from letopis.outbox.pending_reads.read_path import ReadPath
from letopis.outbox.pending_reads.record_reads import RecordReads
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.outbox.relay.store_binding import may_create_store, record_destination
from letopis.outbox.retry.policy import RetryPolicy
from letopis.outbox.telemetry.logging import describe_failure
from letopis.store.cancellation import run_to_completion
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.urls import check_path, normalise_url
from letopis.store.errors import Closed, ConfigurationError

logger = logging.getLogger("letopis.outbox.history")

STOP_TIMEOUT_SECONDS: Final = 5.0
"""Seconds that the relay has to finish its batch when the history is closed; the rest is delivered next time."""
_UNAVAILABLE_STOP_TIMEOUT_SECONDS: Final = 0.1
_RESTARTS: Final = RetryPolicy(base=1.0, factor=2.0, cap=60.0, jitter="none")
"""When a loop of ours that failed unexpectedly is started again."""

_ALWAYS_SAME: Final = frozenset({"relay", "watch"})
"""Options of which the default is a wish too: a history that is to deliver must not join one that does not."""
_COMPARED_APART: Final = frozenset({"path", "store", "create"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings:
    """What to open: the outbox, the history store, and how."""

    path: Path  # absolute
    store: URL | ConversationStore | None  # the caller's own, or the address of one
    options: Options

    @classmethod
    def of(cls, options: Options) -> HistorySettings:
        """Check what a history was given, without any I/O."""
        where = outbox_path(check_path(options.path, "the outbox"))
        store = options.store
        if store is not None and not isinstance(store, ConversationStore):
            store = normalise_url(store)
        settings = cls(path=where, store=store, options=options)
        check_apart(where, settings.url)
        return settings

    @property
    def url(self) -> URL:
        """The address of the history store, by default a file beside the outbox."""
        if self.store is None:
            return normalise_url(store_beside(self.path))
        return self.store.url if isinstance(self.store, ConversationStore) else self.store

    def check_same(self, other: HistorySettings) -> None:
        """Check that another history may share what was opened so; an option that it lacks is taken from these."""
        differ = [
            option.name
            for option in fields(Options)
            if option.name not in _COMPARED_APART
            and (given := getattr(other.options, option.name)) != getattr(self.options, option.name)
            and (option.name in _ALWAYS_SAME or given != option.default)
        ]
        if isinstance(other.store, ConversationStore):
            same_store = other.store is self.store
        else:
            same_store = other.store is None or other.store == self.url
        if not same_store:
            differ.insert(0, "store")
        if differ:
            raise ConfigurationError(
                f"{other.path.name!r} is open in this process with another value of {', '.join(differ)}: histories on"
                " one file share one outbox, so give them the same options"
            )


class Parts:
    """The objects that a history consists of, each with what it depends on."""

    def __init__(self, outbox: OutboxFile, store: ConversationStore, delivery: Deliverer, options: Options) -> None:
        self.outbox = outbox
        self.store = store
        self.relay = delivery.relay
        self.limits = limits = options.limits
        upcasters = options.upcasters
        self.gateway = gateway = StoreGateway(
            store, breaker=delivery.breaker, bound_to=outbox.probe.store_id, deadline=options.read_timeout
        )
        contents = ContentReads(outbox, gateway)
        reading: dict[str, Any] = {"outbox": outbox, "gateway": gateway, "upcasters": upcasters, "contents": contents}
        path = ReadPath(outbox, gateway)
        self.reader = HistoryReader(**reading, path=path)
        self.finder = MessageFinder(**reading, path=path)
        self.deliveries = Deliveries(outbox, gateway, self.finder)
        self.appender = Appender(outbox=outbox, gateway=gateway, deliveries=self.deliveries, limits=limits)
        shared: dict[str, Any] = {
            "outbox": outbox,
            "gateway": gateway,
            "reader": self.reader,
            "appender": self.appender,
        }
        self.conversations = Conversations(**shared, store=store)
        self.path = PathChanger(**shared, finder=self.finder, limits=limits)
        self.replies = Replies(self.appender, self.finder)
        self.record_reads = RecordReads(outbox, gateway)
        self.search = Search(**reading)
        self.counter = MessageCounter(outbox=outbox, store=store, gateway=gateway, upcasters=upcasters)

    async def close(
        self, watchers: list[asyncio.Task[None]], relays: list[asyncio.Task[None]], *, close_store: bool
    ) -> None:
        """Cut off open replies, let the relay finish its batch, and close everything."""
        try:
            for task in watchers:
                task.cancel()
            await self.replies.interrupt_all()
            if self.relay is not None and relays:
                self.relay.stop()
                # An unavailable store would not answer within a longer time either.
                healthy = self.relay.breaker.closed
                timeout = STOP_TIMEOUT_SECONDS if healthy else _UNAVAILABLE_STOP_TIMEOUT_SECONDS
                await asyncio.wait(relays, timeout=timeout)
                for task in relays:
                    task.cancel()
            await asyncio.gather(*watchers, *relays, return_exceptions=True)
            await self.deliveries.close()
            await self.gateway.close()
            if close_store:
                await self.store.close()
        finally:
            try:
                await self.outbox.close()
            finally:
                self.replies.writer_lock.release()

    def abandon(self) -> None:
        """Release the locks that a closed event loop has left held, so that another one can deliver and write."""
        if self.relay is not None:
            self.relay.lease.unlock()
        self.replies.writer_lock.release()


@asynccontextmanager
async def open_parts(settings: HistorySettings) -> AsyncIterator[Parts]:
    """Open the parts of a history for the time of a block, and run its background tasks meanwhile."""
    options = settings.options
    operators = await _open_channels(options.channels)
    own = not isinstance(settings.store, ConversationStore)
    if isinstance(settings.store, ConversationStore):
        store = settings.store
    else:
        store = ConversationStore(settings.url, upcasters=options.upcasters, now=options.now)
    outbox = await OutboxFile.open(settings.path, create=options.create, bounds=options.bounds, now=options.now)
    try:
        if options.relay or options.watch:
            await record_destination(outbox, store)
        elif own and not await may_create_store(outbox, store):
            store = ConversationStore(store.url, migrate=False, upcasters=options.upcasters, now=options.now)
    except BaseException:  # a cancelled open leaves no file open either
        await run_to_completion(outbox.close())
        raise
    chosen = {name: getattr(options, name) for name in ("policy", "retention", "locale", "style")}
    delivery = Deliverer(outbox, DeliveryOptions(channels=operators, rules=options.rules or Rules(), **chosen))
    if options.relay:
        delivery.add_relay(store, holder="bot", stop_timeout=2.0, now=options.now)
    parts = Parts(outbox, store, delivery, options)
    # Plain tasks instead of a task group, which would wrap each exception of the block in a group.
    loop = asyncio.get_running_loop()
    watchers, relays = [], []
    if options.watch:
        monitor = delivery.add_monitor(on_stuck=options.on_stuck, on_recovered=options.on_recovered, now=options.now)
        watchers.append(loop.create_task(_keep_running(monitor.run, "watch"), name="letopis-watch"))
    if delivery.relay is not None:
        relays.append(loop.create_task(_keep_running(delivery.relay.run, "relay"), name="letopis-relay"))
    try:
        if options.relay or options.watch:  # otherwise it is a program that only reads
            await parts.replies.begin()
            maintain = _keep_running(parts.replies.maintain, "maintenance of replies")
            watchers.append(loop.create_task(maintain, name="letopis-replies"))
        if options.sender is not None:
            from letopis.outbox.history.sending import Resender  # a history without a sender does without

            resender = Resender(
                sender=options.sender,
                options=options,
                replies=parts.replies,
                appender=parts.appender,
                finder=parts.finder,
                clock=Clock(now=options.now),
            )
            parts.replies.hand_over = resender.take_over
            watchers.append(loop.create_task(_keep_running(resender.run, "sender"), name="letopis-sender"))
        elif options.on_unconfirmed is not None:
            report = parts.replies.report_unconfirmed(options.on_unconfirmed)
            watchers.append(loop.create_task(report, name="letopis-unconfirmed"))
        yield parts
    finally:
        await run_to_completion(parts.close(watchers, relays, close_store=own))


async def _open_channels(channels: Iterable[str | Channel]) -> tuple[Channel, ...]:
    """Open the channels that are given by address, in a thread because importing Apprise takes long."""
    given = list(channels)
    addresses = [channel for channel in given if isinstance(channel, str)]
    opened = await asyncio.to_thread(open_channels, addresses) if addresses else ()
    return (*opened, *(channel for channel in given if not isinstance(channel, str)))


async def _keep_running(run: Callable[[], Awaitable[None]], name: str) -> None:
    """Run a loop of ours; if it fails unexpectedly, log that and start it again."""
    for failures in count(1):
        try:
            await run()
        except Closed:
            return
        except Exception as error:  # whatever it was, a bot must not go on without its relay
            # No traceback: a bot's own formatter would show a driver's text, which may quote messages.
            pause = _RESTARTS.bound(failures)
            logger.error("the %s failed and is started again in %g s: %s", name, pause, describe_failure(error))  # noqa: TRY400
            await asyncio.sleep(pause)
        else:
            return

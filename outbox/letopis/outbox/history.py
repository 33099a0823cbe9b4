"""The history as a bot sees it: what it says goes into the outbox, what it reads is all that was said."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy.engine import URL

from letopis.outbox.alerts import Channel, open_channels
from letopis.outbox.backoff import RetryPolicy
from letopis.outbox.bounds import Bounds
from letopis.outbox.chats import Chats
from letopis.outbox.file import OutboxFile, outbox_path
from letopis.outbox.forking import Forking
from letopis.outbox.incidents import Rules
from letopis.outbox.logs import places
from letopis.outbox.receipts import FASTEST, SLOWEST, check_timeout, waiting_for_nothing
from letopis.outbox.relay import Relay
from letopis.outbox.replies import OnUnconfirmed, Replies
from letopis.outbox.searching import Searching
from letopis.outbox.status import Status, read_status
from letopis.outbox.tail import Pruner, Retention
from letopis.outbox.texts import Style
from letopis.outbox.watch import Callback, Watch
from letopis.outbox.windows import Windows
from letopis.store.codec import DEFAULT_LIMITS, Limits
from letopis.store.errors import Closed, ConfigurationError
from letopis.store.events import utc_now
from letopis.store.history import ConversationStore
from letopis.store.numbers import check_number
from letopis.store.shield import uninterrupted
from letopis.store.upcasters import NO_UPCASTERS, Upcasters
from letopis.store.urls import check_path, normalise_url

logger = logging.getLogger("letopis.outbox.history")

GRACE: Final = 5.0
"""Seconds that the relay has to finish its batch when the history is closed; what it does not, it does next time."""
_POLICY: Final = RetryPolicy()
_RETENTION: Final = Retention()
_BOUNDS: Final = Bounds()
_RULES: Final = Rules()


class History(Chats, Forking, Replies, Searching, Windows):
    """A conversation history that never silently loses what was said. Open it with :meth:`open`.

    To be used by any number of tasks of one event loop. Other processes may have the same outbox open.

    :ivar outbox: the outbox file.
    :ivar store: the history store.
    :ivar relay: the relay of this process; ``None`` where another process delivers.
    """

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
        on_unconfirmed: OnUnconfirmed | None = None,
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
        :param on_unconfirmed: told once, after opening, of the replies that were appended to be sent and never
            confirmed, because the process that wrote them ended: called with a tuple of ``Unconfirmed``. See ``reply``.
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
        _check_callback("on_unconfirmed", on_unconfirmed, takes="a tuple of Unconfirmed")
        _check_callback("now", now, takes="nothing and returns the time")
        for name, option, kind in (
            ("policy", policy, RetryPolicy),
            ("retention", retention, Retention),
            ("limits", limits, Limits),
            ("upcasters", upcasters, Upcasters),
            ("rules", rules, Rules),
        ):
            if not isinstance(option, kind):
                raise ConfigurationError(f"{name} must be {kind.__name__}(...), not {type(option).__name__}")
        check_number(read_timeout, "read_timeout")
        if isinstance(channels, str) or not isinstance(channels, Iterable):
            raise ConfigurationError(f"channels must be a list of addresses, not {type(channels).__name__}")
        where = outbox_path(check_path(path, "the outbox"))
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
            if relay or watch:  # else a program that only reads
                await history._begin_replies()
                watchers.append(loop.create_task(_kept_running(history._tend_replies, "tending"), name="letopis-tend"))
            if on_unconfirmed is not None:
                watchers.append(loop.create_task(history._tell_unconfirmed(on_unconfirmed), name="letopis-tell"))
            yield history
        finally:
            await uninterrupted(history._close(watchers, relays, close_store=own))

    async def status(self) -> Status:
        """Return how outbox and relay are; does not ask the history store.

        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self.outbox.read(lambda connection: read_status(connection, now_us=self.outbox.now_us()))

    async def drained(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the answer is False, no error
        """Wait until nothing is pending, at most ``timeout`` seconds; whether that is so.

        Returns ``False`` at once where all that is pending waits for a person. Without a relay, here or in another
        process, it waits for nothing: give a timeout.

        :raises InvalidInput: ``timeout`` is no number of seconds.
        """
        timeout = check_timeout(timeout)
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

    async def _close(
        self, watching: list[asyncio.Task[None]], delivering: list[asyncio.Task[None]], *, close_store: bool
    ) -> None:
        try:
            for task in watching:
                task.cancel()
            await self._end_replies()
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
            try:
                await self.outbox.close()
            finally:
                self._liveness.end()


def _check_callback(name: str, callback: object, *, takes: str = "an Incident") -> None:
    # Else it would come out when the first person is to be told.
    if callback is not None and not callable(callback):
        raise ConfigurationError(f"{name} must be a function that takes {takes}, not {type(callback).__name__}")


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
        except Exception as error:  # whatever it was, a bot must not go on without its relay
            # No traceback: a bot's own formatter would show what a driver says, which may quote what was said.
            logger.error("the %s failed and is started again in %g s: %s", name, pause, places(error))  # noqa: TRY400
            await asyncio.sleep(pause)
            pause = min(pause * 2, 60.0)
        else:
            return

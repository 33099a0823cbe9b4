"""Watch an outbox for what stays stuck, and tell people: users through the bot's callbacks, operators by channels."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import sqlalchemy as sa

from letopis.outbox import texts
from letopis.outbox.alerts import Channel
from letopis.outbox.breaker import Breaker
from letopis.outbox.bulletin import alert_about
from letopis.outbox.calls import attempt
from letopis.outbox.incident_log import forget, keep, look
from letopis.outbox.incidents import (
    BreakerView,
    Case,
    Change,
    Kind,
    Memory,
    Rules,
    State,
    evaluate,
    late_before,
    tick,
)
from letopis.outbox.notice_log import Closing, Errand, channel_errands, claim, group_of, settle, user_errands
from letopis.outbox.notices import Budget, Incident, Word, group_is_due, incident_of
from letopis.store.errors import Closed, LetopisError
from letopis.store.events import from_microseconds, utc_now
from letopis.store.shield import uninterrupted

T = TypeVar("T")
Callback = Callable[[Incident], Awaitable[Any] | Any]

logger: Final = logging.getLogger(__name__)

_PATIENCE: Final = 20
"""Of what takes a while the next run starts so many times later."""
_TIDY: Final = 500
"""Old incidents are deleted once in so many looks."""


class WatchedFile(Protocol):
    """What is watched: the part of an `OutboxFile` that is needed here."""

    path: Path

    async def read(self, fn: Callable[[sa.Connection], T]) -> T:
        """Run ``fn`` in a read transaction."""
        ...

    async def write(self, fn: Callable[[sa.Connection], T]) -> T:
        """Run ``fn`` in a write transaction, and return once it is committed."""
        ...


class Watch:
    """Looks at an outbox file every few seconds, keeps its incidents, and tells people of them, each once.

    It runs in the bot, whether the relay is in the bot too, in a daemon, or dead; and in the daemon, for its operators.
    Any number of processes may watch one file: what is to be told is told by one of them, and by none again.

    Nothing that is called here, a callback or a channel, can disturb the caller: each call has a deadline, is tried
    again later within its budget, and its errors end in the log. Not promised: that a notice arrives when the process
    dies in the middle of telling it; it is not told again (operators are reminded).

    :ivar told: notices that arrived.
    :ivar failed: calls that failed; each may have been made good by a later one.
    """

    def __init__(
        self,
        outbox: WatchedFile,
        *,
        on_stuck: Callback | None = None,
        on_recovered: Callback | None = None,
        channels: Sequence[Channel] = (),
        rules: Rules = Rules(),  # noqa: B008  # frozen
        budget: Budget = Budget(),  # noqa: B008  # frozen
        breaker: Callable[[], BreakerView | None] | None = None,
        locale: str | None = None,
        style: texts.Style = "plain",
        interval: float = 5.0,
        call_timeout: float = 15.0,
        calls_at_once: int = 8,
        now: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to watch; nothing is read or started.

        :param on_stuck: called with an `Incident` for each user whose messages are stuck, ``async`` or not (then it is
            run in a thread, for it may block). Without it no user is told of anything by this process.
        :param on_recovered: called with an `Incident` for each user for whom ``on_stuck`` was called.
        :param channels: the operators; see `open_channels`.
        :param breaker: of a relay in this process, see `breaker_view`; returns ``None`` while that one does not hold
            the lease, and then the row counts that the holder keeps in the file.
        :param locale: the language of texts where nobody asks for another.
        :param interval: seconds between two looks.
        :param call_timeout: seconds that a callback or channel has.
        """
        self._outbox = outbox
        self._on_stuck = on_stuck
        self._on_recovered = on_recovered
        self._channels = tuple(channels)
        self._rules = rules
        self._budget = budget
        self._breaker = breaker
        self._locale = locale
        self._style: texts.Style = style
        self._interval = interval
        self._call_timeout = call_timeout
        self._gate = asyncio.Semaphore(calls_at_once)
        self._now = now
        self._monotonic = monotonic
        self._memory = Memory()
        self._looks = 0
        self._users_after = 0.0
        self._telling: set[asyncio.Task[None]] = set()
        self.told = 0
        self.failed = 0

    def change(self, *, channels: Sequence[Channel], rules: Rules, locale: str | None, style: texts.Style) -> None:
        """Go on with other settings; what is just being told is told with the old ones."""
        self._channels = tuple(channels)
        self._rules = rules
        self._locale = locale
        self._style = style

    async def run(self) -> None:
        """Watch until cancelled. What is just being told is given a moment to end; no error ends this."""
        try:
            while True:
                started = self._monotonic()
                try:
                    await self._observe()
                    self._tell_in_background()
                except Closed:
                    return
                except Exception as error:  # a watch that dies would be the silence it is there to notice
                    logger.warning("could not look at the outbox: %s", _said(error), extra={"action": "watch"})
                # A file with very many lanes takes long to look at: then it is looked at less often.
                await asyncio.sleep(max(self._interval, _PATIENCE * (self._monotonic() - started)))
        finally:
            telling = set(self._telling)
            if telling:
                await uninterrupted(asyncio.wait(telling, timeout=min(2.0, self._call_timeout)))
            for task in telling:
                task.cancel()

    async def observe_once(self) -> None:
        """Look once, keep what follows, and tell everybody who is due to be told; returns when that is done.

        :raises LetopisError: the outbox cannot be read or written.
        """
        await self._observe()
        await self._tell_users()
        for channel in self._channels:
            await self._tell_channel(channel)

    async def _observe(self) -> None:
        memory = tick(self._memory, monotonic=self._monotonic(), rules=self._rules)
        now, late = self._now(), late_before(memory, self._rules)
        seen = await self._outbox.read(lambda connection: look(connection, now=now, late_before=late))
        own = self._breaker() if self._breaker is not None else None
        if own is not None:
            seen = replace(seen, breaker=own, live=True)
        memory, changes = evaluate(memory, seen, self._rules)
        if changes:
            # Together in one transaction; the shield, since a look that is half kept would be told only in part.
            kept = await uninterrupted(self._outbox.write(lambda connection: keep(connection, changes)))
            for change in kept:
                self._log(change)
        # Only now: of a look that could not be kept nothing is remembered, so that the next one comes to the same.
        self._memory = memory
        self._looks += 1
        if self._looks % _TIDY == 0:
            await self._outbox.write(lambda connection: forget(connection, now=now))

    def _tell_in_background(self) -> None:
        """Start telling where it is not still going on; it must not keep the next look waiting."""
        busy = {task.get_name() for task in self._telling}
        jobs: list[tuple[str, Callable[[], Awaitable[None]]]] = [("users", self._tell_users)]
        jobs += [(channel.recipient, _bound(self._tell_channel, channel)) for channel in self._channels]
        for name, job in jobs:
            if name not in busy:
                task = asyncio.create_task(self._guarded(job), name=name)
                self._telling.add(task)
                task.add_done_callback(self._telling.discard)

    async def _guarded(self, job: Callable[[], Awaitable[None]]) -> None:
        try:
            await job()
        except Closed:
            return
        except Exception as error:  # the next look starts it anew
            logger.warning("could not tell of an incident: %s", _said(error), extra={"action": "tell"})

    async def _tell_users(self) -> None:
        started = self._monotonic()
        if self._on_stuck is None or started < self._users_after:
            return
        now, late = self._now(), late_before(self._memory, self._rules)
        longest = timedelta(seconds=self._budget.cap)
        errands = await self._outbox.read(
            lambda connection: user_errands(connection, now=now, longest=longest, late_before=late)
        )
        # As for a look: what takes long, in an outage with very many users, is done less often.
        self._users_after = started + _PATIENCE * (self._monotonic() - started)
        mute = self._on_recovered is None
        if mute:
            errands = tuple(errand for errand in errands if errand.word is Word.STUCK)
        outcomes = await asyncio.gather(*map(self._tell_user, errands), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        await self._close(None, mute=mute)

    async def _tell_user(self, errand: Errand) -> None:
        async with self._gate:
            # Claimed one by one, just before: what is lost when the process dies is what it was just saying.
            if not await self._claim((errand,)):
                return
            callback = self._on_stuck if errand.word is Word.STUCK else self._on_recovered
            incident = incident_of(
                errand.case,
                recipient=errand.recipient,
                word=errand.word,
                conversation_id=errand.conversation_id,
                owner_id=errand.owner_id,
                since=errand.since,
                events=errand.events,
                locale=self._locale,
                style=self._style,
                promise=self._on_recovered is not None,
            )
            assert callback is not None  # noqa: S101  # who has none has no such errand
            outcome = await attempt(callback, incident, seconds=self._call_timeout)
            name = "on_stuck" if errand.word is Word.STUCK else "on_recovered"
            await self._settle((errand,), told=outcome.done, what=name, error=outcome.error)

    async def _tell_channel(self, channel: Channel) -> None:
        now, longest = self._now(), timedelta(seconds=self._budget.cap)
        errands, (told, last) = await self._outbox.read(
            lambda connection: (
                channel_errands(connection, channel.recipient, now=now, longest=longest),
                group_of(connection, channel.recipient),
            )
        )
        groups: list[tuple[Errand, ...]] = [(e,) for e in errands if e.case.kind is not Kind.CONVERSATION_BLOCKED]
        about = [errand for errand in errands if errand.case.kind is Kind.CONVERSATION_BLOCKED]
        stuck = tuple(errand for errand in about if errand.word is Word.STUCK)
        if group_is_due(
            told=told,
            due=len(stuck),
            last=last,
            now=now,
            interval=timedelta(seconds=self._rules.group_interval),
            growth=self._rules.growth,
        ):
            groups.append(stuck)
        if over := tuple(errand for errand in about if errand.word is Word.RECOVERED):
            groups.append(over)
        for group in groups:
            if mine := await self._claim(group):
                alert = alert_about(
                    mine, outbox=self._outbox.path.name, told=told, now=self._now(), locale=self._locale
                )
                outcome = await attempt(channel.send, alert, seconds=self._call_timeout)
                await self._settle(mine, told=outcome.done, what=channel.name, error=outcome.error)
        await self._close(channel.recipient, mute=False)

    async def _claim(self, errands: Iterable[Errand]) -> tuple[Errand, ...]:
        now = self._now()
        return await uninterrupted(self._outbox.write(lambda connection: claim(connection, errands, now=now)))

    async def _settle(self, errands: Sequence[Errand], *, told: bool | None, what: str, error: str | None) -> None:
        now = self._now()
        if told:
            self.told += len(errands)
        else:
            self.failed += 1
            for errand in errands:
                again = self._budget.delay(errand.attempts)
                logger.warning(
                    "%s failed (%s), %s",
                    what,
                    error or "no answer in time",
                    f"next attempt in {again.total_seconds():.0f} s" if again else "given up",
                    extra=_context(errand.case, action="tell", attempt=errand.attempts),
                )
        await uninterrupted(
            self._outbox.write(lambda connection: settle(connection, errands, told=told, now=now, budget=self._budget))
        )

    async def _close(self, recipient: str | None, *, mute: bool) -> None:
        closing = Closing(recipient=recipient, mute=mute, now=self._now())
        if await self._outbox.read(closing.is_due):
            await self._outbox.write(closing.run)

    def _log(self, change: Change) -> None:
        case = change.after
        if not change.turned:
            return
        context = _context(case, action="incident", events=case.events, reason=case.reason)
        if case.state is State.FIRING:
            logger.error("stuck: %s", case.kind, extra=context)
        elif case.state is State.RESOLVED and change.before is not None and change.before.state is not State.PENDING:
            logger.info("recovered: %s", case.kind, extra=context)


def breaker_view(breaker: Breaker) -> BreakerView:
    """Return what a watch wants to know of the breaker of a relay in its own process."""
    return BreakerView(
        state=str(breaker.state),
        since=from_microseconds(breaker.since_us),
        reason=None if breaker.trouble is None else str(breaker.trouble),
    )


def _context(case: Case, **more: Any) -> dict[str, Any]:
    return {
        "conversation_id": case.conversation_id,
        "owner_id": case.owner_id,
        "message_id": None,
        "event_id": None,
        "incident_id": str(case.incident_id),
        **more,
    }


def _said(error: Exception) -> str:
    """Return an error of ours as it is, and of any other only its type: its text may quote anything."""
    return str(error) if isinstance(error, LetopisError) else type(error).__name__


def _bound(job: Callable[[Channel], Awaitable[None]], channel: Channel) -> Callable[[], Awaitable[None]]:
    return lambda: job(channel)

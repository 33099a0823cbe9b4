"""Watch an outbox for what stays stuck, and notify users through the bot's callbacks and operators by channels."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import sqlalchemy as sa

from letopis.outbox.alerting import texts
from letopis.outbox.alerting.alert_message import build_alert
from letopis.outbox.alerting.channels import Channel
from letopis.outbox.alerting.incident_table import prune_incidents, read_observation, write_changes
from letopis.outbox.alerting.incidents import (
    BreakerView,
    Change,
    IncidentKind,
    IncidentRecord,
    IncidentState,
    Rules,
)
from letopis.outbox.alerting.notification_table import (
    claim,
    close_unheard,
    notified_conversations,
    pending_for_channel,
    pending_for_users,
    record_outcome,
)
from letopis.outbox.alerting.notifications import (
    Callback,
    NotificationKind,
    PendingNotification,
    RetryBudget,
    build_incident,
    group_is_due,
)
from letopis.outbox.alerting.transitions import Memory, evaluate, late_before, tick
from letopis.outbox.concurrency.callbacks import call_with_timeout
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.store.cancellation import run_to_completion
from letopis.store.errors import Closed, LetopisError
from letopis.store.model.events import from_microseconds, utc_now

T = TypeVar("T")

# The documented name, which is older than the module.
logger: Final = logging.getLogger("letopis.outbox.watch")

_MIN_PAUSE_FACTOR: Final = 20
"""A step that takes long starts again after this many times its duration."""
_PRUNE_EVERY_LOOKS: Final = 500


class WatchedFile(Protocol):
    """The part of an `OutboxFile` that is needed here."""

    path: Path

    async def read(self, fn: Callable[[sa.Connection], T]) -> T:
        """Run ``fn`` in a read transaction."""
        ...

    async def write(self, fn: Callable[[sa.Connection], T]) -> T:
        """Run ``fn`` in a write transaction, and return once it is committed."""
        ...


class AlertMonitor:
    """Watches an outbox file, stores its incidents, and notifies each recipient once.

    It runs in the bot, whether the relay is in the bot too, in a daemon, or dead; and in the daemon, for its operators.
    Any number of processes may watch one file: each notification is sent by one of them.

    A callback or channel cannot disturb the caller: each call has a deadline, is retried within its budget, and its
    errors end in the log. Not promised: that a notification arrives when the process dies while sending it; it is not
    sent again (operators are reminded).

    :ivar told: notifications that arrived.
    :ivar failed: calls that failed; each may have succeeded when retried.
    """

    def __init__(
        self,
        outbox: WatchedFile,
        *,
        on_stuck: Callback | None = None,
        on_recovered: Callback | None = None,
        channels: Sequence[Channel] = (),
        rules: Rules = Rules(),  # noqa: B008  # frozen
        budget: RetryBudget = RetryBudget(),  # noqa: B008  # frozen
        breaker: Callable[[], BreakerView | None] | None = None,
        locale: str | None = None,
        style: texts.Style = "plain",
        interval: float = 5.0,
        call_timeout: float = 15.0,
        calls_at_once: int = 8,
        now: Callable[[], datetime] = utc_now,
        memory: Memory | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to watch; nothing is read or started.

        :param on_stuck: called with an `Incident` for each user whose messages are stuck, ``async`` or not (a plain
            function runs in a thread, since it may block). Without it this process notifies no user.
        :param on_recovered: called with an `Incident` for each user for whom ``on_stuck`` was called.
        :param channels: the operators; see `open_channels`.
        :param breaker: of a relay in this process, see `breaker_view`; returns ``None`` while that relay does not hold
            the lease, and then the row counts that the holder keeps in the file.
        :param locale: the language of texts where the caller asks for no other.
        :param interval: seconds between two looks.
        :param call_timeout: seconds that a callback or channel has.
        :param memory: of an earlier monitor of this process on the same file.
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
        self._memory = memory or Memory()
        self._looks = 0
        self._users_after = 0.0
        self._sending: set[asyncio.Task[None]] = set()
        self.told = 0
        self.failed = 0

    def change(self, *, channels: Sequence[Channel], rules: Rules, locale: str | None, style: texts.Style) -> None:
        """Continue with other settings; notifications that are being sent keep the old ones."""
        self._channels = tuple(channels)
        self._rules = rules
        self._locale = locale
        self._style = style

    @property
    def memory(self) -> Memory:
        """What the next monitor of this process on the same file is to know."""
        return self._memory

    @property
    def looked(self) -> bool:
        """Whether it has looked at the file at least once."""
        return self._looks > 0

    @property
    def telling(self) -> bool:
        """Whether notifications are being sent."""
        return bool(self._sending)

    async def run(self) -> None:
        """Watch until cancelled. Notifications that are being sent get a moment to end; no error ends this."""
        try:
            while True:
                started = self._monotonic()
                try:
                    await self._observe()
                    self._tell_in_background()
                except Closed:
                    return
                except Exception as error:  # a monitor that dies would be the silence that it is there to notice
                    logger.warning("could not look at the outbox: %s", _describe(error), extra={"action": "watch"})
                # A file with very many lanes takes long to read, and is read less often.
                await asyncio.sleep(max(self._interval, _MIN_PAUSE_FACTOR * (self._monotonic() - started)))
        finally:
            sending = set(self._sending)
            if sending:
                await run_to_completion(asyncio.wait(sending, timeout=min(2.0, self._call_timeout)))
            for task in sending:
                task.cancel()

    async def observe_once(self) -> None:
        """Look once, store what follows, and send every notification that is due; returns when that is done.

        :raises LetopisError: the outbox cannot be read or written.
        """
        await self._observe()
        await self._tell_users()
        for channel in self._channels:
            await self._tell_channel(channel)

    async def _observe(self) -> None:
        memory = tick(self._memory, monotonic=self._monotonic(), rules=self._rules)
        now, late = self._now(), late_before(memory, self._rules)
        seen = await self._outbox.read(lambda connection: read_observation(connection, now=now, late_before=late))
        own = self._breaker() if self._breaker is not None else None
        if own is not None:
            seen = replace(seen, breaker=own, live=True)
        memory, changes = evaluate(memory, seen, self._rules)
        if changes:
            # In one shielded transaction, since recipients of a half-stored look would be notified only in part.
            for change in await self._write(lambda connection: write_changes(connection, changes)):
                self._log(change)
        # Only now: a look that could not be stored is forgotten, so that the next one comes to the same.
        self._memory = memory
        self._looks += 1
        if self._looks % _PRUNE_EVERY_LOOKS == 0:
            await self._outbox.write(
                lambda connection: (close_unheard(connection, now=now), prune_incidents(connection, now=now))
            )

    def _tell_in_background(self) -> None:
        """Start each recipient's notifications that are not still being sent; the next look must not wait for them."""
        busy = {task.get_name() for task in self._sending}
        jobs: list[tuple[str, Callable[[], Awaitable[None]]]] = [("users", self._tell_users)]
        jobs += [(channel.recipient, partial(self._tell_channel, channel)) for channel in self._channels]
        for name, job in jobs:
            if name not in busy:
                task = asyncio.create_task(self._guarded(job), name=name)
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)

    async def _guarded(self, job: Callable[[], Awaitable[None]]) -> None:
        try:
            await job()
        except Closed:
            return
        except Exception as error:  # the next look starts it again
            logger.warning("could not tell of an incident: %s", _describe(error), extra={"action": "tell"})

    async def _tell_users(self) -> None:
        started = self._monotonic()
        if self._on_stuck is None or started < self._users_after:
            return
        now, late = self._now(), late_before(self._memory, self._rules)
        longest = timedelta(seconds=self._budget.cap)
        pending = await self._outbox.read(
            lambda connection: pending_for_users(connection, now=now, longest=longest, late_before=late)
        )
        # As for a look: what takes long, in an outage with very many users, is done less often.
        self._users_after = started + _MIN_PAUSE_FACTOR * (self._monotonic() - started)
        for outcome in await asyncio.gather(*map(self._tell_user, pending), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _tell_user(self, pending: PendingNotification) -> None:
        async with self._gate:
            # Claimed one by one, just before: a process that dies loses only what it was sending.
            if not await self._claim((pending,)):
                return
            stuck = pending.kind is NotificationKind.STUCK
            callback = self._on_stuck if stuck else self._on_recovered
            if callback is None:  # the bot does not announce recoveries
                await self._record((pending,), told=True)
                return
            incident = build_incident(
                pending, locale=self._locale, style=self._style, promise=self._on_recovered is not None
            )
            outcome = await call_with_timeout(callback, incident, seconds=self._call_timeout)
            name = "on_stuck" if stuck else "on_recovered"
            await self._settle((pending,), told=outcome.done, what=name, error=outcome.error)

    async def _tell_channel(self, channel: Channel) -> None:
        now, longest = self._now(), timedelta(seconds=self._budget.cap)
        pending, (told, last) = await self._outbox.read(
            lambda connection: (
                pending_for_channel(connection, channel.recipient, now=now, longest=longest),
                notified_conversations(connection, channel.recipient),
            )
        )
        blocked = IncidentKind.CONVERSATION_BLOCKED
        groups: list[tuple[PendingNotification, ...]] = [(one,) for one in pending if one.incident.kind is not blocked]
        grouped = [one for one in pending if one.incident.kind is blocked]
        if group_is_due(last=last, now=now, interval=timedelta(seconds=self._rules.group_interval)):
            groups.append(tuple(one for one in grouped if one.kind is NotificationKind.STUCK))
        groups.append(tuple(one for one in grouped if one.kind is NotificationKind.RECOVERED))
        for group in groups:
            if group and (claimed := await self._claim(group)):
                alert = build_alert(
                    claimed, outbox=self._outbox.path.name, told=told, now=self._now(), locale=self._locale
                )
                outcome = await call_with_timeout(channel.send, alert, seconds=self._call_timeout)
                await self._settle(claimed, told=outcome.done, what=channel.name, error=outcome.error)

    async def _claim(self, pending: Iterable[PendingNotification]) -> tuple[PendingNotification, ...]:
        now = self._now()
        return await self._write(lambda connection: claim(connection, pending, now=now))

    async def _settle(
        self, sent: Sequence[PendingNotification], *, told: bool | None, what: str, error: str | None
    ) -> None:
        if told:
            self.told += len(sent)
        else:
            self.failed += 1
            for one in sent:
                delay = self._budget.delay(one.attempts)
                logger.warning(
                    "%s failed (%s), %s",
                    what,
                    error or "no answer in time",
                    f"next attempt in {delay.total_seconds():.0f} s" if delay else "given up",
                    extra=_context(one.incident, action="tell", attempt=one.attempts),
                )
        await self._record(sent, told=told)

    async def _record(self, sent: Sequence[PendingNotification], *, told: bool | None) -> None:
        now = self._now()
        await self._write(lambda connection: record_outcome(connection, sent, told=told, now=now, budget=self._budget))

    async def _write(self, fn: Callable[[sa.Connection], T]) -> T:
        return await run_to_completion(self._outbox.write(fn))

    def _log(self, change: Change) -> None:
        incident = change.after
        if not change.state_changed:
            return
        context = _context(incident, action="incident", events=incident.events, reason=incident.reason)
        if incident.state is IncidentState.FIRING:
            logger.error("stuck: %s", incident.kind, extra=context)
        elif incident.state is IncidentState.RESOLVED and change.before is not None and change.before.fires:
            logger.info("recovered: %s", incident.kind, extra=context)


def breaker_view(breaker: Breaker) -> BreakerView:
    """Return what a monitor wants to know of the breaker of a relay in its own process."""
    return BreakerView(
        state=str(breaker.state),
        since=from_microseconds(breaker.since_us),
        reason=None if breaker.outage is None else str(breaker.outage),
    )


def _context(incident: IncidentRecord, **more: Any) -> dict[str, Any]:
    return {
        "conversation_id": incident.conversation_id,
        "owner_id": incident.owner_id,
        "message_id": None,
        "event_id": None,
        "incident_id": str(incident.incident_id),
        **more,
    }


def _describe(error: Exception) -> str:
    """Return the text of an error of ours, and only the type of any other: its text may quote anything."""
    return str(error) if isinstance(error, LetopisError) else type(error).__name__

"""Watch an outbox for what stays stuck, and notify users through the bot's callbacks and operators by channels."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TypeVar

from letopis.outbox.alerting.alert_message import build_alert
from letopis.outbox.alerting.channels import Alert, Channel
from letopis.outbox.alerting.incident_table import prune_incidents, read_observation, write_changes
from letopis.outbox.alerting.incidents import (
    BreakerView,
    Change,
    IncidentRecord,
    IncidentState,
    Memory,
    Rules,
    evaluate,
    late_before,
    tick,
)
from letopis.outbox.alerting.language import Style
from letopis.outbox.alerting.notification_table import claim, pending_for_channel, pending_for_users, record_outcome
from letopis.outbox.alerting.notifications import (
    NOTIFICATION_POLICY,
    Callback,
    Incident,
    NotificationKind,
    PendingNotification,
    build_incident,
)
from letopis.outbox.concurrency.callbacks import CallOutcome, call_with_timeout
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.cancellation import run_to_completion
from letopis.store.errors import Closed, LetopisError
from letopis.store.model.events import from_microseconds, utc_now

if TYPE_CHECKING:
    import sqlalchemy as sa

    from letopis.outbox.file.outbox_file import OutboxFile

T = TypeVar("T")

# The documented name, which is older than the module.
logger: Final = logging.getLogger("letopis.outbox.watch")

_MIN_PAUSE_FACTOR: Final = 20
"""A step that takes long starts again after this many times its duration."""
_PRUNE_EVERY_LOOKS: Final = 500


class AlertMonitor:
    """Watches an outbox file, stores its incidents, and notifies each recipient once.

    It runs in the bot, whether the relay is in the bot too, in a daemon, or dead; and in the daemon, for its operators.
    Any number of processes may watch one file: each notification is sent by one of them.

    A callback or channel cannot disturb the caller: each call has a deadline, is retried by a policy, and its errors
    end in the log. Not promised: that a notification arrives when the process dies while sending it; it is not
    sent again (operators are reminded).

    :ivar failed: calls that failed; each may have succeeded when retried.
    """

    def __init__(
        self,
        outbox: OutboxFile,
        *,
        on_stuck: Callback | None = None,
        on_recovered: Callback | None = None,
        channels: Sequence[Channel] = (),
        rules: Rules = Rules(),  # noqa: B008  # frozen
        policy: RetryPolicy = NOTIFICATION_POLICY,
        breaker: Callable[[], BreakerView | None] | None = None,
        locale: str | None = None,
        style: Style = "plain",
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
        :param breaker: of a relay in this process, see `breaker_view`; returns ``None`` while that relay does not hold
            the lease, and then the row counts that the holder keeps in the file.
        :param locale: the language of texts where the caller asks for no other.
        :param interval: seconds between two looks.
        :param call_timeout: seconds that a callback or channel has.
        :param memory: that of an earlier monitor of this process on the same file.
        """
        self._outbox = outbox
        self._on_stuck = on_stuck
        self._on_recovered = on_recovered
        self._channels = tuple(channels)
        self._rules = rules
        self._policy = policy
        self._breaker = breaker
        self._locale = locale
        self._style: Style = style
        self._interval = interval
        self._call_timeout = call_timeout
        self._gate = asyncio.Semaphore(calls_at_once)
        self._now = now
        self._monotonic = monotonic
        self.memory = memory or Memory()
        self.looks = 0
        self._users_after = 0.0
        self._sending: set[asyncio.Task[None]] = set()
        self.sent = 0
        self.failed = 0

    def change(self, *, channels: Sequence[Channel], rules: Rules, locale: str | None, style: Style) -> None:
        """Continue with other settings; notifications that are being sent keep the old ones."""
        self._channels = tuple(channels)
        self._rules = rules
        self._locale = locale
        self._style = style

    @property
    def sending(self) -> bool:
        return bool(self._sending)

    async def run(self) -> None:
        """Watch until cancelled. Notifications that are being sent get a moment to end; no error ends this."""
        try:
            while True:
                started = self._monotonic()
                try:
                    await self._observe()
                    self._notify_in_background()
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
        """Look once, store what follows, and send every notification that is due; returns when that is done."""
        await self._observe()
        await self._notify_users()
        for channel in self._channels:
            await self._notify_channel(channel)

    async def _observe(self) -> None:
        memory = tick(self.memory, monotonic=self._monotonic(), rules=self._rules)
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
        self.memory = memory
        self.looks += 1
        if self.looks % _PRUNE_EVERY_LOOKS == 0:
            await self._outbox.write(lambda connection: prune_incidents(connection, now=now))

    def _notify_in_background(self) -> None:
        """Start each recipient's notifications that are not still being sent; the next look must not wait for them."""
        busy = {task.get_name() for task in self._sending}
        jobs: list[tuple[str, Callable[[], Awaitable[None]]]] = [("users", self._notify_users)]
        jobs += [(channel.recipient, partial(self._notify_channel, channel)) for channel in self._channels]
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
            logger.warning("could not notify of an incident: %s", _describe(error), extra={"action": "notify"})

    async def _notify_users(self) -> None:
        started = self._monotonic()
        if self._on_stuck is None or started < self._users_after:
            return
        now, late = self._now(), late_before(self.memory, self._rules)
        pending = await self._outbox.read(
            lambda connection: pending_for_users(connection, now=now, policy=self._policy, late_before=late)
        )
        # As for a look: what takes long, in an outage with very many users, is done less often.
        self._users_after = started + _MIN_PAUSE_FACTOR * (self._monotonic() - started)
        for outcome in await asyncio.gather(*map(self._notify_user, pending), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _notify_user(self, pending: PendingNotification) -> None:
        stuck = pending.notification.kind is NotificationKind.STUCK
        callback, name = (self._on_stuck, "on_stuck") if stuck else (self._on_recovered, "on_recovered")
        async with self._gate:
            # Claimed one by one, just before: a process that dies loses only what it was sending.
            if not await self._claim([pending]):
                return
            if callback is None:  # the bot does not announce recoveries
                await self._record([pending], told=True)
                return
            promise = self._on_recovered is not None
            incident = build_incident(pending, locale=self._locale, style=self._style, promise=promise)
            await self._settle([pending], await self._call(callback, incident), to=name)

    async def _notify_channel(self, channel: Channel) -> None:
        now, repeat = self._now(), timedelta(seconds=self._rules.repeat_interval)
        pending = await self._outbox.read(
            lambda connection: pending_for_channel(
                connection, channel.recipient, now=now, policy=self._policy, repeat=repeat
            )
        )
        for _, group in groupby(sorted(pending, key=_subject), key=_subject):
            if claimed := await self._claim(list(group)):
                alert = build_alert(claimed, outbox=self._outbox.path.name, now=self._now(), locale=self._locale)
                await self._settle(claimed, await self._call(channel.send, alert), to=channel.name)

    async def _call(self, function: Callable[[Any], Any], argument: Incident | Alert) -> CallOutcome:
        return await call_with_timeout(function, argument, seconds=self._call_timeout)

    async def _claim(self, pending: Sequence[PendingNotification]) -> tuple[PendingNotification, ...]:
        now = self._now()
        return await self._write(lambda connection: claim(connection, pending, now=now))

    async def _settle(self, sent: Sequence[PendingNotification], outcome: CallOutcome, *, to: str) -> None:
        if outcome.done:
            self.sent += len(sent)
        else:
            self.failed += 1
            for due in sent:
                attempt, error = due.notification.attempts, outcome.error or "no answer in time"
                wait = f"next attempt in {self._policy.bound(attempt):.0f} s"
                context = _context(due.incident, action="notify", attempt=attempt)
                after = wait if attempt <= self._policy.attempts else "given up"
                logger.warning("%s failed (%s), %s", to, error, after, extra=context)
        await self._record(sent, told=outcome.done)

    async def _record(self, sent: Sequence[PendingNotification], *, told: bool | None) -> None:
        now = self._now()
        await self._write(lambda connection: record_outcome(connection, sent, told=told, now=now, policy=self._policy))

    async def _write(self, fn: Callable[[sa.Connection], T]) -> T:
        return await run_to_completion(self._outbox.write(fn))

    def _log(self, change: Change) -> None:
        before, incident = change.before, change.after
        context = _context(incident, action="incident", events=incident.events, reason=incident.reason)
        fired = before is not None and before.state is IncidentState.FIRING
        if incident.state is IncidentState.FIRING and not fired:
            logger.error("stuck: %s", incident.kind, extra=context)
        elif incident.state is IncidentState.RESOLVED and fired:
            logger.info("recovered: %s", incident.kind, extra=context)


def breaker_view(breaker: Breaker) -> BreakerView:
    """Return what a monitor wants to know of the breaker of a relay in its own process."""
    return BreakerView(
        state=str(breaker.state),
        since=from_microseconds(breaker.since_us),
        reason=None if breaker.outage is None else str(breaker.outage),
    )


def _subject(pending: PendingNotification) -> tuple[str, str]:
    """Return what decides which notifications of one look share a message."""
    return pending.incident.kind, pending.notification.kind


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

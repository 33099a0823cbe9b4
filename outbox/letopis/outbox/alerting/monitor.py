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
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from letopis.outbox.alerting.alert_message import build_alert
from letopis.outbox.alerting.channels import Channel
from letopis.outbox.alerting.incident_table import prune_incidents, read_observation, write_changes
from letopis.outbox.alerting.incidents import (
    BreakerView,
    Change,
    IncidentKind,
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
    NotificationKind,
    PendingNotification,
    build_incident,
)
from letopis.outbox.alerting.outage_group import Extent, OutageDecision, OutageGroup
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

_MIN_PAUSE_FACTOR: Final = 20  # a step that takes long starts again after this many times its duration
_PRUNE_EVERY_LOOKS: Final = 500
_subject: Final = attrgetter("incident.kind", "notification.kind")  # one message for each in one look


class AlertMonitor:
    """Watches an outbox file, stores its incidents, and notifies each recipient once, whichever processes watch it."""

    def __init__(
        self,
        outbox: OutboxFile,
        *,
        on_stuck: Callback | None = None,
        on_recovered: Callback | None = None,
        channels: Sequence[Channel] = (),
        rules: Rules = Rules(),  # noqa: B008  # frozen
        policy: RetryPolicy = NOTIFICATION_POLICY,
        breaker: Callable[[], BreakerView | None] = lambda: None,
        locale: str | None = None,
        style: Style = "retrying",
        interval: float = 5.0,
        call_timeout: float = 15.0,
        calls_at_once: int = 8,
        now: Callable[[], datetime] = utc_now,
        memory: Memory | None = None,
        outages: OutageGroup | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to watch; nothing is read or started.

        :param breaker: of a relay in this process; returns ``None`` while that does not hold the lease.
        :param memory: that of an earlier monitor of this process on the same file.
        :param outages: the files with which this one shares the announcement of an outage.
        """
        self._outbox, self._outages = outbox, outages
        self._on_stuck, self._on_recovered = on_stuck, on_recovered
        # May be set at any time; notifications that are being sent keep the old ones.
        self.channels, self.rules, self.locale = channels, rules, locale
        self.style: Style = style
        self._policy, self._breaker = policy, breaker
        self._interval, self._call_timeout = interval, call_timeout
        self._gate = asyncio.Semaphore(calls_at_once)
        self._now, self._monotonic = now, monotonic
        self.memory = memory or Memory()
        self.looks = 0
        self._users_after = 0.0
        self.sending: set[asyncio.Task[bool]] = set()
        self.waiting: set[str] = set()  # recipients to whom another file of the same outage comes first
        self.sent = self.failed = 0

    async def run(self) -> None:
        """Watch until cancelled. Notifications that are being sent get a moment to end; no error ends this."""
        try:
            started = self._monotonic()
            while await self._guarded(self._look, "watch", "look at the outbox"):
                # A file with very many lanes takes long to read, and is read less often.
                await asyncio.sleep(max(self._interval, _MIN_PAUSE_FACTOR * (self._monotonic() - started)))
                started = self._monotonic()
        finally:
            if sending := set(self.sending):
                await run_to_completion(asyncio.wait(sending, timeout=min(2.0, self._call_timeout)))
            for task in sending:
                task.cancel()

    async def _look(self) -> None:
        await self._observe()
        self._notify_in_background()

    async def observe_once(self) -> None:
        """Look once, and return when every notification that is due has been sent."""
        await self._observe()
        await self._notify_users()
        for channel in self.channels:
            await self._notify_channel(channel)

    async def _observe(self) -> None:
        memory = tick(self.memory, monotonic=self._monotonic(), rules=self.rules)
        now, late = self._now(), late_before(memory, self.rules)
        seen = await self._outbox.read(lambda connection: read_observation(connection, now=now, late_before=late))
        if (own := self._breaker()) is not None:
            seen = replace(seen, breaker=own, live=True)
        memory, changes = evaluate(memory, seen, self.rules)
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
        busy = {task.get_name() for task in self.sending}
        jobs: list[tuple[str, Callable[[], Awaitable[None]]]] = [("users", self._notify_users)]
        jobs += [(channel.recipient, partial(self._notify_channel, channel)) for channel in self.channels]
        for name, job in jobs:
            if name not in busy:
                task = asyncio.create_task(self._guarded(job, "notify", "notify of an incident"), name=name)
                self.sending.add(task)
                task.add_done_callback(self.sending.discard)

    async def _guarded(self, job: Callable[[], Awaitable[None]], action: str, words: str) -> bool:
        """Return False once the outbox is closed; any other error is logged, and the next look starts the job again."""
        try:
            await job()
        except Closed:
            return False
        except Exception as error:  # a monitor that dies would be the silence that it is there to notice
            # The text of an error that is not ours may quote anything.
            known = str(error) if isinstance(error, LetopisError) else type(error).__name__
            logger.warning("could not %s: %s", words, known, extra={"action": action})
        return True

    async def _notify_users(self) -> None:
        started = self._monotonic()
        if self._on_stuck is None or started < self._users_after:
            return
        now, late = self._now(), late_before(self.memory, self.rules)
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
                record = partial(record_outcome, sent=[pending], told=True, now=self._now(), policy=self._policy)
                await self._write(record)
                return
            promise = self._on_recovered is not None
            incident = build_incident(pending, locale=self.locale, style=self.style, promise=promise)
            outcome = await call_with_timeout(callback, incident, seconds=self._call_timeout)
            await self._settle([pending], outcome, to=name)

    async def _notify_channel(self, channel: Channel) -> None:
        repeat = timedelta(seconds=self.rules.repeat_interval)
        read = partial(
            pending_for_channel, recipient=channel.recipient, now=self._now(), policy=self._policy, repeat=repeat
        )
        pending = await self._outbox.read(read)
        self.waiting.discard(channel.recipient)
        for _, group in groupby(sorted(pending, key=_subject), key=_subject):
            claimed, extent = await self._claim_for_all(list(group))
            if claimed:
                outbox, now = self._outbox.path.name, self._now()
                alert = build_alert(claimed, outbox=outbox, now=now, locale=self.locale, extent=extent)
                outcome = await call_with_timeout(channel.send, alert, seconds=self._call_timeout)
                await self._settle(claimed, outcome, to=channel.name)

    async def _claim_for_all(
        self, due: Sequence[PendingNotification]
    ) -> tuple[tuple[PendingNotification, ...], Extent | None]:
        """Claim notifications of an operators' channel; of an outage of several files for one of them alone."""
        group, first = self._outages, due[0]
        over = self._is_closed() and first.notification.kind is NotificationKind.STUCK
        if group is None or len(group.paths) < 2 or first.incident.kind is not IncidentKind.STORE_DOWN or over:
            return await self._claim(due), None
        async with group.claiming():
            verdict, extent = await asyncio.to_thread(group.decide, self._outbox.path, first)
            if verdict is OutageDecision.WAIT:
                self.waiting.add(first.recipient)
                return (), None
            claimed = await self._claim(due, elsewhere=verdict is OutageDecision.ANNOUNCED)
            return (claimed if verdict is OutageDecision.ANNOUNCE else ()), extent

    async def _claim(
        self, pending: Sequence[PendingNotification], *, elsewhere: bool = False
    ) -> tuple[PendingNotification, ...]:
        closed = self._is_closed()
        return await self._write(partial(claim, pending=pending, now=self._now(), closed=closed, elsewhere=elsewhere))

    def _is_closed(self) -> bool | None:
        return None if (own := self._breaker()) is None else own.state == "closed"

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
        await self._write(partial(record_outcome, sent=sent, told=outcome.done, now=self._now(), policy=self._policy))

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
    reason = None if breaker.outage is None else str(breaker.outage)
    return BreakerView(state=str(breaker.state), since=from_microseconds(breaker.since_us), reason=reason)


def _context(incident: IncidentRecord, **more: Any) -> dict[str, Any]:
    about = {"conversation_id": incident.conversation_id, "owner_id": incident.owner_id}
    return {**about, "message_id": None, "event_id": None, "incident_id": str(incident.incident_id), **more}

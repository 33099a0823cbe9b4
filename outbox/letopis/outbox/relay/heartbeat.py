"""Write signs of life of a relay into its row of the outbox file."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.breakers import Breakers
from letopis.outbox.relay.lease import Lease
from letopis.outbox.relay.reporting import log_context, logger
from letopis.outbox.relay.store_tasks import StoreTasks

T = TypeVar("T")

HEARTBEAT_SECONDS: Final = 10.0
"""Longest time between two heartbeats of a relay that has nothing to write back."""

_BEAT: Final = (
    "UPDATE letopis_outbox_relay SET heartbeat_at = :now,"
    " progress_at = CASE WHEN :progress THEN :now ELSE progress_at END, breaker = :breaker,"
    " breaker_since = :breaker_since_us, breaker_reason = :reason, breaker_detail = :detail,"
    " next_attempt_at = :next_attempt_us, delivered_total = delivered_total + :delivered,"
    " store_tasks = :tasks, store_rows = :rows"
    " WHERE incarnation = :incarnation"
)
_COUNT: Final = "UPDATE letopis_outbox_relay SET delivered_total = delivered_total + :delivered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What a relay reports of itself.

    :ivar progress: whether something moved: events, or an answer of a store that was unavailable.
    :ivar reason: fault class and code of a breaker that is not closed.
    :ivar detail: the same in a sentence.
    :ivar next_attempt_us: when the store is tried next, UTC microseconds; ``None`` while the breaker is closed.
    :ivar delivered: events acknowledged in the same transaction.
    :ivar tasks: long rewinds and deletions that the history store has not carried out yet.
    :ivar rows: rows left of them.
    """

    progress: bool
    breaker: str
    breaker_since_us: int
    reason: str | None
    detail: str | None
    next_attempt_us: int | None
    delivered: int = 0
    tasks: int = 0
    rows: int = 0


def write_heartbeat(connection: sa.Connection, incarnation: int, heartbeat: Heartbeat, *, now_us: int) -> bool:
    """Update the relay's row in an open write transaction; return False if another relay has taken over.

    :param incarnation: 0 for a relay without the lease: its events are counted, and it is no sign of life.
    """
    if incarnation == 0:
        return connection.exec_driver_sql(_COUNT, {"delivered": heartbeat.delivered}).rowcount == 1
    values = asdict(heartbeat) | {"incarnation": incarnation, "now": now_us}
    changed = connection.exec_driver_sql(_BEAT, values)
    return changed.rowcount == 1


class HeartbeatWriter:
    """Keeps the row of one relay up to date, also while the history store takes long."""

    def __init__(
        self, outbox: OutboxFile, lease: Lease, breakers: Breakers, tasks: StoreTasks, *, clock: Clock
    ) -> None:
        self._outbox = outbox
        self._lease = lease
        self._breakers = breakers
        self._tasks = tasks
        self._clock = clock
        self._due = clock.after(0)

    @property
    def due(self) -> bool:
        """Whether the last heartbeat was written long enough ago, and the lease is held."""
        return self._lease.held and self._due.remaining(self._clock) == 0

    def next(self, *, progress: bool) -> Heartbeat:
        """Return the heartbeat to be written now."""
        worked, self._tasks.worked = self._tasks.worked, False
        breaker = self._breakers.current
        return Heartbeat(
            progress=progress or worked,
            tasks=self._tasks.pending.tasks,
            rows=self._tasks.pending.rows,
            breaker=str(breaker.state),
            breaker_since_us=breaker.since_us,
            reason=breaker.reason,
            detail=None if breaker.outage is None else breaker.outage.reason,
            next_attempt_us=breaker.next_attempt_us,
        )

    def written(self) -> None:
        """Note that a heartbeat was written, here or with a delivery."""
        self._due = self._clock.after(HEARTBEAT_SECONDS)
        self._lease.give_sign_of_life()

    async def write(self, *, progress: bool = False) -> bool:
        """Write a heartbeat now; return False if another relay has taken over.

        :raises OutboxUnavailable: the outbox file cannot be written.
        """
        write = partial(
            write_heartbeat,
            incarnation=self._lease.incarnation,
            heartbeat=self.next(progress=progress),
            now_us=self._clock.now_us(),
        )
        if not await self._outbox.write(write):
            return False
        self.written()
        return True

    async def during(self, work: Coroutine[Any, Any, T], what: str) -> T:
        """Wait for the history store, and write heartbeats meanwhile: the relay is at work, not stuck."""
        task = asyncio.ensure_future(work)
        waited = 0.0
        try:
            while not (await asyncio.wait((task,), timeout=HEARTBEAT_SECONDS))[0]:
                waited += HEARTBEAT_SECONDS
                logger.info("the history store has worked on %s for %.0f s", what, waited, extra=log_context())
                if self._lease.held:
                    await self.write()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
        return task.result()

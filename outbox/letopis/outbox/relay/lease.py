"""Hold the lease of an outbox file, and write to the file what only its holder may: heartbeats and outcomes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from filelock import FileLock, Timeout

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.acknowledge import (
    Acknowledged,
    Rewound,
    acknowledge,
    block_lane,
    clear_fault,
    is_current_lease,
    rewind_lane,
    schedule_retry,
)
from letopis.outbox.event_log.lanes import DueBatches
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.file.sign_of_life import RELEASED, boot_id, give_sign_of_life, last_sign_of_life, lock_path
from letopis.outbox.relay.idle_work import StoreTasks
from letopis.outbox.relay.outcome import Breakers, LaneFailure, SendResult, log_context, logger
from letopis.store.errors import OutboxUnavailable

T = TypeVar("T")

HEARTBEAT_SECONDS: Final = 10.0  # longest time between two heartbeats of a relay that has nothing to write back
SILENCE_SECONDS: Final = 120.0
"""Time without a heartbeat after which a holder that still has the lock counts as stopped. Longer than the slowest
step of a healthy one; if it is not, two at once do no harm, because the row fences the earlier one."""

# A relay refused by the wrong store releases the lease between its probes: its report stands until the next holder
# replaces it, which its first step does.
# An incarnation is never used twice: what an earlier holder still writes is recognised by it.
_TAKE: Final = (
    "INSERT INTO letopis_outbox_relay (only, incarnation, holder, pid, host, boot_id, started_at, heartbeat_at,"
    " progress_at, breaker, breaker_since, breaker_reason, delivered_total)"
    " VALUES (1, 1, :holder, :pid, :host, :boot_id, :now, :now, :now, 'closed', :now, NULL, 0)"
    " ON CONFLICT (only) DO UPDATE SET incarnation = incarnation + 1, holder = excluded.holder, pid = excluded.pid,"
    " host = excluded.host, boot_id = excluded.boot_id, started_at = excluded.started_at,"
    " heartbeat_at = excluded.heartbeat_at, progress_at = excluded.progress_at,"
    " breaker = iif(breaker_reason LIKE 'wrong_store%', breaker, excluded.breaker),"
    " breaker_since = iif(breaker_reason LIKE 'wrong_store%', breaker_since, excluded.breaker_since),"
    " breaker_reason = iif(breaker_reason LIKE 'wrong_store%', breaker_reason, excluded.breaker_reason),"
    " breaker_detail = iif(breaker_reason LIKE 'wrong_store%', breaker_detail, NULL),"
    " next_attempt_at = iif(breaker_reason LIKE 'wrong_store%', next_attempt_at, NULL)"
)
_LEAVE: Final = "UPDATE letopis_outbox_relay SET pid = 0, heartbeat_at = :now WHERE incarnation = :incarnation"
_BEAT: Final = (
    "UPDATE letopis_outbox_relay SET heartbeat_at = :now,"
    " progress_at = CASE WHEN :progress THEN :now ELSE progress_at END, breaker = :breaker,"
    " breaker_since = :breaker_since_us, breaker_reason = :reason, breaker_detail = :detail,"
    " next_attempt_at = :next_attempt_us, delivered_total = delivered_total + :delivered,"
    " store_tasks = :tasks, store_rows = :rows"
    " WHERE incarnation = :incarnation"
)
_COUNT: Final = "UPDATE letopis_outbox_relay SET delivered_total = delivered_total + :delivered"


class OutboxIdentityChanged(OutboxUnavailable):
    """The file was given another identity since it was opened here: open it again."""


_SignOfLife = tuple[int, int]  # incarnation and last heartbeat in the file: they change as long as a holder works on it


def _sign_of_life(connection: sa.Connection) -> _SignOfLife | None:
    row = connection.exec_driver_sql("SELECT incarnation, heartbeat_at FROM letopis_outbox_relay").one_or_none()
    return None if row is None else (row[0], row[1])


class LeaseLock:
    """The lock of one outbox file's lease: one descriptor while it is held. It ends with the process."""

    def __init__(self, outbox: Path) -> None:
        self._path = lock_path(outbox)
        self._lock = FileLock(self._path, mode=0o600, thread_local=False)

    @property
    def held(self) -> bool:
        """Whether this process holds the lock through this object."""
        return self._lock.is_locked

    def try_acquire(self) -> bool:
        """Take the lock if it is free, without waiting; return True if it is held."""
        if not self.held:
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                return False
        return True

    def give_sign_of_life(self, now_us: int) -> bool:
        """Show others that the holder is at work; return False if the lock is held and its file is gone."""
        return not self.held or give_sign_of_life(self._path, now_us=now_us)

    def last_sign_of_life(self) -> int | None:
        """Return when a holder last gave a sign of life, UTC microseconds; ``None`` without a lock file."""
        return last_sign_of_life(self._path)

    def release(self) -> None:
        """Release the lock. Idempotent."""
        if self.held:
            give_sign_of_life(self._path, now_us=RELEASED)
            self._lock.release()


class Lease:
    """The right to deliver from one outbox file, held by at most one relay at a time: a lock, and a row.

    The incarnation in the row rises with each holder, and what a relay writes back is refused once it is no longer the
    current one: a holder that was stopped, or lost its lock file, does no harm.

    A process that is stopped, not ended, keeps its lock. A standby that has seen no heartbeat for ``silence`` seconds,
    by its own monotonic clock, therefore takes over without the lock; the stopped one finds itself fenced when it
    continues.

    A fork keeps the lock until the parent *and* all its children end, so fork before a relay runs.
    """

    def __init__(
        self,
        outbox: OutboxFile,
        *,
        clock: Clock,
        holder: str,
        silence: float = SILENCE_SECONDS,
        locked: bool = True,
        lock: LeaseLock | None = None,
    ) -> None:
        self._outbox = outbox
        self._clock = clock
        self._holder = holder
        self._silence = silence
        self._locked = locked
        self._lock = lock or LeaseLock(outbox.path)
        self._seen: tuple[_SignOfLife | None, int | None] | None = None
        self._seen_at = 0.0
        self.incarnation = 0  # the incarnation of this holder; 0 while it does not hold the lease

    @property
    def held(self) -> bool:
        """Whether this relay holds the lease, as far as it knows."""
        return self.incarnation != 0

    async def acquire(self) -> bool:
        """Take the lease at once if it is free or its holder has long been silent; return True if it is held."""
        if self.held:
            return True
        if self._locked and not self._lock.try_acquire():
            return await self._take_over()
        try:
            self.incarnation = await self._outbox.write(partial(self._register, now_us=self._clock.now_us()))
        finally:
            if not self.held:
                self.unlock()
        self.give_sign_of_life()
        return True

    def give_sign_of_life(self) -> None:
        """Show others that this holder is at work."""
        self._lock.give_sign_of_life(self._clock.now_us())

    def suspend(self) -> None:
        """Stop working on the file, but keep the lock, so that no other process delivers from it."""
        if self._lock.held:  # a lease that was taken over from a silent holder has none, and must be released
            self.incarnation = 0

    async def _take_over(self) -> bool:
        """Take the lease from a holder that has the lock and gives no sign of life; return True if that succeeded."""
        sign = await self._outbox.read(_sign_of_life)
        seen = sign, self._lock.last_sign_of_life()
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock.monotonic()
            return False
        if self._clock.monotonic() - self._seen_at < self._silence:
            return False
        self._seen = None
        self.incarnation = await self._outbox.write(
            # Only from the silent holder: another standby may have been faster.
            lambda connection: (
                self._register(connection, now_us=self._clock.now_us()) if _sign_of_life(connection) == sign else 0
            )
        )
        if self.held:
            logger.warning(
                "the relay that holds the lease gives no sign of life: taken over as number %d", self.incarnation
            )
        return self.held

    async def release(self) -> None:
        """Release the lease. Idempotent. The lock is released even if the row cannot be written."""
        if not self.held:
            return
        values = {"incarnation": self.incarnation, "now": self._clock.now_us()}
        self.incarnation = 0
        try:
            await self._outbox.write(lambda connection: connection.exec_driver_sql(_LEAVE, values).rowcount)
        finally:
            self.unlock()

    def unlock(self) -> None:
        """Release the lock alone; :meth:`release` does it in order."""
        self._lock.release()

    def _register(self, connection: sa.Connection, *, now_us: int) -> int:
        origin_id = connection.exec_driver_sql("SELECT origin_id FROM letopis_outbox_origin").scalar_one()
        if origin_id != self._outbox.origin.origin_id.bytes:
            raise OutboxIdentityChanged(
                "the outbox file was given a new identity while it was open here: open it again"
            )
        process = {"pid": os.getpid(), "host": socket.gethostname(), "boot_id": boot_id()}
        connection.exec_driver_sql(_TAKE, {"holder": self._holder, "now": now_us, **process})
        return int(connection.exec_driver_sql("SELECT incarnation FROM letopis_outbox_relay").scalar_one())


@dataclass(slots=True, kw_only=True)
class Heartbeat:
    """What a relay reports of itself."""

    progress: bool  # something moved: events, or an answer of a store that was unavailable
    breaker: str
    breaker_since_us: int
    reason: str | None  # fault class and code of a breaker that is not closed
    detail: str | None
    next_attempt_us: int | None  # when the store is tried next; None while the breaker is closed
    delivered: int = 0
    tasks: int = 0  # long rewinds and deletions that the history store has not carried out yet
    rows: int = 0


def write_heartbeat(connection: sa.Connection, incarnation: int, heartbeat: Heartbeat, *, now_us: int) -> bool:
    """Update the relay's row in an open write transaction; return False if another relay has taken over."""
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
        self._outbox, self._lease, self._breakers, self._tasks = outbox, lease, breakers, tasks
        self._clock, self._due = clock, clock.after(0)

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
        """Write a heartbeat now; return False if another relay has taken over."""
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


@dataclass(slots=True)
class WrittenBack:
    acknowledged: Acknowledged
    marked: Sequence[LaneFailure]
    rewound: Mapping[str, Rewound]


def write_back(
    connection: sa.Connection,
    *,
    due: DueBatches,
    sent: SendResult,
    failures: Sequence[LaneFailure],
    heartbeat: Heartbeat,
    incarnation: int,
    now_us: int,
) -> WrittenBack | None:
    """Write a delivery back in an open write transaction; return ``None`` if another relay has taken over."""
    if not is_current_lease(connection, due.incarnation):
        return None
    acknowledged = acknowledge(connection, sent.delivered, now_us=now_us, superseded=sent.superseded)
    marked = [failure for failure in failures if _mark(connection, failure)]
    if sent.cleared:
        clear_fault(connection, sent.cleared)
    rewound = dict[str, Rewound]()
    for conversation_id, head in sent.gaps.items():
        rewound[conversation_id] = rewind_lane(connection, conversation_id, head, now_us=now_us)
    heartbeat.delivered = acknowledged.events
    write_heartbeat(connection, incarnation, heartbeat, now_us=now_us)
    return WrittenBack(acknowledged, marked, rewound)


def _mark(connection: sa.Connection, failure: LaneFailure) -> bool:
    fault: dict[str, Any] = {"attempts": failure.attempts, "fault_class": failure.fault_class, "fault": failure.fault}
    if failure.due_at_us is None:
        return block_lane(connection, failure.lane, **fault)
    return schedule_retry(connection, failure.lane, due_at_us=failure.due_at_us, **fault)

"""Lease: one relay an outbox file, by a lock of the operating system; a row in the file tells people, and fences."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from filelock import FileLock, Timeout

from letopis.outbox.clock import Clock
from letopis.outbox.file import OutboxFile
from letopis.store.errors import OutboxUnavailable

logger: Final = logging.getLogger("letopis.outbox.relay")
SUFFIX: Final = ".relay.lock"
SILENCE: Final = 120.0
"""Seconds without a beat after which a holder that still has the lock is taken for stopped. Longer than the slowest
step of a healthy one; and if it is not, two at once do no harm, and the fence tells them apart."""

# An incarnation is never used twice, whoever takes the lease: what an earlier one still writes is told apart by it.
_TAKE: Final = (
    "INSERT INTO letopis_outbox_relay (only, incarnation, holder, pid, host, boot_id, started_at, heartbeat_at,"
    " progress_at, breaker, breaker_since, breaker_reason, delivered_total)"
    " VALUES (1, 1, :holder, :pid, :host, :boot_id, :now, :now, :now, 'closed', :now, NULL, 0)"
    " ON CONFLICT (only) DO UPDATE SET incarnation = incarnation + 1, holder = excluded.holder, pid = excluded.pid,"
    " host = excluded.host, boot_id = excluded.boot_id, started_at = excluded.started_at,"
    " heartbeat_at = excluded.heartbeat_at, progress_at = excluded.progress_at, breaker = excluded.breaker,"
    " breaker_since = excluded.breaker_since, breaker_reason = excluded.breaker_reason"
)
_BEAT: Final = (
    "UPDATE letopis_outbox_relay SET heartbeat_at = :now,"
    " progress_at = CASE WHEN :progress THEN :now ELSE progress_at END, breaker = :breaker,"
    " breaker_since = :breaker_since, breaker_reason = :breaker_reason, delivered_total = delivered_total + :delivered"
    " WHERE incarnation = :incarnation"
)
_COUNT: Final = "UPDATE letopis_outbox_relay SET delivered_total = delivered_total + :delivered"
_LEAVE: Final = "UPDATE letopis_outbox_relay SET pid = 0, heartbeat_at = :now WHERE incarnation = :incarnation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a relay says of itself.

    :ivar progress: whether something moved: events, or an answer of a store that was away.
    :ivar reason: of a breaker that is not closed: fault class and code.
    :ivar delivered: events since the last beat.
    """

    progress: bool
    breaker: str
    breaker_since_us: int
    reason: str | None
    delivered: int


class AnotherOutbox(OutboxUnavailable):
    """The file has been given another identity since it was opened here: it has to be opened anew."""


_Sign = tuple[int, int]
"""Incarnation and last beat: what changes as long as a holder lives."""


def _sign(connection: sa.Connection) -> _Sign | None:
    row = connection.exec_driver_sql("SELECT incarnation, heartbeat_at FROM letopis_outbox_relay").one_or_none()
    return None if row is None else (row[0], row[1])


def lock_path(outbox: Path) -> Path:
    """Return the side file whose lock is the lease; the same for every way to name the outbox file."""
    real = Path(os.path.realpath(outbox))
    return real.with_name(real.name + SUFFIX)


def beat(connection: sa.Connection, incarnation: int, what: Beat, *, now_us: int) -> bool:
    """Stamp the relay's row in an open write transaction; whether this incarnation still is the one in it.

    :param incarnation: 0 for one who delivers without the lease: counted, and no sign of life of the relay.
    """
    if incarnation == 0:
        return connection.exec_driver_sql(_COUNT, {"delivered": what.delivered}).rowcount == 1
    changed = connection.exec_driver_sql(
        _BEAT,
        {
            "incarnation": incarnation,
            "now": now_us,
            "progress": what.progress,
            "breaker": what.breaker,
            "breaker_since": what.breaker_since_us,
            "breaker_reason": what.reason,
            "delivered": what.delivered,
        },
    )
    return changed.rowcount == 1


class Lease:
    """The right to deliver from one outbox file, held by at most one relay at a time.

    The lock is gone with the process that held it, however that ended; no clock has a say in it. The row says who holds
    it: pid, host, boot, start, heartbeat. Its incarnation rises with each holder, and what a relay writes back is
    refused when it is no longer the current one: a holder that was stopped, or lost its lock file, does no harm.

    A process that is stopped, not ended, keeps its lock. So a standby that has seen no beat for ``silence`` seconds, by
    its own monotonic clock, takes over without the lock; when the stopped one goes on, it finds itself fenced.

    The lock is lost at a fork only when the parent *and* all its children end, so fork before a relay runs.

    :param holder: what this relay calls itself, for people.
    :param silence: seconds.
    :param locked: only for tests: ``False`` takes the lease without the lock.
    """

    def __init__(
        self, outbox: OutboxFile, *, clock: Clock, holder: str, silence: float = SILENCE, locked: bool = True
    ) -> None:
        self._outbox = outbox
        self._clock = clock
        self._holder = holder
        self._silence = silence
        self._locked = locked
        self._lock = FileLock(lock_path(outbox.path), mode=0o600, thread_local=False)
        self._seen: _Sign | None = None
        self._seen_at = 0.0
        self.incarnation = 0
        """The incarnation of this holder; 0 while it does not hold the lease."""

    @property
    def held(self) -> bool:
        """Whether this relay holds the lease, as far as it knows."""
        return self.incarnation != 0

    async def take(self) -> bool:
        """Take the lease if it is free, or its holder has long been silent, without waiting; whether it is held now.

        :raises AnotherOutbox: the file has another identity by now, and numbers its events by it.
        :raises OSError: the lock file cannot be made or opened.
        :raises OutboxUnavailable: the file cannot be written.
        """
        if self.held:
            return True
        # Not in a thread: one open() and one flock() that does not wait.
        if self._locked:
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                return await self._take_over()
        try:
            self.incarnation = await self._outbox.write(partial(self._register, now_us=self._clock.now_us()))
        finally:
            if not self.held:
                self._unlock()
        return True

    async def _take_over(self) -> bool:
        """Take the lease from a holder that has the lock and gives no sign of life; whether that was done."""
        sign = await self._outbox.read(_sign)
        if sign is None or sign != self._seen:
            self._seen, self._seen_at = sign, self._clock.monotonic()
            return False
        if self._clock.monotonic() - self._seen_at < self._silence:
            return False
        self._seen = None
        self.incarnation = await self._outbox.write(
            # Only from the holder that was silent: another standby may have been faster.
            lambda connection: (
                self._register(connection, now_us=self._clock.now_us()) if _sign(connection) == sign else 0
            )
        )
        if self.held:
            logger.warning(
                "the relay that holds the lease gives no sign of life: taken over as number %d", self.incarnation
            )
        return self.held

    async def release(self) -> None:
        """Give the lease up; again does nothing. The lock is free even where the row cannot be written."""
        if not self.held:
            return
        incarnation, self.incarnation = self.incarnation, 0
        try:
            await self._outbox.write(
                lambda connection: (
                    connection.exec_driver_sql(
                        _LEAVE, {"incarnation": incarnation, "now": self._clock.now_us()}
                    ).rowcount
                )
            )
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock.is_locked:
            self._lock.release()

    def _register(self, connection: sa.Connection, *, now_us: int) -> int:
        origin_id = connection.exec_driver_sql("SELECT origin_id FROM letopis_outbox_origin").scalar_one()
        if origin_id != self._outbox.origin.origin_id.bytes:
            raise AnotherOutbox("the outbox file was given a new identity while it was open here: open it anew")
        connection.exec_driver_sql(
            _TAKE,
            {
                "holder": self._holder,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "boot_id": boot_id(),
                "now": now_us,
            },
        )
        found = connection.exec_driver_sql("SELECT incarnation FROM letopis_outbox_relay").scalar_one()
        return int(found)


def boot_id() -> str:
    """Return what tells this boot of the machine from another; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""

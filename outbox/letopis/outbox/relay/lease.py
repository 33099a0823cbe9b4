"""Hold the lease of an outbox file: an operating system lock, and a row that fences earlier holders."""

from __future__ import annotations

import logging
import os
import socket
from functools import partial
from typing import Final

import sqlalchemy as sa

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.file.sign_of_life import boot_id
from letopis.outbox.relay.lease_lock import LeaseLock
from letopis.store.errors import OutboxUnavailable

logger: Final = logging.getLogger("letopis.outbox.relay")
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


class OutboxIdentityChanged(OutboxUnavailable):
    """The file was given another identity since it was opened here: open it again."""


_SignOfLife = tuple[int, int]
"""Incarnation and last heartbeat in the file: they change as long as a holder works on it."""


def _sign_of_life(connection: sa.Connection) -> _SignOfLife | None:
    row = connection.exec_driver_sql("SELECT incarnation, heartbeat_at FROM letopis_outbox_relay").one_or_none()
    return None if row is None else (row[0], row[1])


class Lease:
    """The right to deliver from one outbox file, held by at most one relay at a time.

    The lock ends with the process that held it, however that ended; no clock is involved. The row names the holder:
    pid, host, boot, start, heartbeat. Its incarnation rises with each holder, and what a relay writes back is refused
    once it is no longer the current one: a holder that was stopped, or lost its lock file, does no harm.

    A process that is stopped, not ended, keeps its lock. A standby that has seen no heartbeat for ``silence`` seconds,
    by its own monotonic clock, therefore takes over without the lock; the stopped one finds itself fenced when it
    continues.

    A fork keeps the lock until the parent *and* all its children end, so fork before a relay runs.

    :param holder: name of this relay, for operators.
    :param silence: seconds.
    :param locked: only for tests: ``False`` takes the lease without the lock.
    :param lock: the lock, where it outlives this object: see :meth:`suspend`.
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
        self.incarnation = 0
        """The incarnation of this holder; 0 while it does not hold the lease."""

    @property
    def held(self) -> bool:
        """Whether this relay holds the lease, as far as it knows."""
        return self.incarnation != 0

    async def acquire(self) -> bool:
        """Take the lease, without waiting, if it is free or its holder has long been silent; return True if it is held.

        :raises OutboxIdentityChanged: the file was given another identity meanwhile, and numbers its events by it.
        :raises OSError: the lock file cannot be created or opened.
        :raises OutboxUnavailable: the file cannot be written.
        """
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
        """Stop working on the file, but keep the lock, so that no other process delivers from it.

        The row continues to name this holder. A lease that was taken over from a silent holder has no lock, and must be
        released.
        """
        if self._lock.held:
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

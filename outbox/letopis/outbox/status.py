"""Status: how an outbox and its relay are, read from the file, in figures that scripts may rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox.hold import held
from letopis.outbox.incident_log import open_incidents
from letopis.outbox.incidents import Case
from letopis.outbox.lanes import counts
from letopis.store.events import from_microseconds

ALIVE: Final = 30.0
"""Seconds since its last sign of life for which a relay counts as running: three of its heartbeats."""

_RELAY: Final = (
    "SELECT pid, holder, host, heartbeat_at, progress_at, breaker, breaker_since, breaker_reason, delivered_total"
    " FROM letopis_outbox_relay"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerStatus:
    """Whether the relay delivers to the history store.

    :ivar state: ``closed``: it does; ``open`` or ``half_open``: it waits for a store that is away.
    :ivar reason: fault class and code; ``None`` while closed.
    """

    state: str = "closed"
    since: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayStatus:
    """The relay that works on the file, in whichever process.

    :ivar running: whether it has given a sign of life lately.
    :ivar holder: what it calls itself, with pid and host; ``None`` where no relay ever ran.
    :ivar last_progress_seconds: since something last moved.
    :ivar held_since: since when a person holds it back; ``None`` where nobody does.
    """

    running: bool = False
    holder: str | None = None
    last_progress_seconds: float | None = None
    held_since: datetime | None = None
    held_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An outbox in figures.

    :ivar pending: events that the history store does not hold yet. ``pending_bytes``: of data and metadata, exact up to
        10,000 events, extrapolated beyond.
    :ivar oldest_owed_seconds: how long the oldest of them waits; ``None`` where there is none.
    :ivar delivered: events delivered since the file was made, by all relays.
    :ivar lanes: conversations that owe something, by state: ``ready``, ``retrying``, ``blocked``, ``paused``.
    :ivar incidents: what is not over yet.
    """

    pending: int
    pending_bytes: int
    oldest_owed_seconds: float | None
    delivered: int
    lanes: Mapping[str, int]
    breaker: BreakerStatus
    relay: RelayStatus
    incidents: tuple[Case, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing waits for a person, the store is delivered to, and a relay runs where something is owed."""
        waits = self.lanes.get("blocked", 0) > 0 or bool(self.incidents)
        return not waits and self.breaker.state == "closed" and (self.relay.running or self.pending == 0)

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON values; names and meanings are kept from release to release."""
        return {
            "pending": self.pending,
            "pending_bytes": self.pending_bytes,
            "oldest_owed_seconds": self.oldest_owed_seconds,
            "delivered": self.delivered,
            "lanes": dict(self.lanes),
            "breaker": {
                "state": self.breaker.state,
                "since": _moment(self.breaker.since),
                "reason": self.breaker.reason,
            },
            "relay": {
                "running": self.relay.running,
                "holder": self.relay.holder,
                "last_progress_seconds": self.relay.last_progress_seconds,
                "held_since": _moment(self.relay.held_since),
                "held_reason": self.relay.held_reason,
            },
            "incidents": [
                {
                    "id": str(case.incident_id),
                    "kind": str(case.kind),
                    "state": str(case.state),
                    "conversation_id": case.conversation_id,
                    "owner_id": case.owner_id,
                    "reason": case.reason,
                    "events": case.events,
                    "since": _moment(case.opened_at),
                    "notified_at": _moment(case.notified_at),
                }
                for case in self.incidents
            ],
        }


def read_status(connection: sa.Connection, *, now_us: int) -> Status:
    """Return the status of the outbox file that is open on ``connection``; reads only, and never the history store."""
    figures = counts(connection)
    row = connection.exec_driver_sql(_RELAY).one_or_none()
    holding = held(connection)
    since_held = None if holding is None else holding.since
    why_held = None if holding is None else holding.reason
    breaker, relay, delivered = BreakerStatus(), RelayStatus(held_since=since_held, held_reason=why_held), 0
    if row is not None:
        pid, holder, host, heartbeat_at, progress_at, state, since, reason, delivered = row
        if holder:
            breaker = BreakerStatus(state=state, since=from_microseconds(since), reason=reason)
            relay = RelayStatus(
                running=pid != 0 and _seconds(now_us, heartbeat_at) <= ALIVE,
                holder=f"{holder} (pid {pid} on {host})" if pid else holder,
                last_progress_seconds=_seconds(now_us, progress_at),
                held_since=since_held,
                held_reason=why_held,
            )
    owed = figures.oldest_owed_us
    return Status(
        pending=figures.pending,
        pending_bytes=figures.pending_bytes,
        oldest_owed_seconds=None if owed is None else _seconds(now_us, owed),
        delivered=delivered,
        lanes=figures.lanes,
        breaker=breaker,
        relay=relay,
        incidents=open_incidents(connection),
    )


def _seconds(now_us: int, then_us: int) -> float:
    # A clock that was set back makes no age negative.
    return round(max(0, now_us - then_us) / 1_000_000, 3)


def _moment(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()

"""Read the status of an outbox and its relay from the file, in values that scripts may rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from uuid import UUID

import orjson

from letopis.outbox.alerting.incident_table import open_incidents_of
from letopis.outbox.alerting.incidents import IncidentKind, IncidentRecord, fault_class
from letopis.outbox.event_log.bound_store import binding_of
from letopis.outbox.event_log.known_erasures import missing_of
from letopis.outbox.event_log.lanes import lane_counts_of
from letopis.outbox.event_log.statements import on_cursor, query_all, query_one
from letopis.outbox.file.sign_of_life import ended_without_stopping, lives
from letopis.outbox.file.wal_checkpoint import LARGE_WAL_BYTES, wal_size
from letopis.outbox.operations.pending_events import picked
from letopis.store.database.faults import FaultClass
from letopis.store.model.events import from_microseconds

if TYPE_CHECKING:
    import sqlalchemy as sa

    from letopis.store.erasures import Erasure

RELAY_ALIVE_SECONDS: Final = 30.0  # a relay counts as running for this long after a heartbeat: three of them
LATE_SECONDS: Final = 30.0  # age of the oldest pending event, and time without progress, that make deliveries late
# What matters most about an outbox, the first that holds.
Condition = Literal[
    "lost", "incomplete", "erasures missing", "blocked", "wrong store", "refusing", "misconfigured", "unreachable",
    "relay paused", "no relay", "overdue", "retrying", "paused", "late", "recovered", "large wal", "delivering", "idle",
]  # fmt: skip

_OUTAGES: Final[dict[str, tuple[Condition, str]]] = {
    FaultClass.WRONG_STORE: ("wrong store", "The relay is pointed at another history store than this outbox's"),
    FaultClass.POISON: ("refusing", "The history store answers and refuses every delivery"),
    FaultClass.MISCONFIGURED: ("misconfigured", "The history store takes no deliveries"),
}
_PAUSE: Final = "SELECT since, reason FROM letopis_outbox_pause"


class _RelayRow(NamedTuple):
    """What the relay last reported; by default what counts where none ever ran."""

    pid: int = 0
    holder: str = ""
    host: str = ""
    boot_id: str = ""
    heartbeat_at: int = 0
    progress_at: int = 0
    breaker: str = "closed"
    breaker_since: int = 0
    breaker_reason: str | None = None
    breaker_detail: str | None = None
    next_attempt_at: int | None = None
    delivered_total: int = 0
    store_tasks: int = 0
    store_rows: int = 0
    erasures: str | None = None
    trimmed: int = 0
    checkpoints: int = 0
    retained_at: int | None = None
    retention_due: int = 0


_RELAY: Final = (
    "SELECT pid, holder, host, boot_id, heartbeat_at, progress_at, breaker, breaker_since, breaker_reason,"
    " breaker_detail, next_attempt_at, delivered_total, store_tasks, store_rows, erasures,"
    " trimmed, checkpoints, retained_at, retention_due FROM letopis_outbox_relay"
)


def are_late(oldest_pending_seconds: float | None, last_progress_seconds: float | None) -> bool:
    """Return True if the oldest pending event is old, and the relay has not progressed for as long, for any reason."""
    without_progress = last_progress_seconds is None or last_progress_seconds > LATE_SECONDS
    return (oldest_pending_seconds or 0.0) > LATE_SECONDS and without_progress


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerStatus:
    """Whether the relay delivers to the history store.

    :ivar state: ``closed``: it does; ``open`` or ``half_open``: it waits for an unavailable store.
    :ivar reason: fault class and code; ``None`` while closed.
    :ivar detail: the same in a sentence.
    :ivar next_attempt_at: when the store is tried next, never in the past; ``None`` while closed or no relay runs.
    """

    state: str = "closed"
    since: datetime | None = None
    reason: str | None = None
    detail: str | None = None
    next_attempt_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayStatus:
    """The relay that works on the file, in whichever process.

    :ivar running: whether its last heartbeat is recent, and its process is there as far as this machine can tell.
    :ivar died: whether its process ended without stopping, as after ``kill -9``: its lock is free.
    :ivar holder: its name, pid and host; ``None`` if no relay ever ran.
    :ivar last_progress_seconds: seconds since its last progress.
    :ivar paused_since: since when an operator has paused it; ``None`` if it is not paused.
    :ivar pause_reason: as the operator gave it.
    """

    running: bool = False
    died: bool = False
    holder: str | None = None
    last_progress_seconds: float | None = None
    paused_since: datetime | None = None
    pause_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatus:
    """The history store that the outbox belongs to.

    :ivar store_id: its identity, which the outbox is bound to; ``None`` before the first delivery.
    :ivar destination: where it was last reached, without secrets; before the first delivery, where the bot wants it
        delivered. ``None`` if no store was named yet.
    """

    store_id: UUID | None = None
    destination: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionStatus:
    """What the relay of this outbox has done for the retention of content.

    :ivar last_run_at: when it last looked; ``None`` if it never did.
    :ivar trimmed: conversations that it took content of, each time counted.
    :ivar checkpoints: checkpoints of LangGraph that it deleted.
    :ivar due: events that have come of age and were still to be looked at then, of the next 1,000 for each age.
    """

    last_run_at: datetime | None = None
    trimmed: int = 0
    checkpoints: int = 0
    due: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The status of an outbox.

    :ivar read_at: when this was read.
    :ivar pending: events that the history store does not hold yet.
    :ivar pending_bytes: of their data and metadata, exact up to 10,000 events, extrapolated beyond.
    :ivar wal_bytes: of the file's write-ahead log. Beyond 128 MiB, a reader keeps it from being checkpointed.
    :ivar oldest_pending_seconds: age of the oldest of them; ``None`` if there is none.
    :ivar delivered: events delivered since the file was created, by all relays.
    :ivar lanes: conversations with pending events by state: ``ready``, ``retrying``, ``paused``; and all ``blocked``
        ones.
    :ivar lost: blocked conversations with events that the history store lost and the outbox no longer holds.
    :ivar incidents: open incidents.
    :ivar outbox_id: the identity under which it delivers.
    :ivar store_tasks: long rewinds and deletions that the history store has not finished, as the relay last reported;
        what they remove is hidden already.
    :ivar store_rows: rows left of them, at most.
    :ivar unacknowledged: outboxes that have erasures of the history store to carry out, as the relay last reported:
        ``name``, ``origin_id``, and ``since`` when.
    :ivar missing_erasures: those that this outbox has carried out and a restored history store has forgotten, so that
        their words may be readable again: ``number``, ``kind``, ``subject``, ``how``, ``recorded_at``.
    :ivar holds: what is on hold in the history store, likewise: ``kind``, ``subject``, ``reason``.
    :ivar retention: of content, as the relay last reported.
    """

    read_at: datetime
    pending: int
    pending_bytes: int
    wal_bytes: int
    oldest_pending_seconds: float | None
    delivered: int
    lanes: Mapping[str, int]
    lost: int
    breaker: BreakerStatus
    relay: RelayStatus
    incidents: tuple[IncidentRecord, ...]
    outbox_id: UUID | None = None
    store: StoreStatus = StoreStatus()
    store_tasks: int = 0
    store_rows: int = 0
    unacknowledged: tuple[Mapping[str, str], ...] = ()
    missing_erasures: tuple[Mapping[str, Any], ...] = ()
    holds: tuple[Mapping[str, str], ...] = ()
    retention: RetentionStatus = RetentionStatus()

    @property
    def wrong_store(self) -> bool:
        """Whether the relay would deliver to another history store than this outbox's, and therefore does not."""
        return (self.breaker.reason or "").startswith(FaultClass.WRONG_STORE)

    @property
    def late(self) -> bool:
        """Whether events have been pending for over 30 s in which the relay made no progress."""
        return are_late(self.oldest_pending_seconds, self.relay.last_progress_seconds)

    @property
    def healthy(self) -> bool:
        """Whether nothing needs an operator, the store takes deliveries, and a relay runs if something is pending."""
        needs_operator = self.lanes.get("blocked", 0) > 0 or bool(self.incidents) or self.wal_bytes > LARGE_WAL_BYTES
        needs_operator = needs_operator or self.late
        return not needs_operator and self.breaker.state == "closed" and (self.relay.running or self.pending == 0)

    @property
    def verdict(self) -> str:
        """What matters most, in a sentence or two for an operator; it agrees with the other values."""
        return self.judge()[1]

    def judge(self) -> tuple[Condition, str]:
        """Return what matters most, which doctor and console put in words of their own, and :attr:`verdict`."""
        blocked, relay, kinds = self.lanes.get("blocked", 0), self.relay, [case.kind for case in self.incidents]
        pending = f"{_events(self.pending)} pending, nothing is lost" if self.pending else "nothing is pending"
        if self.lost:
            has = "has" if self.lost == 1 else "have"
            return "lost", (
                f"{_conversations(self.lost)} {has} lost events that neither the history store nor this outbox holds:"
                " see `letopis outbox list`."
            )
        if IncidentKind.HISTORY_INCOMPLETE in kinds:
            return "incomplete", "The history store has lost events that it counts: restore it from a backup."
        if self.missing_erasures:
            first = self.missing_erasures[0]["number"]
            return "erasures missing", (
                f"The history store was restored from before erasure {first} and may show its content again: see"
                " `letopis history erase --repeat`."
            )
        if blocked:
            return "blocked", (
                f"{_conversations(blocked)} {'is' if blocked == 1 else 'are'} blocked: see `letopis outbox list`."
                " Nothing is lost."
            )
        if (outage := self.outage()) is not None:
            see = "" if outage[0] == "unreachable" else ": run `letopis doctor`"
            return outage[0], f"{outage[1]}{see}; {pending}{self._next_attempt()}."
        if relay.paused_since is not None and self.pending:
            return "relay paused", f"The relay is paused; {pending}. `letopis resume` continues."
        if self.pending and not relay.running:
            state = "The relay has died" if relay.died else "No relay is running"
            return "no relay", f"{state}; {pending}: start the bot, or `letopis relay`."
        overdue = kinds.count(IncidentKind.CONVERSATION_BLOCKED)
        if overdue and self.pending:
            return "overdue", (
                f"{_conversations(overdue)} {'has' if overdue == 1 else 'have'} waited too long: see"
                f" `letopis outbox list --state ready`; {pending}."
            )
        states: tuple[tuple[Condition, str], ...] = (("retrying", "being retried"), ("paused", "paused"))
        for condition, what in states:
            if count := self.lanes.get(condition, 0):
                is_ = "is" if count == 1 else "are"
                return condition, f"{_conversations(count)} {is_} {what}: see `letopis outbox list`; {pending}."
        if self.late:
            seconds = self.oldest_pending_seconds or 0.0
            return "late", f"Deliveries are late: {pending}, the oldest for {seconds:.0f} s: see the relay's log."
        condition, delivered = "idle", "Everything is in the history store."
        if self.pending:
            condition, delivered = "delivering", f"{_events(self.pending)} being delivered."
        if IncidentKind.STORE_DOWN in kinds:
            back = "The history store is reachable again; its incident closes after a quiet minute."
            return "recovered", f"{delivered} {back}"
        if self.wal_bytes > LARGE_WAL_BYTES:
            size = self.wal_bytes // 1024**2
            grown = f"The outbox's WAL has grown to {size} MiB: `letopis doctor` says what holds it."
            return "large wal", f"{delivered} {grown}"
        if self.incidents:
            return "recovered", f"{delivered} An incident closes after a quiet minute."
        return condition, delivered

    def outage(self) -> tuple[Condition, str] | None:
        """Return why the relay delivers nothing, whatever else matters more; ``None`` while it delivers."""
        breaker = self.breaker
        if breaker.state == "closed":
            return None
        since = "" if breaker.since is None else f" since {breaker.since:%Y-%m-%d %H:%M:%S}Z"
        detail = f" ({breaker.detail or breaker.reason})" if breaker.detail or breaker.reason else ""
        condition, what = _OUTAGES.get(fault_class(breaker.reason), ("unreachable", "The history store is unreachable"))
        return condition, f"{what}{since}{detail}"

    def _next_attempt(self) -> str:
        if not self.relay.running:
            return "; no relay is running: start the bot, or `letopis relay`"
        if self.breaker.next_attempt_at is None:
            return ""
        seconds = max(0.0, (self.breaker.next_attempt_at - self.read_at).total_seconds())
        return "; trying again now" if seconds < 1 else f"; next attempt in {seconds:.0f} s"

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON values, whose names and meanings stay stable across releases."""
        return {
            "healthy": self.healthy,
            "verdict": self.verdict,
            "outbox_id": None if self.outbox_id is None else str(self.outbox_id),
            "store": {
                "id": None if self.store.store_id is None else str(self.store.store_id),
                "destination": self.store.destination,
            },
            **picked(self, "pending", "pending_bytes", "wal_bytes", "oldest_pending_seconds", "delivered"),
            "lanes": dict(self.lanes),
            "lost": self.lost,
            "breaker": _json(self.breaker),
            "relay": _json(self.relay),
            **picked(self, "store_tasks", "store_rows"),
            "unacknowledged": [dict(behind) for behind in self.unacknowledged],
            "missing_erasures": [dict(missing) for missing in self.missing_erasures],
            "holds": [dict(held) for held in self.holds],
            "retention": _json(self.retention),
            "incidents": [
                {
                    "id": str(case.incident_id),
                    "kind": str(case.kind),
                    "state": str(case.state),
                    **picked(case, "conversation_id", "owner_id", "reason", "events"),
                    "since": _moment(case.opened_at),
                    "notified_at": _moment(case.notified_at),
                }
                for case in self.incidents
            ],
        }


def read_status(connection: sa.Connection, *, now_us: int) -> Status:
    """Return the status of the outbox file that is open on ``connection``; reads only, and never the history store."""
    return on_cursor(connection, partial(status_of, now_us=now_us))


def status_of(cursor: Any, *, now_us: int) -> Status:
    """Return the status of the outbox file of a DBAPI cursor, as :func:`read_status` does."""
    lanes, pause, bound = lane_counts_of(cursor), query_one(cursor, _PAUSE), binding_of(cursor)
    origin = query_one(cursor, "SELECT origin_id FROM letopis_outbox_origin")
    breaker, relay = BreakerStatus(), RelayStatus()
    row = _RelayRow(*(query_one(cursor, _RELAY) or ()))
    path = Path(query_all(cursor, "PRAGMA database_list")[0][2])
    if row.holder:
        died = ended_without_stopping(row.pid, row.host, row.boot_id, path)
        seen = row.pid != 0 and lives(row.heartbeat_at, path, now_us=now_us, within=RELAY_ALIVE_SECONDS)
        running = seen and not died
        attempt_us = row.next_attempt_at if running else None
        breaker = BreakerStatus(
            state=row.breaker,
            since=from_microseconds(row.breaker_since),
            reason=row.breaker_reason,
            detail=row.breaker_detail,
            # An attempt whose time has come is being made now.
            next_attempt_at=None if attempt_us is None else from_microseconds(max(attempt_us, now_us)),
        )
        relay = RelayStatus(
            running=running,
            died=died,
            holder=f"{row.holder} (pid {row.pid} on {row.host})" if row.pid else row.holder,
            last_progress_seconds=_seconds(now_us, row.progress_at),
        )
    report = {} if row.erasures is None else orjson.loads(row.erasures)
    if pause is not None:
        relay = replace(relay, paused_since=from_microseconds(pause[0]), pause_reason=pause[1])
    return Status(
        read_at=from_microseconds(now_us),
        **picked(lanes, "pending", "pending_bytes", "lanes", "lost"),
        **picked(row, "store_tasks", "store_rows"),
        wal_bytes=wal_size(path),
        oldest_pending_seconds=None if lanes.oldest_pending_us is None else _seconds(now_us, lanes.oldest_pending_us),
        delivered=row.delivered_total,
        breaker=breaker,
        relay=relay,
        incidents=open_incidents_of(cursor),
        outbox_id=None if origin is None else UUID(bytes=origin[0]),
        store=StoreStatus(store_id=bound.store_id, destination=bound.destination),
        unacknowledged=tuple(report.get("unacknowledged", ())),
        missing_erasures=tuple(map(_described, missing_of(cursor))),
        holds=tuple(report.get("holds", ())),
        retention=RetentionStatus(
            last_run_at=None if row.retained_at is None else from_microseconds(row.retained_at),
            trimmed=row.trimmed,
            checkpoints=row.checkpoints,
            due=row.retention_due,
        ),
    )


def _described(erasure: Erasure) -> dict[str, Any]:
    return {
        **picked(erasure, "number", "kind", "subject", "how"),
        "recorded_at": erasure.recorded_at.isoformat(),
    }


def _seconds(now_us: int, then_us: int) -> float:
    # Never negative, even after the clock was set back.
    return round(max(0, now_us - then_us) / 1_000_000, 3)


def _json(value: BreakerStatus | RelayStatus | RetentionStatus) -> dict[str, Any]:
    return {
        name: content.isoformat() if isinstance(content, datetime) else content
        for name, content in asdict(value).items()
    }


def _moment(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()


def _events(count: int) -> str:
    return f"{count} event{' is' if count == 1 else 's are'}"


def _conversations(count: int) -> str:
    return f"{count} conversation{'' if count == 1 else 's'}"

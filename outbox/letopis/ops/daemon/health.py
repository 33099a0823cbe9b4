"""Aggregate the state of all outboxes and stores of a daemon, without naming a conversation or an owner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from letopis.ops.daemon.store_pool import Durations
from letopis.outbox.alerting.incidents import IncidentKind
from letopis.outbox.event_log.bound_store import UNBOUND, StoreBinding, binding_of
from letopis.outbox.event_log.lanes import lane_counts_of
from letopis.outbox.event_log.statements import query_all, query_one
from letopis.outbox.file.wal_checkpoint import wal_size
from letopis.outbox.operations.pending_events import picked
from letopis.outbox.operations.status import are_late
from letopis.outbox.relay.outcome import RelayStats
from letopis.outbox.retry.circuit_breaker import Breaker

LANE_STATES: Final = ("ready", "retrying", "blocked", "paused")
MAX_LISTED_FILES: Final = 100  # files that a snapshot lists one by one
BREAKER_STATES: Final = ("closed", "open", "half_open")

_RELAY: Final = "SELECT progress_at, store_tasks, store_rows FROM letopis_outbox_relay WHERE holder <> ''"
_INCIDENTS: Final = (
    "SELECT kind, count(*) FROM letopis_outbox_incidents WHERE resolved_at IS NULL AND state <> 'pending' GROUP BY kind"
)


class FileCondition(StrEnum):
    WORKING = "working"  # this process delivers from it
    STANDBY = "standby"  # another relay delivers from it; this one takes over when that one ends
    WRONG_STORE = "wrong_store"  # this process would deliver to another store than the file's own, so it does not
    UNUSABLE = "unusable"  # it cannot be opened or read; it is retried automatically


FAILED_CONDITIONS: Final = (FileCondition.WRONG_STORE, FileCondition.UNUSABLE)
"""Conditions in which nothing is delivered until an operator acts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxMetrics:
    condition: FileCondition
    pending: int = 0
    pending_bytes: int = 0
    oldest_pending_us: int | None = None
    lanes: Mapping[str, int] = field(default_factory=dict)
    incidents: Mapping[str, int] = field(default_factory=dict)
    progress_us: int | None = None
    wal_bytes: int = 0
    name: str = ""
    bound: StoreBinding = UNBOUND
    store_tasks: int = 0
    store_rows: int = 0

    def is_late(self, now_us: int) -> bool:
        """Return True if its deliveries are late, by the rule of its status."""
        oldest, progress = (
            None if us is None else (now_us - us) / 1_000_000 for us in (self.oldest_pending_us, self.progress_us)
        )
        return are_late(oldest, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSnapshot:
    ready: bool
    sound: bool
    files: Mapping[str, int]
    pending: int
    pending_bytes: int
    oldest_pending_seconds: float
    lanes: Mapping[str, int]
    incidents: Mapping[str, int]
    progress_us: int | None
    wal_bytes: int
    breakers: Mapping[str, int]
    open_seconds: float
    trips: int
    relay: RelayStats
    alerts: Mapping[str, int]
    deliveries: Mapping[str, Durations]
    listed: tuple[OutboxMetrics, ...] = ()
    store_tasks: int = 0
    store_rows: int = 0
    late: int = 0
    lags: Mapping[str, int] = field(default_factory=dict)

    @property
    def degraded(self) -> bool:
        """Whether a store is unavailable or has lost events, deliveries are late, or a matched file cannot be used."""
        unavailable = self.breakers.get("closed", 0) < sum(self.breakers.values())
        incomplete = self.incidents.get(IncidentKind.HISTORY_INCOMPLETE, 0) > 0
        failed = any(self.files.get(condition, 0) > 0 for condition in FAILED_CONDITIONS)
        return unavailable or incomplete or failed or self.late > 0

    def summary(self) -> str:
        total = sum(self.files.values())
        words = [f"{total} {'outbox' if total == 1 else 'outboxes'}"]
        words += [f"{count} {name}" for name, count in self.files.items() if count and name != FileCondition.WORKING]
        words.append(f"{self.pending} pending")
        if self.pending:
            words.append(f"oldest {self.oldest_pending_seconds:.0f} s")
        if self.late:
            words.append(f"deliveries of {self.late} late")
        if blocked := self.lanes.get("blocked", 0):
            words.append(f"{blocked} blocked")
        words.append(f"store unavailable for {self.open_seconds:.0f} s" if self.open_seconds else "store reachable")
        return ", ".join(words)


def read_metrics(cursor: Any, path: Path) -> OutboxMetrics:
    """Return the metrics of the outbox file of a DBAPI cursor, as if this process delivered from it; reads only."""
    counts = lane_counts_of(cursor)
    progress_us, tasks, rows = query_one(cursor, _RELAY) or (None, 0, 0)
    return OutboxMetrics(
        condition=FileCondition.WORKING,
        **picked(counts, "pending", "pending_bytes", "oldest_pending_us", "lanes"),
        incidents={str(kind): count for kind, count in query_all(cursor, _INCIDENTS)},
        progress_us=progress_us,
        wal_bytes=wal_size(path),
        name=path.name,
        bound=binding_of(cursor),
        store_tasks=tasks,
        store_rows=rows,
    )


def aggregate(
    files: Iterable[OutboxMetrics],
    *,
    now_us: int,
    ready: bool,
    sound: bool,
    breakers: Iterable[Breaker],
    relay: RelayStats,
    alerts: Mapping[str, int],
    deliveries: Iterable[Mapping[str, Durations]],
    lags: Iterable[Mapping[str, int]] = (),
) -> HealthSnapshot:
    """Return the state of all files and stores together."""
    outboxes, stores = list(files), list(breakers)
    conditions = Counter(str(outbox.condition) for outbox in outboxes)
    lanes, incidents, lagging = Counter[str](), Counter[str](), Counter[str]()
    for names in lags:
        lagging.update(names)
    for outbox in outboxes:
        lanes.update(outbox.lanes)
        incidents.update(outbox.incidents)
    pending_since = [outbox.oldest_pending_us for outbox in outboxes if outbox.oldest_pending_us is not None]
    progress = [outbox.progress_us for outbox in outboxes if outbox.progress_us is not None]
    open_since = [breaker.since_us for breaker in stores if not breaker.closed]
    states = Counter(str(breaker.state) for breaker in stores)
    joined = {"ok": Durations()}
    for of_store in deliveries:
        for outcome, durations in of_store.items():
            joined.setdefault(outcome, Durations()).join(durations)
    return HealthSnapshot(
        ready=ready,
        sound=sound,
        files={str(condition): conditions[condition] for condition in FileCondition},
        pending=sum(outbox.pending for outbox in outboxes),
        pending_bytes=sum(outbox.pending_bytes for outbox in outboxes),
        oldest_pending_seconds=max(0, now_us - min(pending_since)) / 1_000_000 if pending_since else 0.0,
        lanes={state: lanes[state] for state in LANE_STATES},
        incidents={str(kind): incidents[kind] for kind in IncidentKind},
        progress_us=min(progress, default=None),
        wal_bytes=sum(outbox.wal_bytes for outbox in outboxes),
        breakers={state: states[state] for state in BREAKER_STATES},
        open_seconds=max(0, now_us - min(open_since)) / 1_000_000 if open_since else 0.0,
        trips=sum(breaker.trips for breaker in stores),
        relay=relay,
        alerts=alerts,
        deliveries=joined,
        listed=tuple(outboxes[:MAX_LISTED_FILES]),
        # All outboxes of one store report its tasks.
        store_tasks=max((outbox.store_tasks for outbox in outboxes), default=0),
        store_rows=max((outbox.store_rows for outbox in outboxes), default=0),
        late=sum(outbox.is_late(now_us) for outbox in outboxes),
        lags=lagging,
    )


def add_stats(total: RelayStats, more: RelayStats) -> None:
    """Add what one relay has done to a total."""
    for name in RelayStats.__slots__:
        if name == "faults":
            total.faults.update(more.faults)
        else:
            setattr(total, name, getattr(total, name) + getattr(more, name))

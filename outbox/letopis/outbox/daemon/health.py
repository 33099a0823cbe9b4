"""Aggregate the state of all outboxes and stores of a daemon, without naming a conversation or an owner."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from letopis.outbox.alerting.incidents import IncidentKind
from letopis.outbox.daemon.instrumented_store import Durations
from letopis.outbox.event_log.bound_store import UNBOUND, StoreBinding, binding_of
from letopis.outbox.event_log.lanes import lane_counts_of
from letopis.outbox.event_log.statements import query_all, query_one
from letopis.outbox.operations.status import are_late
from letopis.outbox.relay.outcome import RelayStats
from letopis.outbox.retry.circuit_breaker import Breaker

LANE_STATES: Final = ("ready", "retrying", "blocked", "paused")
MAX_LISTED_FILES: Final = 100
"""Files that a snapshot lists one by one."""
BREAKER_STATES: Final = ("closed", "open", "half_open")

_RELAY: Final = "SELECT progress_at, store_tasks, store_rows FROM letopis_outbox_relay WHERE holder <> ''"
_INCIDENTS: Final = (
    "SELECT kind, count(*) FROM letopis_outbox_incidents WHERE resolved_at IS NULL AND state <> 'pending' GROUP BY kind"
)


class FileCondition(StrEnum):
    """How an outbox file is served."""

    WORKING = "working"
    """This process delivers from it."""
    STANDBY = "standby"
    """Another relay delivers from it; this one takes over when that one ends."""
    WRONG_STORE = "wrong_store"
    """This process would deliver from it to another history store than its own, and therefore does not."""
    UNUSABLE = "unusable"
    """It cannot be opened or read; it is retried automatically."""


FAILED_CONDITIONS: Final = (FileCondition.WRONG_STORE, FileCondition.UNUSABLE)
"""Conditions in which nothing is delivered until an operator acts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxMetrics:
    """The metrics of one outbox file.

    :ivar incidents: open incidents by kind, except pending ones.
    :ivar progress_us: when its relay last progressed, UTC microseconds; ``None`` if none ever ran.
    :ivar name: the file's base name.
    :ivar bound: the store that it delivers to.
    :ivar store_tasks: long rewinds and deletions that its store has not finished, as its relay last reported.
    :ivar store_rows: rows left of them.
    """

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
    """The state of everything that a daemon serves.

    :ivar ready: whether start-up is complete and shutdown has not begun.
    :ivar sound: whether every file that was named can be used.
    :ivar oldest_pending_seconds: 0 if nothing is pending.
    :ivar breakers: number of stores by the state of their breaker.
    :ivar open_seconds: since the first breaker that is not closed opened.
    :ivar relay: totals since the process began, including files that are no longer served.
    :ivar alerts: ``sent`` and ``failed`` since the process began.
    :ivar listed: the files, each with its condition and its store, at most ``MAX_LISTED_FILES``.
    :ivar store_tasks: long rewinds and deletions that a store has not finished, of the store with most.
    :ivar store_rows: rows left of them.
    :ivar late: files whose deliveries are late.
    """

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

    @property
    def degraded(self) -> bool:
        """Whether a store is unavailable or has lost events, deliveries are late, or a matched file cannot be used."""
        unavailable = self.breakers.get("closed", 0) < sum(self.breakers.values())
        incomplete = self.incidents.get(IncidentKind.HISTORY_INCOMPLETE, 0) > 0
        return (
            unavailable or incomplete or self.late > 0 or any(self.files.get(one, 0) > 0 for one in FAILED_CONDITIONS)
        )

    def summary(self) -> str:
        """Return one line for operators."""
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
    found = lane_counts_of(cursor)
    progress_us, tasks, rows = query_one(cursor, _RELAY) or (None, 0, 0)
    return OutboxMetrics(
        condition=FileCondition.WORKING,
        pending=found.pending,
        pending_bytes=found.pending_bytes,
        oldest_pending_us=found.oldest_pending_us,
        lanes=found.lanes,
        incidents={str(kind): count for kind, count in query_all(cursor, _INCIDENTS)},
        progress_us=progress_us,
        wal_bytes=_size(path.with_name(path.name + "-wal")),
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
) -> HealthSnapshot:
    """Return the state of all files and stores together."""
    found, stores = list(files), list(breakers)
    conditions = Counter(str(one.condition) for one in found)
    lanes, incidents = Counter[str](), Counter[str]()
    for one in found:
        lanes.update(one.lanes)
        incidents.update(one.incidents)
    pending_since = [one.oldest_pending_us for one in found if one.oldest_pending_us is not None]
    progress = [one.progress_us for one in found if one.progress_us is not None]
    open_since = [one.since_us for one in stores if not one.closed]
    states = Counter(str(one.state) for one in stores)
    return HealthSnapshot(
        ready=ready,
        sound=sound,
        files={str(condition): conditions[condition] for condition in FileCondition},
        pending=sum(one.pending for one in found),
        pending_bytes=sum(one.pending_bytes for one in found),
        oldest_pending_seconds=max(0, now_us - min(pending_since)) / 1_000_000 if pending_since else 0.0,
        lanes={state: lanes[state] for state in LANE_STATES},
        incidents={str(kind): incidents[kind] for kind in IncidentKind},
        progress_us=min(progress, default=None),
        wal_bytes=sum(one.wal_bytes for one in found),
        breakers={state: states[state] for state in BREAKER_STATES},
        open_seconds=max(0, now_us - min(open_since)) / 1_000_000 if open_since else 0.0,
        trips=sum(one.trips for one in stores),
        relay=relay,
        alerts=alerts,
        deliveries=_joined(deliveries),
        listed=tuple(found[:MAX_LISTED_FILES]),
        # All outboxes of one store report its tasks.
        store_tasks=max((one.store_tasks for one in found), default=0),
        store_rows=max((one.store_rows for one in found), default=0),
        late=sum(one.is_late(now_us) for one in found),
    )


def add_stats(total: RelayStats, more: RelayStats) -> None:
    """Add what one relay has done to a total."""
    for name in RelayStats.__slots__:
        if name == "faults":
            total.faults.update(more.faults)
        else:
            setattr(total, name, getattr(total, name) + getattr(more, name))


def _joined(several: Iterable[Mapping[str, Durations]]) -> dict[str, Durations]:
    joined = {"ok": Durations()}
    for deliveries in several:
        for outcome, durations in deliveries.items():
            joined.setdefault(outcome, Durations()).join(durations)
    return joined


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - as everywhere that looks at a live file without opening it
    except OSError:
        return 0

"""Figures: how everything that a daemon serves is, summed up; no figure names a conversation, an owner or a store."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from letopis.outbox.account import RelayStats
from letopis.outbox.breaker import Breaker
from letopis.outbox.incidents import Kind
from letopis.outbox.lanes import counts
from letopis.outbox.measured import Durations

LANES: Final = ("ready", "retrying", "blocked", "paused")
BREAKERS: Final = ("closed", "open", "half_open")

_PROGRESS: Final = "SELECT progress_at FROM letopis_outbox_relay WHERE holder <> ''"
_INCIDENTS: Final = (
    "SELECT kind, count(*) FROM letopis_outbox_incidents WHERE resolved_at IS NULL AND state <> 'pending' GROUP BY kind"
)


class Condition(StrEnum):
    """How an outbox file is served."""

    WORKING = "working"
    """This process delivers from it."""
    STANDBY = "standby"
    """Another relay does; this one takes over when that one ends."""
    UNUSABLE = "unusable"
    """It cannot be opened or read; tried again by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFigures:
    """One outbox file in figures.

    :ivar incidents: that are not over, by kind; those that nobody needs to know of yet are left out.
    :ivar progress_us: when its relay last got anywhere, UTC microseconds; ``None`` where none ever ran.
    """

    condition: Condition
    pending: int = 0
    pending_bytes: int = 0
    oldest_owed_us: int | None = None
    lanes: Mapping[str, int] = field(default_factory=dict)
    incidents: Mapping[str, int] = field(default_factory=dict)
    progress_us: int | None = None
    wal_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All that a daemon serves, in figures.

    :ivar ready: start-up is done, and shutting down has not begun.
    :ivar sound: every file that a person named can be used.
    :ivar oldest_owed_seconds: 0 where nothing is owed.
    :ivar breakers: stores by the state of their breaker; ``open_seconds``: since the first that is not closed opened.
    :ivar relay: since the process began, files included that are not served any more.
    :ivar alerts: ``told`` and ``failed``, since the process began.
    """

    ready: bool
    sound: bool
    files: Mapping[str, int]
    pending: int
    pending_bytes: int
    oldest_owed_seconds: float
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

    @property
    def degraded(self) -> bool:
        """Whether a store is away, or a file that a pattern matched cannot be used: nothing is lost meanwhile."""
        return self.breakers.get("closed", 0) < sum(self.breakers.values()) or self.files.get("unusable", 0) > 0

    def told(self) -> str:
        """Return one line for people."""
        total = sum(self.files.values())
        words = [f"{total} {'outbox' if total == 1 else 'outboxes'}"]
        words += [f"{count} {name}" for name, count in self.files.items() if count and name != Condition.WORKING]
        words.append(f"{self.pending} pending")
        if self.pending:
            words.append(f"oldest {self.oldest_owed_seconds:.0f} s")
        if blocked := self.lanes.get("blocked", 0):
            words.append(f"{blocked} blocked")
        words.append(f"store away for {self.open_seconds:.0f} s" if self.open_seconds else "store reachable")
        return ", ".join(words)


def look(connection: sa.Connection, path: Path, condition: Condition) -> FileFigures:
    """Return the figures of the outbox file that is open on ``connection``; reads only."""
    found = counts(connection)
    return FileFigures(
        condition=condition,
        pending=found.pending,
        pending_bytes=found.pending_bytes,
        oldest_owed_us=found.oldest_owed_us,
        lanes=found.lanes,
        incidents={str(kind): count for kind, count in connection.exec_driver_sql(_INCIDENTS)},
        progress_us=connection.exec_driver_sql(_PROGRESS).scalar(),
        wal_bytes=_size(path.with_name(path.name + "-wal")),
    )


def sum_up(
    files: Iterable[FileFigures],
    *,
    now_us: int,
    ready: bool,
    sound: bool,
    breakers: Iterable[Breaker],
    relay: RelayStats,
    alerts: Mapping[str, int],
    deliveries: Iterable[Mapping[str, Durations]],
) -> Figures:
    """Return the figures of all files and stores together."""
    found, stores = list(files), list(breakers)
    conditions = Counter(str(one.condition) for one in found)
    lanes, incidents = Counter[str](), Counter[str]()
    for one in found:
        lanes.update(one.lanes)
        incidents.update(one.incidents)
    owed = [one.oldest_owed_us for one in found if one.oldest_owed_us is not None]
    moved = [one.progress_us for one in found if one.progress_us is not None]
    away = [one.since_us for one in stores if not one.closed]
    states = Counter(str(one.state) for one in stores)
    return Figures(
        ready=ready,
        sound=sound,
        files={str(condition): conditions[condition] for condition in Condition},
        pending=sum(one.pending for one in found),
        pending_bytes=sum(one.pending_bytes for one in found),
        oldest_owed_seconds=max(0, now_us - min(owed)) / 1_000_000 if owed else 0.0,
        lanes={state: lanes[state] for state in LANES},
        incidents={str(kind): incidents[kind] for kind in Kind},
        progress_us=min(moved, default=None),
        wal_bytes=sum(one.wal_bytes for one in found),
        breakers={state: states[state] for state in BREAKERS},
        open_seconds=max(0, now_us - min(away)) / 1_000_000 if away else 0.0,
        trips=sum(one.trips for one in stores),
        relay=relay,
        alerts=alerts,
        deliveries=_joined(deliveries),
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

"""Hold what was measured, under which durability, and what speaks against comparing it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

_SYNCHRONOUS: Final = ("OFF", "NORMAL", "FULL", "EXTRA")


@dataclass(frozen=True, slots=True, kw_only=True)
class Durability:
    """How a commit reaches the disk, as the connection that wrote it says.

    :ivar journal: of SQLite the journal mode; of a server, which one it is.
    :ivar flush: of SQLite ``synchronous``; of a server its settings.
    :ivar durable: whether a commit that was acknowledged survives a power cut.
    """

    journal: str
    flush: str
    durable: bool

    def __str__(self) -> str:
        return f"{self.journal}/{self.flush}"

    @classmethod
    def of_sqlite(cls, journal: str, synchronous: int) -> Durability:
        """Return what ``PRAGMA journal_mode`` and ``PRAGMA synchronous`` mean.

        NORMAL is durable with a rollback journal, for a crash of the system at least, but not in a WAL, where the last
        commits are lost; it is counted as not durable in both.
        """
        named = _SYNCHRONOUS[synchronous] if 0 <= synchronous < len(_SYNCHRONOUS) else str(synchronous)
        mode = journal.upper()
        return cls(
            journal=mode, flush=named, durable=synchronous >= 2 and mode in ("WAL", "DELETE", "TRUNCATE", "PERSIST")
        )

    @classmethod
    def of_postgresql(cls, *, fsync: str, synchronous_commit: str) -> Durability:
        """Return what ``SHOW fsync`` and ``SHOW synchronous_commit`` mean."""
        return cls(
            journal="PostgreSQL",
            flush=f"fsync={fsync}, synchronous_commit={synchronous_commit}",
            durable=fsync == "on" and synchronous_commit != "off",
        )

    @classmethod
    def of_mariadb(cls, *, flush_log_at_trx_commit: int) -> Durability:
        """Return what ``innodb_flush_log_at_trx_commit`` means."""
        return cls(
            journal="MariaDB",
            flush=f"innodb_flush_log_at_trx_commit={flush_log_at_trx_commit}",
            durable=flush_log_at_trx_commit == 1,
        )

    @classmethod
    def weakest(cls, found: Sequence[Durability]) -> Durability | None:
        """Return the one that loses most; ``None`` of none."""

        def rank(one: Durability) -> tuple[bool, int]:
            return one.durable, _SYNCHRONOUS.index(one.flush) if one.flush in _SYNCHRONOUS else 0

        return min(found, key=rank, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing that was measured in several rounds.

    :ivar name: who did it, for display; ``key`` is how a verdict finds it.
    :ivar samples: one a round, in the order of the rounds.
    :ivar more_is_better: whether the greater of two is the better one.
    :ivar durability: ``None`` where nothing is written.
    :ivar objections: why it must not be compared, as a figure of an append that checks nothing.
    :ivar details: of the same rounds: percentiles, counts.
    """

    key: str
    name: str
    unit: str
    samples: tuple[float, ...]
    more_is_better: bool = True
    durability: Durability | None = None
    objections: tuple[str, ...] = ()
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The middle one of the samples."""
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """The least of the samples."""
        return min(self.samples)

    @property
    def high(self) -> float:
        """The greatest of the samples."""
        return max(self.samples)

    def to_json(self) -> dict[str, Any]:
        """Return it as an object of the report."""
        return {
            "key": self.key,
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "min": self.low,
            "max": self.high,
            "samples": list(self.samples),
            "more_is_better": self.more_is_better,
            "durability": None
            if self.durability is None
            else {
                "journal": self.durability.journal,
                "flush": self.durability.flush,
                "durable": self.durability.durable,
            },
            "objections": list(self.objections),
            "details": dict(self.details),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Figure:
        """Return the figure that :meth:`to_json` wrote."""
        durability = value["durability"]
        return cls(
            key=value["key"],
            name=value["name"],
            unit=value["unit"],
            samples=tuple(value["samples"]),
            more_is_better=value["more_is_better"],
            durability=None if durability is None else Durability(**durability),
            objections=tuple(value["objections"]),
            details=value["details"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What was to be measured and could not be, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one part of the benchmark came to."""

    part: str
    figures: tuple[Figure, ...]
    missing: tuple[Missing, ...] = ()
    seconds: float = 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of the values lie, by the nearest rank; no value is made up."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, int(share * len(ordered) + 0.999999) - 1))]

"""Sample what processes and files use, from ``/proc`` and the file system."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.proof.soak.flat import Limit, Verdict, judge

MEGABYTE: Final = 1024**2
RSS: Final = "RSS in KiB"
DESCRIPTORS: Final = "descriptors"
THREADS: Final = "threads"
TASKS: Final = "tasks"
WAL: Final = "write-ahead log in bytes"
FILE: Final = "outbox file in bytes"
LIMITS: Final[Mapping[str, Limit]] = {
    RSS: Limit(share=0.05),
    DESCRIPTORS: Limit(),
    THREADS: Limit(),
    TASKS: Limit(),
    WAL: Limit(share=0.1, more=MEGABYTE, most=32 * MEGABYTE),
    FILE: Limit(share=0.05),
}
"""What counts as flat, by what was measured."""
WARMING: Final[Mapping[str, Limit]] = {
    **LIMITS,
    RSS: Limit(share=0.15),
    DESCRIPTORS: Limit(more=4),
    THREADS: Limit(more=2),
    WAL: Limit(more=4 * MEGABYTE, most=32 * MEGABYTE),
    FILE: Limit(more=MEGABYTE),
}
"""The same for seconds: caches and pools are not full yet, and pruning has only begun."""


class Samples:
    """Series of samples, by whose and by what."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], list[float]] = defaultdict(list)

    def process(self, name: str, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            return
        words = dict(line.split(":", 1) for line in status.splitlines())
        if "VmRSS" not in words:
            return  # a zombie
        self.series[name, RSS].append(int(words["VmRSS"].split()[0]))
        self.series[name, THREADS].append(int(words["Threads"]))
        self.series[name, DESCRIPTORS].append(descriptors)

    def outbox(self, name: str, path: Path) -> None:
        """Sample an outbox file and its write-ahead log."""
        for what, where in ((FILE, path), (WAL, path.with_name(f"{path.name}-wal"))):
            self.series[name, what].append(where.stat().st_size if where.exists() else 0)

    def judged(self, limits: Mapping[str, Limit] = LIMITS) -> dict[tuple[str, str], Verdict]:
        """Return whether each series is flat."""
        return {key: judge(samples, limits[key[1]]) for key, samples in self.series.items()}

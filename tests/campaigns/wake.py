"""Measure how soon another process hears of a commit, and what it costs to listen when nothing happens.

    python -m tests.campaigns.wake                 # about three minutes
    python -m tests.campaigns.wake --wakes 100 --idle 5

The listener is `letopis.outbox.wake.FileWatch`, as a relay uses it, in a process of its own; the times are those of one
monotonic clock that both processes read. The pause between two looks is a hundredth of the time since the last commit,
so the delay depends on how long it was quiet before: the pace of a conversation is what the limit is for.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil

LATEST = 0.020
"""Seconds, the 99th of a hundred wake-ups at the pace of a conversation."""
BUSIEST = 0.01
"""Of one processor, while nothing happens."""

_LISTENER = """
import asyncio, sys, time
from pathlib import Path
from letopis.outbox.bell import Bell
from letopis.outbox.identity import place_of
from letopis.outbox.wake import FileWatch

async def main(path):
    bell = Bell()
    async with FileWatch(path, bell, place=place_of(path)):
        print("ready", flush=True)
        while True:
            rings = bell.rings
            await bell.wait(rings)
            print(time.monotonic_ns(), flush=True)

asyncio.run(main(Path(sys.argv[1])))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured; delays in seconds."""

    delays: tuple[float, ...]
    after_quiet: tuple[float, ...]
    quiet: float
    idle_cpu: float
    idle: float

    @property
    def p99(self) -> float:
        """Of the wake-ups at the pace of a conversation."""
        return statistics.quantiles(self.delays, n=100)[98]

    def __str__(self) -> str:
        return "\n".join(
            (
                (
                    f"{len(self.delays)} wake-ups across processes, 0.05 to 1 s apart:"
                    f" p50 {1000 * statistics.median(self.delays):.1f} ms, p99 {1000 * self.p99:.1f} ms,"
                    f" longest {1000 * max(self.delays):.1f} ms"
                ),
                (
                    f"  after {self.quiet:g} s of quiet: longest {1000 * max(self.after_quiet):.1f} ms"
                    f" of {len(self.after_quiet)}"
                ),
                f"  idle for {self.idle:g} s: {100 * self.idle_cpu:.2f} % of one processor",
            )
        )


def measure(
    folder: Path, *, wakes: int, idle: float, longest: float = 1.0, quiet: float = 4.0, quiet_wakes: int = 3
) -> Report:
    """Measure in this folder."""
    path = folder / "bot.outbox.db"
    asyncio.run(_make(path))
    chance = random.Random(3)
    with (
        closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection,
        subprocess.Popen([sys.executable, "-c", _LISTENER, str(path)], stdout=subprocess.PIPE, text=True) as listener,
    ):
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "ready\n"

            def wake(pause: float) -> float:
                time.sleep(pause)
                connection.execute("UPDATE letopis_outbox_origin SET created_at = created_at + 1")
                committed = time.monotonic_ns()
                assert listener.stdout is not None
                return max(0.0, (int(listener.stdout.readline()) - committed) / 1e9)

            wake(0.1)
            delays = [wake(chance.uniform(0.05, longest)) for _ in range(wakes)]
            after_quiet = [wake(quiet) for _ in range(quiet_wakes)]
            process = psutil.Process(listener.pid)
            time.sleep(min(idle, 5.0))  # it looks less often the longer nothing happens
            before = sum(process.cpu_times()[:2])
            time.sleep(idle)
            used = sum(process.cpu_times()[:2]) - before
        finally:
            listener.kill()
    return Report(delays=tuple(delays), after_quiet=tuple(after_quiet), quiet=quiet, idle_cpu=used / idle, idle=idle)


async def _make(path: Path) -> None:
    from letopis.outbox.file import OutboxFile

    outbox = await OutboxFile.open(path)
    await outbox.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--wakes", type=int, default=300)
    parser.add_argument("--idle", type=float, default=20.0, metavar="SECONDS")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="letopis-wake-") as folder:
        report = measure(Path(folder), wakes=given.wakes, idle=given.idle)
    print(report)
    return 0 if report.p99 < LATEST and report.idle_cpu < BUSIEST else 1


if __name__ == "__main__":
    raise SystemExit(main())

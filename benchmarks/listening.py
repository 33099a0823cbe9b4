"""Measure how soon another process hears of a commit, and what it costs to listen when nothing happens.

The listener is `letopis.outbox.file.change_watcher.FileWatcher`, as a relay uses it, in a process of its own; the times
are those of one monotonic clock that both processes read. The pause between two looks is a hundredth of the time since
the last commit, so the delay depends on how long it was quiet before: the pace of a conversation is what the limit is
for.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil

from letopis.outbox.file.change_watcher import FileWatcher, Signal
from letopis.outbox.file.identity import file_id_of
from letopis.outbox.file.outbox_file import OutboxFile
from tests.support.paths import ROOT

MAX_WAKE_P99_SECONDS = 0.020
"""Seconds, the 99th of a hundred wake-ups at the pace of a conversation."""
MAX_IDLE_CPU = 0.01
"""Of one processor, while nothing happens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured; delays in seconds."""

    delays: tuple[float, ...]
    after_quiet: tuple[float, ...]
    quiet: float
    idle_cpu: float
    idle: float


def measure(
    folder: Path, *, wakes: int, idle: float, longest: float = 1.0, quiet: float = 4.0, quiet_wakes: int = 3
) -> Report:
    """Measure in this folder."""
    path = folder / "bot.outbox.db"
    asyncio.run(_make(path))
    chance = random.Random(3)
    with (
        closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection,
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as listener,
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
    outbox = await OutboxFile.open(path)
    await outbox.close()


async def _listen(path: Path) -> None:
    """Print the moment of each commit that is heard of."""
    signal = Signal()
    async with FileWatcher(path, signal, file_id=file_id_of(path)):
        print("ready", flush=True)
        while True:
            seen = signal.generation
            await signal.wait(after=seen)
            print(time.monotonic_ns(), flush=True)


if __name__ == "__main__":
    asyncio.run(_listen(Path(sys.argv[1])))

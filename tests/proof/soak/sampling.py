"""Sample what processes and files use, from ``/proc`` and the file system."""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

from letopis.outbox import History
from tests.support.promises import SentPromises
from tests.support.victim import Bot, Talk

LEAST: Final = 9  # samples from which on something can be said


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What still counts as flat.

    :ivar share: how much the last third's median may exceed the second third's, as a share of it.
    :ivar more: and how much in any case, in the unit of the samples.
    :ivar most: what no sample may exceed.
    """

    share: float = 0.0
    more: float = 0.0
    most: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatness:
    """What was found of one series."""

    before: float
    after: float
    most: float
    problem: str


def judge(samples: Sequence[float], limit: Limit) -> Flatness:
    """Compare the last third of a series with the one before; the first is for warming up."""
    third = len(samples) // 3
    if len(samples) < LEAST:
        return Flatness(before=0, after=0, most=max(samples, default=0), problem=f"only {len(samples)} samples")
    before = statistics.median(samples[third:-third])
    after = statistics.median(samples[-third:])
    most = max(samples)
    problem = ""
    if after > before + max(before * limit.share, limit.more):
        problem = f"grew from {before:,.0f} to {after:,.0f}"
    elif limit.most is not None and most > limit.most:
        problem = f"reached {most:,.0f}, more than {limit.most:,.0f}"
    return Flatness(before=before, after=after, most=most, problem=problem)


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
        for what, where in ((FILE, path), (WAL, path.with_name(f"{path.name}-wal"))):
            self.series[name, what].append(where.stat().st_size if where.exists() else 0)

    def judged(self, limits: Mapping[str, Limit] = LIMITS) -> dict[tuple[str, str], Flatness]:
        return {key: judge(samples, limits[key[1]]) for key, samples in self.series.items()}


CONVERSATIONS: Final = 20
REPORT_INTERVAL_SECONDS: Final = 1.0  # seconds between two reports of the tasks that run, and between two reads


@dataclass(frozen=True, slots=True)
class Tasks:
    """How many tasks run in a bot."""

    count: int


def talk(outbox: str, store: str, ended: Event, rate: float, seed: str, leaks: int, says: Connection) -> None:
    """Append at a rate until asked to end, and send what is promised."""
    logging.disable()
    asyncio.run(_talk(Path(outbox), store, says, ended, rate=rate, seed=seed, leaks=leaks))


async def _talk(
    outbox: Path, store: str, says: Connection, ended: Event, *, rate: float, seed: str, leaks: int
) -> None:
    loop = asyncio.get_running_loop()
    leaked: list[Any] = []
    async with History(outbox, store=store, relay=False) as history:
        talk = Talk(prefix=outbox.stem, conversations=CONVERSATIONS)
        bot = Bot(history, SentPromises(says), seed=seed, talk=talk)
        begun, number = loop.time(), 0
        next_look = begun
        while not ended.is_set():
            number += 1
            receipt = await bot.append(number, most=1)
            bot.keep(receipt)
            if leaks:
                leaked.append((receipt, bytearray(1_024)))
                if number % leaks == 0:
                    leaked.append(outbox.with_suffix(".leak").open("a"))
            if loop.time() >= next_look:
                next_look = loop.time() + REPORT_INTERVAL_SECONDS
                says.send(Tasks(len(asyncio.all_tasks())))
                await history.messages(receipt.conversation_id, last=20)
            # What was slow is not made up for: the rate is a bound.
            begun = max(begun, loop.time() - 1 - number / rate)
            await asyncio.sleep(max(0.0, begun + number / rate - loop.time()))

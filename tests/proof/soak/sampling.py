"""Sample what processes and files use, from ``/proc`` and the file system."""

import asyncio
import itertools
import logging
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final, NamedTuple

from letopis.outbox import History
from tests.support.promises import SentPromises
from tests.support.victim import Bot, Talk

LEAST: Final = 9  # samples from which on something can be said


class Limit(NamedTuple):
    """What still counts as flat.

    :ivar share: how much the last third's median may exceed the second third's, as a share of it.
    :ivar more: and how much in any case, in the unit of the samples.
    :ivar most: what no sample may exceed.
    """

    share: float = 0.0
    more: float = 0.0
    most: float = math.inf


class Flatness(NamedTuple):
    """The medians of the second and the last third of a series, and what is wrong with it."""

    before: float
    after: float
    problem: str


def judge(samples: Sequence[float], limit: Limit) -> Flatness:
    """Compare the last third of a series with the one before; the first is for warming up."""
    third = len(samples) // 3
    if len(samples) < LEAST:
        return Flatness(0, 0, f"only {len(samples)} samples")
    before, after = statistics.median(samples[third:-third]), statistics.median(samples[-third:])
    problem = ""
    if after > before + max(before * limit.share, limit.more):
        problem = f"grew from {before:,.0f} to {after:,.0f}"
    elif max(samples) > limit.most:
        problem = f"reached {max(samples):,.0f}, more than {limit.most:,.0f}"
    return Flatness(before, after, problem)


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


class Samples(defaultdict[tuple[str, str], list[float]]):
    """Series of samples, by whose and by what."""

    def process(self, name: str, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            return
        words = dict(line.split(":", 1) for line in status.splitlines())
        if "VmRSS" in words:  # otherwise it is a zombie
            self[name, RSS].append(int(words["VmRSS"].split()[0]))
            self[name, THREADS].append(int(words["Threads"]))
            self[name, DESCRIPTORS].append(descriptors)

    def outbox(self, name: str, path: Path) -> None:
        for what, where in ((FILE, path), (WAL, path.with_name(f"{path.name}-wal"))):
            self[name, what].append(where.stat().st_size if where.exists() else 0)


CONVERSATIONS: Final = 20
REPORT_INTERVAL_SECONDS: Final = 1.0  # seconds between two reports of the tasks that run, and between two reads


def talk(outbox: str, store: str, ended: Event, rate: float, seed: str, leaks: int, says: Connection) -> None:
    """Append at a rate until asked to end; send what is promised, and now and then how many tasks run."""
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
        begun = next_look = loop.time()
        for number in itertools.count(1):
            if ended.is_set():
                break
            receipt = await bot.append(number, most=1)
            bot.keep(receipt)
            if leaks:
                leaked.append((receipt, bytearray(1_024)))
                if number % leaks == 0:
                    leaked.append(outbox.with_suffix(".leak").open("a"))
            if loop.time() >= next_look:
                next_look = loop.time() + REPORT_INTERVAL_SECONDS
                says.send(len(asyncio.all_tasks()))
                await history.messages(receipt.conversation_id, last=20)
            # What was slow is not made up for: the rate is a bound.
            begun = max(begun, loop.time() - 1 - number / rate)
            await asyncio.sleep(max(0.0, begun + number / rate - loop.time()))

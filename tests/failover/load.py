"""Have bots append and relays deliver while a cluster is broken; then everything has to be there."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import cycle
from signal import Signals
from typing import Final, NamedTuple

import asyncpg
import pymysql

from letopis.outbox.retry.policy import PROBE_POLICY
from tests.campaigns.invariants import Verdict, check
from tests.proof.harness import Tally, migrated
from tests.proof.network.bots import Bot, Watched, drain, strange, talking, total
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support.relays import until
from tests.support.servers import MariaDBServer, PostgresServer
from tests.support.servers.replicas import signal_all

STORES: Final = 4  # pools of connections, each with two bots and their relays
PACE: Final = 0.15  # seconds between two appends of one of the two tasks of a bot
LOAD_SECONDS: Final = 1.5  # of appends before a fault
TIMEOUT_SECONDS: Final = 60.0
LAST_START: Final = time.monotonic() + 480.0  # of a fault, by the start of the command: the whole takes 10 minutes
PROBED: Final = "CREATE TABLE IF NOT EXISTS letopis_probe (moment VARCHAR(40) PRIMARY KEY)"
PROBE: Final = "INSERT INTO letopis_probe VALUES (CURRENT_TIMESTAMP(6))"
REFUSALS: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, pymysql.Error)


class Cluster(ABC):
    """Three nodes, known by number."""

    nodes: Sequence[PostgresServer | MariaDBServer]

    @abstractmethod
    def writer(self) -> int:
        """Return the node that is written to."""

    @abstractmethod
    def settle(self) -> None:
        """Wait until all nodes take part."""

    @abstractmethod
    def pids(self, number: int) -> Sequence[int]: ...

    def send(self, how: Signals, number: int) -> None:
        for pid in self.pids(number):
            signal_all(pid, how)


class Fault(NamedTuple):
    """What happens to a cluster, and how it ends; both are given the node that is written to."""

    what: str
    do: Callable[[int], object]
    undo: Callable[[int], object]
    times: int = 1


async def play(
    options: Options, cluster: Cluster, url: str, faults: Sequence[Fault], *, where: str
) -> AsyncIterator[Row]:
    """Play faults under bots that reach the cluster by a URL, and yield a row each."""
    database = url.rpartition("/")[2]
    folder = options.folder / database
    folder.mkdir()
    await migrated(url)
    await asyncio.to_thread(cluster.nodes[await asyncio.to_thread(cluster.writer)].execute, PROBED)
    stores = [Watched(url) for _ in range(STORES)]
    async with talking(folder, stores, outboxes=2, pace=PACE, seed=where, probes=PROBE_POLICY, deadline=60) as bots:
        for fault in faults:
            if time.monotonic() > LAST_START:
                yield Row(what=fault.what, where=where, missing="there was no time left")
                continue
            options.tell(f"{where}: {fault.what}")
            row = await _play(cluster, fault, options.many(fault.times, 1), bots, database, where)
            yield row
            if row.violations:
                break  # what follows would say the same


async def _play(cluster: Cluster, fault: Fault, times: int, bots: list[Bot], database: str, where: str) -> Row:
    tally, failovers, resumptions = Tally(), list[float](), list[float]()
    acknowledged = total(bots, lambda bot: len(bot.acks))
    for bot in bots:
        bot.talking = True
    try:
        for _ in range(times):
            await asyncio.sleep(LOAD_SECONDS)
            writer = await asyncio.to_thread(cluster.writer)
            begun = time.monotonic()
            await asyncio.to_thread(fault.do, writer)
            await _until_written(cluster, writer)
            failovers.append(time.monotonic() - begun)
            resumptions.append(await until_delivered(bots))
            await asyncio.to_thread(fault.undo, writer)
            await asyncio.to_thread(cluster.settle)
    except (AssertionError, TimeoutError) as error:
        tally.problems.append(f"{type(error).__name__}: {error}")
    tally.take(await judge(bots, cluster.nodes[await asyncio.to_thread(cluster.writer)].database_url(database)))
    tally.blame(strange(bots))
    tally.count = len(resumptions)
    tally.notes = (
        f"{tally.acknowledged - acknowledged:,} events acknowledged; another node took a write after"
        f" {span(failovers)}; every relay had delivered again {span(resumptions)} later"
    )
    return tally.row(fault.what, where, "faults", times)


async def _until_written(cluster: Cluster, writer: int) -> None:
    others = [node for number, node in enumerate(cluster.nodes) if number != writer]
    async with asyncio.timeout(TIMEOUT_SECONDS):
        for node in cycle(others):
            try:
                await asyncio.to_thread(node.execute, PROBE)
            except REFUSALS:
                await asyncio.sleep(0.05)
            else:
                return


async def until_delivered(bots: Sequence[Bot]) -> float:
    begun, before = time.monotonic(), [bot.relay.stats.delivered for bot in bots]
    for bot, count in zip(bots, before, strict=True):
        await until(lambda bot=bot, count=count: bot.relay.stats.delivered > count, patience=TIMEOUT_SECONDS)  # type: ignore[misc]
    return time.monotonic() - begun


async def judge(bots: Sequence[Bot], url: str, *, drained: bool = True, patience: float = TIMEOUT_SECONDS) -> Verdict:
    """Stop all appends, wait until all is delivered, and examine the outboxes and the store until nothing is wrong."""
    end = time.monotonic() + patience
    await drain(bots, patience=patience)
    acks = [ack for bot in bots for ack in bot.acks]
    while True:
        looks = check([bot.outbox.path for bot in bots], url, acknowledged=acks, drained=drained)
        verdict = await asyncio.to_thread(asyncio.run, looks)
        if verdict.ok or time.monotonic() > end:
            return verdict
        await asyncio.sleep(0.5)  # a relay may not have noticed yet that the store was set back


def span(seconds: Sequence[float]) -> str:
    low, high = f"{min(seconds, default=0):.1f}", f"{max(seconds, default=0):.1f}"
    return f"{low} s" if low == high else f"{low} to {high} s"

"""Break a Citus cluster of our own, spread it further, and promote a standby, while bots append through two nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

from sqlalchemy.engine import make_url

from letopis import ConversationStore
from letopis.outbox.alerting.incidents import IncidentKind
from tests.failover.load import judge, span, until_delivered
from tests.proof.harness import Tally, streamed
from tests.proof.network.bots import Bot, Watched, strange, talking, total
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support.relays import end_all
from tests.support.sayings import problems
from tests.support.servers import OwnPostgresServer, PostgresServer
from tests.support.servers.citus import add_hosts, make_spread_store
from tests.support.servers.replicas import Replica

DATABASE: Final = "letopis_spread"
PARTITIONS: Final = 64
PACE: Final = 0.4  # seconds between two appends of one of the two tasks of a bot
LOAD_SECONDS: Final = 14.0  # of appends before a fault
DOWN_SECONDS: Final = 6.0
LAST_START: Final = time.monotonic() + 490.0  # of a fault, by the start of the command
COUNTS_EVERY_SECONDS: Final = 1.0  # a relay looks for lost events, every other time
SETTINGS: Final = {
    "shared_preload_libraries": "citus",
    "citus.local_hostname": "127.0.0.1",
    "citus.node_conninfo": "sslmode=prefer",
    "max_connections": "300",
    "wal_level": "logical",
    "output_plugin_libraries": "citus,pgoutput",
    "max_prepared_transactions": "300",
    "max_worker_processes": "40",
}
LIBRARIES: Final = sorted(Path("/usr/lib/postgresql").glob("*/lib/citus.so"))
WHERE: Final = "coordinator and workers"
_ALERTED: Final = "SELECT kind FROM letopis_outbox_incidents"


class Fault(NamedTuple):
    what: str
    do: Callable[[], object]
    undo: Callable[[], object] = lambda: None
    times: int = 1


class CitusCluster:
    """A coordinator, two workers and the standby of the second; a third worker that is added later."""

    def __init__(self, nodes: Sequence[OwnPostgresServer], standby: OwnPostgresServer) -> None:
        self.coordinator, self.first, self.second, self.third = nodes
        self.standby = standby
        add_hosts(DATABASE, [("127.0.0.1", node.port) for node in nodes[:3]])

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[CitusCluster]:
        with ExitStack() as stack:
            nodes = [stack.enter_context(with_citus(OwnPostgresServer(settings=SETTINGS))) for _ in range(4)]
            standby = stack.enter_context(with_citus(Replica(nodes[2], settings=SETTINGS)))
            nodes[2].execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            nodes[2].execute("SELECT pg_reload_conf()")
            yield cls(nodes, standby)

    def url(self, *nodes: OwnPostgresServer) -> str:
        return f"postgresql://postgres@{','.join(f'127.0.0.1:{node.port}' for node in nodes)}/{DATABASE}"

    def ask(self, statement: str) -> list[Any]:
        return PostgresServer(make_url(self.url(self.coordinator))).rows(statement)

    def add_worker(self) -> None:
        add_hosts(DATABASE, [("127.0.0.1", node.port) for node in (self.coordinator, self.third)])
        self.ask("SELECT rebalance_table_shards(shard_transfer_mode => 'force_logical')")

    def isolate(self) -> None:
        """Give one partition a shard of its own; writes to its old one wait meanwhile."""
        self.ask("SELECT isolate_tenant_to_new_shard('letopis_events', 7, 'CASCADE', 'block_writes')")

    def promote(self) -> None:
        """Lose a worker for good, and have its standby take its place."""
        self.second.stop("kill")
        self.standby.execute("SELECT pg_promote(true, 20)")
        [(node,)] = self.ask(f"SELECT nodeid FROM pg_dist_node WHERE nodeport = {self.second.port}")
        self.ask(f"SELECT citus_update_node({node}, '127.0.0.1', {self.standby.port}, force => true)")

    def faults(self, options: Options) -> list[Fault]:
        often = options.many(5, 1)
        first, coordinator = self.first, self.coordinator
        return [
            Fault("a worker killed with kill -9", self.second.kill, self.second.start, often),
            Fault("a worker more, and a rebalance", self.add_worker),
            Fault("the coordinator killed with kill -9", coordinator.kill, coordinator.start, often),
            Fault("one partition isolated", self.isolate),
            Fault("a worker's standby promoted", self.promote),
            Fault("the worker that is a host of the URL killed with kill -9", first.kill, first.start, often),
        ]


def with_citus(server: OwnPostgresServer) -> OwnPostgresServer:
    server._binaries = LIBRARIES[-1].parents[1] / "bin"
    return server


def prove(options: Options) -> Iterator[Row]:
    if not LIBRARIES:
        yield Row(what="hosts lost", where=WHERE, missing="a PostgreSQL that has Citus")
        return
    with CitusCluster.running() as cluster:
        yield from streamed(_play(options, cluster))


async def _play(options: Options, cluster: CitusCluster) -> AsyncIterator[Row]:
    one, other = cluster.url(cluster.coordinator, cluster.first), cluster.url(cluster.first, cluster.coordinator)
    await make_spread_store(cluster.url(cluster.coordinator), partitions=PARTITIONS)
    stores = [Watched(url) for url in (one, other, one)]
    interval = mock.patch("letopis.outbox.relay.reconcile.RECONCILE_INTERVAL_SECONDS", COUNTS_EVERY_SECONDS)
    with interval:
        async with talking(options.folder, stores, outboxes=2, pace=PACE, seed=WHERE, probes=None) as bots:
            alerts = set[str]()
            watch = asyncio.create_task(_watch(bots, alerts))
            try:
                for fault in cluster.faults(options):
                    if time.monotonic() > LAST_START:
                        yield Row(what=fault.what, where=WHERE, missing="there was no time left")
                        continue
                    options.tell(fault.what)
                    row = await _suffer(cluster, fault, bots, alerts)
                    yield row
                    if row.violations:
                        break
            finally:
                await end_all([watch])


async def _suffer(cluster: CitusCluster, fault: Fault, bots: list[Bot], alerts: set[str]) -> Row:
    tally, times, resumptions = Tally(), list[float](), list[float]()
    acknowledged = total(bots, lambda bot: len(bot.acks))
    for bot in bots:
        bot.talking = True
    try:
        for _ in range(fault.times):
            await asyncio.sleep(LOAD_SECONDS)
            begun = time.monotonic()
            await asyncio.to_thread(fault.do)
            times.append(time.monotonic() - begun)
            await asyncio.sleep(DOWN_SECONDS)
            await asyncio.to_thread(fault.undo)
            resumptions.append(await until_delivered(bots))
    except (AssertionError, TimeoutError) as error:
        tally.problems.append(f"{type(error).__name__}: {error}")
    url = cluster.url(cluster.coordinator)
    tally.take(await judge(bots, url))
    async with ConversationStore.open(url) as store:
        tally.blame(await problems(store))
    tally.blame([*strange(bots), *sorted(alerts)])
    tally.count = len(resumptions)
    done = "" if fault.undo is not Fault._field_defaults["undo"] else f"; it took {span(times)}"
    tally.notes = (
        f"{tally.acknowledged - acknowledged:,} events acknowledged{done}; every relay had delivered again"
        f" {span(resumptions)} later"
    )
    return tally.row(fault.what, WHERE, "faults", fault.times)


async def _watch(bots: Sequence[Bot], alerts: set[str]) -> None:
    """Note what a relay raises that no fault here is a reason for."""
    while True:
        for bot in bots:
            kinds = await bot.outbox.read(lambda connection: list(connection.exec_driver_sql(_ALERTED).scalars()))
            alerts.update(f"an alert of {kind}" for kind in kinds if kind == IncidentKind.HISTORY_INCOMPLETE)
        await asyncio.sleep(0.25)

"""Measure what the number of partitions gains and costs on PostgreSQL, with tables that it divides and without.

    python -m benchmarks.partition_counts             # 1, 8, 16 and 64 partitions, some minutes
    python -m benchmarks.partition_counts 1 16        # some of them

Prints milliseconds of processor time, the client's and the server's, of one call each; and how many events a second
some processes deliver side by side, one event a commit, with the share of samples that waited for a lock.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import ConversationStarted, ConversationStore, Message, Projection, RecordedEvent
from letopis.store.database.engines import create_store_engine
from letopis.store.read.reader import Reader
from letopis.store.testing.outbox import Outbox
from tests.support.native_partitions import make_divided_store
from tests.support.relays import relay_on, say
from tests.support.servers import PostgresServer

COUNTS: Final = (1, 8, 16, 64)
OWNERS, CONVERSATIONS_PER_OWNER, CALLS, BACKLOG = 50, 40, 150, 300
WRITERS, SECONDS = 4, 4.0
_TICK: Final = 1000 / os.sysconf("SC_CLK_TCK")
_BACKENDS: Final = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
_WAITS: Final = (
    "SELECT count(*), count(*) FILTER (WHERE wait_event_type = 'Lock') FROM pg_stat_activity"
    " WHERE datname = current_database() AND state <> 'idle' AND pid <> pg_backend_pid()"
)


class Nothing(Projection):
    """Reads the log and keeps nothing of it."""

    name = "custom.nothing"
    version = 1

    async def apply(self, connection: AsyncConnection, events: Sequence[RecordedEvent], *, replaying: bool) -> None:
        """Do nothing."""


async def fill(store: ConversationStore) -> None:
    """Deliver the conversations of some owners, of one message each."""
    outbox = Outbox()
    for number in range(OWNERS * CONVERSATIONS_PER_OWNER):
        started = ConversationStarted(owner_id=f"owner-{number % OWNERS}")
        outbox.append(f"chat-{number}", started, Message.user(f"question {number % 20} of many"))
    await outbox.deliver(store)
    while await store.catch_up_search():
        pass


async def processor_time(
    url: str, call: Callable[[], Awaitable[Any]], calls: int = CALLS, *, warm_up: int = 10
) -> tuple[float, float]:
    """Return milliseconds of processor time of a call: the client's, and those of the server's connections."""
    for _ in range(warm_up):
        await call()
    engine = create_store_engine(url)
    try:
        async with engine.connect() as connection:
            pids = [int(pid) for pid in (await connection.exec_driver_sql(_BACKENDS)).scalars()]
    finally:
        await engine.dispose()
    server, client = sum(map(_ticks, pids)), time.process_time()
    for _ in range(calls):
        await call()
    client = time.process_time() - client
    return client * 1000 / calls, (sum(map(_ticks, pids)) - server) * _TICK / calls


def _ticks(pid: int) -> int:
    try:
        values = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:
        return 0
    return int(values[11]) + int(values[12])


def deliver(url: str, number: int, ready: Any, counts: Any) -> None:
    """Deliver one event a commit, of one conversation after the other, for some seconds."""

    async def run() -> None:
        outbox, done = Outbox(f"{number}.db"), 0
        async with ConversationStore.open(url) as store:
            outbox.append(f"writer-{number}", Message.user("x"))
            await outbox.deliver(store)
            await asyncio.to_thread(ready.wait)
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                outbox.append(f"writer-{number}-{done % 20}", Message.user("x"))
                await outbox.deliver(store)
                done += 1
        counts[number] = done

    asyncio.run(run())


async def side_by_side(url: str) -> tuple[float, float]:
    """Return the events a second of some processes that deliver at once, and the share of waits for a lock."""
    context = multiprocessing.get_context("spawn")
    counts = context.Array("i", WRITERS)
    ready = context.Barrier(WRITERS + 1)
    processes = [context.Process(target=deliver, args=(url, number, ready, counts)) for number in range(WRITERS)]
    for process in processes:
        process.start()
    engine = create_store_engine(url)
    busy = waiting = 0
    try:
        async with engine.connect() as connection:
            await asyncio.to_thread(ready.wait, 60)
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                seen, locked = (await connection.execute(sa.text(_WAITS))).one()
                await connection.rollback()
                busy, waiting = busy + seen, waiting + locked
                await asyncio.sleep(0.02)
    finally:
        await engine.dispose()
        for process in processes:
            await asyncio.to_thread(process.join)
    return sum(counts) / SECONDS, waiting / max(1, busy)


async def backlog(url: str, store: ConversationStore) -> tuple[float, float, int]:
    """Return milliseconds of processor time an event of a relay that drains a backlog, and its commits."""
    with TemporaryDirectory() as folder:
        outbox = await OutboxFile.open(Path(folder) / "bot.outbox.db")
        try:
            for number in range(BACKLOG):
                await say(outbox, f"backlog-{number}", 4)
            relay = relay_on(outbox, store)
            await store.active("nobody")
            delivered = 0

            async def drain() -> None:
                nonlocal delivered
                while count := await relay.drain_once():
                    delivered += count

            client, server = await processor_time(url, drain, 1, warm_up=0)
            return client / delivered, server / delivered, relay.stats.batches
        finally:
            await outbox.close()


async def measure(server: PostgresServer, partitions: int, *, divided: bool) -> None:
    """Print a row of the table."""
    url = server.create_database()
    async with AsyncExitStack() as stack:
        stack.callback(server.drop_database, url)
        if divided:
            await make_divided_store(url, partitions=partitions)
        store = await stack.enter_async_context(
            ConversationStore.open(url, migrate=True, partitions=partitions, pool_size=2)
        )
        await fill(store)
        projector = store.projector(Nothing(), batch=5_000)
        await projector.catch_up()
        outbox = Outbox("one.db")

        async def one_event() -> None:
            outbox.append("one", Message.user("x"))
            await outbox.deliver(store)

        figures = [
            await processor_time(url, call)
            for call in (
                lambda: store.conversations(owner="owner-7", limit=20),
                lambda: store.conversations(limit=20),
                lambda: store.active("owner-7"),
                lambda: store.conversation("chat-7"),
                lambda: store.search("question 7", owner="owner-7"),
                lambda: store.runtime.read(Reader.heads),
                projector.step,
                one_event,
            )
        ]
        *drained, commits = await backlog(url, store)
        rate, waits = await side_by_side(url)
        cells = [f"{client:.2f} + {server_time:.2f}" for client, server_time in figures]
        kind = "divided" if divided else "whole"
        cells.append(f"{drained[0]:.2f} + {drained[1]:.2f}")
        cells += [str(commits), f"{rate:.0f}", f"{waits:.0%}"]
        print("|", partitions, "|", kind, "|", " | ".join(cells), "|", flush=True)


async def main(counts: Sequence[int]) -> None:
    """Measure each number of partitions with whole and with divided tables."""
    print("| partitions | tables | list of an owner | list of all | active | conversation | search", end="")
    print(f" | poll | step | one event | of a backlog | commits | {WRITERS} writers, events/s | waits for a lock |")
    with PostgresServer.find() as server:
        for partitions in counts:
            for divided in (False, True) if partitions > 1 else (False,):
                await measure(server, partitions, divided=divided)


if __name__ == "__main__":
    asyncio.run(main([int(one) for one in sys.argv[1:]] or COUNTS))

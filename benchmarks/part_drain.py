"""Measure rows 5, 6 and 7: from a full outbox into each store, beside a bare driver that writes the same."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import Any, Final

from sqlalchemy.engine import make_url

from benchmarks.backlogs import Backlog
from benchmarks.figures import Durability, Figure
from benchmarks.parts import Bench
from benchmarks.peers import TxOutbox
from benchmarks.raw_loops import raw_loop
from benchmarks.raw_rows import rows_after
from benchmarks.subjects import TEXT, Missed
from tests.support.servers import ServerUnavailable

KINDS: Final = ("postgresql", "mariadb", "sqlite")
CONVERSATIONS: Final = 2_000
EACH: Final = 100
HOT: Final = 100_000


async def drain(bench: Bench) -> None:
    """Measure all three stores, the hot conversation and txoutbox."""
    for kind in KINDS:
        try:
            await _store(bench, kind)
        except ServerUnavailable as reason:
            bench.miss(f"drain into {kind}", str(reason))
    await _hot(bench)
    await _txoutbox(bench)


async def _store(bench: Bench, kind: str) -> None:
    """Drain as much in all as the table asks for, a slice a round; the raw loop writes the same rows in turn."""
    rounds = bench.scale.rounds
    conversations = bench.scale.count(CONVERSATIONS, least=20)
    each = max(1, EACH // rounds)
    backlog = await Backlog.open(bench.new_folder() / "bot.outbox.db", bench.new_store(kind))
    raw = raw_loop(kind, bench.new_store(kind))
    await raw.open()
    ours, theirs = [], []
    try:
        # The first slice begins the conversations, and is not counted: continuing them is other work.
        await backlog.owe(conversations=conversations, each=1)
        await backlog.drain()
        await raw.write(raw.ready(await rows_after(backlog.store, 0)))
        for _ in range(rounds):
            position = await backlog.position()
            await backlog.owe(conversations=conversations, each=each)
            delivered, seconds = await backlog.drain()
            ours.append(delivered / seconds)
            batches = raw.ready(await rows_after(backlog.store, position))
            written = sum(len(batch.rows["letopis_events"]) for batch in batches)
            if written != delivered:
                raise RuntimeError(f"{delivered} events were delivered, and {written} are there")
            theirs.append(written / await raw.write(batches))
        durabilities = await backlog.durability(), await raw.durability()
    finally:
        await backlog.close()
        await raw.close()
    for key, name, samples, durability in (
        (f"drain.{kind}.letopis", f"Letopis into {kind}, from the outbox", ours, durabilities[0]),
        (f"drain.{kind}.raw", f"raw driver into {kind}, the same rows", theirs, durabilities[1]),
    ):
        bench.add(
            Figure(
                key=key,
                name=name,
                unit="events/s",
                samples=tuple(samples),
                durability=durability,
                details={"events": float(rounds * each * conversations)},
            )
        )


async def _hot(bench: Bench) -> None:
    rounds = bench.scale.rounds
    each = bench.scale.count(HOT, least=500) // rounds
    backlog = await Backlog.open(bench.new_folder() / "hot.outbox.db", bench.new_store("postgresql"))
    samples = []
    try:
        await backlog.owe(conversations=1, each=10)
        await backlog.drain()
        for _ in range(rounds):
            await backlog.owe(conversations=1, each=each)
            delivered, seconds = await backlog.drain()
            samples.append(delivered / seconds)
        durability = await backlog.durability()
    finally:
        await backlog.close()
    bench.add(
        Figure(
            key="drain.hot",
            name="Letopis into postgresql, one conversation",
            unit="events/s",
            samples=tuple(samples),
            durability=durability,
            details={"events": float(rounds * each)},
        )
    )


async def _txoutbox(bench: Bench) -> None:
    """Let txoutbox deliver with a row insert a message, as its documentation shows a publisher."""
    import asyncpg

    peer = TxOutbox()
    folder = bench.new_folder()
    try:
        await peer.open(folder)
        module = peer._import("txoutbox")
    except Missed as reason:
        bench.miss("txoutbox (drain)", str(reason))
        return
    url = make_url(bench.new_store("postgresql"))
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    count = bench.scale.count(3_000, least=100)
    samples = []
    async with asyncpg.create_pool(address, min_size=10, max_size=10) as pool:
        await pool.execute("CREATE TABLE messages (id bigint PRIMARY KEY, chat text NOT NULL, data text NOT NULL)")

        async def publish(message: Any) -> None:
            await pool.execute(
                "INSERT INTO messages VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING",
                message.id,
                message.key,
                message.payload.decode(),
            )

        relay = module.Relay(peer.storage, publish)
        for _ in range(bench.scale.rounds):
            _fill(peer.storage, count)
            begun = time.perf_counter()
            published = 0
            while (result := await relay.run_once()).claimed:
                published += result.published
            samples.append(published / (time.perf_counter() - begun))
        durability = Durability.of_postgresql(
            fsync=await pool.fetchval("SHOW fsync"), synchronous_commit=await pool.fetchval("SHOW synchronous_commit")
        )
    await peer.close()
    bench.add(
        Figure(
            key="drain.txoutbox",
            name="txoutbox into postgresql, a row insert a message",
            unit="events/s",
            samples=tuple(samples),
            durability=durability,
            details={"events": float(count * bench.scale.rounds)},
        )
    )


def _fill(storage: Any, count: int) -> None:
    """Put messages into its table in one transaction, through the method that takes the caller's connection."""
    with closing(sqlite3.connect(storage.path)) as connection, connection:
        for number in range(count):
            storage.insert(
                connection, "message.appended", {"role": "user", "content": TEXT}, key=f"chat-{number % CONVERSATIONS}"
            )

"""Measure row 15: the work of rows 1, 2, 5 and 10 on little data and on ten times as much, in turns."""

from __future__ import annotations

import sqlite3
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Final

from benchmarks.backlogs import Backlog
from benchmarks.figures import Figure
from benchmarks.filling import fill
from benchmarks.letopis_subject import Letopis
from benchmarks.part_read import _letopis, _rounds
from benchmarks.parts import Bench
from benchmarks.subjects import Seat, in_rounds, warm_up
from benchmarks.witness import Witness, watching
from letopis.outbox import History
from tests.support.servers import ServerUnavailable

OUTBOX: Final = 20_000
HISTORY: Final = 50_000
TIMES: Final = 10


class _Grown(Letopis):
    """Letopis on an outbox that already holds this many delivered events, as its retained tail."""

    def __init__(self, events: int, key: str, title: str) -> None:
        super().__init__()
        self._events = events
        self.key = key  # type: ignore[misc]  # of this one
        self.title = title  # type: ignore[misc]

    async def open(self, folder: Path) -> None:
        path = folder / "bot.outbox.db"
        made = await Backlog.open(path, f"sqlite:///{(folder / 'unused.db').as_posix()}")
        await made.owe(conversations=max(1, self._events // 100), each=100)
        await made.close()
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("UPDATE letopis_outbox_lanes SET delivered = head, pending_since = NULL")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        await super().open(folder)


async def growth(bench: Bench) -> None:
    """Measure appends, a drain and a read, each on little and on ten times as much, in turns."""
    await _append(bench)
    try:
        await _drain(bench)
        await _read(bench)
    except ServerUnavailable as reason:
        bench.miss("growth in postgresql", str(reason))


async def _append(bench: Bench) -> None:
    events = bench.scale.count(OUTBOX, least=200)
    async with AsyncExitStack() as stack:
        add = stack.enter_context(watching())
        seats = []
        for key, count in (("base", events), ("grown", TIMES * events)):
            folder = bench.new_folder()
            witness = Witness(folder)
            add(witness)
            subject = _Grown(count, key, f"append, {count:,} events in the outbox")
            await subject.open(folder)
            stack.push_async_callback(subject.close)
            seat = Seat(subject, witness, "")
            await warm_up(seat)
            seats.append(seat)
        for at_once in (1, 64):
            await in_rounds(
                seats,
                at_once=at_once,
                rounds=bench.scale.rounds,
                seconds=bench.scale.seconds(0.4),
                chance=bench.chance,
            )
            for seat in seats:
                bench.add(seat.figure(f"growth.append.{at_once}", at_once))


async def _drain(bench: Bench) -> None:
    held = bench.scale.count(HISTORY, least=1_000)
    each = bench.scale.count(20, least=2)
    backlogs: dict[str, Backlog] = {}
    rates: dict[str, list[float]] = {}
    try:
        for key, total in (("base", held), ("grown", TIMES * held)):
            filled = await fill(bench, "postgresql", total=total, named={})
            await filled.store.close()
            backlogs[key] = await Backlog.open(bench.new_folder() / "bot.outbox.db", filled.url)
            await backlogs[key].owe(conversations=200, each=1)
            await backlogs[key].drain()
        for _ in range(bench.scale.rounds):
            for key in bench.chance.sample(sorted(backlogs), len(backlogs)):
                await backlogs[key].owe(conversations=200, each=each)
                delivered, seconds = await backlogs[key].drain()
                rates.setdefault(key, []).append(delivered / seconds)
        for key, total in (("base", held), ("grown", TIMES * held)):
            bench.add(
                Figure(
                    key=f"growth.drain.{key}",
                    name=f"drain into postgresql, {total:,} messages in the history",
                    unit="events/s",
                    samples=tuple(rates[key]),
                    durability=await backlogs[key].durability(),
                )
            )
    finally:
        for backlog in backlogs.values():
            await backlog.close()


async def _read(bench: Bench) -> None:
    asks = {}
    async with AsyncExitStack() as stack:
        for key, times in (("base", 1), ("grown", TIMES)):
            count = bench.scale.count(HISTORY, least=1_000) * times
            filled = await fill(
                bench, "postgresql", total=count, named={"chat": bench.scale.count(1_000, least=60) * times}
            )
            stack.push_async_callback(filled.store.close)
            history = await stack.enter_async_context(
                History(bench.new_folder() / "bot.outbox.db", store=filled.store, relay=False, watch=False)
            )
            asks[f"growth.read.{key}"] = f"last 50, {count:,} messages in the history", _letopis(history, "chat")
        await _rounds(bench, asks, seconds=bench.scale.seconds(0.4))

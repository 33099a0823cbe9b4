"""Measure row 4: how late the bot's event loop runs while it appends and while it delivers."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from benchmarks.backlogs import Backlog
from benchmarks.figures import Figure, percentile
from benchmarks.lag import measured_lag
from benchmarks.letopis_subject import Letopis
from benchmarks.parts import Bench
from benchmarks.subjects import pace
from letopis.outbox.relay.relay import Relay

CROWD: Final = 64


async def loop(bench: Bench) -> None:
    """Measure the lag of an idle loop, one with 64 appends at once, and one with a drain into PostgreSQL."""
    rounds, seconds = bench.scale.rounds, bench.scale.seconds(1.0, least=0.2)
    found: dict[str, list[list[float]]] = {"idle": [], "append": [], "drain": []}
    speaker = Letopis()
    await speaker.open(bench.new_folder())
    backlog = await Backlog.open(bench.new_folder() / "bot.outbox.db", bench.new_store("postgresql"))
    try:
        for round_number in range(rounds):
            late: list[float] = []
            async with measured_lag(late):
                await asyncio.sleep(seconds)
            found["idle"].append(late)
            late = []
            async with measured_lag(late):
                await pace(speaker, at_once=CROWD, seconds=seconds, round_number=round_number)
            found["append"].append(late)
            await backlog.owe(conversations=200, each=bench.scale.count(50, least=5))
            late = []
            relay = Relay(backlog.outbox, backlog.store, holder="benchmark")
            until = time.monotonic() + 10 * seconds
            async with measured_lag(late):
                while await relay.drain() and time.monotonic() < until:
                    pass
            found["drain"].append(late)
    finally:
        await speaker.close()
        await backlog.close()
    names = {"idle": "nothing else to do", "append": "64 appends at once", "drain": "a drain into postgresql"}
    for key, name in names.items():
        bench.add(
            Figure(
                key=f"loop.{key}",
                name=name,
                unit="ms",
                samples=tuple(percentile(late, 0.99) * 1000 for late in found[key]),
                more_is_better=False,
                details={
                    "longest ms": max(max(late) for late in found[key]) * 1000,
                    "looks": float(sum(map(len, found[key]))),
                },
            )
        )

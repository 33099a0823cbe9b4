"""Measure row 8: a bot that appends 2,000 times a second while another process delivers."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from benchmarks.figures import Figure, percentile
from benchmarks.parts import Bench
from benchmarks.subjects import TEXT
from letopis.outbox import History
from letopis.store import Message
from tests.campaigns.processes import Place, Relay

RATE: Final = 2_000
EVERY: Final = 10
"""One in this many appends waits until it is saved, as in a bot that shows it."""


async def daemon(bench: Bench) -> None:
    """Measure how long appends take, and how long until they are in PostgreSQL, at a rate that does not wait."""
    folder = bench.new_folder()
    url = bench.new_store("postgresql")
    place = Place(folder=folder, outbox=folder / "bot.outbox.db", store=url)
    place.run("db", "upgrade", "--store", url, timeout=60)
    place.run("init", timeout=60)
    relay = Relay(place)
    appends: list[list[float]] = []
    saves: list[list[float]] = []
    rates: list[float] = []
    relay.ensure()
    try:
        async with History(place.outbox, store=url, relay=False, watch=False) as history:
            warm = await history.append("warm-up", Message.user(TEXT))
            if not await warm.saved(timeout=30):
                raise RuntimeError(f"the daemon does not deliver:\n{relay.tail()}")
            for round_number in range(bench.scale.rounds):
                appended, saved, rate = await _round(history, round_number, bench.scale.seconds(3.0, least=0.5))
                appends.append(appended)
                saves.append(saved)
                rates.append(rate)
                await history.drained(timeout=30)
    finally:
        relay.close()
    for key, name, found in (
        ("daemon.append", "append while the daemon drains", appends),
        ("daemon.saved", "from the append until it is saved", saves),
    ):
        bench.add(
            Figure(
                key=key,
                name=name,
                unit="ms",
                samples=tuple(percentile(one, 0.99) * 1000 for one in found),
                more_is_better=False,
                details={
                    "p50 ms": percentile([percentile(one, 0.5) for one in found], 0.5) * 1000,
                    "said /s": percentile(rates, 0.5),
                },
            )
        )


async def _round(history: History, round_number: int, seconds: float) -> tuple[list[float], list[float], float]:
    """Append at the rate, whether or not earlier appends have returned."""
    appended: list[float] = []
    saved: list[float] = []
    clock = time.perf_counter

    async def say(number: int, due: float) -> None:
        # From when it was due: a bot that is late makes its users wait too.
        receipt = await history.append(f"chat-{round_number}-{number % 200}", Message.user(TEXT))
        appended.append(clock() - due)
        if number % EVERY == 0:
            if not await receipt.saved(timeout=30):
                raise RuntimeError("an append was not saved within 30 s")
            saved.append(clock() - due)

    begun = clock()
    async with asyncio.TaskGroup() as group:
        for number in range(int(RATE * seconds)):
            due = begun + number / RATE
            if (left := due - clock()) > 0:
                await asyncio.sleep(left)
            group.create_task(say(number, due))
        said = clock() - begun
    return appended, saved, len(appended) / said

"""Measure row 9: how soon a relay begins with what was appended, in the same process and in another."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress

from benchmarks import listening
from benchmarks.figures import Figure, percentile
from benchmarks.parts import Bench
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.store import ConversationStore, Message
from letopis.store.rules.apply_plan import ApplyResult, LaneBatch, Origin


async def wake(bench: Bench) -> None:
    """Measure both, and what listening costs while nothing happens."""
    inside = await _inside(bench)
    bench.add(
        Figure(
            key="wake.inside",
            name="relay in the same process",
            unit="ms",
            samples=tuple(percentile(one, 0.99) * 1000 for one in inside),
            more_is_better=False,
            details={"p50 ms": percentile([percentile(one, 0.5) for one in inside], 0.5) * 1000},
        )
    )
    reports = []
    rounds = bench.scale.rounds
    for number in range(rounds):
        last = number == rounds - 1
        reports.append(
            await asyncio.to_thread(
                listening.measure,
                bench.new_folder(),
                wakes=bench.scale.count(20, least=10),
                # Nothing happens in the last round only: the time is the same whatever the round.
                idle=bench.scale.seconds(10.0, least=1.0) if last else 0.1,
                longest=0.5 if bench.scale.factor >= 1 else 0.1,
                quiet=0.2,
                quiet_wakes=1,
            )
        )
    bench.add(
        Figure(
            key="wake.across",
            name="relay in another process",
            unit="ms",
            samples=tuple(percentile(report.delays, 0.99) * 1000 for report in reports),
            more_is_better=False,
            details={
                "p50 ms": percentile([delay for report in reports for delay in report.delays], 0.5) * 1000,
                "idle CPU %": reports[-1].idle_cpu * 100,
            },
        )
    )


class _Waiting(ConversationStore):
    """A store that notes when it was called."""

    called_at = 0.0

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        self.called_at = time.perf_counter()
        return await super().apply(origin, batch)


async def _inside(bench: Bench) -> list[list[float]]:
    """Return the seconds from an append that has returned to the call of the store, by rounds."""
    chance = random.Random(3)
    outbox = await OutboxFile.open(bench.new_folder() / "bot.outbox.db")
    store = _Waiting(bench.new_store("sqlite"))
    await store.prepare()
    relay = Relay(outbox, store, holder="benchmark")
    running = asyncio.create_task(relay.run())
    rounds = []
    try:
        for _ in range(bench.scale.rounds):
            waits = []
            for number in range(bench.scale.count(50, least=10)):
                await asyncio.sleep(chance.uniform(0.02, 0.06))
                begun_before = store.called_at
                await outbox.append(prepare(f"chat-{number}", [Message.user("hello")]))
                appended = time.perf_counter()
                seen = outbox.changed.generation
                with suppress(TimeoutError):
                    async with asyncio.timeout(5):
                        while store.called_at == begun_before:
                            await outbox.changed.wait(after=seen)
                            seen = outbox.changed.generation
                waits.append(max(0.0, store.called_at - appended) if store.called_at != begun_before else 5.0)
            rounds.append(waits)
    finally:
        relay.stop()
        await running
        await outbox.close()
        await store.close()
    return rounds

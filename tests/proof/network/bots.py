"""Append to outboxes all the while, deliver each with a relay of its own, and keep what was promised."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store import ConversationStore, Message
from letopis.store.database.faults import StoreFault
from letopis.store.database.timeouts import Timeouts
from letopis.store.errors import LetopisError
from letopis.store.rules.apply_plan import ApplyResult, LaneApplied, LaneBatch, Origin
from tests.campaigns.invariants import Ack
from tests.support.relays import figures

SHORT_TIMEOUTS: Final = Timeouts(connect=0.4, statement=0.3, lock=1.0)
PROBES: Final = RetryPolicy(base=0.03, factor=2.0, cap=0.2, jitter="full", attempts=0)
"""When an unavailable store is probed again: soon, since outages are short here."""
CONVERSATIONS: Final = 6


class Watched(ConversationStore):
    """A history store that counts what went wrong with it, by class and code."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.seen: Counter[str] = Counter()
        self.false_promises = 0

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        try:
            return await super().apply(origin, batch)
        except StoreFault as fault:
            self.seen[f"{fault.fault_class} {fault.code}"] += 1
            raise

    async def ping(self) -> None:
        try:
            await super().ping()
        except StoreFault as fault:
            self.seen[f"{fault.fault_class} {fault.code}"] += 1
            raise


@dataclass(slots=True)
class Bot:
    """One outbox, its relay, and what appends to it have returned."""

    outbox: OutboxFile
    store: Watched
    relay: Relay
    chance: random.Random
    shared: str
    pace: float
    acks: list[Ack] = field(default_factory=list)
    talking: bool = True
    saying: int = 0

    async def talk(self) -> None:
        """Append without end, to conversations of its own and to some that other bots write to as well."""
        number = 0
        while True:
            await asyncio.sleep(self.chance.uniform(0, 2 * self.pace))
            if not self.talking:
                continue
            number += 1
            mine = self.chance.random() < 0.8
            name = f"{self.outbox.path.stem if mine else self.shared}-{self.chance.randrange(CONVERSATIONS)}"
            long, many = self.chance.randrange(200), self.chance.choice((1, 1, 3))
            said = [Message.user(f"{number} {'ж' * long}") for _ in range(many)]
            self.saying += 1
            try:
                appended = await self.outbox.append(prepare(name, said, owner=f"owner of {name}"))
            finally:
                self.saying -= 1
            self.acks += (
                Ack(name, event_id, sequence)
                for event_id, sequence in zip(appended.event_ids, appended.sequences, strict=True)
            )


@asynccontextmanager
async def talking(
    folder: Path,
    stores: Sequence[Watched],
    *,
    outboxes: int,
    pace: float,
    seed: str,
    probes: RetryPolicy = PROBES,
    deadline: float = 5.0,
    retention: Retention | None = None,
) -> AsyncIterator[list[Bot]]:
    """Have bots append and relays deliver; without ``retention``, nothing is pruned."""
    async with AsyncExitStack() as stack:
        bots: list[Bot] = []
        for place, store in enumerate(stores):
            stack.push_async_callback(store.close)
            for number in range(outboxes):
                chance = random.Random(f"{seed} {place} {number}")
                outbox = await OutboxFile.open(folder / f"bot-{place}-{number}.outbox.db")
                stack.push_async_callback(outbox.close)
                breaker = Breaker(clock=Clock(), uniform=chance.uniform, probes=probes)
                chores = () if retention is None else (Pruner(retention, outbox.now_us),)
                relay = Relay(outbox, store, breaker=breaker, deadline=deadline, chores=chores, random=chance)
                bots.append(Bot(outbox, store, relay, chance, shared=f"all-{place}", pace=pace))
        tasks = [asyncio.create_task(one) for bot in bots for one in (bot.relay.run(), bot.talk(), bot.talk())]
        stack.push_async_callback(_end, bots, tasks)
        yield bots


async def _end(bots: Sequence[Bot], tasks: Sequence[asyncio.Task[None]]) -> None:
    for bot in bots:
        bot.relay.stop()
    await asyncio.wait(tasks[::3], timeout=10)
    for task in tasks:
        task.cancel()
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(end, Exception):
            raise end


async def drain(bots: Sequence[Bot], *, patience: float) -> float | None:
    """Stop all appends, and wait until nothing is pending; return the seconds that took, ``None`` for too many."""
    for bot in bots:
        bot.talking = False
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while loop.time() < begun + patience:
        quiet = not any(bot.saying for bot in bots)
        if quiet and not any([(await figures(bot.outbox)).pending for bot in bots]):
            return loop.time() - begun
        await asyncio.sleep(0.05)
    return None


def total(bots: Sequence[Bot], of: Callable[[Bot], int]) -> int:
    """Add up a figure of all bots."""
    return sum(of(bot) for bot in bots)


TOO_SOON: Final = 0.02  # seconds after which a hasty store says yes


class Hasty(Watched):
    """A history store that says yes before it knows."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._promised: set[asyncio.Task[None]] = set()

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        task = asyncio.create_task(self._really(origin, batch))
        self._promised.add(task)
        task.add_done_callback(self._promised.discard)
        await asyncio.wait((task,), timeout=TOO_SOON)
        return ApplyResult(
            applied=tuple(
                LaneApplied(
                    conversation_id=lane.conversation_id,
                    head=lane.deliveries[-1].sequence,
                    inserted=len(lane.deliveries),
                    duplicates=0,
                )
                for lane in batch
            ),
            refused=(),
        )

    async def close(self) -> None:
        await asyncio.gather(*self._promised)
        await super().close()

    async def _really(self, origin: Origin, batch: Sequence[LaneBatch]) -> None:
        try:
            await super().apply(origin, batch)
        except LetopisError:
            self.false_promises += 1  # the answer is no longer awaited

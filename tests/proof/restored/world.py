"""Ask a bot, its relay and its store what they show after something was done to the store."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Final

from sqlalchemy.exc import DBAPIError

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.operations.status import Status, read_status
from letopis.outbox.relay.relay import Relay
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store import ConversationStore, Message
from tests.campaigns.invariants import check, read_outbox, read_store
from tests.campaigns.states import Ack
from tests.support.relays import drained, end
from tests.support.store_changes import Copy, copied, put_back

TIMEOUT_SECONDS: Final = 30.0  # seconds in which a store has to be whole again, or its loss told
POLITE: Final = 20  # how often a restore is tried that met a delivery and was rolled back for it
_PROBES: Final = RetryPolicy(base=0.05, factor=2, cap=0.2, jitter="none", attempts=1)


@dataclass(slots=True)
class World:
    """One bot on one store."""

    kind: str
    url: str
    outbox: OutboxFile
    store: ConversationStore
    relay: Relay
    chance: Random
    acks: list[Ack] = field(default_factory=list)

    async def say(self, events: int) -> None:
        """Append this many messages, in random conversations, some of them new."""
        for _ in range(events):
            await self.say_in(f"chat-{self.chance.randrange(12)}", 1)

    async def say_in(self, name: str, events: int) -> None:
        said = prepare(name, [Message.user(f"{name} says {number}") for number in range(events)])
        done = await self.outbox.append(said)
        self.acks += [Ack(name, *place) for place in zip(done.event_ids, done.sequences, strict=True)]

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[None]:
        """Have the bot talk for the time of a block."""

        async def talk() -> None:
            while True:
                await self.say(self.chance.randrange(1, 4))
                await asyncio.sleep(self.chance.uniform(0, 0.02))

        task = asyncio.create_task(talk())
        try:
            yield
        finally:
            await end(task)

    async def delivered(self) -> None:
        """Wait until nothing is pending."""
        await drained(self.outbox, patience=TIMEOUT_SECONDS)

    async def backup(self) -> Copy:
        """Return the rows of the store."""
        return await copied(self.url)

    async def restore(self, copy: Copy) -> None:
        for _ in range(POLITE):
            try:
                return await put_back(self.url, copy)
            except DBAPIError:  # it met a delivery: an operator would try again
                await asyncio.sleep(0.05)
        raise TimeoutError("the store could not be set back beside the deliveries")

    async def prune(self, keep_last: int) -> None:
        """Prune what was delivered, as far as the retention allows."""
        prune = Pruner(Retention(keep_last=keep_last, keep_for=timedelta(0)), self.outbox.now_us)
        while await self.outbox.write(prune):
            pass

    async def status(self) -> Status:
        """Return what ``letopis status`` shows."""
        return await self.outbox.read(lambda connection: read_status(connection, now_us=self.outbox.now_us()))

    async def whole(self) -> list[str]:
        """Wait until the store holds everything; return what it lacks then, or what else is wrong."""
        problems: list[str] = []

        async def well() -> bool:
            verdict = await check([self.outbox.path], self.url, acknowledged=self.acks, drained=True)
            problems[:] = verdict.problems
            return verdict.ok

        return await self._within(well, problems)

    async def told(self) -> list[str]:
        """Wait until each conversation is complete, or reported to have lost what it lacks; return the rest."""
        problems: list[str] = []

        async def well() -> bool:
            outbox = await asyncio.to_thread(read_outbox, self.outbox.path)
            stored = Counter(one.conversation_id for one in (await read_store(self.url)).events)
            status = await self.status()
            lacking = {name for name, lane in outbox.lanes.items() if stored[name] < lane.delivered}
            blocked = {name for name, lane in outbox.lanes.items() if lane.state == "blocked"}
            problems[:] = [f"{name!r} lacks events, and nobody is told" for name in sorted(lacking - blocked)]
            problems.extend(f"{name!r} is blocked and whole" for name in sorted(blocked - lacking))
            if status.lost != len(lacking) or status.healthy == bool(lacking):
                problems.append(f"status counts {status.lost} conversations that lost events, they are {len(lacking)}")
            return not (problems or status.lanes["ready"] or status.lanes["retrying"])

        return await self._within(well, problems)

    async def _within(self, well: Callable[[], Awaitable[bool]], problems: list[str]) -> list[str]:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while not await well():  # noqa: ASYNC110 - nothing there rings
                    await asyncio.sleep(0.1)  # a look reads all of both
        except TimeoutError:
            return problems[:3] or ["it did not come to rest"]
        return []


@asynccontextmanager
async def world(kind: str, url: str, folder: Path, chance: Random) -> AsyncIterator[World]:
    """Open one in a folder of its own, with a relay that runs."""
    outbox = await OutboxFile.open(folder / "bot.outbox.db")
    try:
        async with ConversationStore.open(url, migrate=True) as store:
            breaker = Breaker(clock=Clock(), uniform=chance.uniform, probes=_PROBES)
            relay = Relay(outbox, store, random=chance, breaker=breaker)
            task = asyncio.create_task(relay.run())
            try:
                yield World(kind, url, outbox, store, relay, chance)
            finally:
                await end(task)
    finally:
        await outbox.close()

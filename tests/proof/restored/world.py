"""Set up a bot on a store, with relays here and moves in processes of their own."""

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, Final

from letopis import ConversationStore, History, Message, OutboxFile, Receipt, Retention, RetryPolicy
from letopis.outbox import Relay
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.retention import Pruner
from letopis.outbox.retry.circuit_breaker import Breaker
from tests.campaigns.invariants import check, read_outbox, read_store
from tests.proof import harness
from tests.proof.harness import Setting, migrated
from tests.proof.stores import fresh
from tests.support import relays
from tests.support.relays import drained, end
from tests.support.store_changes import Copy, copied, put_back_beside
from tests.support.victim import OUTBOX

TIMEOUT_SECONDS: Final = 30.0  # that everything else is given
BLIND_SECONDS: Final = 6.0  # that a control is given to notice, which it cannot; a quarter of it in the short form
WAIT: Final = 120.0  # seconds after which a process that does not end is killed
POLITE: Final = 20  # how often a restore is tried that met a delivery and was rolled back for it
CHILD: Final = Path(__file__).with_name("child.py")
_PROBES: Final = RetryPolicy(base=0.05, factor=2, cap=0.2, jitter="none", attempts=1)


@dataclass(slots=True, kw_only=True)
class World(harness.World):
    """A bot that names ``url`` as its history store, and does not deliver itself; what its appends returned."""

    here: Setting
    chance: Random
    history: History
    stack: ExitStack
    receipts: list[Receipt] = field(default_factory=list)
    relay: Relay = field(init=False)  # the one that runs all the while, in a world that is `served`

    @property
    def patience(self) -> float:
        """Seconds in which a store has to be whole again, or its loss told."""
        return BLIND_SECONDS / self.here.many(1, 4) if self.here.control else TIMEOUT_SECONDS

    async def wait(self, true: Callable[[], Any], problem: str, *, patience: float = 0) -> None:
        """Wait until something is true, and note a problem if it does not come."""
        self.tally.require(await relays.comes_true(true, patience=patience or self.patience), problem)

    def database(self, kind: str) -> str:
        """Return the URL of another database, which is empty; of SQLite, of a file that is not there."""
        name = f"other-{self.chance.getrandbits(48):012x}"
        return self.stack.enter_context(fresh(kind, self.folder, name)).url

    async def say(self, events: int) -> None:
        for _ in range(events):
            await self.say_in(f"chat-{self.chance.randrange(12)}", 1)

    async def say_in(self, name: str, events: int) -> None:
        said = [Message.user(f"{name} says {number}") for number in range(events)]
        self.receipts.append(await self.history.append(name, *said))
        self.keep(self.receipts[-1])

    @asynccontextmanager
    async def talking(self, pace: float = 0.02) -> AsyncIterator[None]:
        async def talk() -> None:
            while True:
                await self.say(self.chance.randrange(1, 4))
                await asyncio.sleep(self.chance.uniform(0, pace))

        task = asyncio.create_task(talk())
        try:
            yield
            if task.done():
                task.result()
        finally:
            await end(task)

    @asynccontextmanager
    async def delivering(self, url: str) -> AsyncIterator[Relay]:
        async with AsyncExitStack() as stack:
            outbox = await OutboxFile.open(self.outbox)
            stack.push_async_callback(outbox.close)
            store = await stack.enter_async_context(ConversationStore.open(url, migrate=True))
            breaker = Breaker(clock=Clock(), uniform=self.chance.uniform, probes=_PROBES)
            relay = Relay(outbox, store, random=self.chance, breaker=breaker)
            yield await stack.enter_async_context(relays.running(relay))

    async def saved(self, events: int) -> Copy:
        """Say something, and return a backup of the store once it has it."""
        await self.say(events)
        await drained(self.history.outbox, patience=self.patience)
        return await copied(self.url)

    async def restore(self, copy: Copy) -> None:
        if not await put_back_beside(self.url, copy, tries=POLITE):
            raise TimeoutError("the store could not be set back beside the deliveries")

    async def prune(self, keep_last: int = 0) -> None:
        """Prune what was delivered, as far as the retention allows."""
        outbox = self.history.outbox
        prune = Pruner(Retention(keep_last=keep_last, keep_for=timedelta(0)), outbox.now_us)
        while await outbox.write(prune):
            pass

    async def whole(self, url: str = "") -> None:
        """Wait until a store holds everything, once and in order."""

        async def wrong() -> Sequence[str]:
            return (await check([self.outbox], url or self.url, acknowledged=self.acks, drained=True)).problems

        await self._within(wrong)

    async def told(self) -> None:
        """Wait until each conversation is complete, or reported to have lost what it lacks."""

        async def wrong() -> Sequence[str]:
            outbox = await asyncio.to_thread(read_outbox, self.outbox)
            stored = Counter(one.conversation_id for one in (await read_store(self.url)).events)
            status = await self.history.status()
            lacking = {name for name, lane in outbox.lanes.items() if stored[name] < lane.delivered}
            blocked = {name for name, lane in outbox.lanes.items() if lane.state == "blocked"}
            problems = [f"{name!r} lacks events, and nobody is told" for name in sorted(lacking - blocked)]
            problems += [f"{name!r} is blocked and whole" for name in sorted(blocked - lacking)]
            if status.lost != len(lacking) or status.healthy == bool(lacking):
                problems.append(f"status counts {status.lost} conversations that lost events, they are {len(lacking)}")
            resting = status.lanes["ready"] + status.lanes["retrying"] == 0
            return problems or ([] if resting else ["it did not come to rest"])

        await self._within(wrong)

    async def _within(self, wrong: Callable[[], Awaitable[Sequence[str]]]) -> None:
        end = time.monotonic() + self.patience
        while (problems := await wrong()) and time.monotonic() < end:  # noqa: ASYNC110 - nothing there rings
            await asyncio.sleep(0.1)  # a look reads all of both
        self.tally.problems += problems[:3]

    def move(self, target: str) -> subprocess.Popen[str]:
        """Start a move to another store in a process of its own, in an empty environment."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("LETOPIS_")}
        words = ("--outbox", str(self.outbox), "--store", self.url, "move", "--to", target, "--json")
        return subprocess.Popen(
            [sys.executable, "-P", str(CHILD), "closing" if self.here.control else "", *words],
            cwd=self.folder,
            env=clean,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )


@contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@asynccontextmanager
async def world(here: Setting, chance: Random) -> AsyncIterator[World]:
    """Open one, whose bot has said nothing yet."""
    with ExitStack() as stack:
        await migrated(here.url)
        async with History(here.folder / OUTBOX, store=here.url, relay=False) as history:
            yield World(folder=here.folder, url=here.url, here=here, chance=chance, history=history, stack=stack)


@asynccontextmanager
async def served(here: Setting, chance: Random) -> AsyncIterator[World]:
    async with world(here, chance) as opened, opened.delivering(here.url) as opened.relay:
        yield opened

"""Run a relay's real decisions over a store that does what the case says, in virtual time.

Real: what is due, how a batch is split, what is charged, the breaker, what is written back to the lanes. Made up: the
store, the clock and the thread of the outbox file, whose tables are in memory.
"""

import asyncio
import random
import sqlite3
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from letopis import ConversationStore, Message, OutboxFile, RetryPolicy
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.append import append_events
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.lanes import find_lane
from letopis.outbox.relay.dispatcher import Dispatcher
from letopis.outbox.relay.lease import Lease
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.store import FaultClass, LaneBatch, Origin
from tests.proof.simulation.loop import VirtualLoop
from tests.support.relays import ToldStore, end_all, fault

T = TypeVar("T")

START: Final = datetime(2026, 11, 26, tzinfo=UTC)
APPLY: Final = 0.004  # seconds that the store takes for a batch
FLOOR: Final = 1.0  # seconds after which a relay looks again, as the real one does
LONGEST: Final = 900.0  # seconds after which a case is given up


class MemoryFile:
    """What a relay needs of an outbox file, in memory."""

    def __init__(self) -> None:
        self._engine = sa.create_engine("sqlite://", poolclass=StaticPool)
        self._connection = self._engine.connect()
        driver: Any = self._connection.connection.driver_connection
        driver.executescript(_schema())
        self.origin = Origin(origin_id=UUID(int=1), epoch=1, name="case.outbox.db")

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        await asyncio.sleep(0)
        return work(self._connection)

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        await asyncio.sleep(0)
        done = work(self._connection)
        self._connection.commit()
        return done

    async def maintain(self) -> None:
        await asyncio.sleep(0)

    def truncate_wal(self) -> None:
        """Do nothing: there is no WAL."""

    def troubled(self) -> list[tuple[str, str, int, int]]:
        """Return name, state, sequence delivered and attempts of each lane that something was charged to."""
        rows = self._connection.exec_driver_sql(
            "SELECT conversation_id, state, delivered, attempts FROM letopis_outbox_lanes"
            " WHERE attempts > 0 OR state = 'blocked'"
        )
        return [(name, state, delivered, attempts) for name, state, delivered, attempts in rows]

    def append(self, conversation_id: str, now_us: int) -> int:
        """Append a message; return the last sequence."""
        cursor = self._connection.connection.cursor()
        append_events(cursor, [prepare(conversation_id, [Message.user("words")])], now_us=now_us)
        cursor.close()
        lane = find_lane(self._connection, conversation_id)
        self._connection.commit()
        return 0 if lane is None else lane.head

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What happens in one run.

    :ivar others: conversations that talk and are sound.
    :ivar fault: class and code of what the store answers.
    :ivar bad: conversations with an event that the store does not take.
    :ivar everybody: the store answers so to every conversation, for this many seconds from the first one on.
    :ivar ordinary: whether it takes ordinary events nevertheless: what a trial cannot find out.
    :ivar alone: seconds that the bad ones are alone in the outbox before the others begin.
    :ivar turns: messages that each conversation says.
    :ivar asleep: seconds until the relay begins: then all of them are in the batch that fails.
    :ivar bad_at: the sequence of the event that the store does not take.
    """

    seed: int
    others: int
    fault: tuple[FaultClass, str]
    bad: int = 1
    everybody: float = 0.0
    ordinary: bool = False
    alone: float = 0.0
    turns: int = 4
    asleep: float = 0.0
    bad_at: int = 3


@dataclass(slots=True)
class Came:
    """The result.

    :ivar waits: of the sound conversations: seconds from an event's append until the store held it, the longest.
    :ivar blocked: conversations that wait for an operator at the end, with the sequence delivered before.
    :ivar at_worst: the most conversations that were blocked at any time.
    :ivar told: seconds until the breaker was open with the fault of the store as its reason; ``None`` if never.
    :ivar healed: seconds from the fix until the store held everything; ``None`` if it never did.
    :ivar charged: attempts charged to any conversation by the end.
    """

    waits: float = 0.0
    blocked: dict[str, int] = field(default_factory=dict)
    at_worst: int = 0
    told: float | None = None
    healed: float | None = None
    charged: int = 0


def run(case: Case) -> Came:
    """Run one case; the same case gives the same outcome."""
    loop = VirtualLoop(random.Random(case.seed))
    try:
        return loop.run_until_complete(_World(case, loop).live())
    finally:
        loop.close()


class _World:
    def __init__(self, case: Case, loop: VirtualLoop) -> None:
        self._case = case
        self._loop = loop
        self._chance = random.Random(case.seed * 7_919 + case.others)
        self._file = MemoryFile()
        self._store = ToldStore(self._refuse)
        self._store.before = partial(asyncio.sleep, APPLY)
        clock = Clock(now=self._now, monotonic=loop.time)
        self._breaker = Breaker(clock=clock, uniform=self._chance.uniform)
        self._dispatcher = Dispatcher(
            cast("OutboxFile", self._file),
            cast("ConversationStore", self._store),
            cast("Lease", SimpleNamespace(held=False, incarnation=0, give_sign_of_life=lambda: None)),
            policy=RetryPolicy(base=1, factor=2, jitter="none", attempts=3),
            clock=clock,
            uniform=self._chance.uniform,
            breaker=self._breaker,
            batch=500,
            deadline=60.0,
        )
        self._began = loop.time()
        self._mended = case.everybody == 0
        self._owed: dict[str, deque[tuple[int, float]]] = {}
        self._wake = asyncio.Event()
        self._came = Came()
        self._bad = [f"bad-{number}" for number in range(case.bad if case.everybody == 0 else 0)]
        self._good = [f"c{number}" for number in range(case.others)]

    def _now(self) -> datetime:
        return START + timedelta(seconds=self._loop.time())

    def _refuse(self, lanes: Sequence[LaneBatch]) -> BaseException | None:
        if not self._mended:
            trial = any(one.conversation_id.startswith("letopis-trial-") for one in lanes)
            return None if not lanes or (trial and self._case.ordinary) else fault(*self._case.fault)
        failing = any(
            one.conversation_id in self._bad and any(each.sequence == self._case.bad_at for each in one.deliveries)
            for one in lanes
        )
        return fault(*self._case.fault) if failing else None

    def _say(self, name: str) -> None:
        head = self._file.append(name, int(self._now().timestamp() * 1_000_000))
        self._owed.setdefault(name, deque()).append((head, self._loop.time()))
        self._wake.set()

    async def _talk(self, name: str, after: float) -> None:
        await asyncio.sleep(after)
        if name in self._bad:
            self._say(name)  # the oldest debt of all
        for _ in range(self._case.turns):
            await asyncio.sleep(self._chance.uniform(0.0, 4.0))
            self._say(name)

    async def live(self) -> Came:
        talking = [asyncio.create_task(self._talk(name, 0.0)) for name in self._bad]
        talking += [asyncio.create_task(self._talk(name, self._case.alone)) for name in self._good]
        try:
            await asyncio.sleep(self._case.asleep)
            self._began = self._loop.time()
            while self._loop.time() - self._began < LONGEST:
                self._wake.clear()
                step = await self._dispatcher.run_batches(limit=1)
                self._look()
                if self._over(all(one.done() for one in talking)):
                    break
                if not step.more:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(FLOOR if step.wait is None else min(FLOOR, step.wait)):
                            await self._wake.wait()
        finally:
            await end_all(talking)
            self._file.close()
        return self._came

    def _look(self) -> None:
        now, came = self._loop.time(), self._came
        for name in self._good:
            owed, held = self._owed.get(name, deque()), self._store.held(name)
            while owed and owed[0][0] <= held:
                came.waits = max(came.waits, now - max(owed.popleft()[1], self._began))
            if owed and self._mended and not self._case.everybody:
                came.waits = max(came.waits, now - max(owed[0][1], self._began))
        troubled = self._file.troubled()
        came.blocked = {name: delivered for name, state, delivered, _ in troubled if state == "blocked"}
        came.at_worst = max(came.at_worst, len(came.blocked))
        came.charged = sum(attempts for *_, attempts in troubled)
        trouble = self._breaker.outage
        if came.told is None and trouble is not None and trouble.code == self._case.fault[1]:
            came.told = now - self._began
        if not self._mended and now - self._began >= self._case.everybody:
            self._mended = True

    def _over(self, said: bool) -> bool:
        if not said or not self._mended:
            return False
        if any(self._owed.get(name) for name in self._good):
            return False
        if self._case.everybody:
            self._came.healed = self._loop.time() - self._began - self._case.everybody
            return True
        return len(self._came.blocked) == len(self._bad)


@cache
def _schema() -> str:
    """Return the statements that make the tables of an outbox file, and the rows that every file has, as its
    migrations do."""
    with tempfile.TemporaryDirectory(prefix="letopis-proof-") as folder, ThreadPoolExecutor(1) as pool:
        path = Path(folder) / "template.outbox.db"
        # A case may be what asks first, in a loop of its own.
        pool.submit(lambda: asyncio.run(_made(path))).result()
        with closing(sqlite3.connect(path)) as connection:
            return "\n".join(connection.iterdump())


async def _made(path: Path) -> None:
    await (await OutboxFile.open(path)).close()

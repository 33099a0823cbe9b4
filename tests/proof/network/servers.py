"""Harm the server of a store while bots keep appending; then everything has to be there, without a false alarm."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from letopis.outbox import History
from letopis.outbox.alerting.incidents import Rules
from letopis.outbox.alerting.monitor import AlertMonitor, breaker_view
from letopis.store import Message
from letopis.store.database.timeouts import Timeouts
from tests.campaigns.invariants import Ack, check
from tests.campaigns.outage import Desk
from tests.proof.harness import Tally
from tests.proof.network.bots import Watched
from tests.proof.network.wards import Ward, open_ward, refusals
from tests.proof.rows import Row
from tests.support.promises import acks_of


class Stage(Protocol):
    """Where a scene is played."""

    ward: Ward

    def seen(self, about: str) -> int:
        """How many refusals of this kind the bots' stores have met so far."""
        ...

    async def well(self) -> None:
        """Wait until everything works, and it has been noticed that it does."""
        ...

    def speak_up(self, length: int) -> None:
        """Have the bots say something longer."""
        ...


Play = Callable[[Stage, int], Awaitable[int]]
"""From the stage and how many rounds, or connections, to how often the fault was met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One thing that happens to a server."""

    name: str
    play: Play
    unit: str
    rounds: int
    short: int
    least: int


async def _terminate(stage: Stage, rounds: int) -> int:
    cut = tries = 0
    while cut < rounds and tries < 10 * rounds:
        tries += 1
        await asyncio.sleep(0.15)
        cut += await asyncio.to_thread(stage.ward.server.terminate_connections, stage.ward.url)
    return cut


async def _crash(stage: Stage, rounds: int) -> int:
    for _ in range(rounds):
        await stage.well()
        await asyncio.to_thread(stage.ward.crash)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(stage.ward.server.start)
    return rounds


async def _restart(stage: Stage, rounds: int) -> int:
    for _ in range(rounds):
        await stage.well()
        await asyncio.to_thread(stage.ward.server.restart, "fast")
    return rounds


async def _read_only(stage: Stage, rounds: int) -> int:
    before = stage.seen("read-only")
    for _ in range(rounds):
        await asyncio.to_thread(stage.ward.read_only, True)
        await asyncio.sleep(1.0)
        await asyncio.to_thread(stage.ward.read_only, False)
        await asyncio.sleep(1.0)
    return stage.seen("read-only") - before


async def _crowd(stage: Stage, rounds: int) -> int:
    before = stage.seen("connections")
    for _ in range(rounds):
        held = await stage.ward.occupy()
        await asyncio.sleep(1.0)
        for one in held:
            with suppress(DBAPIError, OSError):
                await one.close()
        await asyncio.sleep(1.0)
    return stage.seen("connections") - before


async def _hold(stage: Stage, rounds: int, about: str) -> int:
    before, number = stage.seen(about), 0
    engine = stage.ward.engine(admin=True)
    # The bots may rest just then: held again, until it was met as often as that.
    while number < rounds or (stage.seen(about) - before < rounds and number < 5 * rounds):
        table = ("letopis_log_heads", "letopis_conversations", "letopis_lanes")[number % 3]
        number += 1
        async with engine.connect() as connection:
            # A deadlock may be resolved at the holder's expense.
            with suppress(DBAPIError):
                await connection.execute(sa.text(f"SELECT * FROM {table} FOR UPDATE"))
                await asyncio.sleep(2.2)
        await asyncio.sleep(0.5)
    return stage.seen(about) - before


async def _lock(stage: Stage, rounds: int) -> int:
    return await _hold(stage, rounds, "lock")


async def _slow(stage: Stage, rounds: int) -> int:
    return await _hold(stage, rounds, "statement")


async def _deadlock(stage: Stage, rounds: int) -> int:
    """Take the log's counter, which a relay takes last, and then the conversations, which it holds by then."""
    before = stage.seen("deadlock")
    engine = stage.ward.engine(admin=True)
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE weight (number INTEGER)"))
    for _ in range(rounds):
        async with engine.connect() as connection:
            with suppress(DBAPIError):
                # Who has written much is spared by MariaDB.
                await connection.execute(sa.text(f"INSERT INTO weight {stage.ward.many_rows}"))
                await connection.execute(sa.text("SELECT * FROM letopis_log_heads FOR UPDATE"))
                await asyncio.sleep(0.06)
                await connection.execute(sa.text("SELECT conversation_id FROM letopis_conversations FOR UPDATE"))
            await connection.rollback()
        await asyncio.sleep(0.1)
    return stage.seen("deadlock") - before


async def _full(stage: Stage, rounds: int) -> int:
    before = stage.seen("full")
    disk = stage.ward.disk
    assert disk is not None
    stage.speak_up(4_000)
    try:
        for _ in range(rounds):
            await asyncio.to_thread(disk.fill)
            for _ in range(60):
                if stage.seen("full") > before:
                    break
                await asyncio.sleep(0.1)
            await asyncio.sleep(1.0)
            await asyncio.to_thread(disk.free)
            await asyncio.sleep(0.5)
    finally:
        stage.speak_up(0)
        await asyncio.to_thread(disk.free)
    return stage.seen("full") - before


FULL: Final = "the server's disk is full"
SCENES: Final[Sequence[Scene]] = (
    Scene(name="connections cut by an operator", play=_terminate, unit="connections", rounds=40, short=3, least=40),
    Scene(name="the server is read-only", play=_read_only, unit="refusals", rounds=2, short=0, least=2),
    Scene(name="no connection left", play=_crowd, unit="refusals", rounds=2, short=0, least=2),
    Scene(name="rows locked for too long", play=_lock, unit="lock timeouts", rounds=2, short=0, least=2),
    Scene(name="statements take too long", play=_slow, unit="statements cancelled", rounds=2, short=0, least=2),
    Scene(name="deadlocks", play=_deadlock, unit="deadlocks", rounds=15, short=0, least=3),
    Scene(name=FULL, play=_full, unit="refusals", rounds=2, short=0, least=2),
    Scene(name="the server is restarted", play=_restart, unit="restarts", rounds=2, short=0, least=2),
    Scene(name="the server crashes", play=_crash, unit="crashes", rounds=3, short=1, least=3),
)


BOTS: Final = 3
CONVERSATIONS: Final = 5
RULES: Final = Rules(resolve_after=1.0)
"""As by default, but that an outage is over after a second: otherwise the scenes would be one long outage that comes
and goes, and rightly raises alerts."""
LOOK: Final = 0.4  # seconds between two looks of a watch
BOUND: Final = 30.0  # seconds after the end of a fault within which everything has to be delivered
TIMEOUTS: Final = (Timeouts(connect=2.0, statement=6.0, lock=1.0), Timeouts(connect=2.0, statement=1.0, lock=6.0))
"""Of some bots, which wait for locks for a second, and of others, whose statements may not take longer."""


class Company:
    def __init__(self, ward: Ward, seed: str) -> None:
        self.ward = ward
        self.desk = Desk()
        self._chance = random.Random(seed)
        self._length = 0
        self._talking = asyncio.Event()
        self._saying = 0
        self.acks: list[Ack] = []
        self.bots: list[History] = []
        self.stores: list[Watched] = []
        self.longest = 0.0
        """Seconds of the longest outage of this scene, as a bot had it."""

    def seen(self, about: str) -> int:
        return self.ward.faults(refusals(self.stores), about)

    def speak_up(self, length: int) -> None:
        self._length = length

    @asynccontextmanager
    async def assembled(self, folder: Path) -> AsyncIterator[None]:
        """Have the bots there, with two tasks each that append while they may."""
        async with AsyncExitStack() as stack:
            for number in range(BOTS):
                store = Watched(self.ward.url, timeouts=TIMEOUTS[number % 2])
                self.stores.append(store)
                stack.push_async_callback(store.close)
                path = folder / f"bot-{number}.outbox.db"
                opened = History(path, store=store, watch=False)
                self.bots.append(await stack.enter_async_context(opened))
            tasks = [asyncio.create_task(self._talk(bot, place)) for place in range(2) for bot in self.bots]
            tasks += [asyncio.create_task(one) for bot in self.bots for one in (self._watch(bot), self._time(bot))]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                for end in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(end, Exception):
                        raise end

    async def _watch(self, bot: History) -> None:
        """Watch as every bot does, only more often: so that it is seen when one outage is over and the next begins."""
        relay = bot.relay
        assert relay is not None
        watch = AlertMonitor(
            bot.outbox,
            on_stuck=self.desk.on_stuck,
            on_recovered=self.desk.on_recovered,
            channels=[self.desk],
            rules=RULES,
            breaker=lambda: breaker_view(relay.breaker) if relay.lease.held else None,
            interval=LOOK,
        )
        await watch.run()

    async def _time(self, bot: History) -> None:
        """Note how long outages are; two with less than a moment between them are one."""
        assert bot.relay is not None
        loop = asyncio.get_running_loop()
        begun: float | None = None
        last = 0.0
        while True:
            now = loop.time()
            if not bot.relay.breaker.closed:
                begun, last = now if begun is None else begun, now
                self.longest = max(self.longest, now - begun)
            elif now - last > RULES.resolve_after:
                begun = None
            await asyncio.sleep(LOOK / 4)

    async def well(self) -> None:
        """Wait until everything works, and every watch has seen that the last outage is over."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while loop.time() < begun + BOUND:
            closed = all(bot.relay is not None and bot.relay.breaker.closed for bot in self.bots)
            if closed and not sum([await bot.outbox.read(_open_incidents) for bot in self.bots]):
                return
            await asyncio.sleep(LOOK / 2)

    async def play(self, scene: Scene, rounds: int) -> Row:
        """Play a scene, wait until all is delivered, and look at everything."""
        await self.well()
        self.longest, alarmed = 0.0, self._alarms()
        self._talking.set()
        await asyncio.sleep(0.2)
        try:
            count = await scene.play(self, rounds)
        finally:
            self._talking.clear()
        loop = asyncio.get_running_loop()
        ended = loop.time()
        # What one of them writes is pending a moment later.
        while self._saying and loop.time() < ended + BOUND:  # noqa: ASYNC110 - a moment, and bounded
            await asyncio.sleep(0.01)
        tally = Tally(count)
        drained = await asyncio.gather(*(bot.drained(BOUND) for bot in self.bots))
        took = loop.time() - ended
        paths = [bot.outbox.path for bot in self.bots]
        tally.take(await check(paths, self.ward.url, acknowledged=self.acks, drained=True))
        tally.require(all(drained), f"not drained within {BOUND:g} s")
        alarms = self._alarms() - alarmed
        # A full disk is for an operator, who is alerted at once; a busy machine makes a long outage of a restart.
        due = scene.name == FULL or self.longest >= RULES.hold
        tally.require(due or not alarms, f"{alarms} alarms about an outage of {self.longest:.1f} s")
        tally.require(bool(alarms) or scene.name != FULL, "no alarm about a full disk")
        where = {"postgresql": "PostgreSQL", "mariadb": "MariaDB"}[self.ward.kind]
        tally.notes = (
            f"{len(self.acks):,} events acknowledged so far; drained {took:.1f} s after the end; longest outage"
            f" {self.longest:.1f} s, {alarms} alarms"
        )
        return tally.row(scene.name, where, scene.unit, scene.least)

    def _alarms(self) -> int:
        """How often somebody was alerted; that it is over is heard a moment later, perhaps in the next scene."""
        return sum(not alert.recovered for alert in self.desk.alerts) + self.desk.stuck.total()

    async def _talk(self, bot: History, place: int) -> None:
        number = 0
        while True:
            await self._talking.wait()
            number += 1
            mine = self._chance.random() < 0.7
            name = f"{bot.outbox.path.stem if mine else 'all'}-{self._chance.randrange(CONVERSATIONS)}"
            said = Message.user(f"{place} {number} {'ж' * self._chance.randrange(100)}{'x' * self._length}")
            self._saying += 1
            try:
                receipt = await bot.append(name, said, owner=f"owner of {name}")
            finally:
                self._saying -= 1
            self.acks += acks_of(receipt)
            await asyncio.sleep(self._chance.uniform(0, 0.06))


def _open_incidents(connection: sa.Connection) -> int:
    asks = sa.text("SELECT count(*) FROM letopis_outbox_incidents WHERE resolved_at IS NULL")
    return int(connection.execute(asks).scalar_one())


async def harm(kind: str, folder: Path, *, short: bool, seed: str) -> list[Row]:
    """Play all scenes on one kind of server, and return a row each."""
    ward = open_ward(kind)
    rows: list[Row] = []
    try:
        await ward.start()
        company = Company(ward, seed)
        async with company.assembled(folder):
            for scene in SCENES:
                rounds = scene.short if short else scene.rounds
                if scene.name == FULL and ward.no_disk:
                    rows.append(Row(what=scene.name, where=kind, missing=ward.no_disk))
                elif rounds:
                    rows.append(await company.play(scene, rounds))
    finally:
        await asyncio.to_thread(ward.close)
    return rows

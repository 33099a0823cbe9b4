"""Harm the server of a store while bots keep appending; then everything has to be there, without a false alarm."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from letopis.outbox import History
from letopis.outbox.alerting.incidents import Rules
from letopis.outbox.alerting.monitor import AlertMonitor
from letopis.store import Message
from letopis.store.database.timeouts import Timeouts
from tests.campaigns.invariants import Ack, check
from tests.campaigns.outage import Desk
from tests.proof.network.bots import Watched
from tests.proof.network.scenes import FULL, SCENES, Scene
from tests.proof.network.wards import Ward, open_ward, refusals
from tests.proof.rows import Row, row_of

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
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, bot: History) -> None:
        """Watch as every bot does, only more often: so that it is seen when one outage is over and the next begins."""
        watch = AlertMonitor(
            bot.outbox,
            on_stuck=self.desk.on_stuck,
            on_recovered=self.desk.on_recovered,
            channels=[self.desk],
            rules=RULES,
            breaker=bot._parts.delivery.breaker_view,
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
        drained = await asyncio.gather(*(bot.drained(BOUND) for bot in self.bots))
        took = loop.time() - ended
        verdict = await check(
            [bot.outbox.path for bot in self.bots], self.ward.url, acknowledged=self.acks, drained=True
        )
        alarms = self._alarms() - alarmed
        # A full disk is for an operator, who is alerted at once; a busy machine makes a long outage of a restart.
        due = scene.name == FULL or self.longest >= RULES.hold
        problems = [
            *verdict.problems,
            *([f"not drained within {BOUND:g} s"] if not all(drained) else []),
            *([f"{alarms} alarms about an outage of {self.longest:.1f} s"] if alarms and not due else []),
            *(["no alarm about a full disk"] if scene.name == FULL and not alarms else []),
        ]
        where = {"postgresql": "PostgreSQL", "mariadb": "MariaDB"}[self.ward.kind]
        notes = (
            f"{len(self.acks):,} events acknowledged so far; drained {took:.1f} s after the end; longest outage"
            f" {self.longest:.1f} s, {alarms} alarms"
        )
        found = max(verdict.problem_count, len(problems))
        return row_of(scene.name, where, count, scene.least, scene.unit, problems, notes, violations=found)

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
            self.acks.extend(Ack(name, event_id) for event_id in receipt.event_ids[:-1])
            self.acks.append(Ack(name, receipt.event_ids[-1], receipt.sequence))
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

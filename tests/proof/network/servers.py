"""Harm the server of a store while bots keep appending; then everything has to be there, without a false alarm."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from letopis.outbox import Rules
from letopis.outbox.alerting.channels import Alert
from letopis.outbox.alerting.monitor import AlertMonitor, breaker_view
from letopis.outbox.alerting.notifications import Incident
from letopis.store import Timeouts
from tests.campaigns.invariants import check
from tests.proof.harness import Tally
from tests.proof.network.bots import Bot, Watched, drain, talking
from tests.proof.network.wards import WARDS, Ward
from tests.proof.rows import Row
from tests.support.outboxes import open_incidents
from tests.support.relays import comes_true, end_all


@dataclass
class Desk:
    """Where the alerts of one bot arrive: its operator's channel, and its users."""

    name: str = "desk"
    recipient: str = "desk"
    alerts: list[Alert] = field(default_factory=list)
    stuck: Counter[str | None] = field(default_factory=Counter)
    recovered: Counter[str | None] = field(default_factory=Counter)

    async def send(self, alert: Alert) -> None:
        self.alerts.append(alert)

    async def on_stuck(self, incident: Incident) -> None:
        self.stuck[incident.owner_id] += 1

    async def on_recovered(self, incident: Incident) -> None:
        self.recovered[incident.owner_id] += 1


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing that happens to a server.

    :ivar play: given the bots and how many rounds, or connections.
    :ivar about: the refusals that the bots have to meet; where there are none, what was played counts.
    """

    name: str
    play: Callable[[Company, int], Awaitable[int | None]]
    unit: str
    about: str = ""
    rounds: int = 2
    short: int = 0
    least: int = 2


async def _terminate(stage: Company, rounds: int) -> int:
    cut = tries = 0
    while cut < rounds and tries < 10 * rounds:
        tries += 1
        await asyncio.sleep(0.15)
        cut += await asyncio.to_thread(stage.ward.server.terminate_connections, stage.ward.url)
    return cut


async def _crash(stage: Company, rounds: int) -> int:
    for _ in range(rounds):
        await stage.well()
        await asyncio.to_thread(stage.ward.crash)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(stage.ward.server.start)
    return rounds


async def _restart(stage: Company, rounds: int) -> int:
    for _ in range(rounds):
        await stage.well()
        await asyncio.to_thread(stage.ward.server.restart, "fast")
    return rounds


async def _read_only(stage: Company, rounds: int) -> None:
    for _ in range(rounds):
        await asyncio.to_thread(stage.ward.read_only, True)
        await asyncio.sleep(1.0)
        await asyncio.to_thread(stage.ward.read_only, False)
        await asyncio.sleep(1.0)


async def _crowd(stage: Company, rounds: int) -> None:
    for _ in range(rounds):
        held = await stage.ward.occupy()
        await asyncio.sleep(1.0)
        for one in held:
            with suppress(DBAPIError, OSError):
                await one.close()
        await asyncio.sleep(1.0)


async def _hold(stage: Company, rounds: int) -> None:
    number, engine = 0, stage.ward.engine(admin=True)
    # The bots may rest just then: held again, until it was met as often as that.
    while number < rounds or (stage.met < rounds and number < 5 * rounds):
        table = ("letopis_log_heads", "letopis_conversations", "letopis_lanes")[number % 3]
        number += 1
        async with engine.connect() as connection:
            # A deadlock may be resolved at the holder's expense.
            with suppress(DBAPIError):
                await connection.execute(sa.text(f"SELECT * FROM {table} FOR UPDATE"))
                await asyncio.sleep(2.2)
        await asyncio.sleep(0.5)


async def _deadlock(stage: Company, rounds: int) -> None:
    """Take the log's counter, which a relay takes last, and then the conversations, which it holds by then."""
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


async def _full(stage: Company, rounds: int) -> None:
    disk = stage.ward.disk
    assert disk is not None
    stage.speak_up(4_000)
    try:
        for _ in range(rounds):
            await asyncio.to_thread(disk.fill)
            await comes_true(lambda: stage.met, patience=6.0)
            await asyncio.sleep(1.0)
            await asyncio.to_thread(disk.free)
            await asyncio.sleep(0.5)
    finally:
        stage.speak_up(0)
        await asyncio.to_thread(disk.free)


FULL: Final = "the server's disk is full"
SCENES: Final[Sequence[Scene]] = (
    Scene("connections cut by an operator", _terminate, "connections", rounds=40, short=3, least=40),
    Scene("the server is read-only", _read_only, "refusals", "read-only"),
    Scene("no connection left", _crowd, "refusals", "connections"),
    Scene("rows locked for too long", _hold, "lock timeouts", "lock"),
    Scene("statements take too long", _hold, "statements cancelled", "statement"),
    Scene("deadlocks", _deadlock, "deadlocks", "deadlock", rounds=15, least=3),
    Scene(FULL, _full, "refusals", "full"),
    Scene("the server is restarted", _restart, "restarts"),
    Scene("the server crashes", _crash, "crashes", rounds=3, short=1, least=3),
)


BOTS: Final = 3
PACE: Final = 0.03  # seconds between two appends of one of the two tasks of a bot
RULES: Final = Rules(resolve_after=1.0)
"""As by default, but that an outage is over after a second: otherwise the scenes would be one long outage that comes
and goes, and rightly raises alerts."""
LOOK: Final = 0.4  # seconds between two looks of a watch
BOUND: Final = 30.0  # seconds after the end of a fault within which everything has to be delivered
TIMEOUTS: Final = (Timeouts(connect=2.0, statement=6.0, lock=1.0), Timeouts(connect=2.0, statement=1.0, lock=6.0))
"""Of some bots, which wait for locks for a second, and of others, whose statements may not take longer."""


class Company:
    """Bots on a server, which see what is done to it, and each of which is watched as a bot watches itself."""

    def __init__(self, ward: Ward, bots: list[Bot]) -> None:
        self.ward = ward
        self.bots = bots
        self.desk = Desk()
        self.longest = 0.0
        """Seconds of the longest outage of this scene, as a bot had it."""
        self._codes: Sequence[str] = ()
        for bot in bots:
            bot.shared, bot.talking = "all", False

    @classmethod
    @asynccontextmanager
    async def assembled(cls, ward: Ward, folder: Path, seed: str) -> AsyncIterator[Company]:
        stores = [Watched(ward.url, timeouts=TIMEOUTS[number % 2]) for number in range(BOTS)]
        async with talking(folder, stores, outboxes=1, pace=PACE, seed=seed, probes=None) as bots:
            company = cls(ward, bots)
            both = (one for bot in bots for one in (company._watch(bot), company._time(bot)))
            watching = [asyncio.create_task(one) for one in both]
            try:
                yield company
            finally:
                await end_all(watching)

    @property
    def met(self) -> int:
        """How many refusals that the scene is about the bots' stores have met in it."""
        seen = [one for bot in self.bots for one in bot.store.seen.items()]
        return sum(count for name, count in seen if name.split()[-1] in self._codes)

    def speak_up(self, length: int) -> None:
        for bot in self.bots:
            bot.length = length

    async def _watch(self, bot: Bot) -> None:
        """Watch as every bot does, only more often: so that it is seen when one outage is over and the next begins."""
        relay = bot.relay
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

    async def _time(self, bot: Bot) -> None:
        """Note how long outages are; two with less than a moment between them are one."""
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

        async def over() -> bool:
            await asyncio.sleep(LOOK / 2)
            closed = all(bot.relay.breaker.closed for bot in self.bots)
            return closed and not any([await bot.outbox.read(open_incidents) for bot in self.bots])

        await comes_true(over, patience=BOUND)

    async def play(self, scene: Scene, rounds: int) -> Row:
        """Play a scene, wait until all is delivered, and look at everything."""
        await self.well()
        self.longest, alarmed = 0.0, self._alarms()
        self._codes = self.ward.codes.get(scene.about, ())
        for bot in self.bots:
            bot.store.seen.clear()
            bot.talking = True
        await asyncio.sleep(0.2)
        played = await scene.play(self, rounds)
        tally = Tally(self.met if played is None else played)
        took = await drain(self.bots, patience=BOUND)
        acks = [ack for bot in self.bots for ack in bot.acks]
        tally.take(await check([bot.outbox.path for bot in self.bots], self.ward.url, acknowledged=acks, drained=True))
        tally.require(took is not None, f"not drained within {BOUND:g} s")
        alarms = self._alarms() - alarmed
        # A full disk is for an operator, who is alerted at once; a busy machine makes a long outage of a restart.
        due = scene.name == FULL or self.longest >= RULES.hold
        tally.require(due or not alarms, f"{alarms} alarms about an outage of {self.longest:.1f} s")
        tally.require(bool(alarms) or scene.name != FULL, "no alarm about a full disk")
        where = {"postgresql": "PostgreSQL", "mariadb": "MariaDB"}[self.ward.kind]
        tally.notes = (
            f"{len(acks):,} events acknowledged so far; drained {took or BOUND:.1f} s after the end; longest outage"
            f" {self.longest:.1f} s, {alarms} alarms"
        )
        return tally.row(scene.name, where, scene.unit, scene.least)

    def _alarms(self) -> int:
        """How often somebody was alerted; that it is over is heard a moment later, perhaps in the next scene."""
        return sum(not alert.recovered for alert in self.desk.alerts) + self.desk.stuck.total()


async def harm(kind: str, folder: Path, *, short: bool, seed: str) -> list[Row]:
    ward = WARDS[kind]()
    rows: list[Row] = []
    try:
        await ward.start()
        async with Company.assembled(ward, folder, seed) as company:
            for scene in SCENES:
                rounds = scene.short if short else scene.rounds
                if scene.name == FULL and ward.no_disk:
                    rows.append(Row(what=scene.name, where=kind, missing=ward.no_disk))
                elif rounds:
                    rows.append(await company.play(scene, rounds))
    finally:
        await asyncio.to_thread(ward.close)
    return rows

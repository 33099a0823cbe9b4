"""Stop a PostgreSQL for three minutes under eight bots that keep appending, and count alerts, probes and connections.

The server is one that the campaign starts for itself. All bots reach it through one wire that counts connections.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url

from letopis.outbox import History
from letopis.outbox.alerting.channels import Alert
from letopis.outbox.alerting.incidents import Rules
from letopis.outbox.alerting.notifications import Incident
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.store import Message
from letopis.store.database.faults import FaultClass, StoreFault
from tests.campaigns.invariants import check
from tests.proof.harness import Tally, migrated
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support import peers
from tests.support.servers import PostgresServer, ServerUnavailable
from tests.support.sqlite_rows import rows

USERS: Final = 20
BOTS: Final = 8
PACE_SECONDS: Final = 0.25  # between two appends of a bot
DRAIN_SECONDS: Final = 150.0
HERD: Final = 4 * BOTS  # connection attempts in one second that a herd makes and independent relays do not: see `draw`
ATTEMPTS: Final = 2  # connections of one probe: one may have been cut while idle, and is retried
HERDED: Final = 5 * ATTEMPTS  # connections of a relay whose whole pool asks
AT_FIRST: Final = 2.0  # seconds of an outage that are not looked at: all relays meet its beginning at the same moment
_FAULT: Final = StoreFault(fault_class=FaultClass.UNAVAILABLE, code="away", reason="the store is away")
_BEGUN: Final = datetime(2026, 1, 1, tzinfo=UTC)


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


async def run(folder: Path, *, outage: float, rules: Rules, expect: int) -> Tally:
    """Run it; ``expect`` is how many alerts, and recoveries, the operators of a bot must get."""
    loop, tally, desk = asyncio.get_running_loop(), Tally(), Desk()
    server = PostgresServer.own()
    await asyncio.to_thread(server.start)
    wire = peers.Wire(server.port)
    try:
        url = await asyncio.to_thread(server.create_database, "letopis_outage")
        await migrated(url)
        async with wire.open() as port, AsyncExitStack() as stack:
            through = make_url(url).set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
            heard = {"channels": [desk], "on_stuck": desk.on_stuck, "on_recovered": desk.on_recovered}
            bots = [
                await stack.enter_async_context(
                    History(
                        folder / f"bot-{number}.outbox.db",
                        store=through,
                        watch=number == 0,
                        rules=rules,
                        **(heard if number == 0 else {}),
                    )
                )
                for number in range(BOTS)
            ]
            talking = [asyncio.create_task(_talk(bot, number)) for number, bot in enumerate(bots)]
            await asyncio.sleep(2)
            await asyncio.to_thread(server.stop, "fast")
            gone = loop.time()
            await asyncio.sleep(outage)
            pending = sum([(await bot.status()).pending for bot in bots])
            troubled = sum(_troubled(bot.outbox.path) for bot in bots)
            await asyncio.to_thread(server.start)
            back = loop.time()
            for one in talking:
                one.cancel()
            for end in await asyncio.gather(*talking, return_exceptions=True):
                if isinstance(end, Exception):
                    raise end
            tally.require(
                all(await asyncio.gather(*(bot.drained(DRAIN_SECONDS) for bot in bots))), "not drained in time"
            )
            drained_after = loop.time() - back
            # Until it counts as over, and the watch has looked.
            await asyncio.sleep(rules.resolve_after + 12 if expect else 6)
            troubled += sum(_troubled(bot.outbox.path) for bot in bots)
        tally.take(await check([bot.outbox.path for bot in bots], url, drained=True))
    finally:
        await asyncio.to_thread(server.close)
    during = [one for one in wire.openings if gone + 2 < one < back]
    after = [one for one in wire.openings if one >= back]
    alerts = sum(not one.recovered for one in desk.alerts)
    recoveries = len(desk.alerts) - alerts
    tally.require(not troubled, f"{troubled} lanes were charged or blocked")
    tally.require((alerts, recoveries) == (expect, expect), f"{alerts} alerts and {recoveries} recoveries")
    tally.require(max(desk.stuck.values(), default=0) <= 1, "a user was told twice")
    tally.require(desk.stuck == desk.recovered, "not exactly those who were told heard of the recovery")
    # The pool of a bot is 5; a herd would take them all at once, repeatedly.
    tally.require(peak(after) <= 2 * BOTS, f"{peak(after)} connections in one second after the return")
    tally.require(peak(during) <= HERD, f"{peak(during)} connection attempts in one second")
    tally.require(
        bool(desk.stuck) is bool(expect) and pending > 100, f"{len(desk.stuck)} users told, {pending} pending"
    )
    tally.count = 1
    tally.figures.update({"users told": len(desk.stuck), "pending when it ended": pending})
    tally.notes = (
        f"{outage:g} s, {BOTS} relays; {alerts} alerts, {tally.told()}; {len(during)} connection attempts during it, at"
        f" most {peak(during)} in one second; {len(after)} after it, at most {peak(after)}; drained"
        f" {drained_after:.1f} s after the return, {tally.stored:,} stored"
    )
    return tally


async def _talk(bot: History, number: int) -> None:
    turn = 0
    while True:
        user = f"{number}-{turn % USERS}"
        await bot.append(f"chat-{user}", Message.user(f"turn {turn}"), owner=user)
        turn += 1
        await asyncio.sleep(PACE_SECONDS)


def _troubled(path: Path) -> int:
    return len(rows(path, "SELECT 1 FROM letopis_outbox_lanes WHERE attempts > 0 OR state <> 'ready'"))


def peak(moments: Sequence[float]) -> int:
    """Return the most moments within one second."""
    return max((sum(start <= one < start + 1 for one in moments) for start in moments), default=0)


def draw(chance: random.Random, *, outage: float, attempts: int = ATTEMPTS) -> int:
    """Return the most connection attempts that eight relays make in one second of an outage, by the breaker's rules."""
    return attempts * peak([one for _ in range(BOTS) for one in _asked(chance, outage) if one > AT_FIRST])


def _asked(chance: random.Random, outage: float) -> Iterator[float]:
    now = 0.0
    clock = Clock(monotonic=lambda: now, now=lambda: _BEGUN + timedelta(seconds=now))
    breaker = Breaker(clock=clock, uniform=chance.uniform)
    breaker.trip(_FAULT, ())
    while (now := now + breaker.remaining()) < outage:
        if breaker.begin_probe():
            yield now
            breaker.trip(_FAULT, ())
        else:
            now += 0.001  # by the wall clock, which counts whole microseconds, it is not quite time


def prove(options: Options) -> Iterator[Row]:
    """Yield outages that nobody may hear of and that are told once, and the bound of the probes with its control."""
    logging.disable()
    for name, outage, rules, expect in (
        ("short", 20.0, Rules(), 0),
        # Stuck after less than the outage, which is not to count, and after two looks of the watch: a backlog that long
        # may take afterwards that a slow machine delivers.
        ("told", 14.0, Rules(hold=3, resolve_after=3, stuck_after=10), 1),
        *([] if options.short else [("long", 180.0, Rules(), 1)]),
    ):
        what = f"PostgreSQL stopped under eight relays: {'nobody hears of it' if not expect else 'told once'}"
        folder = options.folder / name
        folder.mkdir()
        try:
            tally = asyncio.run(run(folder, outage=outage, rules=rules, expect=expect))
        except ServerUnavailable as missing:
            yield Row(what=what, where="postgresql", missing=str(missing))
            continue
        yield tally.row(what, "PostgreSQL", "outages")
    chance, drawn, herded = random.Random(options.seed), Tally(count=options.many(20_000, 200)), Tally(count=100)
    peaks = [draw(chance, outage=180.0) for _ in range(drawn.count)]
    drawn.blame(f"{one} connection attempts in one second" for one in peaks if one > HERD)
    drawn.notes = f"at most {max(peaks)} connection attempts in one second, of {HERD}"
    yield drawn.row("outages drawn by the breaker's rules: eight relays do not probe as a herd", "", "outages")
    peaks = [draw(chance, outage=60.0, attempts=HERDED) for _ in range(herded.count)]
    herded.blame(f"{one} connection attempts in one second" for one in peaks if one > HERD)
    yield herded.row("the same where whole pools ask", "", "outages", control=True)

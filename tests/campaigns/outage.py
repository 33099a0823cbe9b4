"""Stop a PostgreSQL for three minutes under eight bots that keep appending, and count alerts, probes and connections.

    python -m tests.campaigns.outage                                     # an outage of 180 s; about five minutes
    python -m tests.campaigns.outage --outage 20                         # one that must raise no alert
    python -m tests.campaigns.outage --outage 12 --hold 3 --resolve 3    # the long one in small

The server is one that the campaign starts for itself. All bots reach it through one wire that counts connections.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sqlite3
import tempfile
from collections import Counter
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import make_url

from letopis.outbox import History
from letopis.outbox.alerting.channels import Alert
from letopis.outbox.alerting.incidents import Rules
from letopis.outbox.alerting.notifications import Incident
from letopis.store import ConversationStore, Message
from tests.campaigns.herd import BOTS, HERD, peak
from tests.campaigns.invariants import check
from tests.support import peers
from tests.support.servers import PostgresServer

USERS = 20


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an outage came to; ``problems`` is empty when it went as it must."""

    seconds: float
    alerts: int
    recoveries: int
    users_told: int
    pending_at_the_end: int
    probes: int
    probes_a_second: int
    connections_after: int
    connections_a_second_after: int
    drained_after: float
    stored: int
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(
            (
                f"outage of {self.seconds:g} s, {BOTS} relays on one store",
                f"  operators of the first bot: {self.alerts} alerts, {self.recoveries} recoveries",
                f"  its users told: {self.users_told}",
                f"  pending when it ended: {self.pending_at_the_end}",
                f"  connection attempts during it: {self.probes}, at most {self.probes_a_second} in one second",
                f"  connections after it: {self.connections_after}, at most {self.connections_a_second_after} a second",
                f"  drained {self.drained_after:.1f} s after the return; {self.stored} events stored, in order, once",
                *(f"  PROBLEM: {one}" for one in self.problems),
            )
        )


async def run(
    folder: Path, *, outage: float, rules: Rules, expect: int, pace: float = 0.1, patience: float = 150.0
) -> Report:
    """Run it; ``expect`` is how many alerts, and recoveries, the operators of a bot must get."""
    loop = asyncio.get_running_loop()
    server = PostgresServer.own()
    await asyncio.to_thread(server.start)
    desk = Desk()
    wire = peers.Wire(server.port)
    try:
        url = await asyncio.to_thread(server.create_database, "letopis_outage")
        async with ConversationStore.open(url, migrate=True):
            pass
        async with wire.open() as port, AsyncExitStack() as stack:
            through = make_url(url).set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
            bots = [
                await stack.enter_async_context(
                    History(
                        folder / f"bot-{number}.outbox.db",
                        store=through,
                        watch=number == 0,
                        channels=[desk] if number == 0 else (),
                        on_stuck=desk.on_stuck if number == 0 else None,
                        on_recovered=desk.on_recovered if number == 0 else None,
                        rules=rules,
                    )
                )
                for number in range(BOTS)
            ]
            talking = [asyncio.create_task(_talk(bot, number, pace)) for number, bot in enumerate(bots)]
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
            await asyncio.gather(*talking, return_exceptions=True)
            done = await asyncio.gather(*(bot.drained(patience) for bot in bots))
            drained_after = loop.time() - back
            # Until it counts as over, and the watch has looked.
            await asyncio.sleep(rules.resolve_after + 12 if expect else 6)
            troubled += sum(_troubled(bot.outbox.path) for bot in bots)
        verdict = await check([bot.outbox.path for bot in bots], url, drained=True)
    finally:
        await asyncio.to_thread(server.close)
    during = [one for one in wire.openings if gone + 2 < one < back]
    after = [one for one in wire.openings if one >= back]
    alerts = sum(not one.recovered for one in desk.alerts)
    recoveries = sum(one.recovered for one in desk.alerts)
    problems = [
        f"{troubled} lanes were charged or blocked" if troubled else "",
        "" if all(done) else "not drained in time",
        "" if verdict.ok else str(verdict),
        "" if (alerts, recoveries) == (expect, expect) else f"{alerts} alerts and {recoveries} recoveries",
        "" if max(desk.stuck.values(), default=0) <= 1 else "a user was told twice",
        "" if desk.stuck == desk.recovered else "not exactly those who were told heard of the recovery",
        # The pool of a bot is 5; a herd would take them all at once, repeatedly.
        "" if peak(after) <= 2 * BOTS else f"{peak(after)} connections in one second after the return",
        "" if peak(during) <= HERD else f"{peak(during)} connection attempts in one second",
    ]
    return Report(
        seconds=outage,
        alerts=alerts,
        recoveries=recoveries,
        users_told=len(desk.stuck),
        pending_at_the_end=pending,
        probes=len(during),
        probes_a_second=peak(during),
        connections_after=len(after),
        connections_a_second_after=peak(after),
        drained_after=drained_after,
        stored=verdict.stored,
        problems=tuple(one for one in problems if one),
    )


async def _talk(bot: History, number: int, pace: float) -> None:
    turn = 0
    while True:
        user = f"{number}-{turn % USERS}"
        await bot.append(f"chat-{user}", Message.user(f"turn {turn}"), owner=user)
        turn += 1
        await asyncio.sleep(pace)


def _troubled(path: Path) -> int:
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        found = connection.execute("SELECT count(*) FROM letopis_outbox_lanes WHERE attempts > 0 OR state <> 'ready'")
        return int(found.fetchone()[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--outage", type=float, default=180.0, metavar="SECONDS")
    parser.add_argument("--hold", type=float, default=Rules().hold, metavar="SECONDS")
    parser.add_argument("--resolve", type=float, default=Rules().resolve_after, metavar="SECONDS")
    given = parser.parse_args()
    logging.disable()
    rules = Rules(hold=given.hold, resolve_after=given.resolve)
    with tempfile.TemporaryDirectory(prefix="letopis-outage-") as folder:
        report = asyncio.run(
            run(Path(folder), outage=given.outage, rules=rules, expect=int(given.outage > given.hold + 6))
        )
    print(report)
    return 1 if report.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())

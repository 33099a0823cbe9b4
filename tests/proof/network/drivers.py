"""Deliver through a storm that breaks nearly every connection, over each driver."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from unittest import mock

from sqlalchemy.engine import make_url

from letopis.store import ConversationStore
from tests.campaigns.invariants import Verdict, check
from tests.proof.network.bots import SHORT_TIMEOUTS, Bot, Watched, drain, talking, total
from tests.proof.network.speech import MARIADB, POSTGRESQL, Speech
from tests.proof.network.storm import REFUSED, Storm
from tests.support.damage import drop_event_id_index
from tests.support.servers import MariaDBServer, PostgresServer, Server

OUTBOXES: Final = 3
MARGIN: Final = 0.1  # seconds that the client waits longer than the server's own limit, in place of the library's 5
TIMEOUT_SECONDS: Final = 40.0  # seconds after the last fault within which everything has to be delivered


Enough = Callable[[Storm, Sequence[Watched]], bool]
"""Tells if what a control is about has happened often enough; how many faults that takes is a matter of chance."""


@dataclass(slots=True)
class Outcome:
    fired: Counter[str] = field(default_factory=Counter)
    ambiguous: int = 0
    duplicates: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    drained_after: float | None = None
    acknowledged: int = 0
    stored: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    violations: int = 0

    @property
    def notes(self) -> str:
        """The other figures, in words."""
        by_kind = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.fired.items()))
        seen = ", ".join(f"{count:,} {kind}" for kind, count in self.faults.most_common())
        drained = "not drained" if self.drained_after is None else f"drained {self.drained_after:.1f} s after the last"
        return (
            f"{self.acknowledged:,} events acknowledged, {self.stored:,} stored; {self.ambiguous:,} commits took"
            f" effect unheard, {self.duplicates:,} duplicates absorbed; {drained}; faults: {by_kind}; the relays saw:"
            f" {seen}"
        )


def speech_of(kind: str) -> tuple[Server, Speech]:
    """Return the test server of this kind, and how to talk to it."""
    return (PostgresServer.find(), POSTGRESQL) if kind == "postgresql" else (MariaDBServer.find(), MARIADB)


async def storm(
    server: Server,
    speech: Speech,
    folder: Path,
    *,
    faults: int,
    seconds: float,
    seed: str,
    stores: int = 1,
    pace: float = 0.05,
    store: type[Watched] = Watched,
    unguarded: bool = False,
    patience: float = TIMEOUT_SECONDS,
    enough: Enough = lambda sky, stores: True,
) -> Outcome:
    """Deliver through a storm until enough faults have fired, or the time is over.

    :param stores: databases, each with its own outboxes.
    :param pace: seconds between two appends of one of the two tasks of a bot.
    :param store: what the relays deliver to.
    :param unguarded: drop the index of each database that would refuse an event a second time.
    """
    loop = asyncio.get_running_loop()
    found = Outcome()
    with mock.patch("letopis.store.database.failover.ANSWER_MARGIN_SECONDS", MARGIN):
        async with _databases(server, stores, unguarded=unguarded) as urls:
            sky = Storm(server.port, speech, f"{seed} {speech.driver}")
            async with sky.open() as port:
                held = [store(_through(url, port, speech), timeouts=SHORT_TIMEOUTS, pool_size=4) for url in urls]
                async with talking(folder, held, outboxes=OUTBOXES, pace=pace, seed=seed) as bots:
                    begun = loop.time()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            while _fired(sky, bots).total() < faults or not enough(sky, held):  # noqa: ASYNC110
                                await asyncio.sleep(0.1)
                    found.seconds = loop.time() - begun
                    sky.calm()
                    found.drained_after = await drain(bots, patience=patience)
            found.fired = _fired(sky, bots)
            found.ambiguous = sky.ambiguous
            found.problems += sky.errors
            await _judge(found, bots, urls)
    return found


async def _judge(found: Outcome, bots: list[Bot], urls: list[str]) -> None:
    for place, url in enumerate(urls):
        mine = bots[place * OUTBOXES : (place + 1) * OUTBOXES]
        acks = [ack for bot in mine for ack in bot.acks]
        verdict: Verdict = await check([bot.outbox.path for bot in mine], url, acknowledged=acks, drained=True)
        found.acknowledged += verdict.acknowledged
        found.stored += verdict.stored
        found.violations += verdict.problem_count
        found.problems += verdict.problems
    found.duplicates = total(bots, lambda bot: bot.relay.stats.duplicates)
    for bot in bots:
        found.faults.update(bot.relay.stats.faults)
    blocked = total(bots, lambda bot: bot.relay.stats.blocked)
    strange = total(bots, lambda bot: bot.relay.stats.loop_errors)
    rewound = total(bots, lambda bot: bot.relay.stats.rewound)
    wrong = [
        f"{blocked} conversations were blocked" if blocked else "",
        f"{strange} errors that a relay did not know" if strange else "",
        f"{rewound} events were sent again because the store had lost them" if rewound else "",
        "commits took effect unheard, and nothing was absorbed" if found.ambiguous and not found.duplicates else "",
    ]
    found.problems += [one for one in wrong if one]
    found.violations = max(found.violations, len(found.problems))


def _fired(sky: Storm, bots: list[Bot]) -> Counter[str]:
    refused = sum(store.seen["unavailable refused"] for store in {id(bot.store): bot.store for bot in bots}.values())
    return sky.fired + Counter({REFUSED: refused})


def _through(url: str, port: int, speech: Speech) -> str:
    query = {"sslmode": "disable"}  # the storm reads the protocol
    return make_url(url).set(host="127.0.0.1", port=port, query=query).render_as_string(hide_password=False)


@asynccontextmanager
async def _databases(server: Server, count: int, *, unguarded: bool) -> AsyncIterator[list[str]]:
    urls: list[str] = []
    try:
        for _ in range(count):
            url = await asyncio.to_thread(server.create_database, "letopis_proof_network")
            urls.append(url)
            async with ConversationStore.open(url, migrate=True):
                pass
            if unguarded:
                await drop_event_id_index(url)
        yield urls
    finally:
        for url in urls:
            await asyncio.to_thread(server.drop_database, url)

"""Append to outboxes all the while, deliver each with a relay of its own, and keep what was promised."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

from sqlalchemy.engine import make_url

from letopis import ConversationStore, History, LetopisError, Message, OutboxFile, Retention, RetryPolicy
from letopis.outbox import Relay
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.retention import Pruner
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.store import ApplyResult, LaneApplied, LaneBatch, Origin, StoreFault, Timeouts
from tests.campaigns.invariants import Ack, check
from tests.proof.harness import Setting, Tally, migrated
from tests.proof.network.storm import MARIADB, POSTGRESQL, REFUSED, Storm
from tests.support.promises import acks_of
from tests.support.relays import end_all, figures
from tests.support.store_changes import drop_event_id_index

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
        with self._watching():
            return await super().apply(origin, batch)

    async def ping(self) -> None:
        with self._watching():
            await super().ping()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except StoreFault as fault:
            self.seen[f"{fault.fault_class} {fault.code}"] += 1
            raise


@dataclass(slots=True)
class Bot:
    """A history, the relay of its outbox, and what appends to it have returned.

    :ivar shared: what the conversations are called that other bots write to as well.
    :ivar length: characters that each message is longer than usual.
    """

    history: History
    store: Watched
    relay: Relay
    chance: random.Random
    shared: str
    pace: float
    acks: list[Ack] = field(default_factory=list)
    talking: bool = True
    saying: int = 0
    length: int = 0

    @property
    def outbox(self) -> OutboxFile:
        return self.history.outbox

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
            said = [Message.user(f"{number} {'ж' * long}{'x' * self.length}") for _ in range(many)]
            self.saying += 1
            try:
                receipt = await self.history.append(name, *said, owner=f"owner of {name}")
            finally:
                self.saying -= 1
            self.acks += acks_of(receipt)


@asynccontextmanager
async def talking(
    folder: Path,
    stores: Sequence[Watched],
    *,
    outboxes: int,
    pace: float,
    seed: str,
    probes: RetryPolicy | None = PROBES,
    deadline: float = 5.0,
    retention: Retention | None = None,
) -> AsyncIterator[list[Bot]]:
    """Have bots append and relays deliver; without ``retention``, nothing is pruned.

    Without ``probes``, the relays are those that the histories run by themselves, with a retention of their own.
    """
    async with AsyncExitStack() as stack:
        bots: list[Bot] = []
        relays: list[asyncio.Task[None]] = []
        for place, store in enumerate(stores):
            stack.push_async_callback(store.close)
            for number in range(outboxes):
                chance = random.Random(f"{seed} {place} {number}")
                path = folder / f"bot-{place}-{number}.outbox.db"
                opened = History(path, store=store, relay=probes is None, watch=False)
                history = await stack.enter_async_context(opened)
                relay = history.relay
                if probes is not None:
                    outbox, breaker = history.outbox, Breaker(clock=Clock(), uniform=chance.uniform, probes=probes)
                    chores = () if retention is None else (Pruner(retention, outbox.now_us),)
                    relay = Relay(outbox, store, breaker=breaker, deadline=deadline, chores=chores, random=chance)
                    relays.append(asyncio.create_task(relay.run()))
                assert relay is not None
                bots.append(Bot(history, store, relay, chance, shared=f"all-{place}", pace=pace))
        talks = [asyncio.create_task(bot.talk()) for bot in bots for _ in range(2)]
        stack.push_async_callback(_end, bots, relays, talks)
        yield bots


async def _end(bots: Sequence[Bot], relays: list[asyncio.Task[None]], talks: list[asyncio.Task[None]]) -> None:
    if relays:
        for bot in bots:
            bot.relay.stop()
        await asyncio.wait(relays, timeout=10)
    await end_all([*relays, *talks])


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
    return sum(of(bot) for bot in bots)


def strange(bots: Sequence[Bot]) -> list[str]:
    """Return what no relay may meet whose store keeps what it has acknowledged."""
    counts = {
        "conversations were blocked": total(bots, lambda bot: bot.relay.stats.blocked),
        "errors that a relay did not know": total(bots, lambda bot: bot.relay.stats.loop_errors),
        "events were sent again because the store had lost them": total(bots, lambda bot: bot.relay.stats.rewound),
    }
    return [f"{count} {what}" for what, count in counts.items() if count]


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


SPEECHES: Final = {"postgresql": POSTGRESQL, "mariadb": MARIADB}
FAULTS: Final = 1_000  # faults that have to fire, a driver
OUTBOXES: Final = 3
MARGIN: Final = 0.1  # seconds that the client waits longer than the server's own limit, in place of the library's 5
TIMEOUT_SECONDS: Final = 40.0  # seconds after the last fault within which everything has to be delivered


Enough = Callable[[Storm, Sequence[Watched]], bool]
"""Tells if what a control is about has happened often enough; how many faults that takes is a matter of chance."""


async def storm(
    setting: Setting, *, what: str, store: type[Watched] = Watched, enough: Enough = lambda sky, stores: True
) -> Tally:
    """Deliver through a storm until enough faults have fired, or the time is over; without the index, if a defect is
    planted, that would refuse an event a second time.

    :param store: what the relays deliver to.
    """
    tally, control, whole = Tally(), setting.control, not (setting.control or setting.options.short)
    faults, seconds = (setting.many(60, 10), 60) if control else (setting.many(FAULTS, 30), setting.many(180, 3))
    seed, speech = f"{setting.seed} {what}", SPEECHES[setting.kind]
    margin = mock.patch("letopis.store.database.failover.ANSWER_MARGIN_SECONDS", MARGIN)
    with margin, ExitStack() as stack:
        urls = [stack.enter_context(setting.apart(f"{number}")).url for number in range(4 if whole else 1)]
        for url in urls:
            await migrated(url)
            if setting.defect:
                await drop_event_id_index(url)
        sky = Storm(make_url(setting.url).port or speech.port, speech, f"{seed} {speech.driver}")
        async with sky.open() as port:
            held = [store(_through(url, port), timeouts=SHORT_TIMEOUTS, pool_size=4) for url in urls]
            pace = 0.25 if whole else 0.05
            async with talking(setting.folder, held, outboxes=OUTBOXES, pace=pace, seed=seed) as bots:
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        while _fired(sky, bots).total() < faults or not enough(sky, held):  # noqa: ASYNC110
                            await asyncio.sleep(0.1)
                sky.calm()
                after = await drain(bots, patience=3 if control else TIMEOUT_SECONDS)
        await _judge(tally, sky, bots, urls)
    drained = "not drained" if after is None else f"drained {after:.1f} s after the last"
    tally.notes = f"{tally.acknowledged:,} events acknowledged, {tally.stored:,} stored; {drained}; {tally.notes}"
    return tally


async def _judge(tally: Tally, sky: Storm, bots: list[Bot], urls: list[str]) -> None:
    for place, url in enumerate(urls):
        mine = bots[place * OUTBOXES : (place + 1) * OUTBOXES]
        acks = [ack for bot in mine for ack in bot.acks]
        tally.take(await check([bot.outbox.path for bot in mine], url, acknowledged=acks, drained=True))
    fired, seen = _fired(sky, bots), Counter[str]()
    for bot in bots:
        seen.update(bot.relay.stats.faults)
    duplicates = total(bots, lambda bot: bot.relay.stats.duplicates)
    tally.blame([*sky.errors, *strange(bots)])
    absorbed = not sky.ambiguous or bool(duplicates)
    tally.require(absorbed, "commits took effect unheard, and nothing was absorbed")
    tally.count = fired.total()
    tally.notes = (
        f"{sky.ambiguous:,} commits took effect unheard, {duplicates:,} duplicates absorbed; faults:"
        f" {', '.join(f'{count:,} {kind}' for kind, count in sorted(fired.items()))}; the relays saw:"
        f" {', '.join(f'{count:,} {kind}' for kind, count in seen.most_common())}"
    )


def _fired(sky: Storm, bots: list[Bot]) -> Counter[str]:
    refused = sum(store.seen["unavailable refused"] for store in {id(bot.store): bot.store for bot in bots}.values())
    return sky.fired + Counter({REFUSED: refused})


def _through(url: str, port: int) -> str:
    query = {"sslmode": "disable"}  # the storm reads the protocol
    return make_url(url).set(host="127.0.0.1", port=port, query=query).render_as_string(hide_password=False)

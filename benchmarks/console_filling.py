"""Have a million messages of many owners and models applied to a store, as relays would over weeks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from letopis.outbox import History
from letopis.store import ConversationStarted, ConversationStore, Event, Message
from letopis.store.database.engines import create_store_engine
from letopis.store.testing.outbox import Outbox
from tests.support.console_story import plant_blocked

RARE: Final = "sencha"
"""A word of every two-hundredth message."""
COMMON: Final = "tea"
"""A word of every fifth message."""
WORDS: Final = tuple(
    f"{one}{two}{three}" for one in "bdfgklmnprst" for two in ("a", "ei", "o", "u") for three in "lmnrstv"
)
"""336 words that mean nothing; the first ones are said most."""
OWNERS: Final = 2_000
MODELS: Final = ("large", "small", "tiny")
DAYS: Final = 60
EACH: Final = 100
"""Messages in each conversation but one."""
LONG: Final = 10_000
"""Messages in the conversation ``long``."""
LANES_PER_BATCH: Final = 20
PENDING: Final = 2_000
"""Events that wait in the outbox."""
BLOCKED: Final = 500


class Clock:
    """The store's clock, which the campaign moves: what is applied now was recorded then."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC) - timedelta(days=DAYS)

    def __call__(self) -> datetime:
        return self.now


async def fill_store(url: str, count: int) -> None:
    """Apply ``count`` messages; the last twentieth of them within the last hour."""
    chance, clock = random.Random(5), Clock()
    began = datetime.now(UTC)
    async with ConversationStore.open(url, migrate=True, now=clock) as store:
        total = max(1, (count - LONG) // EACH)
        for first in range(0, total, LANES_PER_BATCH):
            share = first / total
            ago = timedelta(days=DAYS) * (1 - share / 0.95) if share < 0.95 else timedelta(hours=1) * (1 - share) * 20
            clock.now = began - ago
            outbox = Outbox()
            for number in range(first, min(first + LANES_PER_BATCH, total)):
                outbox.append(f"fill-{number}", *conversation(f"fill-{number}", clock.now, chance, EACH))
            await outbox.deliver(store)
        clock.now = began
        outbox = Outbox()
        outbox.append("long", *conversation("long", began - timedelta(days=9), chance, LONG))
        for first in range(1, LONG + 2, 1_000):
            await store.apply(outbox.origin, [outbox.batch("long", first, first + 999)])


async def settle(url: str) -> None:
    """Have the planner know the tables, as it does of any that were not filled a moment ago."""
    engine = create_store_engine(url, pool_size=1)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("ANALYZE")
    await engine.dispose()


async def fill_outbox(history: History) -> None:
    """Have events wait in the outbox, and conversations that are blocked; for a history without a relay."""
    for number in range(PENDING):
        await history.append(f"fill-{number % 200}", Message.user(f"pending {number}"))
    await plant_blocked(history, BLOCKED)


def conversation(name: str, ended: datetime, chance: random.Random, count: int) -> Iterator[Event]:
    """Yield the events of a conversation: its start, then questions and answers by turns."""
    owner = f"owner-{chance.randrange(OWNERS) + 1}"
    moment = ended - timedelta(seconds=40 * count)
    yield replace(Event.of(ConversationStarted(owner_id=owner), conversation_id=name), occurred_at=moment)
    for number in range(count):
        text = say(chance)
        if number % 2 == 0:
            moment += timedelta(seconds=75)
            message = Message.user(text)
        else:
            moment += timedelta(seconds=chance.uniform(0.5, 8))
            message = Message.assistant(text, tokens=chance.randrange(400), metadata={"model": chance.choice(MODELS)})
        yield replace(Event.of(message, conversation_id=name), occurred_at=moment)


def say(chance: random.Random) -> str:
    """Return a dozen words, a few of which are said much more than the others, as in any language."""
    words = [WORDS[min(int(chance.paretovariate(0.6)) - 1, len(WORDS) - 1)] for _ in range(11)]
    words.append(RARE if chance.random() < 0.005 else COMMON if chance.random() < 0.2 else WORDS[-1])
    return " ".join(words)

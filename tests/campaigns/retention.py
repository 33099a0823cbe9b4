"""Take content out of a long history while a bot appends: ``python -m tests.proof --part retention``.

Nothing younger than the policy may change, nothing older may stay, and the p99 of an append is at most 1.2 times what
it is without the policy, unless the run is short. Needs a machine on which nothing else runs.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Final

from letopis.outbox import History, Retention
from letopis.store import ContentRetention, ConversationStore, Message
from letopis.store.model.events import utc_now
from letopis.store.testing.outbox import Outbox
from tests.proof.harness import Experiment, Setting, Tally, prove_table
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support.defects import TRIMMED_TOO_FAR

MAX_RATIO: Final = 1.2
PER_CONVERSATION: Final = 500
OLD_DAYS, YOUNG_DAYS, POLICY_DAYS = 40, 10, 30
_BATCH: Final = 20
"""Conversations that are filled in one delivery."""


def clock(days: float) -> Callable[[], datetime]:
    return lambda: utc_now() - timedelta(days=days)


async def fill(url: str, messages: int) -> list[str]:
    """Fill a store; half of each conversation is older than the policy."""
    names = [f"chat-{number}" for number in range(max(1, messages // PER_CONVERSATION))]
    half = PER_CONVERSATION // 2
    outbox = Outbox("filling")
    for days, word in ((OLD_DAYS, "old"), (YOUNG_DAYS, "young")):
        async with ConversationStore.open(url, migrate=True, now=clock(days)) as store:
            for start in range(0, len(names), _BATCH):
                for name in names[start : start + _BATCH]:
                    what = (Message.user(f"{word} words of {name}, {number}") for number in range(half))
                    outbox.append(name, *what)
                await outbox.deliver(store)
                for name in names[start : start + _BATCH]:  # what is delivered need not be kept
                    outbox.lanes[name] = [None] * len(outbox.lanes[name])  # type: ignore[list-item]
    return names


async def young_digest(store: ConversationStore, name: str) -> tuple[str, int]:
    """Return a digest of all that is shown of the young messages, and how many old ones have content."""
    page = (await store.messages(name)).items
    shown = [repr(message) for message in page if message.text.startswith("young")]
    return hashlib.sha256("".join(shown).encode()).hexdigest(), sum(m.text.startswith("old") for m in page)


async def appending(history: History, until: Callable[[], bool]) -> list[float]:
    """Append at an even pace until told to stop; return the milliseconds of each append."""
    times, number = list[float](), 0
    while not until():
        began = time.perf_counter()
        await history.append(f"live-{number % 50}", Message.user(f"what is said meanwhile {number}"))
        times.append((time.perf_counter() - began) * 1_000)
        number += 1
        await asyncio.sleep(0.005)
    return times


def p99(times: list[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * 0.99))]


async def run(setting: Setting) -> Tally:
    seconds, outbox, tally = setting.many(60, 3), setting.folder / "bot.outbox.db", Tally()
    names = await fill(setting.url, setting.many(1_000_000, 1_500))
    async with ConversationStore.open(setting.url) as store:
        before = {name: (await young_digest(store, name))[0] for name in names}
        end = time.monotonic() + seconds
        async with History(outbox, store=store, watch=False) as history:
            quiet = await appending(history, lambda: time.monotonic() >= end)
        content = ContentRetention(max_age_days=POLICY_DAYS)
        async with History(outbox, store=store, watch=False, retention=Retention(content=content)) as history:
            began, done = time.monotonic(), asyncio.Event()

            async def watch() -> None:
                while True:
                    await asyncio.sleep(2.0)  # a look costs as much as some appends
                    trimmed = (await history.status()).retention.trimmed
                    if trimmed >= len(names) and not (await store.pending_tasks()).tasks:
                        return done.set()

            watching = asyncio.create_task(watch())
            busy = await appending(history, lambda: done.is_set() and time.monotonic() >= began + seconds)
            await watching
            took = time.monotonic() - began
            tally.require(await history.drained(600), "not drained")
        while (await store.pending_tasks()).tasks:
            await store.run_pending_tasks()
        after = {name: await young_digest(store, name) for name in names}
    tally.count = len(names) * PER_CONVERSATION
    tally.blame(f"{name}: what is young has changed" for name in names if before[name] != after[name][0])
    tally.blame(f"{name}: {left} messages are old, and have content" for name, (_, left) in after.items() if left)
    slower = p99(busy) / p99(quiet)
    tally.require(setting.options.short or slower <= MAX_RATIO, f"the p99 of an append is {slower:.2f} times as long")
    tally.notes = (
        f"p99 of an append {p99(quiet):.2f} ms, {p99(busy):.2f} ms beside it, of {len(busy):,}; it took {took:.0f} s"
    )
    return tally


TABLE: Final = (
    Experiment("old content leaves a long history beside a bot: nothing young changes", run, "messages", 1_000_000),
    Experiment(TRIMMED_TOO_FAR, run, "messages", on=("sqlite",), defect=TRIMMED_TOO_FAR),
)


def prove(options: Options) -> Iterator[Row]:
    yield from prove_table(options, TABLE)

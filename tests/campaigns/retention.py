"""Take content out of a long history while a bot appends: ``python -m tests.campaigns.retention --messages 1000000``.

Nothing younger than the policy may change, nothing older may stay, and the p99 of an append is at most 1.2 times what
it is without the policy. Needs a machine on which nothing else runs.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from letopis.outbox import History, Retention
from letopis.store import ContentRetention, ConversationStore, Message
from letopis.store.model.events import utc_now
from letopis.store.testing.outbox import Outbox

MAX_RATIO = 1.2
PER_CONVERSATION = 500
OLD_DAYS, YOUNG_DAYS, POLICY_DAYS = 40, 10, 30
_BATCH = 20
"""Conversations that are filled in one delivery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run came to; times in milliseconds."""

    messages: int
    old: int
    p50_before: float
    p99_before: float
    p50_during: float
    p99_during: float
    appends_during: int
    retention_seconds: float
    young_changed: int
    old_left: int

    @property
    def ratio(self) -> float:
        return self.p99_during / self.p99_before

    @property
    def ok(self) -> bool:
        return self.ratio <= MAX_RATIO and self.young_changed == 0 and self.old_left == 0


def clock(days: float) -> Callable[[], datetime]:
    return lambda: utc_now() - timedelta(days=days)


async def fill(url: str, messages: int) -> list[str]:
    """Fill a store; half of each conversation is older than the policy."""
    names = [f"chat-{number}" for number in range(max(1, messages // PER_CONVERSATION))]
    half = PER_CONVERSATION // 2
    outbox = Outbox("filling")
    for days, word in ((OLD_DAYS, "old"), (YOUNG_DAYS, "young")):
        async with ConversationStore.open(url, now=clock(days)) as store:
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


def quantile(times: list[float], share: float) -> float:
    return round(sorted(times)[min(len(times) - 1, int(len(times) * share))], 3)


async def run(url: str, outbox: Path, messages: int, seconds: float) -> Report:
    names = await fill(url, messages)
    async with ConversationStore.open(url) as store:
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
            assert await history.drained(600)
        while (await store.pending_tasks()).tasks:
            await store.run_pending_tasks()
        after = [await young_digest(store, name) for name in names]
    return Report(
        messages=len(names) * PER_CONVERSATION,
        old=len(names) * (PER_CONVERSATION // 2),
        p50_before=quantile(quiet, 0.5),
        p99_before=quantile(quiet, 0.99),
        p50_during=quantile(busy, 0.5),
        p99_during=quantile(busy, 0.99),
        appends_during=len(busy),
        retention_seconds=round(took, 1),
        young_changed=sum(before[name] != digest for name, (digest, _) in zip(names, after, strict=True)),
        old_left=sum(left for _, left in after),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--store", help="the URL of an empty, migrated store; by default an SQLite file")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long appends are measured, at least")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="letopis-retention-") as folder:
        url = given.store or f"sqlite:///{folder}/history.db"
        report = asyncio.run(run(url, Path(folder) / "bot.outbox.db", given.messages, given.seconds))
    print(json.dumps({**asdict(report), "ratio": round(report.ratio, 2), "ok": report.ok}, indent=2))
    return 0 if report.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())

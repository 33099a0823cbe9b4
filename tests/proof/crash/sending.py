"""Kill a bot between append, sending and confirmation: each reply reaches the platform, and few reach it twice."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID

from letopis.outbox import History
from tests.campaigns.victims import Context, kill_after
from tests.proof.harness import Experiment, Setting, Tally
from tests.support.sending import FilePlatform, answer, sender_to

KILLS: Final = 300
DRAIN_SECONDS: Final = 120.0


def table(context: Context) -> Iterator[Experiment]:
    """Kill with a sender, and without one."""
    what = "killed between append, sending and confirmation"
    run = partial(kill, context=context)
    yield Experiment(f"{what}: every reply is sent, in order", run, "kills", KILLS, on=())
    run = partial(kill, context=context, again=False)
    yield Experiment(f"{what}, without a sender", run, "kills", on=(), control=True)


class Lives:
    """The lives of one bot.

    :ivar windows: how often a kill fell between the platform's acceptance of a reply and its confirmation, by key.
    :ivar unsent: how many kills left a reply that the platform had not accepted.
    """

    def __init__(self, outbox: Path, accepted: Path) -> None:
        self.outbox = outbox
        self.path = accepted
        self.platform = FilePlatform(accepted)
        self.windows: Counter[str] = Counter()
        self.unsent = 0

    def live(self, context: Context, chance: random.Random, *, seed: int, again: bool) -> None:
        """Let the bot do some steps, kill it, and count what it left."""
        given, reports, seconds = (str(self.outbox), str(self.path)), chance.randrange(1, 24), chance.uniform(0, 0.005)
        kill_after(context, answer, *given, reports=reports, seconds=seconds, seed=seed, again=again)
        with closing(sqlite3.connect(self.outbox)) as file:
            rows = file.execute("SELECT event_id FROM letopis_outbox_unconfirmed").fetchall()
        accepted = set(self.platform.accepted)
        left = [str(UUID(bytes=row[0])) for row in rows]
        self.windows.update(key for key in left if key in accepted)
        self.unsent += any(key not in accepted for key in left)


async def kill(setting: Setting, *, context: Context, again: bool = True) -> Tally:
    """Kill a bot at random moments, end in peace, and compare what it appended with what the platform accepted."""
    chance, tally = random.Random(setting.seed), Tally()
    lives = Lives(setting.folder / "bot.outbox.db", setting.folder / "platform")
    for seed in range(setting.many(KILLS if again else 5, 20 if again else 5)):
        await asyncio.to_thread(lives.live, context, chance, seed=seed, again=again)
        tally.count += 1

    async def pause() -> None:
        await asyncio.sleep(0)

    sender = sender_to(lives.platform, pause) if again else None
    async with History(lives.outbox, relay=False, sender=sender) as history:
        if again:
            async with asyncio.timeout(DRAIN_SECONDS):
                while await history.unconfirmed():  # noqa: ASYNC110 - nothing rings
                    await asyncio.sleep(0.01)
        pages = {chat: await history.messages(chat, last=None) for chat in ("live", "left")}
    appended = {chat: [str(message.event_id) for message in page] for chat, page in pages.items()}
    _compare(tally, lives, appended)
    return tally


def _compare(tally: Tally, lives: Lives, appended: dict[str, list[str]]) -> None:
    accepted = lives.platform.accepted
    times, keys = Counter(accepted), {key for chat in appended.values() for key in chat}
    tally.blame(f"reply {key} was never sent" for key in keys - times.keys())
    tally.blame(f"{key} was sent, and is no reply" for key in times.keys() - keys)
    doubles = {key: count - 1 for key, count in times.items() if count > 1}
    tally.blame(
        f"reply {key} was sent {count + 1} times, and {lives.windows[key]} of them could not be known"
        for key, count in doubles.items()
        if count > lives.windows[key]
    )
    left = set(appended["left"])
    in_order = [key for key in dict.fromkeys(accepted) if key in left] == appended["left"]
    tally.require(in_order or bool(left - times.keys()), "replies were sent out of order")
    # Otherwise it would have shown nothing.
    tally.require(lives.unsent > tally.count // 4, f"only {lives.unsent} kills left a reply that was not sent")
    tally.require(len(keys) > tally.count, f"only {len(keys)} replies")
    tally.notes = (
        f"{lives.unsent} of them with a reply that was not sent; {len(keys)} replies, {sum(doubles.values())} sent"
        f" twice in {lives.windows.total()} windows"
    )

"""Kill a bot between append, sending and confirmation: each reply reaches the platform, and few reach it twice."""

import asyncio
import random
from collections import Counter
from functools import partial
from typing import Any, Final
from uuid import UUID

from letopis import History
from tests.campaigns.victims import kill_after
from tests.proof.crash.moments import context
from tests.proof.harness import Experiment, Setting, Tally
from tests.support.sqlite_rows import rows
from tests.support.victim import WAYS, FilePlatform, answer, sender_to

KILLS: Final = 300
UNSENT: Final = "unsent"
DRAIN_SECONDS: Final = 120.0


async def kill(setting: Setting) -> Tally:
    """Kill a bot at random moments, end in peace, and compare what it appended with what the platform accepted."""
    chance, tally, again = random.Random(setting.seed), Tally(), not setting.control
    outbox, path = setting.folder / "bot.outbox.db", setting.folder / "platform"
    platform = FilePlatform(path)
    for seed in range(setting.many(KILLS if again else 5, 8 if again else 5)):
        way = WAYS[seed % len(WAYS)]
        how: dict[str, Any] = {"way": way, "reports": chance.randrange(1, 24), "seconds": chance.uniform(0, 0.005)}
        killing = partial(kill_after, context(), answer, str(outbox), str(path), seed=seed, again=again, **how)
        await asyncio.to_thread(killing)
        tally.count += 1
        accepted = set(platform.accepted)
        left = rows(outbox, "SELECT event_id FROM letopis_outbox_unconfirmed")
        keys = [str(UUID(bytes=event_id)) for (event_id,) in left]
        tally.figures.update(key for key in keys if key in accepted)
        tally.figures[UNSENT] += any(key not in accepted for key in keys)

    async def pause() -> None:
        await asyncio.sleep(0)

    sender = sender_to(platform, pause) if again else None
    async with History(outbox, relay=False, sender=sender) as history:
        if again:
            async with asyncio.timeout(DRAIN_SECONDS):
                while await history.unconfirmed():  # noqa: ASYNC110 - nothing rings
                    await asyncio.sleep(0.01)
        pages = {chat: await history.messages(chat, last=None) for chat in ("live", "left")}
    appended = {chat: [str(message.event_id) for message in page] for chat, page in pages.items()}
    _compare(tally, platform.accepted, appended)
    return tally


def _compare(tally: Tally, accepted: list[str], appended: dict[str, list[str]]) -> None:
    """Compare; the figures are how many kills left a reply that was not accepted, and by key how many fell between its
    acceptance and its confirmation."""
    unsent, windows = tally.figures.pop(UNSENT), tally.figures
    times, keys = Counter(accepted), {key for chat in appended.values() for key in chat}
    tally.blame(f"reply {key} was never sent" for key in keys - times.keys())
    tally.blame(f"{key} was sent, and is no reply" for key in times.keys() - keys)
    doubles = {key: count - 1 for key, count in times.items() if count > 1}
    tally.blame(
        f"reply {key} was sent {count + 1} times, and {windows[key]} of them could not be known"
        for key, count in doubles.items()
        if count > windows[key]
    )
    left = set(appended["left"])
    in_order = [key for key in dict.fromkeys(accepted) if key in left] == appended["left"]
    tally.require(in_order or bool(left - times.keys()), "replies were sent out of order")
    # Otherwise it would have shown nothing.
    tally.require(unsent > tally.count // 4, f"only {unsent} kills left a reply that was not sent")
    tally.require(len(keys) > tally.count, f"only {len(keys)} replies")
    tally.notes = (
        f"{unsent} of them with a reply that was not sent; {len(keys)} replies, {sum(doubles.values())} sent"
        f" twice in {windows.total()} windows"
    )


WHAT: Final = "killed between append, sending and confirmation"
TABLE: Final = (
    Experiment(f"{WHAT}: every reply is sent, in order", kill, "kills", KILLS, on=()),
    Experiment(f"{WHAT}, without a sender", kill, "kills", on=(), control=True),
)

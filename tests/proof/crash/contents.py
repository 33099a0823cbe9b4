"""Kill a bot at random while it writes, edits and erases large content; then nothing is lost, and nothing left."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

from letopis import History, Message, Retention
from letopis.ops.verify import content_problems
from letopis.store.model.large_content import LARGE_BYTES
from tests.campaigns.victims import kill_after
from tests.proof.crash.moments import context
from tests.proof.harness import Experiment, Setting, Tally, migrated
from tests.support.defects import NOT_SWEPT, planted
from tests.support.sayings import finish_tasks, problems

KILLS: Final = 70  # of each store; more than 200 in all
CHATS: Final = ("chat-1", "chat-2")
POOL: Final = 5
"""Contents that there are, so that the same is said again and again."""
KEPT: Final = Retention(keep_last=4, keep_for=timedelta(0))
DRAIN_SECONDS: Final = 120.0
Done = tuple[str, str, str, int]
"""What was asked for or acknowledged, of which conversation and message, with which content."""


def content(number: int) -> str:
    return f"content {number} " * (LARGE_BYTES // 8)


def live(outbox: str, store: str, done: Connection, *, seed: int, defect: str) -> None:
    """Change conversations without end; send what is asked for before it is done, and what is acknowledged after it."""
    chance = random.Random(seed)

    async def change(history: History, number: int) -> None:
        name, message_id, picked = chance.choice(CHATS), f"{seed}-{number}", chance.randrange(POOL)
        await history.append(name, Message.user(content(picked), id=message_id))
        done.send(("appended", name, message_id, picked))
        match chance.randrange(6):
            case 0 | 1 | 2:
                done.send(("redacting", name, message_id, 0))
                await history.chat(name).redact(message_id)
                done.send(("redacted", name, message_id, 0))
            case 3:
                done.send(("editing", name, message_id, 0))
                await history.chat(name).edit(message_id, content(chance.randrange(POOL)))
            case 4 if chance.random() < 0.03:
                done.send(("resetting", name, "", 0))
                await history.chat(name).reset()
            case _:
                await asyncio.sleep(chance.random() / 50)

    async def run() -> None:
        async with History(outbox, store=store, retention=KEPT) as history:
            for number in range(10**9):
                await change(history, number)

    logging.disable()
    with planted(defect):
        asyncio.run(run())


async def kill(setting: Setting) -> Tally:
    """Kill bots, deliver the rest and compare; then erase everything, after which nothing may be left."""
    await migrated(setting.url)
    world, chance, done = setting.world(), random.Random(setting.seed), list[Done]()
    tally = world.tally
    for seed in range(setting.many(KILLS, 2) if not setting.defect else 8):
        given, reports, seconds = (str(world.outbox), world.url), chance.randrange(1, 9), chance.random() * 0.02
        killing = partial(kill_after, context(), live, *given, reports=reports, seconds=seconds)
        done += await asyncio.to_thread(killing, seed=seed, defect=setting.defect)
        tally.count += 1
    async with History(world.outbox, store=world.url, retention=KEPT) as history:
        tally.blame(await _at_rest(history))
        shown = dict[tuple[str, str], Any]()
        for name in CHATS:
            page = await history.messages(name, last=None)
            tally.require(page.complete, f"{name} is not complete")
            shown |= {(name, message.id): message.content for message in page}
        tally.blame(_lost(done, shown))
        for name in CHATS:
            await history.chat(name).reset()
        tally.blame(await _at_rest(history), where="all erased")
    counts = Counter(verb for verb, *_ in done)
    tally.notes = ", ".join(f"{counts[verb]} {verb}" for verb in ("appended", "redacted", "editing", "resetting"))
    return tally


async def _at_rest(history: History) -> list[str]:
    """Deliver and carry out what is pending; return what is wrong with the file and the store then."""
    found = [] if await history.drained(DRAIN_SECONDS) else ["not drained"]
    await finish_tasks(history.store)
    found += await history.outbox.read(lambda connection: list(content_problems(connection)))
    return found + await problems(history.store)


def _lost(done: list[Done], shown: dict[tuple[str, str], Any]) -> Iterator[str]:
    """Yield what was acknowledged and is not shown, and what was redacted and is."""
    changed = {(name, message_id) for verb, name, message_id, _ in done if verb in ("redacting", "editing")}
    reset = {name: at for at, (verb, name, *_) in enumerate(done) if verb == "resetting"}
    for at, (verb, name, message_id, picked) in enumerate(done):
        key = name, message_id
        if verb == "redacted" and shown.get(key):
            yield f"{message_id} is shown after its redaction"
        if verb == "appended" and key not in changed and at > reset.get(name, -1) and shown.get(key) != content(picked):
            yield f"the content of {message_id} is lost"


WHAT: Final = "killed while large content is written, edited, redacted and reset"
TABLE: Final = (
    Experiment(WHAT, kill, "kills", KILLS),
    Experiment(f"{NOT_SWEPT}, {WHAT}", kill, "kills", on=("sqlite",), defect=NOT_SWEPT),
)

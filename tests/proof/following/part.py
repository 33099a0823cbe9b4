"""Kill a follower at random while two writers deliver and are stopped; then it has handled each position, in order."""

import asyncio
import logging
import os
import random
import signal
from collections import defaultdict
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from letopis import ConversationStore, History, Message
from letopis.store.database.schema import events
from tests.campaigns.victims import REPORT_SECONDS, Context, fork_server, kill_after
from tests.proof.harness import NO_DISK_BOUND, Experiment, Setting, Tally, migrated
from tests.support.sayings import rows_of

KILLS: Final = 40  # on each kind of store
WRITERS: Final = 2
CHATS: Final = 6
BATCH: Final = 7
STOPPED_SECONDS: Final = 0.6
NAME: Final = "warehouse"
Handled = list[tuple[int, int]]
"""The partition and position of each event of a batch."""


def write(outbox: str, store: str, done: Connection) -> None:
    """Append and deliver without end."""

    async def run() -> None:
        async with History(outbox, store=store, watch=False, bounds=NO_DISK_BOUND) as history:
            done.send("begun")
            for number in range(10**9):
                await history.append(f"chat-{number % CHATS}", Message.user(f"word {number}"))
                await asyncio.sleep(0.002)

    logging.disable()
    asyncio.run(run())


def follow(store: str, done: Connection, *, hasty: bool = False) -> None:
    """Follow the log and tell what was handled; ``hasty`` asks for the next batch before it has handled one."""

    async def run() -> None:
        before: Handled = []
        async with ConversationStore.open(store) as history:
            async for batch in history.follower(NAME, batch=BATCH).batches():
                read = [(event.partition, event.position) for event in batch]
                if before or not hasty:
                    done.send(before if hasty else read)
                before = read

    logging.disable()
    asyncio.run(run())


async def kill(setting: Setting) -> Tally:
    """Kill followers while others write, let the last of them come to the end, and compare with the log."""
    await migrated(setting.url)
    tally, chance = Tally(), random.Random(setting.seed)
    context = fork_server("tests.proof.following.part", "aiosqlite", "asyncpg", "asyncmy")
    writers = [_start(context, setting, number) for number in range(WRITERS)]
    runs: list[list[Handled]] = []
    try:
        for _ in range(setting.many(KILLS, 3) if not setting.control else 8):
            stalled = asyncio.create_task(_stall(writers, chance))
            reports, seconds, hasty = chance.randint(1, 6), chance.random() * 0.05, setting.control
            named = {"reports": reports, "seconds": seconds, "hasty": hasty}
            runs.append(await asyncio.to_thread(partial(kill_after, context, follow, setting.url, **named)))
            await stalled
            tally.count += 1
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    for number in range(WRITERS):
        async with History(_outbox(setting, number), store=setting.url, watch=False, bounds=NO_DISK_BOUND) as history:
            tally.require(await history.drained(60), f"writer {number} is not drained")
    async with ConversationStore.open(setting.url) as store:
        follower, last = store.follower(NAME, batch=BATCH), list[Handled]()
        if await follower.behind():
            async for batch in follower.batches():
                last.append([(event.partition, event.position or 0) for event in batch])
                if await follower.behind() <= len(batch):
                    break
        log = {(row.partition, row.position) for row in await rows_of(store, sa.select(events))}
    _judge(tally, [*runs, last], log)
    return tally


def _start(context: Context, setting: Setting, number: int) -> BaseProcess:
    ours, theirs = context.Pipe(duplex=False)
    writer = context.Process(target=write, args=(str(_outbox(setting, number)), setting.url, theirs), daemon=True)
    writer.start()
    assert ours.poll(REPORT_SECONDS), "a writer does not begin"
    return writer


def _outbox(setting: Setting, number: int) -> Path:
    return setting.folder / f"writer-{number}.outbox.db"


async def _stall(writers: list[BaseProcess], chance: random.Random) -> None:
    """Stop a writer for a while, wherever it is: in a transaction of the store, too."""
    pid = chance.choice(writers).pid or 0
    await asyncio.sleep(chance.random() * 0.3)
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(chance.random() * STOPPED_SECONDS)
    os.kill(pid, signal.SIGCONT)


def _judge(tally: Tally, runs: list[list[Handled]], log: set[tuple[int, int]]) -> None:
    handled = set[tuple[int, int]]()
    for number, batches in enumerate(runs):
        again, places = 0, defaultdict[int, int](int)
        for partition, position in (place for batch in batches for place in batch):
            tally.require(position > places[partition], f"run {number} handles {position} after {places[partition]}")
            places[partition] = position
            again += (partition, position) in handled
        tally.require(again <= BATCH, f"run {number} handles {again} events again, more than a batch")
        tally.figures["handled again"] += again
        handled |= {place for batch in batches for place in batch}
    tally.require(not log - handled, f"{len(log - handled)} of {len(log)} positions are left out")
    tally.require(not handled - log, f"{len(handled - log)} positions are handled that are not in the log")
    tally.figures["positions"] += len(log)
    tally.notes = tally.told()


WHAT: Final = "a follower is killed while writers deliver and are stopped: it leaves out no position"
TABLE: Final = (
    Experiment(WHAT, kill, "kills", KILLS),
    Experiment(f"{WHAT}; it asks for the next batch too early", kill, "kills", on=("sqlite",), control=True),
)

"""Let two daemons and a bot's relay compete for one outbox file, while signals stop, wake and kill them at random.

    python -m tests.campaigns.fight                        # two minutes
    python -m tests.campaigns.fight --seconds 20 --seed 7

While a holder stands still, a thief that ignores the lock takes its work over, so that two apply at once, as after a
pause of a virtual machine: what the holder writes back on waking must be refused. At the end nothing is lost, doubled
or out of order, and every event was written off exactly once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import signal
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from letopis.outbox import History
from letopis.outbox.cli.interface.exit_codes import Exit
from letopis.outbox.relay.relay import Relay as InProcessRelay
from letopis.store import ConversationStore, Message
from letopis.store.errors import OutboxUnavailable
from tests.campaigns.invariants import Ack, check
from tests.campaigns.processes import Place, Probe, Relay

CONVERSATIONS = 12
_FENCED = "has taken this outbox over"
_LOCKED = "\nletopis: another writer has held the outbox file for too long"
"""The last line of a daemon that is started while a stopped process holds the file's lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a fight came to; ``problems`` is empty when it went as it must."""

    seconds: float
    fired: Counter[str]
    holders: int
    incarnations: int
    fenced: int
    acknowledged: int
    stored: int
    problems: tuple[str, ...]

    def __str__(self) -> str:
        fired = ", ".join(f"{count} {name}" for name, count in sorted(self.fired.items()))
        return "\n".join(
            (
                f"fight of {self.seconds:g} s: {fired}",
                f"  processes that were seen to hold the lease: {self.holders}, in {self.incarnations} incarnations",
                f"  late write-backs refused by the fence: {self.fenced}",
                f"  {self.acknowledged} events acknowledged to the bot, {self.stored} stored",
                *(f"  PROBLEM: {one}" for one in self.problems),
            )
        )


async def run(folder: Path, *, seconds: float, seed: int) -> Report:
    """Fight for this long, then drain everything, and examine it."""
    chance = random.Random(seed)
    blows = _blows(random.Random(seed))
    loop = asyncio.get_running_loop()
    outbox = folder / "bot.outbox.db"
    url = f"sqlite:///{(folder / 'history.db').as_posix()}"
    daemons = []
    for number in range(2):
        (folder / f"daemon-{number}").mkdir()
        daemons.append(Relay(Place(folder=folder / f"daemon-{number}", outbox=outbox, store=url)))
    fired: Counter[str] = Counter()
    holders: set[int] = set()
    acks: list[Ack] = []
    fenced = 0
    try:
        async with (
            History.open(outbox, store=url, relay=False, watch=False) as bot,
            ConversationStore.open(url) as thiefs,
        ):
            probe = Probe(outbox)
            own = Own(bot)
            enough = asyncio.Event()
            talking = asyncio.create_task(_talk(bot, chance, acks, enough))
            until = loop.time() + seconds
            while loop.time() < until:
                for one in daemons:
                    one.ensure()
                await asyncio.sleep(chance.uniform(0.1, 0.5))
                with contextlib.suppress(sqlite3.OperationalError):  # locked at this moment
                    holders.add(probe.look().holder or 0)
                victim = chance.choice(daemons)
                what = next(blows)
                if what == "kill":
                    fired["SIGKILL"] += victim.kill()
                elif what == "yield":
                    # The bot's own relay ends for a while, so that the daemons get their turn.
                    await own.stop()
                    await asyncio.sleep(chance.uniform(1.0, 2.5))
                    own.start()
                    fired["stops of the bot's relay"] += 1
                elif victim.pid is not None:
                    pid = victim.pid
                    os.kill(pid, signal.SIGSTOP)
                    fired["SIGSTOP"] += 1
                    await asyncio.sleep(chance.uniform(0.05, 0.8))
                    if what == "steal":
                        begun = loop.time()
                        fired["takeovers past the lock"] += await _steal(bot, thiefs)
                        # To wait for what the one that stands still holds of SQLite's locks is no fight.
                        until += loop.time() - begun
                    os.kill(pid, signal.SIGCONT)
            # Not cancelled: what it waits for may be written all the same, when everything else is drained already.
            enough.set()
            await talking
            drained = await bot.drained(60)
            await own.stop()
            fenced += own.fenced
            probe.close()
        for one in daemons:
            one.ensure()
            await asyncio.to_thread(one.stop)
    finally:
        for one in daemons:
            one.close()
    fenced += sum(one.log.read_text(errors="replace").count(_FENCED) for one in daemons)
    verdict = await check([outbox], url, acknowledged=acks, drained=True)
    with closing(sqlite3.connect(outbox)) as connection:
        incarnation, delivered = connection.execute(
            "SELECT incarnation, delivered_total FROM letopis_outbox_relay"
        ).fetchone()
    deaths = [code for one in daemons for code in one.deaths]
    # That is for its supervisor, which starts it again; one that is working continues whatever happens to the file.
    locked = sum(one.log.read_text(errors="replace").count(_LOCKED) for one in daemons)
    for _ in range(min(locked, deaths.count(Exit.LATER))):
        deaths.remove(Exit.LATER)
    problems = [
        "" if verdict.ok else str(verdict),
        "" if drained else "not drained within 60 s",
        "" if delivered == verdict.stored else f"{delivered} events written off, {verdict.stored} stored",
        f"daemons ended by themselves, with {deaths}" if deaths else "",
    ]
    return Report(
        seconds=seconds,
        fired=fired,
        holders=len(holders - {0}),
        incarnations=incarnation,
        fenced=fenced,
        acknowledged=len(acks),
        stored=verdict.stored,
        problems=tuple(one for one in problems if one),
    )


def _blows(chance: random.Random) -> Iterator[str]:
    """Each kind as often as any other, however few there is time for, and in no order that could be a rhythm."""
    while True:
        yield from chance.sample(("kill", "stop", "steal", "yield"), 4)


async def _talk(bot: History, chance: random.Random, acks: list[Ack], enough: asyncio.Event) -> None:
    number = 0
    while not enough.is_set():
        number += 1
        name = f"chat-{chance.randrange(CONVERSATIONS)}"
        try:
            receipt = await bot.append(name, *(Message.user(f"{number} {part}") for part in range(5)))
        except OutboxUnavailable:
            continue  # a process was stopped for long while it held the file's lock; nothing was promised
        acks.extend(Ack(name, event_id) for event_id in receipt.event_ids[:-1])
        acks.append(Ack(name, receipt.event_ids[-1], receipt.sequence))
        await asyncio.sleep(chance.uniform(0, 0.01))


class Own:
    """The relay inside the bot, which ends and begins again."""

    def __init__(self, bot: History) -> None:
        self._bot = bot
        self.fenced = 0
        self.start()

    def start(self) -> None:
        self._relay = InProcessRelay(self._bot.outbox, self._bot.store, holder="bot")
        self._task = asyncio.create_task(self._relay.run())

    async def stop(self) -> None:
        """Finish the batch in flight and end."""
        self._relay.stop()
        await self._task
        self.fenced += self._relay.stats.acks_fenced


async def _steal(bot: History, store: ConversationStore) -> bool:
    """Deliver without regard to the lock; whether that could be done."""
    thief = InProcessRelay(bot.outbox, store, locked=False, holder="thief")
    try:
        async with asyncio.timeout(3):
            return await thief.drain() > 0
    except (TimeoutError, OutboxUnavailable):
        return False  # the one that stands still holds a lock of SQLite


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory(prefix="letopis-fight-") as folder:
        report = asyncio.run(run(Path(folder), seconds=given.seconds, seed=given.seed))
    print(f"seed {given.seed}: {report}")
    return 1 if report.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())

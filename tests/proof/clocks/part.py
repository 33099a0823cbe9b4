"""Prove that clocks that jump lose, block and announce nothing, on each kind of store."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final
from uuid import UUID

from tests.campaigns.invariants import Ack
from tests.proof.clocks.bot import JUMPS, STUCK, WallClock, forget, library, live
from tests.proof.harness import Experiment, Setting, Tally, migrated
from tests.support.child import LineProcess, command
from tests.support.daemons import DaemonProcess
from tests.support.peers import FileDoor, Gate, door_to
from tests.support.relays import comes_true
from tests.support.sqlite_rows import rows
from tests.support.store_changes import let_through, refuse, run_there

HANDED_AT: Final = (JUMPS[1], JUMPS[0], JUMPS[3])
REFUSAL: Final = {"sqlite": "", "postgresql": "22021", "mariadb": "22007"}
SLACK: Final = 20.0  # seconds within which a relay has to be at work again: the machine may be busy with other parts
LANE: Final = "SELECT state, attempts, fault_class, fault FROM letopis_outbox_lanes WHERE conversation_id = 'poison'"


class Bot(LineProcess):
    """A bot in a process of its own, the clock that it lives under, and the door to its store."""

    def __init__(self, here: Setting, door: Gate | FileDoor, clock: WallClock) -> None:
        self.world, self.door, self.clock = here.world(), door, clock
        self.tally = self.world.tally
        words = command(live, self.world.outbox, door.url, by_wall_clock=here.control)
        super().__init__(words, {**os.environ, **clock.environment})

    async def told(self, line: str, patience: float = 30) -> dict[str, Any]:
        answer = await asyncio.to_thread(self.ask, line, patience)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    async def say(self, words: str) -> None:
        self.world.acks += [Ack(name, UUID(one)) for name, one in (await self.told(f"say {words}", 60))["acks"]]

    async def drain(self, seconds: float, problem: str) -> None:
        """Note a problem unless everything is delivered within this many seconds of our clock."""
        self.tally.require((await self.told(f"drain {seconds}", seconds + 20))["drained"], problem)

    async def hears(self, what: str, before: int, patience: float) -> None:
        """Wait until it was notified once more, and not for ever."""

        async def heard() -> bool:
            await asyncio.sleep(0.3)
            return len((await self.told("alerts"))[what]) > before

        await comes_true(heard, patience=patience)

    async def finds(self, statement: str, patience: float) -> None:
        """Wait until the outbox holds something, and not for ever."""
        await comes_true(lambda: rows(self.world.outbox, statement), patience=patience)

    async def jump(self) -> None:
        """Have the clock set, and have it sleep where that belongs to it."""
        self.clock.jump()
        self.tally.count += 1
        if self.clock.pause:
            self.signal(signal.SIGSTOP)
            await asyncio.sleep(self.clock.pause)
            self.signal(signal.SIGCONT)


Play = Callable[[Setting, str], Awaitable[Tally]]


async def at_each(setting: Setting, *, jumps: Sequence[str], short: int, play: Play) -> Tally:
    """Do something at each jump, all at once, each with a store of its own."""
    jumps = jumps[: setting.many(len(jumps), short)]

    async def played(jump: str) -> Tally:
        with setting.apart(f"{JUMPS.index(jump)}") as here:
            await migrated(here.url)
            return await play(here, jump)

    whole = Tally()
    for jump, tally in zip(jumps, await asyncio.gather(*map(played, jumps)), strict=True):
        whole.add(tally, where=jump)
    whole.notes = f"{', '.join(jumps)}; {', '.join(f'{count} {what}' for what, count in sorted(whole.figures.items()))}"
    return whole


async def _away(here: Setting, jump: str) -> Tally:
    door = door_to(here.kind, here.url)
    await door.open()
    with Bot(here, door, WallClock(here.folder, jump)) as bot:
        try:
            await (_starving if here.control else _short_outage)(bot)
            if not (here.control or here.options.short):
                await _long_outage(bot)
                await _refusals(bot, here)
        except (RuntimeError, TimeoutError) as error:
            bot.tally.problems.append(f"{type(error).__name__}: {error}")
        finally:
            bot.kill()
            forget(bot.pid)
            await (door.open() if isinstance(door, FileDoor) else door.shut())
    if not bot.tally.problems:
        await bot.world.judge(drained=not here.control)
    bot.tally.figures["events acknowledged"] += len(bot.world.acks)
    return bot.tally


async def _starving(bot: Bot) -> None:
    """Set the clock some times over, since one jump may come just when a wait is at its end."""
    await _outage_begins(bot)
    for _ in range(3):
        await bot.jump()
        await asyncio.sleep(0.7)
    await _outage_ends(bot, SLACK / 2)


async def _short_outage(bot: Bot) -> None:
    started = await _outage_begins(bot)
    await bot.jump()
    await _outage_ends(bot, SLACK)
    heard = await bot.told("alerts")
    # On a machine that is busy with other things the outage may have been a long one.
    if time.monotonic() - started - bot.clock.pause < STUCK:
        bot.tally.figures["short outages that nobody heard of"] += 1
        told = heard["stuck"] or heard["recovered"]
        bot.tally.require(not told, f"a jump in a short outage was alerted: {heard}")


async def _outage_begins(bot: Bot) -> float:
    """Have the bot wait for its store; return when that began."""
    await bot.say("9 words")
    await bot.drain(60, "not delivered with nothing the matter")
    started = time.monotonic()
    await bot.door.shut()
    await bot.say("9 words")
    # In the middle of a wait for the store.
    await bot.finds("SELECT 1 FROM letopis_outbox_relay WHERE breaker <> 'closed'", SLACK)
    return started


async def _outage_ends(bot: Bot, patience: float) -> None:
    await bot.say("9 words")
    await asyncio.sleep(1.0)
    await bot.door.open()
    await bot.drain(patience, f"starved: not all was delivered within {patience:g} s of the store's return")


async def _long_outage(bot: Bot) -> None:
    before = await bot.told("alerts")
    if len(before["stuck"]) > len(before["recovered"]):  # the short one was long enough after all
        await bot.hears("recovered", len(before["recovered"]), SLACK)
        before = await bot.told("alerts")
    started = time.monotonic()
    await bot.door.shut()
    await bot.say("6 words")
    await asyncio.sleep(STUCK / 3)
    await bot.jump()
    await bot.hears("stuck", len(before["stuck"]), STUCK + SLACK)
    await bot.door.open()
    # A store is probed again after no longer than it was unavailable.
    patience = time.monotonic() - started + SLACK
    await bot.drain(patience, f"starved after the long outage, for {patience:.0f} s")
    await bot.hears("recovered", len(before["recovered"]), SLACK)
    heard = {word: names[len(before[word]) :] for word, names in (await bot.told("alerts")).items()}
    bot.tally.figures["alerts"] += len(heard["stuck"])
    bot.tally.figures["recoveries"] += len(heard["recovered"])
    once = (len(heard["stuck"]), len(heard["recovered"])) == (1, 1)
    bot.tally.require(once, f"a long outage with a jump in it: one alert and one recovery belong, {heard} came")


async def _refusals(bot: Bot, here: Setting) -> None:
    """An event that is refused gets all its tries, not all at once; 1, 2 and 4 s lie between, one of which may end."""
    await run_there(here.url, *refuse(here.kind, "new.conversation_id = 'poison'", REFUSAL[here.kind]))
    await bot.say("1 words poison")
    started = time.monotonic()
    await bot.finds(f"{LANE} AND attempts > 0", SLACK)
    await bot.jump()
    await bot.finds(f"{LANE} AND state = 'blocked'", 7 + SLACK)
    lasted, found = time.monotonic() - started, rows(bot.world.outbox, LANE)
    bot.tally.require([one[:2] for one in found] == [("blocked", 4)], f"not blocked after its tries: {found}")
    bot.tally.require(lasted >= 2.9, f"given up after {lasted:.1f} s")
    bot.tally.figures["refused events with all their tries"] += 1
    await run_there(here.url, *let_through(here.kind, "events", "refuse"))
    await bot.told("retry")
    await bot.drain(SLACK, "not delivered after the retry")


async def _handed(here: Setting, jump: str) -> Tally:
    """Two daemons; the clock of both is set, the one at work is killed, and the other delivers."""
    world, clock = here.world(), WallClock(here.folder, jump)
    with ExitStack() as stack:
        words = ("--log-level", "ERROR", "--outbox", str(world.outbox), "--store", world.url)
        async with world.open(relay=False) as bot:
            pair = [DaemonProcess(*words, folder=here.folder, **clock.environment) for _ in range(2)]
            for one in pair:
                stack.callback(forget, one.pid)
                stack.enter_context(one)
            await world.append_some(bot, 6)
            holders = "SELECT pid FROM letopis_outbox_relay WHERE pid > 0"
            await comes_true(lambda: rows(world.outbox, holders), patience=60)
            await world.drain(bot, "no daemon delivers", patience=60)
            clock.jump()
            world.tally.count += 1
            ((holder,),) = rows(world.outbox, holders)
            await world.append_some(bot, 6)
            victim = {one.pid: one for one in pair}[holder]
            if clock.pause:
                victim.signal(signal.SIGSTOP)
                await world.append_some(bot, 6)
                await asyncio.sleep(clock.pause)
                victim.signal(signal.SIGCONT)
            else:
                victim.signal(signal.SIGKILL)
                world.tally.figures["relays killed"] += 1
            await world.append_some(bot, 6)
            started = time.monotonic()
            await world.drain(bot, f"nobody took over within {SLACK * 2:g} s", patience=SLACK * 2)
            took = round(time.monotonic() - started)
            world.tally.figures["seconds in all until the next one had delivered"] += took
    await world.judge(drained=False)
    world.tally.figures["events acknowledged"] += len(world.acks)
    return world.tally


def missing() -> str:
    return "" if library() else "libfaketime is not installed"


AT_A_TIME: Final = 3
JUMPED: Final = partial(Experiment, unit="jumps", missing=missing, short=("sqlite",))
TABLE: Final = (
    JUMPED(
        "clock set while the store is away: order, retries, alerts, retention",
        partial(at_each, jumps=JUMPS, short=1, play=_away),
        least=3 * len(JUMPS),
    ),
    JUMPED(
        "clock set, then the relay that works is killed: another takes over",
        partial(at_each, jumps=HANDED_AT, short=1, play=_handed),
        least=len(HANDED_AT),
        on=("sqlite",),
    ),
    JUMPED(
        "the same, with waits by the wall clock alone",
        partial(at_each, jumps=JUMPS[:1], short=1, play=_away),
        on=("sqlite", "postgresql"),
        control=True,
    ),
)

"""Prove that clocks that jump lose, block and announce nothing, on each kind of store."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from letopis.outbox import History
from letopis.store import ConversationStore, Message
from tests.campaigns.invariants import Ack, check
from tests.campaigns.processes import LETOPIS
from tests.proof.clocks import bot as bot_process
from tests.proof.clocks.bot import JUMPS, STUCK, WallClock, forget, library
from tests.proof.harness import Tally, World, migrated
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.proof.stores import Fresh, fresh
from tests.support.child import command
from tests.support.gate import FileDoor, Gate, door_to
from tests.support.store_changes import let_through, refuse, run_there

KINDS: Final = ("sqlite", "postgresql", "mariadb")
AWAY: Final = "clock set while the store is away: order, retries, alerts, retention"
HANDED: Final = "clock set, then the relay that works is killed: another takes over"
CONTROL: Final = "the same, with waits by the wall clock alone"
HANDED_AT: Final = (JUMPS[1], JUMPS[0], JUMPS[3])
REFUSAL: Final = {"sqlite": "", "postgresql": "22021", "mariadb": "22007"}
SLACK: Final = 20.0  # seconds within which a relay has to be at work again: the machine may be busy with other parts


def prove(options: Options) -> Iterator[Row]:
    """Yield the rows of this part."""
    if library() is None:
        yield from (Row(what=what, missing="libfaketime is not installed") for what in (AWAY, HANDED, CONTROL))
        return
    yield from asyncio.run(_prove(options))


async def _prove(options: Options) -> list[Row]:
    kinds = KINDS[:1] if options.short else KINDS
    jumps = (JUMPS[0], JUMPS[1]) if options.short else JUMPS
    found: dict[tuple[str, str], list[Tally]] = {}
    rows: list[Row] = []

    async def bots(what: str, jump: str, kinds: Sequence[str]) -> None:
        with ExitStack() as stores:
            name = f"{JUMPS.index(jump)}-{what == CONTROL}-{kinds[0]}"
            every = [stores.enter_context(fresh(kind, options.folder, f"{kind}-{name}")) for kind in kinds]
            there = [one for one in every if not one.missing]
            rows.extend(
                Row(what=what, where=one.kind, missing=one.missing) for one in every if one.missing and jump == JUMPS[0]
            )
            folder = options.folder / f"bots-{name}"
            folder.mkdir()
            outcomes = await _away(options, there, folder, jump, what)
            for one, outcome in zip(there, outcomes, strict=True):
                found.setdefault((what, one.kind), []).append(outcome)

    async def daemons(jump: str) -> None:
        with fresh("sqlite", options.folder, f"handed-{JUMPS.index(jump)}") as store:
            folder = options.folder / f"daemons-{JUMPS.index(jump)}"
            folder.mkdir()
            found.setdefault((HANDED, "sqlite"), []).append(await _handed(store, folder, jump))

    async with asyncio.TaskGroup() as group:
        for jump in jumps:
            group.create_task(bots(AWAY, jump, kinds))
        for kind in kinds[:2]:
            group.create_task(bots(CONTROL, JUMPS[0], (kind,)))
        for jump in HANDED_AT[: 1 if options.short else None]:
            group.create_task(daemons(jump))
    order = [(what, kind) for what in (AWAY, HANDED, CONTROL) for kind in KINDS]
    return [_row(*key, found[key], jumps) for key in order if key in found] + rows


def _row(what: str, kind: str, outcomes: list[Tally], jumps: tuple[str, ...]) -> Row:
    whole = Tally()
    for one in outcomes:
        whole.add(one)
    figures = ", ".join(f"{number} {word}" for word, number in sorted(whole.figures.items()))
    jumped = "" if what == CONTROL else f"{', '.join(HANDED_AT if what == HANDED else jumps)}; "
    whole.notes = f"{jumped}{figures}"
    least = len(HANDED_AT) if what == HANDED else 3 * len(JUMPS)
    return whole.row(what, kind, "jumps", least, control=what == CONTROL)


class Bots:
    """Bots in a process of their own, one for each store, told what to do line by line."""

    def __init__(self, process: asyncio.subprocess.Process, count: int) -> None:
        self.process = process
        self.answers: list[asyncio.Queue[dict[str, Any]]] = [asyncio.Queue() for _ in range(count)]
        self._together = asyncio.Barrier(count)
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, places: list[tuple[Path, str]], clock: WallClock, *, by_wall_clock: bool) -> Bots:
        process = await asyncio.create_subprocess_exec(
            *command(bot_process.live, places, by_wall_clock=by_wall_clock),
            env={**os.environ, **clock.environment},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return cls(process, len(places))

    async def jump(self, clock: WallClock) -> None:
        """Set their clock once all are ready for that, and have them sleep where that belongs to it."""
        first = await self._together.wait() == 0
        if first:
            clock.jump()
            if clock.pause:
                self.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(clock.pause)
                self.process.send_signal(signal.SIGCONT)
        await self._together.wait()

    async def give_up(self) -> None:
        """Keep no client waiting for one that failed."""
        await self._together.abort()

    async def close(self) -> None:
        """End them."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        forget(self.process.pid)
        await self._reading

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            found: dict[str, Any] = json.loads(line)
            self.answers[found.pop("bot")].put_nowait(found)
        for one in self.answers:
            one.put_nowait({"error": "the process ended"})


class Bot:
    """One of them."""

    def __init__(self, bots: Bots, number: int, acks: list[Ack]) -> None:
        self._bots = bots
        self._number = number
        self._acks = acks

    async def ready(self) -> None:
        """Wait until it has opened its history."""
        await self._answer(60)

    async def ask(self, line: str, patience: float = 30) -> dict[str, Any]:
        assert self._bots.process.stdin is not None
        self._bots.process.stdin.write(f"{self._number} {line}\n".encode())
        return await self._answer(patience)

    async def say(self, words: str) -> None:
        """Have it append, and keep what it was promised."""
        self._acks += [Ack(name, UUID(one)) for name, one in (await self.ask(f"say {words}"))["acks"]]

    async def drained(self, seconds: float) -> bool:
        """Return True if everything was delivered within this many seconds of our clock."""
        return bool((await self.ask(f"drain {seconds}", seconds + 20))["drained"])

    async def hears(self, what: str, before: int, patience: float) -> None:
        """Wait until it was notified once more, and not for ever."""
        for _ in range(round(patience / 0.3)):
            if len((await self.ask("alerts"))[what]) > before:
                return
            await asyncio.sleep(0.3)

    async def jump(self, clock: WallClock) -> None:
        """Have the clock set, at the same moment as the others."""
        await self._bots.jump(clock)

    async def _answer(self, patience: float) -> dict[str, Any]:
        async with asyncio.timeout(patience):
            found = await self._bots.answers[self._number].get()
        if "error" in found:
            raise RuntimeError(str(found["error"]))
        return found


async def _away(options: Options, stores: list[Fresh], folder: Path, jump: str, what: str) -> list[Tally]:
    clock = WallClock(folder, jump)
    doors = [door_to(one.kind, one.url) for one in stores]
    outboxes = [folder / f"{one.kind}.outbox.db" for one in stores]
    outcomes, acks = [Tally() for _ in stores], [list[Ack]() for _ in stores]
    for store, door in zip(stores, doors, strict=True):
        async with ConversationStore.open(store.url, migrate=True):
            await door.open()
    places = [(outbox, door.url) for outbox, door in zip(outboxes, doors, strict=True)]
    bots = await Bots.start(places, clock, by_wall_clock=what == CONTROL)

    async def one(number: int) -> None:
        outcome, door, outbox = outcomes[number], doors[number], outboxes[number]
        bot = Bot(bots, number, acks[number])
        try:
            await bot.ready()
            if what == CONTROL:
                await _short_outage(bot, outbox, door, clock, outcome, what)
            else:
                await _all_of_it(options, stores[number], bot, outbox, door, clock, outcome)
        except (RuntimeError, TimeoutError, KeyError) as error:
            outcome.problems.append(f"{type(error).__name__}: {error}")
            await bots.give_up()

    try:
        await asyncio.gather(*map(one, range(len(stores))))
    finally:
        await bots.close()
        for door in doors:
            await (door.open() if isinstance(door, FileDoor) else door.shut())
    for store, outbox, promised, outcome in zip(stores, outboxes, acks, outcomes, strict=True):
        if not outcome.problems:
            outcome.take(await check([outbox], store.url, acknowledged=promised, drained=what != CONTROL))
        outcome.figures["events acknowledged"] += len(promised)
        outcome.problems = [f"{jump}: {one}" for one in outcome.problems]
    return outcomes


async def _short_outage(
    bot: Bot, outbox: Path, door: Gate | FileDoor, clock: WallClock, outcome: Tally, what: str
) -> None:
    await bot.say("9")
    if not await bot.drained(60):
        outcome.problems.append("not delivered with nothing the matter")
    started = time.monotonic()
    await door.shut()
    await bot.say("9")
    # In the middle of a wait for the store.
    await _comes_to(outbox, "SELECT 1 FROM letopis_outbox_relay WHERE breaker <> 'closed'", SLACK)
    # Once; without the promise some times over, since one jump may come just when a wait is at its end.
    for _ in range(3 if what == CONTROL else 1):
        await bot.jump(clock)
        outcome.count += 1
        await asyncio.sleep(0.7 if what == CONTROL else 0)
    await bot.say("9")
    await asyncio.sleep(1.0)
    await door.open()
    patience = SLACK / 2 if what == CONTROL else SLACK
    if not await bot.drained(patience):
        outcome.problems.append(f"starved: not all was delivered within {patience:g} s of the store's return")
    if what == CONTROL:
        return
    heard = await bot.ask("alerts")
    # On a machine that is busy with other things the outage may have been a long one.
    if time.monotonic() - started - clock.pause < STUCK:
        outcome.figures["short outages that nobody heard of"] += 1
        if heard["stuck"] or heard["recovered"]:
            outcome.problems.append(f"a jump in a short outage was alerted: {heard}")


async def _all_of_it(
    options: Options,
    store: Fresh,
    bot: Bot,
    outbox: Path,
    door: Gate | FileDoor,
    clock: WallClock,
    outcome: Tally,
) -> None:
    await _short_outage(bot, outbox, door, clock, outcome, AWAY)
    if options.short:
        return
    before = await bot.ask("alerts")
    if len(before["stuck"]) > len(before["recovered"]):  # it was long enough after all
        await bot.hears("recovered", len(before["recovered"]), SLACK)
        before = await bot.ask("alerts")
    started = time.monotonic()
    await door.shut()
    await bot.say("6")
    await asyncio.sleep(STUCK / 3)
    await bot.jump(clock)
    outcome.count += 1
    await bot.hears("stuck", len(before["stuck"]), STUCK + SLACK)
    await door.open()
    # A store is probed again after no longer than it was unavailable.
    patience = time.monotonic() - started + SLACK
    if not await bot.drained(patience):
        outcome.problems.append(f"starved after the long outage, for {patience:.0f} s")
    await bot.hears("recovered", len(before["recovered"]), SLACK)
    heard = {word: names[len(before[word]) :] for word, names in (await bot.ask("alerts")).items()}
    outcome.figures["alerts"] += len(heard["stuck"])
    outcome.figures["recoveries"] += len(heard["recovered"])
    if (len(heard["stuck"]), len(heard["recovered"])) != (1, 1):
        outcome.problems.append(f"a long outage with a jump in it: one alert and one recovery belong, {heard} came")
    await _refusals(store, bot, outbox, clock, outcome)


async def _refusals(store: Fresh, bot: Bot, outbox: Path, clock: WallClock, outcome: Tally) -> None:
    """An event that is refused gets all its tries, not all at once; 1, 2 and 4 s lie between, one of which may end."""
    await run_there(store.url, *refuse(store.kind, "new.conversation_id = 'poison'", REFUSAL[store.kind]))
    await bot.say("1 poison")
    started = time.monotonic()
    await _comes_to(outbox, _lane("attempts > 0"), SLACK)
    await bot.jump(clock)
    outcome.count += 1
    await _comes_to(outbox, _lane("state = 'blocked'"), 7 + SLACK)
    lasted = time.monotonic() - started - clock.pause
    if not _rows(outbox, _lane("state = 'blocked' AND attempts = 4")):
        outcome.problems.append(f"not blocked after its tries: {_rows(outbox, _lane('1 = 1'))}")
    elif lasted + clock.pause < 2.9:
        outcome.problems.append(f"given up after {lasted:.1f} s")
    outcome.figures["refused events with all their tries"] += 1
    await run_there(store.url, *let_through(store.kind, "events", "refuse"))
    await bot.ask("retry")
    if not await bot.drained(SLACK):
        outcome.problems.append("not delivered after the retry")


async def _comes_to(outbox: Path, statement: str, patience: float) -> None:
    for _ in range(round(patience / 0.05)):
        if _rows(outbox, statement):
            return
        await asyncio.sleep(0.05)


def _lane(condition: str) -> str:
    return (
        "SELECT state, attempts, fault_class, fault FROM letopis_outbox_lanes"
        f" WHERE conversation_id = 'poison' AND {condition}"
    )


async def _handed(store: Fresh, folder: Path, jump: str) -> Tally:
    """Two daemons; the clock of both is set, the one at work is killed, and the other delivers."""
    world, clock = World(folder, store.url), WallClock(folder, jump)
    outcome, outbox = world.tally, world.outbox
    given = {"LETOPIS_OUTBOX": str(outbox), "LETOPIS_STORE": store.url}
    environment = {**os.environ, **clock.environment, **given}
    nothing = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.DEVNULL)
    await migrated(store.url)
    async with world.open(relay=False) as bot:
        daemons = [
            await asyncio.create_subprocess_exec(
                *(str(LETOPIS), "relay", "--log-level", "ERROR"), env=environment, cwd=folder, **nothing
            )
            for _ in range(2)
        ]
        try:
            await _say(bot, world)
            await _comes_to(outbox, "SELECT 1 FROM letopis_outbox_relay WHERE pid > 0", 60)
            if not await bot.drained(60):
                outcome.problems.append("no daemon delivers")
                return outcome
            clock.jump()
            outcome.count += 1
            ((holder,),) = _rows(outbox, "SELECT pid FROM letopis_outbox_relay")
            victim = next((one for one in daemons if one.pid == holder), None)
            await _say(bot, world)
            if victim is None:
                outcome.problems.append(f"the lease is held by {holder}, which is none of the daemons")
            elif clock.pause:
                victim.send_signal(signal.SIGSTOP)
                await _say(bot, world)
                await asyncio.sleep(clock.pause)
                victim.send_signal(signal.SIGCONT)
            else:
                victim.kill()
                outcome.figures["relays killed"] += 1
            await _say(bot, world)
            started = time.monotonic()
            if not await bot.drained(SLACK * 2):
                outcome.problems.append(f"nobody took over within {SLACK * 2:g} s")
            outcome.figures["seconds in all until the next one had delivered"] += round(time.monotonic() - started)
        finally:
            for one in daemons:
                if one.returncode is None:
                    one.kill()
                await one.wait()
                forget(one.pid)
    await world.judge(drained=False)
    outcome.figures["events acknowledged"] += len(world.acks)
    outcome.problems = [f"{jump}: {one}" for one in outcome.problems]
    return outcome


async def _say(bot: History, world: World) -> None:
    for number in range(6):
        world.keep(await bot.append(f"chat-{number % 3}", Message.user(f"{number}"), owner="owner"))


def _rows(outbox: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(outbox, timeout=10)) as connection:
        return connection.execute(statement).fetchall()

"""Prove that clocks that jump lose, block and announce nothing, on each kind of store."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from letopis.outbox import History
from letopis.store import ConversationStore, Message
from tests.campaigns.invariants import Ack, check
from tests.campaigns.processes import LETOPIS
from tests.proof.clocks import bot as bot_process
from tests.proof.clocks.bot import STUCK
from tests.proof.clocks.faketime import JUMPS, WallClock, forget, library
from tests.proof.options import Options
from tests.proof.rows import Row, row_of
from tests.proof.stores import Fresh, fresh
from tests.support.child import command
from tests.support.gate import FileDoor, Gate, door_to
from tests.support.store_changes import run_there

KINDS: Final = ("sqlite", "postgresql", "mariadb")
AWAY: Final = "clock set while the store is away: order, retries, alerts, retention"
HANDED: Final = "clock set, then the relay that works is killed: another takes over"
CONTROL: Final = "the same, with waits by the wall clock alone"
HANDED_AT: Final = (JUMPS[1], JUMPS[0], JUMPS[3])
SLACK: Final = 20.0  # seconds within which a relay has to be at work again: the machine may be busy with other parts
POISON: Final = {
    "sqlite": (
        (
            "CREATE TRIGGER letopis_proof BEFORE INSERT ON letopis_events WHEN new.conversation_id = 'poison'"
            " BEGIN SELECT RAISE(ABORT, 'refused'); END"
        ),
    ),
    "postgresql": (
        (
            "CREATE FUNCTION letopis_proof() RETURNS trigger AS 'BEGIN RAISE EXCEPTION ''refused'' USING ERRCODE ="
            " ''22021''; END' LANGUAGE plpgsql"
        ),
        (
            "CREATE TRIGGER letopis_proof BEFORE INSERT ON letopis_events FOR EACH ROW"
            " WHEN (new.conversation_id = 'poison') EXECUTE FUNCTION letopis_proof()"
        ),
    ),
    "mariadb": (
        (
            "CREATE TRIGGER letopis_proof BEFORE INSERT ON letopis_events FOR EACH ROW BEGIN"
            " IF new.conversation_id = 'poison' THEN SIGNAL SQLSTATE '22007'; END IF; END"
        ),
    ),
}
CURE: Final = {"postgresql": "DROP TRIGGER letopis_proof ON letopis_events"}


@dataclass(slots=True)
class Outcome:
    """What became of one bot."""

    jumps: int = 0
    problems: list[str] = field(default_factory=list)
    count: Counter[str] = field(default_factory=Counter)
    acks: list[Ack] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Add the result of another one."""
        self.jumps += other.jumps
        self.problems += other.problems
        self.count += other.count


def prove(options: Options) -> Iterator[Row]:
    """Yield the rows of this part."""
    if library() is None:
        yield from (Row(what=what, missing="libfaketime is not installed") for what in (AWAY, HANDED, CONTROL))
        return
    yield from asyncio.run(_prove(options))


async def _prove(options: Options) -> list[Row]:
    kinds = KINDS[:1] if options.short else KINDS
    jumps = (JUMPS[0], JUMPS[1]) if options.short else JUMPS
    found: dict[tuple[str, str], list[Outcome]] = {}
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


def _row(what: str, kind: str, outcomes: list[Outcome], jumps: tuple[str, ...]) -> Row:
    whole = Outcome()
    for one in outcomes:
        whole.add(one)
    figures = ", ".join(f"{number} {word}" for word, number in sorted(whole.count.items()))
    return row_of(
        what,
        kind,
        count=whole.jumps,
        unit="jumps",
        least=0 if what == CONTROL else len(HANDED_AT) if what == HANDED else 3 * len(JUMPS),
        problems=whole.problems,
        notes=figures if what == CONTROL else f"{', '.join(HANDED_AT if what == HANDED else jumps)}; {figures}",
        control=what == CONTROL,
    )


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


async def _away(options: Options, stores: list[Fresh], folder: Path, jump: str, what: str) -> list[Outcome]:
    clock = WallClock(folder, jump)
    doors = [door_to(one.kind, one.url) for one in stores]
    outboxes = [folder / f"{one.kind}.outbox.db" for one in stores]
    outcomes = [Outcome() for _ in stores]
    for store, door in zip(stores, doors, strict=True):
        async with ConversationStore.open(store.url, migrate=True):
            await door.open()
    places = [(outbox, door.url) for outbox, door in zip(outboxes, doors, strict=True)]
    bots = await Bots.start(places, clock, by_wall_clock=what == CONTROL)

    async def one(number: int) -> None:
        outcome, door, outbox = outcomes[number], doors[number], outboxes[number]
        bot = Bot(bots, number, outcome.acks)
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
    for store, outbox, outcome in zip(stores, outboxes, outcomes, strict=True):
        if not outcome.problems:
            verdict = await check([outbox], store.url, acknowledged=outcome.acks, drained=what != CONTROL)
            outcome.problems += [] if verdict.ok else [str(verdict)]
        outcome.count["events acknowledged"] += len(outcome.acks)
        outcome.problems = [f"{jump}: {one}" for one in outcome.problems]
    return outcomes


async def _short_outage(
    bot: Bot, outbox: Path, door: Gate | FileDoor, clock: WallClock, outcome: Outcome, what: str
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
        outcome.jumps += 1
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
        outcome.count["short outages that nobody heard of"] += 1
        if heard["stuck"] or heard["recovered"]:
            outcome.problems.append(f"a jump in a short outage was alerted: {heard}")


async def _all_of_it(
    options: Options,
    store: Fresh,
    bot: Bot,
    outbox: Path,
    door: Gate | FileDoor,
    clock: WallClock,
    outcome: Outcome,
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
    outcome.jumps += 1
    await bot.hears("stuck", len(before["stuck"]), STUCK + SLACK)
    await door.open()
    # A store is probed again after no longer than it was unavailable.
    patience = time.monotonic() - started + SLACK
    if not await bot.drained(patience):
        outcome.problems.append(f"starved after the long outage, for {patience:.0f} s")
    await bot.hears("recovered", len(before["recovered"]), SLACK)
    heard = {word: names[len(before[word]) :] for word, names in (await bot.ask("alerts")).items()}
    outcome.count["alerts"] += len(heard["stuck"])
    outcome.count["recoveries"] += len(heard["recovered"])
    if (len(heard["stuck"]), len(heard["recovered"])) != (1, 1):
        outcome.problems.append(f"a long outage with a jump in it: one alert and one recovery belong, {heard} came")
    await _refusals(store, bot, outbox, clock, outcome)


async def _refusals(store: Fresh, bot: Bot, outbox: Path, clock: WallClock, outcome: Outcome) -> None:
    """An event that is refused gets all its tries, not all at once; 1, 2 and 4 s lie between, one of which may end."""
    await run_there(store.url, *POISON[store.kind])
    await bot.say("1 poison")
    started = time.monotonic()
    await _comes_to(outbox, _lane("attempts > 0"), SLACK)
    await bot.jump(clock)
    outcome.jumps += 1
    await _comes_to(outbox, _lane("state = 'blocked'"), 7 + SLACK)
    lasted = time.monotonic() - started - clock.pause
    if not _rows(outbox, _lane("state = 'blocked' AND attempts = 4")):
        outcome.problems.append(f"not blocked after its tries: {_rows(outbox, _lane('1 = 1'))}")
    elif lasted + clock.pause < 2.9:
        outcome.problems.append(f"given up after {lasted:.1f} s")
    outcome.count["refused events with all their tries"] += 1
    await run_there(store.url, CURE.get(store.kind, "DROP TRIGGER letopis_proof"))
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


async def _handed(store: Fresh, folder: Path, jump: str) -> Outcome:
    """Two daemons; the clock of both is set, the one at work is killed, and the other delivers."""
    outcome = Outcome()
    outbox = folder / "bot.outbox.db"
    clock = WallClock(folder, jump)
    environment = {
        **os.environ,
        **clock.environment,
        "LETOPIS_OUTBOX": str(outbox),
        "LETOPIS_STORE": store.url,
    }
    async with (
        ConversationStore.open(store.url, migrate=True),
        History(outbox, store=store.url, relay=False, watch=False) as bot,
    ):
        daemons = [
            await asyncio.create_subprocess_exec(
                *(str(LETOPIS), "relay", "--log-level", "ERROR"),
                env=environment,
                cwd=folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            for _ in range(2)
        ]
        try:
            await _say(bot, outcome)
            await _comes_to(outbox, "SELECT 1 FROM letopis_outbox_relay WHERE pid > 0", 60)
            if not await bot.drained(60):
                outcome.problems.append("no daemon delivers")
                return outcome
            clock.jump()
            outcome.jumps += 1
            ((holder,),) = _rows(outbox, "SELECT pid FROM letopis_outbox_relay")
            victim = next((one for one in daemons if one.pid == holder), None)
            await _say(bot, outcome)
            if victim is None:
                outcome.problems.append(f"the lease is held by {holder}, which is none of the daemons")
            elif clock.pause:
                victim.send_signal(signal.SIGSTOP)
                await _say(bot, outcome)
                await asyncio.sleep(clock.pause)
                victim.send_signal(signal.SIGCONT)
            else:
                victim.kill()
                outcome.count["relays killed"] += 1
            await _say(bot, outcome)
            started = time.monotonic()
            if not await bot.drained(SLACK * 2):
                outcome.problems.append(f"nobody took over within {SLACK * 2:g} s")
            outcome.count["seconds in all until the next one had delivered"] += round(time.monotonic() - started)
        finally:
            for one in daemons:
                if one.returncode is None:
                    one.kill()
                await one.wait()
                forget(one.pid)
    verdict = await check([outbox], store.url, acknowledged=outcome.acks)
    if not verdict.ok:
        outcome.problems.append(str(verdict))
    outcome.count["events acknowledged"] += len(outcome.acks)
    outcome.problems = [f"{jump}: {one}" for one in outcome.problems]
    return outcome


async def _say(bot: History, outcome: Outcome) -> None:
    for number in range(6):
        name = f"chat-{number % 3}"
        receipt = await bot.append(name, Message.user(f"{number}"), owner="owner")
        outcome.acks += [Ack(name, one) for one in receipt.event_ids]


def _rows(outbox: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(outbox, timeout=10)) as connection:
        return connection.execute(statement).fetchall()

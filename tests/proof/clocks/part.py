"""The part: bots and daemons whose clock is set while their store is away, on each kind of store."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from letopis.outbox import History
from letopis.store import ConversationStore, Message
from tests.campaigns.invariants import Ack, check, open_engine
from tests.campaigns.processes import LETOPIS
from tests.proof.clocks.bot import STUCK
from tests.proof.clocks.doors import Door, FileDoor, door_to
from tests.proof.clocks.faketime import JUMPS, WallClock, library
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.proof.stores import Fresh, fresh

KINDS: Final = ("sqlite", "postgresql", "mariadb")
AWAY: Final = "clock set while the store is away: order, retries, alerts, retention"
HANDED: Final = "clock set, then the relay that works is killed: another takes over"
CONTROL: Final = "the same, with waits by the wall clock alone"
SLACK: Final = 20.0
"""Seconds within which a relay has to be at work again: the machine may be busy with other parts."""
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
        """Take in what became of another one."""
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
    missing: list[Row] = []
    work: list[tuple[str, str, asyncio.Task[Outcome]]] = []
    with ExitStack() as stores:
        for kind in kinds:
            for what, some in ((AWAY, jumps), (HANDED, jumps), (CONTROL, JUMPS[:1])):
                for number, jump in enumerate(some):
                    if what == HANDED and kind == "mariadb":
                        continue  # which store it is makes no difference to the lease
                    name = f"{kind}-{what.split(',')[0].replace(' ', '-')[-12:]}-{what == CONTROL}-{number}"
                    one = stores.enter_context(fresh(kind, options.folder, name))
                    if one.missing:
                        missing.append(Row(what=what, where=kind, missing=one.missing))
                        break
                    folder = options.folder / f"of-{name}-{what == HANDED}"
                    folder.mkdir()
                    run = _handed(one, folder, jump) if what == HANDED else _away(options, one, folder, jump, what)
                    work.append((what, kind, asyncio.create_task(run)))
        rows = []
        for what in (AWAY, HANDED, CONTROL):
            for kind in kinds:
                tasks = [task for one, where, task in work if (one, where) == (what, kind)]
                if tasks:
                    rows.append(_row(what, kind, [await task for task in tasks], jumps))
    return [*rows, *missing]


def _row(what: str, kind: str, outcomes: list[Outcome], jumps: tuple[str, ...]) -> Row:
    whole = Outcome()
    for one in outcomes:
        whole.add(one)
    figures = ", ".join(f"{number} {word}" for word, number in sorted(whole.count.items()))
    return Row(
        what=what,
        where=kind,
        count=whole.jumps,
        unit="jumps",
        least=0 if what == CONTROL else len(JUMPS),
        violations=len(whole.problems),
        control=what == CONTROL,
        notes=figures if what == CONTROL else f"{', '.join(jumps)}; {figures}",
        problems=tuple(whole.problems[:10]),
    )


class Bot:
    """A bot in a process of its own, told what to do line by line."""

    def __init__(self, process: asyncio.subprocess.Process, acks: list[Ack]) -> None:
        self._process = process
        self._acks = acks

    @classmethod
    async def start(cls, outbox: Path, url: str, clock: WallClock, acks: list[Ack], *options: str) -> Bot:
        """Start it, and wait until it has opened its history."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.proof.clocks.bot", str(outbox), url, *options),
            env={**os.environ, **clock.environment},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        bot = cls(process, acks)
        try:
            await bot._answer(60)
        except BaseException:  # whatever it was, no process is left
            process.kill()
            await process.wait()
            raise
        return bot

    async def ask(self, line: str, patience: float = 30) -> dict[str, Any]:
        """Give it a line, and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        return await self._answer(patience)

    async def say(self, words: str) -> None:
        """Have it append, and keep what it was promised."""
        self._acks += [Ack(name, UUID(one)) for name, one in (await self.ask(f"say {words}"))["acks"]]

    async def drained(self, seconds: float) -> bool:
        """Whether all was delivered within so many seconds of our clock."""
        return bool((await self.ask(f"drain {seconds}", seconds + 20))["drained"])

    async def hears(self, what: str, before: int, patience: float) -> None:
        """Wait until it was told so once more, and not for ever."""
        for _ in range(round(patience / 0.3)):
            if len((await self.ask("alerts"))[what]) > before:
                return
            await asyncio.sleep(0.3)

    async def jump(self, clock: WallClock) -> None:
        """Set its clock, and have it sleep where that belongs to it."""
        clock.jump()
        if clock.pause:
            self._process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(clock.pause)
            self._process.send_signal(signal.SIGCONT)

    async def close(self) -> None:
        """End it."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def _answer(self, patience: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(patience):
            line = await self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line or b'{"error": "it ended"}')
        if "error" in found:
            raise RuntimeError(str(found["error"]))
        return found


async def _away(options: Options, store: Fresh, folder: Path, jump: str, what: str) -> Outcome:
    outcome = Outcome()
    outbox = folder / "bot.outbox.db"
    clock = WallClock(folder, jump)
    door = door_to(store.kind, store.url)
    await door.open()
    try:
        bot = await Bot.start(outbox, door.url, clock, outcome.acks, *(["--wall"] if what == CONTROL else []))
        try:
            if what == CONTROL:
                await _short_outage(bot, outbox, door, clock, outcome, what)
            else:
                await _all_of_it(options, store, bot, outbox, door, clock, outcome)
        finally:
            await bot.close()
            await door.shut()
            await door.open()
    except (RuntimeError, TimeoutError, KeyError) as error:
        outcome.problems.append(f"{type(error).__name__}: {error}")
    finally:
        await door.shut()
        if isinstance(door, FileDoor):
            await door.open()
    verdict = await check([outbox], store.url, acknowledged=outcome.acks, drained=what != CONTROL)
    if not verdict.ok and not outcome.problems:
        outcome.problems.append(str(verdict))
    outcome.count["events acknowledged"] += len(outcome.acks)
    outcome.problems = [f"{jump}: {one}" for one in outcome.problems]
    return outcome


async def _short_outage(
    bot: Bot, outbox: Path, door: Door | FileDoor, clock: WallClock, outcome: Outcome, what: str
) -> None:
    """An outage too short for anybody to hear of it, with a jump in its middle."""
    await bot.say("9")
    if not await bot.drained(60):
        outcome.problems.append("not delivered with nothing the matter")
    started = time.monotonic()
    await door.shut()
    await bot.say("9")
    # In the middle of a wait for the store.
    await _comes_to(outbox, "SELECT 1 FROM letopis_outbox_relay WHERE breaker <> 'closed'", SLACK)
    await bot.jump(clock)
    outcome.jumps += 1
    await bot.say("9")
    await asyncio.sleep(1.0)
    await door.open()
    if not await bot.drained(SLACK):
        outcome.problems.append(f"starved: not all was delivered within {SLACK:g} s of the store's return")
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
    door: Door | FileDoor,
    clock: WallClock,
    outcome: Outcome,
) -> None:
    await _short_outage(bot, outbox, door, clock, outcome, AWAY)
    before = await bot.ask("alerts")
    await door.shut()
    await bot.say("6")
    await asyncio.sleep(STUCK / 3)
    await bot.jump(clock)
    outcome.jumps += 1
    await bot.hears("stuck", len(before["stuck"]), STUCK + SLACK)
    await door.open()
    if not await bot.drained(SLACK):
        outcome.problems.append(f"starved after the long outage, for {SLACK:g} s")
    await bot.hears("recovered", len(before["recovered"]), SLACK)
    heard = {word: names[len(before[word]) :] for word, names in (await bot.ask("alerts")).items()}
    outcome.count["alerts"] += len(heard["stuck"])
    outcome.count["recoveries"] += len(heard["recovered"])
    if (len(heard["stuck"]), len(heard["recovered"])) != (1, 1):
        outcome.problems.append(f"a long outage with a jump in it: one alert and one recovery belong, {heard} came")
    if not options.short:
        await _refusals(store, bot, outbox, clock, outcome)


async def _refusals(store: Fresh, bot: Bot, outbox: Path, clock: WallClock, outcome: Outcome) -> None:
    """An event that is refused gets all its tries, not all at once; 1, 2 and 4 s lie between, one of which may end."""
    await _run(store, *POISON[store.kind])
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
    await _run(store, CURE.get(store.kind, "DROP TRIGGER letopis_proof"))
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


async def _run(store: Fresh, *statements: str) -> None:
    engine = open_engine(store.url)
    try:
        async with engine.begin() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)
    finally:
        await engine.dispose()


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
        History.open(outbox, store=store.url, relay=False, watch=False) as bot,
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
            if not await bot.drained(60):
                outcome.problems.append("no daemon delivers")
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

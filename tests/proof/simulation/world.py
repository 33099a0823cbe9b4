"""Run one seed, from the first message to the last look at the files."""

import asyncio
import hashlib
import random
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import letopis.outbox.alerting.monitor
import letopis.outbox.file.change_watcher
import letopis.outbox.relay.content_retention
import letopis.outbox.relay.relay
from letopis.store.errors import LetopisError
from tests.campaigns.invariants import check
from tests.proof.simulation.alarms import Alarms
from tests.proof.simulation.chaos import Chaos
from tests.proof.simulation.contents import check_contents
from tests.proof.simulation.driver import Disk, File
from tests.proof.simulation.ledger import OutboxLedger, StoreLedger
from tests.proof.simulation.loop import Process, VirtualLoop
from tests.proof.simulation.machine import defaults_of, take_over
from tests.proof.simulation.people import Bot, Place, deliver, mend
from tests.proof.simulation.plan import Plan
from tests.proof.simulation.rights import ROUND_SECONDS
from tests.proof.simulation.strands import current
from tests.proof.simulation.subjects import operate
from tests.proof.simulation.weather import OutboxWeather, StoreWeather
from tests.support.path_deeds import Broken

LIVELY: Final = 180.0
"""Virtual seconds within which everything is delivered once nothing fails any more: the longest wait of the breaker and
of a refused event (60 s each), and of a relay that met errors of its own file (30 s)."""
DIED: Final = "died of"
"""Of a process that no error of the library ended: in the words that say what is broken."""


@dataclass
class Result:
    seed: int
    profile: str
    hours: float = 0.0
    turns: int = 0
    acknowledged: int = 0
    stored: int = 0
    checks: int = 0
    drained_in: float = 0.0
    digest: str = ""
    fired: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


@dataclass
class Seat:
    """A bot or a relay that is started again whenever it has ended."""

    name: str
    live: Callable[[asyncio.Event, str], Coroutine[Any, Any, None]]
    chance: random.Random
    process: Process | None = None
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    wanted: bool = True
    starts: int = 0
    patience: float = 6.0

    async def keep(self, ended: Callable[[str, str], Awaitable[None]]) -> None:
        while self.wanted:
            self.starts += 1
            self.closing = asyncio.Event()
            process = self.process = Process(f"{self.name}.{self.starts}")
            over = asyncio.get_running_loop().create_future()
            process.on_kill.append(lambda over=over: over.done() or over.set_result("killed"))  # type: ignore[misc]
            task = process.start(self.live(self.closing, process.name))
            await asyncio.wait((task, over), return_when=asyncio.FIRST_COMPLETED)
            if not process.alive:
                how = "killed"
            elif task.cancelled() or task.exception() is None:
                how = "ended"
            elif isinstance(task.exception(), LetopisError):
                how = f"failed with {type(task.exception()).__name__}"
            else:
                how = f"{DIED} {task.exception()!r}"
            process.kill()  # the end of a process closes what it has left open
            await ended(process.name, how)
            if self.wanted:
                await asyncio.sleep(self.chance.uniform(0.05, self.patience))


class World:
    """One seed. Made and run once, in a Python process of its own."""

    def __init__(
        self, plan: Plan, folder: Path, templates: Path, *, trace: Callable[[str], None] | None = None
    ) -> None:
        self.plan = plan
        self.loop = VirtualLoop(self._chance("loop"))
        self.disk = Disk()
        self.result = Result(seed=plan.seed, profile=plan.profile)
        self._trace = trace
        self._hash = hashlib.sha256()
        self._folder = folder
        self.seats: list[Seat] = []
        self._over = asyncio.Event()
        self._looking = asyncio.Lock()
        self._looked = -1
        self.wall = take_over(self.loop, self._chance("machine"), self.disk)
        letopis.outbox.relay.relay.MAX_IDLE_SECONDS = plan.floor  # type: ignore[misc]
        letopis.outbox.relay.content_retention.ROUND_SECONDS = ROUND_SECONDS  # type: ignore[misc]
        letopis.outbox.relay.relay.STANDBY_INTERVAL_SECONDS = plan.standby  # type: ignore[misc]
        defaults_of(letopis.outbox.relay.relay.Relay)["idle_poll"] = plan.slowest
        defaults_of(letopis.outbox.file.change_watcher.FileWatcher)["poll_min_seconds"] = plan.fastest
        defaults_of(letopis.outbox.alerting.monitor.AlertMonitor)["interval"] = plan.look
        self.store_path = folder / "history.db"
        shutil.copy(templates / "history.db", self.store_path)
        self.store = StoreLedger(self.store_path)
        self.store.rights.now = self.wall.now
        self.weather = StoreWeather(self._chance("store"), self.result.fired, self.say)
        committed = partial(self._committed, "store", lambda _: self.store.committed())
        self.disk.add(File(str(self.store_path), self.weather, committed))
        self.places: list[Place] = []
        self.disks: list[OutboxWeather] = []
        for number in range(plan.outboxes):
            self._add_outbox(number, templates)
        self.seats.append(
            Seat(
                "operator",
                lambda closing, name: operate(self.places, self._chance(name), closing),
                self._chance("operator"),
            )
        )

    def _chance(self, what: str) -> random.Random:
        return random.Random(f"{self.plan.seed} {what}")

    def _add_outbox(self, number: int, templates: Path) -> None:
        path = self._folder / f"bot-{number}.outbox.db"
        shutil.copy(templates / "outbox.db", path)
        weather = OutboxWeather(self._chance(f"outbox {number}"), self.result.fired, self.say)
        ledger = OutboxLedger(path, self.store, self.say)
        place = Place(
            path=path,
            store=self.store_path,
            ledger=ledger,
            alarms=Alarms(ledger, self.say, self.broken, kills=self.plan.profile == "storm"),
            plan=self.plan,
            now=self.wall.now,
            counts=self.result.counts,
            say=self.say,
            broken=self.broken,
            number=number,
        )
        self.disk.add(File(str(path), weather, partial(self._committed, path.name, ledger.committed)))
        self.places.append(place)
        self.disks.append(weather)

        def bot(closing: asyncio.Event, name: str) -> Coroutine[Any, Any, None]:
            return Bot(place, self._chance(name), closing, name=name).live()

        def relay(closing: asyncio.Event, name: str) -> Coroutine[Any, Any, None]:
            return deliver(place, self._chance(name), closing)

        for one in range(self.plan.bots):
            self.seats.append(Seat(f"bot-{number}-{one}", bot, self._chance(f"seat {number} {one}")))
        for one in range(self.plan.relays):
            self.seats.append(Seat(f"relay-{number}-{one}", relay, self._chance(f"relay {number} {one}")))

    # What is noted.

    def say(self, words: str) -> None:
        """Note what happens: in the digest, and where a trace is wanted, in that."""
        line = f"{self.loop.now:.6f} {words}"
        self._hash.update(f"{line}\n".encode())
        if self._trace is not None:
            self._trace(line)

    def broken(self, words: str) -> None:
        """Note that a promise is broken, and end everything."""
        self.say(f"BROKEN {words}")
        self.result.broken.append(f"{self.loop.now - 1000:.3f} s: {words}")
        self._over.set()
        for seat in self.seats:
            if seat.process is not None:
                seat.process.kill()
        if (strand := current()) is not None:
            strand.park()

    def _committed(self, file: str, check: Callable[[str], None], process: Process) -> None:
        self.say(f"commit {file} {process.name}")
        self.result.checks += 1
        try:
            check(process.name)
        except Broken as broken:
            self.broken(str(broken))
        except Exception as error:
            self.broken(f"the ledger failed: {error!r}")  # the library would take it for an error of its disk
            raise

    async def _ended(self, name: str, how: str) -> None:
        self.say(f"process {name} {how}")
        self.result.counts[f"processes {how.partition(' of ')[0]}"] += 1
        if how.startswith("died"):
            self.broken(f"{name} {how}")
        if how == "killed" and not self._over.is_set():
            await self.look()

    # The course of things.

    def run(self) -> Result:
        """Live through the seed."""
        self.loop.set_exception_handler(lambda loop, context: None)  # errors of tasks of killed processes
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._run())
        result = self.result
        result.hours = (self.loop.now - 1000) / 3600
        result.turns = self.loop.turns
        result.acknowledged = sum(len(place.acks) + len(place.record_acks) for place in self.places)
        result.digest = self._hash.hexdigest()
        return result

    async def _run(self) -> None:
        living = [asyncio.create_task(self._alive(seat.keep(self._ended))) for seat in self.seats]
        course = asyncio.create_task(self._alive(self._course()))
        over = asyncio.create_task(self._over.wait())
        await asyncio.wait((course, over), return_when=asyncio.FIRST_COMPLETED)
        for task in (*living, course, over):
            task.cancel()

    async def _alive(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Broken as broken:
            self.broken(str(broken))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # of the simulation itself; it must not pass for success
            self.broken(f"the simulation failed: {error!r}")
            raise

    async def _course(self) -> None:
        chaos = Chaos(self, self._chance("chaos"))
        await chaos.run()
        self._heal()
        await self._dispatcher()
        await chaos.judge()
        await self._end()

    def _heal(self) -> None:
        self.say("all is well from now on")
        self.weather.clear()
        for disk in self.disks:
            disk.clear()
        for place in self.places:
            place.bad_wanted = 0
            place.alarms.failing = 0.0
        for seat in self.seats:
            seat.patience = 1.0
            if (process := seat.process) is not None:
                process.steps_left = process.statements_left = None
                if process.stopped:
                    self.loop.resume(process)

    async def _dispatcher(self) -> None:
        """Wait until everything is delivered, while users keep talking; an operator sees to refused events."""
        begun = self.loop.now
        await asyncio.sleep(1)
        for place in self.places:
            process = Process("person")
            retried = await process.start(mend(place))
            self.say(f"tried again by a person: {sorted(retried)}")
        owed = {(place.number, name): lane.head for place in self.places for name, lane in place.ledger.lanes.items()}
        while any(self.places[number].ledger.lanes[name].delivered < head for (number, name), head in owed.items()):
            if self.loop.now - begun > LIVELY:
                lanes = [
                    f"{name!r} {lane}"
                    for place in self.places
                    for name, lane in place.ledger.lanes.items()
                    if lane.delivered < owed.get((place.number, name), 0)
                ]
                raise Broken(f"{LIVELY:g} s after the last fault there is still owed: {'; '.join(lanes[:3])}")
            await asyncio.sleep(0.25)
        self.result.drained_in = self.loop.now - begun

    async def _end(self) -> None:
        """Let the talk end, deliver what is left, then end or kill every process, and check the files."""
        for place in self.places:
            place.silent = True
        await asyncio.sleep(30)  # what is just being said
        begun = self.loop.now
        while (
            any(
                place.ledger.pending or place.ledger.streams.drafts or place.erased.unfinished()
                for place in self.places
            )
            or self.store.rights.unfinished()
        ):
            if self.loop.now - begun > LIVELY:
                owed = [
                    f"{place.path.name}: {place.ledger.pending} events, {len(place.ledger.streams.drafts)} drafts"
                    for place in self.places
                ]
                raise Broken(f"{LIVELY:g} s after the last word there is still something owed: {'; '.join(owed)}")
            await asyncio.sleep(0.25)
        chance = self._chance("end")
        for seat in self.seats:
            seat.wanted = False
            if chance.random() < 0.5:
                seat.closing.set()
        await asyncio.sleep(30)
        for seat in self.seats:
            if seat.process is not None:
                seat.process.kill()
        await self.look(drained=True)

    async def look(self, *, drained: bool = False) -> None:
        """Read all files, with every process stopped, and check every invariant of the project."""
        async with self._looking:
            if drained or self._looked != self.result.checks:  # otherwise they are unchanged
                self._looked = self.result.checks
                await self._look(drained=drained)

    async def _look(self, *, drained: bool) -> None:
        paths = [place.path for place in self.places]
        with self.loop.frozen():
            verdict = await check(
                paths,
                f"sqlite:///{self.store_path.as_posix()}",
                acknowledged=[ack for place in self.places for ack in place.acks],
                records=[ack for place in self.places for ack in place.record_acks],
                drained=drained,
            )
        self.result.counts["files examined"] += 1
        self.result.stored = verdict.stored
        self.say(f"files: {verdict}")
        if not verdict.ok:
            raise Broken(f"the files at rest: {verdict.problem_count} problems: {'; '.join(verdict.problems[:3])}")
        for place in self.places:
            delivered = {name: lane.delivered for name, lane in place.ledger.lanes.items()}
            place.erased.check(delivered, drained=drained)
            if not place.ledger.pending and not place.erased.unfinished():
                check_contents(place.path, self.store_path)
        if drained:
            self.store.rights.check_at_rest(*paths)

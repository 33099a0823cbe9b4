"""Break the world of one seed in one way after the other, and keep which alerts must follow."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from tests.proof.simulation.people import Place
from tests.proof.simulation.weather import FOR_AN_OPERATOR, OUTAGES, REFUSALS
from tests.support.path_deeds import Broken

if TYPE_CHECKING:
    from tests.proof.simulation.loop import Process
    from tests.proof.simulation.world import Seat, World

SHORT: Final = 22.0
"""Seconds of an outage that must raise no alert: the relay probes again within 5 more, and a failure may take its time,
so the breaker is open for less than the 30 seconds without an alert."""
CALM: Final = 240  # virtual seconds within which the end of an incident is reported
JUMPS: Final = (-3_600.0, 86_400.0, -5.0, 600.0)
GAP: Final = 6.0  # seconds between two deeds of a storm, on average
DEEDS: Final = {
    "flaky store": 4,
    "short outage": 4,
    "flaky disk": 3,
    "busy disk": 2,
    "full disk": 1,
    "kill": 8,
    "kill all": 2,
} | {"stop": 1, "jump": 2, "bad message": 1, "see to it": 1, "deaf people": 1}
"""What a storm does, and how often, of their sum."""


class Chaos:
    """Breaks things as the plan of the seed says."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        self._going_on: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Continue until the plan's span is over."""
        await getattr(self, f"_{self._world.plan.profile}")()

    async def judge(self) -> None:
        """Check the notifications, once all is well again."""
        world, profile = self._world, self._world.plan.profile
        if profile == "quiet" and (told := sum(place.alarms.count for place in world.places)):
            raise Broken(f"each outage was shorter than {SHORT:g} s, and people were told {told} times")
        if profile in ("outage", "stuck"):
            await self._calm(world.places[0])

    async def _calm(self, place: Place) -> None:
        """Wait for the good news, then count."""
        world, alarms = self._world, place.alarms
        kind = "store_down" if world.plan.profile == "outage" else "conversation_blocked"
        for _ in range(CALM):
            if not alarms.over[kind]:
                await asyncio.sleep(1)
        await asyncio.sleep(20)
        if (alarms.alerts[kind], alarms.over[kind]) != (1, 1):
            raise Broken(
                f"{kind}: operators were told {alarms.alerts[kind]} times, and {alarms.over[kind]} times of its end,"
                " not once"
            )
        told = {key: count for key, count in alarms.stuck.items() if key.startswith(kind)}
        if not told or alarms.recovered != alarms.stuck:
            raise Broken(f"{kind}: users were told {dict(alarms.stuck)}, and of its end {dict(alarms.recovered)}")
        if kind == "conversation_blocked" and set(told.values()) != {1}:
            raise Broken(f"{kind}: users were told {told}, not once each")

    async def _quiet(self) -> None:
        """The store is unavailable for moments."""
        world, chance = self._world, self._chance
        world.weather.refuses = None
        while world.loop.now - 1000 < world.plan.span:
            await asyncio.sleep(chance.uniform(60, 240))
            world.places[0].hurry.set()
            await self._away(
                chance.choice([one for one in OUTAGES if one not in (*FOR_AN_OPERATOR, "hangs")]),
                chance.uniform(0.5, SHORT),
            )
            world.places[0].hurry.clear()
            if chance.random() < 0.3:
                self._jump(chance.choice(JUMPS))

    async def _outage(self) -> None:
        """The store is unavailable for hours."""
        world, chance = self._world, self._chance
        world.weather.refuses = None
        await asyncio.sleep(chance.uniform(60, 200))
        away = asyncio.create_task(self._away(chance.choice(list(OUTAGES)), world.plan.span))
        for _ in range(chance.randrange(1, 4)):
            await asyncio.sleep(chance.uniform(0, world.plan.span / 5))
            self._jump(chance.choice(JUMPS))
        await asyncio.sleep(chance.uniform(0, world.plan.span / 5))
        self._jump(-3_600.0)
        await away

    async def _stuck(self) -> None:
        """One message is refused until an operator sees to it."""
        world, chance = self._world, self._chance
        world.weather.refuses = chance.choice(list(REFUSALS))
        await asyncio.sleep(chance.uniform(30, 120))
        world.places[0].bad_wanted = 1
        world.places[0].hurry.set()
        await asyncio.sleep(40)
        world.places[0].hurry.clear()
        while world.loop.now - 1000 < world.plan.span:
            await asyncio.sleep(chance.uniform(60, 240))
            if chance.random() < 0.3:
                self._jump(chance.choice(JUMPS))

    async def _stopped(self) -> None:
        """The relay at work is stopped in the middle, and continues when another has long taken over."""
        world, chance = self._world, self._chance
        world.weather.refuses = None
        while world.loop.now - 1000 < world.plan.span:
            await asyncio.sleep(chance.uniform(10, 40))
            holder = world.places[0].ledger.holder
            process = next((seat.process for seat in world.seats if seat.process and seat.process.name == holder), None)
            if process is None or process.stopped:
                continue
            world.say(f"stop {process.name} in the middle")
            process.stops, process.statements_left = True, chance.randrange(1, 60)
            for _ in range(60):
                if not process.stopped:
                    await asyncio.sleep(1)
            if process.stopped:
                world.result.counts["stops"] += 1
                await asyncio.sleep(chance.uniform(130, 200))
                world.loop.resume(process)

    async def _storm(self) -> None:
        """Everything at once."""
        world, chance = self._world, self._chance
        world.weather.refuses = chance.choice(list(REFUSALS))
        world.weather.rate = chance.choice((0.05, 0.1, 0.2))
        for disk in world.disks:
            disk.rate = chance.choice((0.02, 0.05, 0.1))
        while world.loop.now - 1000 < world.plan.span:
            await asyncio.sleep(chance.expovariate(1 / GAP))
            [deed] = chance.choices(list(DEEDS), list(DEEDS.values()))
            await self._do(deed)
        if self._going_on is not None:
            await self._going_on

    async def _do(self, deed: str) -> None:
        world, chance = self._world, self._chance
        match deed:
            case "flaky store":
                world.weather.rate = chance.choice((0.02, 0.05, 0.2, 0.4))
            case "short outage" if world.weather.outage is None:
                seconds = chance.expovariate(1 / chance.choice((2, 10, 30)))
                self._going_on = asyncio.create_task(self._away(chance.choice(list(OUTAGES)), seconds))
            case "flaky disk":
                chance.choice(world.disks).rate = chance.choice((0.01, 0.02, 0.1, 0.2))
            case "busy disk":
                disk = chance.choice(world.disks)
                disk.busy_until = world.loop.now + chance.choice((0.5, 3.0, 15.0))
            case "full disk":
                disk = chance.choice(world.disks)
                disk.full_until = world.loop.now + chance.choice((2.0, 30.0))
            case "kill":
                self._kill()
            case "kill all":  # as when the machine's container is killed
                for process in self._alive(world.seats):
                    world.result.counts["kills"] += 1
                    process.kill()
                await asyncio.sleep(0)
            case "stop":
                self._stop()
            case "jump":
                self._jump(chance.choice(JUMPS))
            case "bad message":
                chance.choice(world.places).bad_wanted += 1
            case "see to it":  # the store refuses something else, or nothing
                world.weather.refuses = chance.choice((None, *REFUSALS))
            case "deaf people":
                chance.choice(world.places).alarms.failing = chance.choice((0.0, 0.3, 0.8))

    async def _away(self, kind: str, seconds: float) -> None:
        world = self._world
        world.say(f"outage {kind} for {seconds:.3f} s")
        world.result.counts["outages"] += 1
        world.weather.outage = kind
        await asyncio.sleep(seconds)
        world.weather.outage = None
        world.say("outage over")

    def _alive(self, seats: Iterable[Seat]) -> list[Process]:
        return [seat.process for seat in seats if seat.process is not None and seat.process.alive]

    def _kill(self) -> None:
        world, chance = self._world, self._chance
        for process in self._alive(chance.sample(world.seats, k=min(len(world.seats), chance.choice((1, 1, 2))))):
            world.result.counts["kills"] += 1
            way = chance.choice(("now", "turn", "statement", "statement"))
            world.say(f"kill {process.name} {way}")
            if way == "now":
                process.kill()
            elif way == "turn":
                process.steps_left = chance.randrange(1, 400)
            else:
                process.statements_left = chance.randrange(1, 120)

    def _stop(self) -> None:
        """Stop a process, as a debugger or a suspended container does, and let it continue."""
        world = self._world
        for process in self._alive([self._chance.choice(world.seats)]):
            if not process.stopped:
                seconds = self._chance.choice((1.0, 5.0, 20.0, 60.0))
                world.say(f"stop {process.name} for {seconds:g} s")
                world.result.counts["stops"] += 1
                process.stopped = True
                world.loop.call_later(seconds, world.loop.resume, process)

    def _jump(self, jump: float) -> None:
        self._world.say(f"the wall clock is set by {jump:g} s")
        self._world.result.counts["clock jumps"] += 1
        self._world.wall.ahead += jump

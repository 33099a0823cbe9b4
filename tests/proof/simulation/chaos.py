"""Break the world of one seed in one way after the other, and keep which alerts must follow."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from tests.proof.simulation.people import Place
from tests.proof.simulation.weather import FOR_AN_OPERATOR, OUTAGES, REFUSALS
from tests.support.path_deeds import Broken

if TYPE_CHECKING:
    from tests.proof.simulation.world import World

SHORT: Final = 22.0
"""Seconds of an outage that must raise no alert: the relay probes again within 5 more, and a failure may take its time,
so the breaker is open for less than the 30 seconds without an alert."""
CALM: Final = 240  # virtual seconds within which the end of an incident is reported
JUMPS: Final = (-3_600.0, 86_400.0, -5.0, 600.0)
GAP: Final = 6.0  # seconds between two deeds of a storm, on average


class Chaos:
    """Breaks things as the plan of the seed says."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        self._going_on: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Continue until the plan's span is over."""
        courses: dict[str, Callable[[], Awaitable[None]]] = {
            "storm": self._storm,
            "outage": self._long_outage,
            "quiet": self._quiet,
            "stuck": self._stuck,
            "stopped": self._stopped,
        }
        await courses[self._world.plan.profile]()

    async def judge(self) -> None:
        """Check the notifications, once all is well again."""
        world, profile = self._world, self._world.plan.profile
        if profile == "quiet":
            for place in world.places:
                if place.alarms.count:
                    raise Broken(
                        f"each outage was shorter than {SHORT:g} s, and people were told {place.alarms.count} times"
                    )
            return
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

    # The profiles.

    async def _quiet(self) -> None:
        """The store is unavailable for moments."""
        world, chance = self._world, self._chance
        world.weather.refuses = None
        while world.loop.now - 1000 < world.plan.span:
            await asyncio.sleep(chance.uniform(60, 240))
            world.places[0].hurry.set()
            await self._outage(
                chance.choice([one for one in OUTAGES if one not in (*FOR_AN_OPERATOR, "hangs")]),
                chance.uniform(0.5, SHORT),
            )
            world.places[0].hurry.clear()
            if chance.random() < 0.3:
                await self._jump()

    async def _long_outage(self) -> None:
        """The store is unavailable for hours."""
        world, chance = self._world, self._chance
        world.weather.refuses = None
        await asyncio.sleep(chance.uniform(60, 200))
        away = asyncio.create_task(self._outage(chance.choice(list(OUTAGES)), world.plan.span))
        for _ in range(chance.randrange(1, 4)):
            await asyncio.sleep(chance.uniform(0, world.plan.span / 5))
            await self._jump()
        await asyncio.sleep(chance.uniform(0, world.plan.span / 5))
        await self._jump(-3_600.0)
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
                await self._jump()

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
        deeds: tuple[tuple[int, Callable[[], Awaitable[None]]], ...] = (
            (4, self._flaky_store),
            (4, self._short_outage),
            (3, self._flaky_disk),
            (2, self._busy_disk),
            (1, self._full_disk),
            (8, self._kill),
            (2, self._kill_all),
            (1, self._stop),
            (2, self._jump),
            (1, self._bad_message),
            (1, self._see_to_it),
            (1, self._deaf_people),
        )
        weights = [weight for weight, _ in deeds]
        while world.loop.now - 1000 < world.plan.span:
            await asyncio.sleep(chance.expovariate(1 / GAP))
            ((_, deed),) = chance.choices(deeds, weights)
            await deed()
        if self._going_on is not None:
            await self._going_on

    # The deeds.

    async def _outage(self, kind: str, seconds: float) -> None:
        world = self._world
        world.say(f"outage {kind} for {seconds:.3f} s")
        world.result.counts["outages"] += 1
        world.weather.outage = kind
        await asyncio.sleep(seconds)
        world.weather.outage = None
        world.say("outage over")

    async def _short_outage(self) -> None:
        chance = self._chance
        if self._world.weather.outage is None:
            seconds = chance.expovariate(1 / chance.choice((2, 10, 30)))
            self._going_on = asyncio.create_task(self._outage(chance.choice(list(OUTAGES)), seconds))

    async def _flaky_store(self) -> None:
        self._world.weather.rate = self._chance.choice((0.02, 0.05, 0.2, 0.4))

    async def _flaky_disk(self) -> None:
        self._chance.choice(self._world.disks).rate = self._chance.choice((0.01, 0.02, 0.1, 0.2))

    async def _busy_disk(self) -> None:
        disk = self._chance.choice(self._world.disks)
        disk.busy_until = self._world.loop.now + self._chance.choice((0.5, 3.0, 15.0))

    async def _full_disk(self) -> None:
        disk = self._chance.choice(self._world.disks)
        disk.full_until = self._world.loop.now + self._chance.choice((2.0, 30.0))

    async def _kill(self) -> None:
        chance = self._chance
        for seat in chance.sample(self._world.seats, k=min(len(self._world.seats), chance.choice((1, 1, 2)))):
            process = seat.process
            if process is None or not process.alive:
                continue
            self._world.result.counts["kills"] += 1
            way = chance.choice(("now", "turn", "statement", "statement"))
            self._world.say(f"kill {process.name} {way}")
            if way == "now":
                process.kill()
            elif way == "turn":
                process.steps_left = chance.randrange(1, 400)
            else:
                process.statements_left = chance.randrange(1, 120)

    async def _kill_all(self) -> None:
        """As when the machine's container is killed."""
        for seat in self._world.seats:
            if seat.process is not None and seat.process.alive:
                self._world.result.counts["kills"] += 1
                seat.process.kill()
        await asyncio.sleep(0)

    async def _stop(self) -> None:
        """Stop a process, as a debugger or a suspended container does, and let it continue."""
        world, seat = self._world, self._chance.choice(self._world.seats)
        process = seat.process
        if process is None or not process.alive or process.stopped:
            return
        seconds = self._chance.choice((1.0, 5.0, 20.0, 60.0))
        world.say(f"stop {process.name} for {seconds:g} s")
        world.result.counts["stops"] += 1
        process.stopped = True
        world.loop.call_later(seconds, world.loop.resume, process)

    async def _jump(self, jump: float | None = None) -> None:
        jump = self._chance.choice(JUMPS) if jump is None else jump
        self._world.say(f"the wall clock is set by {jump:g} s")
        self._world.result.counts["clock jumps"] += 1
        self._world.wall.ahead += jump

    async def _bad_message(self) -> None:
        self._chance.choice(self._world.places).bad_wanted += 1

    async def _see_to_it(self) -> None:
        """Have the store refuse something else, or nothing."""
        self._world.weather.refuses = self._chance.choice((None, *REFUSALS))

    async def _deaf_people(self) -> None:
        self._chance.choice(self._world.places).alarms.failing = self._chance.choice((0.0, 0.3, 0.8))

"""Let each write and each flush of a scripted bot fail in turn, once or from then on."""

import asyncio
import errno
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from letopis import Event, History, LetopisError, Message
from tests.proof.crash.gate import enter, missing
from tests.proof.crash.moments import guarded
from tests.proof.harness import Setting, Tally, World, migrated
from tests.support.fix_disk import NotHere
from tests.support.promises import line_of, read_promises

T = TypeVar("T")

TRIES: Final = 4  # how often what was refused is tried again, on a disk that failed once
DRAINED: Final = 15.0
"""Seconds for what is pending to be delivered, on a disk that failed once: the relay waits longer after each error."""
TIMEOUT_SECONDS: Final = 60.0
RESTARTED: Final = 5
"""One in this many runs with one fault is opened again afterwards: each already continued in its own process."""


class Script:
    """A bot that continues after any error, and records what it was promised and how it was refused."""

    def __init__(self, folder: Path, *, once: bool, careless: bool) -> None:
        self._folder = folder
        self._once = once
        self._careless = careless
        self._acks = os.open(folder / "acks", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self.refused: list[str] = []
        self.problems: list[str] = []

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            world = World(self._folder)
            history = await self._again("open", lambda: stack.enter_async_context(world.open()))
            if history is not None:
                await self._talk(history)
                # What it says at its end, on a disk that is broken still, is no promise; but it is ours.
                try:
                    await stack.aclose()
                except LetopisError as error:
                    self.refused.append(type(error).__name__)
        os.close(self._acks)

    async def _talk(self, history: History) -> None:
        refused: list[tuple[str, Event]] = []
        for number in range(2):
            name = f"chat-{number}"
            event = Event.of(Message.user(f"message {number} " + "x" * 300), conversation_id=name)
            if not await self._append(history, name, event):
                refused.append((name, event))
        await self._attempt(lambda: self._in_transaction(history))
        with suppress(LetopisError):
            await history.drained(DRAINED if self._once else 0.2)
        for name, event in refused:  # a second time under the same id, as one does when the outcome is not known
            if self._once and not await self._append(history, name, event, tries=TRIES):
                self.problems.append("an append is refused still, long after the disk failed once")
        last = Event.of(Message.user("the last one"), conversation_id="chat-0")
        if not await self._append(history, "chat-0", last, tries=TRIES if self._once else 1) and self._once:
            self.problems.append("the outbox is of no use after the disk failed once")
        if self._once and not await self._again("drain", lambda: history.drained(DRAINED)):
            self.problems.append("what is pending is not delivered after the disk failed once")
        await self._attempt(lambda: history.messages("chat-0", last=10))

    async def _append(self, history: History, name: str, event: Event, *, tries: int = 1) -> bool:
        for _ in range(tries):
            if (receipt := await self._attempt(lambda: history.append(name, event))) is not None:
                os.write(self._acks, line_of(name, event.event_id, receipt.sequence))
                return True
        if self._careless:
            os.write(self._acks, line_of(name, event.event_id, None))
        return False

    async def _in_transaction(self, history: History) -> None:
        async with history.transaction() as transaction:
            await transaction.execute(sa.text("INSERT INTO credits VALUES (1)"))
            receipt = await transaction.append("till", Message.assistant("one credit"))
        os.write(self._acks, line_of("till", receipt.event_ids[-1], receipt.sequence))

    async def _again(self, what: str, work: Callable[[], Awaitable[T]]) -> T | None:
        for _ in range(TRIES if self._once else 1):
            if (value := await self._attempt(work)) is not None:
                return value
        if self._once:
            self.problems.append(f"{what} does not work any more after the disk failed once")
        return None

    async def _attempt(self, work: Callable[[], Awaitable[T]]) -> T | None:
        try:
            return await work()
        except LetopisError as error:
            self.refused.append(type(error).__name__)
        except Exception as error:  # anything else is not what the documentation names
            self.problems.append(f"raised {type(error).__module__}.{type(error).__name__}: {str(error)[:120]}")
        return None


def scripted(calls: tuple[str, ...], folder: str, way: Connection, **how: bool) -> None:
    """Run the script behind the gate, and send how it was refused, and what was wrong."""
    logging.disable()
    script = Script(Path(folder), **how)
    enter(way, calls)
    try:
        asyncio.run(script.run())
    except BaseException as error:  # whatever it is: it came out of the library
        script.problems.append(f"died of {type(error).__name__}: {str(error)[:200]}")
    way.send((script.refused, script.problems))


async def make(folder: Path) -> None:
    """Make an outbox and a store that were used and closed, for scripts to begin with."""
    world = World(folder)
    await migrated(world.url)
    async with world.open() as history:
        async with history.transaction() as transaction:
            await transaction.execute(sa.text("CREATE TABLE credits (number INTEGER)"))
        await history.append("chat-0", Message.user("before all of it"))
        await history.drained(DRAINED)


def fail_each(setting: Setting, call: str, error: str, choose: Callable[[int], Sequence[int]], *, once: bool) -> Tally:
    """Have the chosen calls of the script fail, one after the other; look into what each run leaves.

    :param choose: which, by their number, given how many calls the script makes when nothing fails.
    """
    if reason := missing():
        raise NotHere(reason)
    tally, template, place = Tally(), setting.folder / "template", setting.folder / "run"
    template.mkdir()
    asyncio.run(make(template))

    def run(k: int) -> tuple[int, int, Any]:
        shutil.copytree(template, place)
        fired = 0

        def fails(number: int) -> int:
            nonlocal fired
            if failing := k and (number == k if once else number >= k):
                fired += 1
            return getattr(errno, error) if failing else 0

        how: dict[str, Any] = {"once": once, "careless": setting.control}
        seen, code, told = guarded(scripted, (call,), str(place), patience=TIMEOUT_SECONDS, fails=fails, **how)
        return len(seen), fired, told or ([], [f"hung, or ended with {code}"])

    count, _, told = run(0)
    if any(told):
        raise RuntimeError(f"the script does not run on a sound disk either: {told}")
    numbers, hit = choose(count), 0
    for number, k in enumerate(numbers):
        shutil.rmtree(place)
        _, fired, (refused, problems) = run(k)
        hit += fired > 0
        tally.count += fired
        tally.figures.update(refused)
        left = asyncio.run(_look(place, once=once, restart=not once or number % RESTARTED == 0))
        tally.acknowledged += left.acknowledged
        tally.blame([*problems, *left.problems][:2], where=f"{call} {k}, {error}")
    tally.notes = (
        f"{len(numbers)} runs, a fault fired in {hit}; {tally.acknowledged:,} events acknowledged;"
        f" raised: {tally.told() or 'nothing, tried again within'}"
    )
    return tally


async def _look(place: Path, *, once: bool, restart: bool) -> Tally:
    world = World(place, acks=[*read_promises((place / "acks").read_bytes()).acks])
    try:
        await world.judge(drained=once)
        if restart:
            await world.go_on()
            world.tally.blame((await world.examine()).problems)
    except (LetopisError, OSError) as error:
        world.tally.problems = [f"cannot be used after a restart: {error}"]
    return world.tally

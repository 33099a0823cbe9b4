"""Kill a bot with its relay at one system call after the other of a script, and see what is left each time."""

import asyncio
import itertools
import shutil
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.campaigns.invariants import read_store
from tests.proof.crash import moments
from tests.proof.crash.gate import FILE_CALLS, Call, Counts, missing
from tests.proof.harness import Tally, World
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support import victim
from tests.support.promises import PATH, KeptPromises, half_kept, read_promises
from tests.support.victim import ACKS, APART, EARLY, OUTBOX, SECRET, tell_secret

TIMEOUT_SECONDS: Final = 30.0
_WHAT: Final = "killed at a system call, restarted, drained"
LEAST: Final = 250
PARALLEL_KILLS: Final = 2
KEPT: Final = "kept"  # of the figures: events that were kept without an answer
_FRAME: Final = 24  # bytes of what SQLite writes before each page


def prove(options: Options) -> Iterator[Row]:
    """Kill in a first run, which makes the files, in a later one, and in one that erases; and without the promises."""
    if reason := missing():
        yield Row(what=f"{_WHAT} of a run", where="sqlite", missing=reason)
        return
    nothing, made, told = options.folder / "nothing", options.folder / "made", options.folder / "told"
    first = Story(options, nothing, victim.say_and_deliver, _after_saying)
    calls, code = first.run(made)
    if not calls:
        yield Row(what=f"{_WHAT} of a run", where="sqlite", missing=f"the kernel takes no filter (ended with {code})")
        return
    yield first.kill("a first run", (82, 2), least=70)
    later = replace(first, made=made)
    yield later.kill("a later run", (1_000, 3), least=LEAST)
    asyncio.run(tell_secret(shutil.copytree(made, told)))
    (told / ACKS).unlink()
    erasing = replace(first, made=told, script=victim.erase_and_deliver, aftermath=_after_erasing)
    yield erasing.kill("a run that erases", (60, 2), least=40)
    for name, story, control in (
        ("promised before it is written", later, EARLY),
        ("the bot's own books in a transaction of their own", later, APART),
        ("erasure promised before it is written", erasing, EARLY),
    ):
        yield replace(story, without=control).kill(name, (20, 4))


def _after_the_first_promise() -> Counts:
    """Count what is written to the outbox from the first promise to the second: a control breaks in between."""
    promises = 0

    def counts(call: Call) -> bool:
        nonlocal promises
        promises += call.name == "write" and call.file == ACKS
        return promises == 1 and call.file == f"{OUTBOX}-wal" and call.size > _FRAME

    return counts


def every(count: int, most: int, seed: int) -> list[int]:
    """Return numbers from 1 to ``count``, evenly apart, about ``most`` of them."""
    step = max(1, round(count / most))
    return list(range(1 + seed % step, count + 1, step))


@dataclass(frozen=True)
class Story:
    """A script, the files that it begins with, and how to look at what it left behind.

    :ivar aftermath: returns how many events were kept without an answer.
    :ivar without: the control that is planted.
    """

    options: Options
    made: Path
    script: Callable[..., Coroutine[Any, Any, None]]
    aftermath: Callable[[World], Coroutine[Any, Any, int]]
    without: str = ""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self, folder: Path, *, kill_at: int = 0) -> tuple[list[Call], int | None]:
        """Run the script, kill it at one of its calls, and return those that it came to, and how it ended."""
        if self.made.exists():
            shutil.copytree(self.made, folder)
        folder.mkdir(exist_ok=True)
        counts: Counts = _after_the_first_promise() if self.without else lambda _: True
        given, patience = (FILE_CALLS, partial(self.script, folder, without=self.without)), TIMEOUT_SECONDS
        calls, code, _ = moments.guarded(moments.gated, *given, counts=counts, kill_at=kill_at, patience=patience)
        return calls, code

    def kill(self, name: str, most: tuple[int, int], *, least: int = 0) -> Row:
        """Kill at about so many calls, evenly apart; ``name`` is of the run, or of the control."""
        calls, _ = self.run(self._folder())
        numbers, whole = every(len(calls), self.options.many(*most), self.options.seed), Tally()
        with ThreadPoolExecutor(PARALLEL_KILLS) as pool:
            for tally in pool.map(self._die, numbers):
                whole.add(tally)
        kept = max(0, whole.figures.pop(KEPT, 0))
        which = f"{len(numbers)} of the {len(calls)}" if len(numbers) < len(calls) else f"each of the {len(calls)}"
        what = f"{name}, {_WHAT}" if self.without else f"{_WHAT}: {which} of {name}"
        at = ", ".join(f"{count} at {call}" for call, count in whole.figures.most_common())
        whole.notes = f"{at}; {whole.acknowledged:,} acknowledged, {kept:,} kept without an answer"
        return whole.row(what, "sqlite", "kills", least, control=bool(self.without))

    def _folder(self) -> Path:
        return self.options.folder / f"call-{next(self._numbers)}"

    def _die(self, number: int) -> Tally:
        world = World(self._folder())
        tally = world.tally
        try:
            calls, code = self.run(world.folder, kill_at=number)
            if code == -9:
                tally.figures[calls[-1].name] += 1
                tally.figures[KEPT] += asyncio.run(self.aftermath(world))
                tally.problems = [f"at {calls[-1].name} of {calls[-1].file}: {problem}" for problem in tally.problems]
                tally.count += 1
            else:
                tally.require(code == 0, f"ended with {code}")
        except Exception as error:  # that it does not start again, or hangs, is the worst that can be found
            tally.problems.append(f"call {number}: {type(error).__name__}: {error}")
        finally:
            shutil.rmtree(world.folder, ignore_errors=True)
        return tally


async def _after_saying(world: World) -> int:
    """Restart, continue, let everything be delivered, and check."""
    promised = await _go_on(world)
    async with world.open(relay=False) as history:
        path = tuple(one.text.removeprefix("words ") for one in await history.messages(PATH, last=None))
    right = path in promised.possible_paths
    world.tally.require(right, f"the path is {path}, after {promised.paths} changes that have returned")
    store = await read_store(world.url)
    world.tally.problems += half_kept(world.outbox, store)
    # What is promised when its append returns.
    return sum(one.type != "conversation.started" for one in store.events) - len(world.acks)


async def _after_erasing(world: World) -> int:
    """Restart, continue, let everything be delivered, and search every file for erased content."""
    await _go_on(world)
    erased = any(event.type == "message.redacted" for event in (await read_store(world.url)).events)
    if erased or len(world.acks) > 1:
        world.tally.blame(f"{name} holds what was erased" for name in world.holding(SECRET))
    return int(erased and len(world.acks) == 1)


async def _go_on(world: World) -> KeptPromises:
    """Start again, say something more, let all be delivered, and judge; return what was promised before."""
    acks = world.folder / ACKS
    promised = read_promises(acks.read_bytes() if acks.exists() else b"")
    world.acks, world.records = [*promised.acks], [*promised.records]
    await world.go_on()
    await world.judge()
    return promised

"""Kill a bot with its relay at one system call after the other of a script, and see what is left each time."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from letopis.store import Message
from tests.campaigns.invariants import Ack, read_store
from tests.campaigns.states import StoreState
from tests.campaigns.victims import Context
from tests.proof.crash import moments
from tests.proof.crash.gate import FILE_CALLS, Call, Counts, guard, missing
from tests.proof.harness import Tally, World
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support import victim
from tests.support.child import start_piped
from tests.support.promises import PATH, KeptPromises, half_kept, read_promises
from tests.support.victim import ACKS, APART, EARLY, OUTBOX, SECRET, tell_secret

TIMEOUT_SECONDS: Final = 30.0
_WHAT: Final = "killed at a system call, restarted, drained"
LEAST: Final = 250
PARALLEL_KILLS: Final = 2
KEPT: Final = "kept"  # of the figures: events that were kept without an answer
_FRAME: Final = 24  # bytes of what SQLite writes before each page

# Starting and joining look at every child: two threads that do so take each other's exit codes.
_children: Final = threading.Lock()


class Story(NamedTuple):
    """A script, and how to look at what it left behind."""

    script: Callable[..., Coroutine[Any, Any, None]]
    aftermath: Callable[[World], Coroutine[Any, Any, int]]


def prove(options: Options, context: Context) -> Iterator[Row]:
    """Kill in a first run, which makes the files, in a later one, and in one that erases; and without the promises."""
    if reason := missing():
        yield Row(what=f"{_WHAT} of a run", where="sqlite", missing=reason)
        return
    said, erased = Story(victim.say_and_deliver, _after_saying), Story(victim.erase_and_deliver, _after_erasing)
    nothing, made, told = options.folder / "nothing", options.folder / "made", options.folder / "told"
    calls, code = run(made, context, said)
    if not calls:
        yield Row(what=f"{_WHAT} of a run", where="sqlite", missing=f"the kernel takes no filter (ended with {code})")
        return
    yield _kill(options, context, said, nothing, "a first run", (82, 5), least=70)
    yield _kill(options, context, said, made, "a later run", (1_000, 8), least=LEAST)
    asyncio.run(tell_secret(_copy(made, told)))
    (told / ACKS).unlink()
    yield _kill(options, context, erased, told, "a run that erases", (60, 4), least=40)
    for name, story, files, control in (
        ("promised before it is written", said, made, EARLY),
        ("the bot's own books in a transaction of their own", said, made, APART),
        ("erasure promised before it is written", erased, told, EARLY),
    ):
        yield _kill(options, context, story, files, name, (20, 4), without=control)


def _every_call() -> Counts:
    return lambda _: True


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


def run(
    folder: Path,
    context: Context,
    story: Story,
    *,
    kill_at: int = 0,
    counts: Counts | None = None,
    without: str = "",
) -> tuple[list[Call], int | None]:
    """Run the script, kill it at one of its calls, and return those that it came to, and how it ended."""
    folder.mkdir(exist_ok=True)
    work = partial(story.script, folder, without=without)
    with _children:
        process, ours = start_piped(context, moments.gated, FILE_CALLS, work, duplex=True)
    with ours:
        assert process.pid is not None
        try:
            calls = guard(ours, process.pid, counts or _every_call(), kill_at=kill_at, patience=TIMEOUT_SECONDS)
        finally:
            with _children:
                process.join(TIMEOUT_SECONDS)
    return calls, process.exitcode


def _kill(
    options: Options,
    context: Context,
    story: Story,
    made: Path,
    name: str,
    most: tuple[int, int],
    *,
    least: int = 0,
    without: str = "",
) -> Row:
    """Kill at about so many calls, evenly apart; ``name`` is of the run, or of the control."""
    counts = _after_the_first_promise if without else _every_call
    counter = itertools.count()

    def begin() -> Path:
        folder = options.folder / f"{story.script.__name__}-{without}-{made.exists()}-{next(counter)}"
        return _copy(made, folder) if made.exists() else folder

    def die(number: int) -> Tally:
        world = World(begin())
        tally = world.tally
        try:
            calls, code = run(world.folder, context, story, kill_at=number, counts=counts(), without=without)
            if code == -9:
                tally.figures[calls[-1].name] += 1
                tally.figures[KEPT] += asyncio.run(_aftermath(story, world, calls[-1]))
                tally.count += 1
            else:
                tally.require(code == 0, f"ended with {code}")
        except Exception as error:  # that it does not start again, or hangs, is the worst that can be found
            tally.problems.append(f"call {number}: {type(error).__name__}: {error}")
        finally:
            shutil.rmtree(world.folder, ignore_errors=True)
        return tally

    calls, _ = run(begin(), context, story, counts=counts(), without=without)
    numbers, whole = every(len(calls), options.many(*most), options.seed), Tally()
    with ThreadPoolExecutor(PARALLEL_KILLS) as pool:
        for tally in pool.map(die, numbers):
            whole.add(tally)
    kept = max(0, whole.figures.pop(KEPT, 0))
    which = f"{len(numbers)} of the {len(calls)}" if len(numbers) < len(calls) else f"each of the {len(calls)}"
    what = f"{name}, {_WHAT}" if without else f"{_WHAT}: {which} of {name}"
    at = ", ".join(f"{count} at {call}" for call, count in whole.figures.most_common())
    whole.notes = f"{at}; {whole.acknowledged:,} acknowledged, {kept:,} kept without an answer"
    return whole.row(what, "sqlite", "kills", least, control=bool(without))


async def _aftermath(story: Story, world: World, call: Call) -> int:
    """Look at what a death left behind; return how many events were kept without an answer."""
    kept = await story.aftermath(world)
    world.tally.problems = [f"at {call.name} of {call.file}: {problem}" for problem in world.tally.problems]
    return kept


async def _after_saying(world: World) -> int:
    """Restart, continue, let everything be delivered, and check."""
    store = await _go_on(world, changes_path=True)
    world.tally.problems += half_kept(world.outbox, store)
    # What is promised when its append returns.
    return sum(one.type != "conversation.started" for one in store.events) - len(world.acks)


async def _after_erasing(world: World) -> int:
    """Restart, continue, let everything be delivered, and search every file for erased content."""
    store = await _go_on(world)
    erased = any(event.type == "message.redacted" for event in store.events)
    if erased or len(world.acks) > 1:
        world.tally.blame(f"{name} holds what was erased" for name in world.holding(SECRET))
    return int(erased and len(world.acks) == 1)


async def _go_on(world: World, *, changes_path: bool = False) -> StoreState:
    """Start again, say something more, and let all be delivered; return what is there."""
    acks = world.folder / ACKS
    promised = read_promises(acks.read_bytes()) if acks.exists() else KeptPromises()
    world.acks, world.records = [*promised.acks], [*promised.records]
    async with world.open() as history:
        receipt = await history.append("chat", Message.user("and then"))
        world.acks.append(Ack("chat", receipt.event_ids[-1], receipt.sequence))
        await world.drain(history)
        path = tuple(one.id for one in await history.messages(PATH, last=None))
        right = not changes_path or path in promised.possible_paths
        world.tally.require(right, f"the path is {path}, after {promised.paths} changes that have returned")
    await world.judge()
    return await read_store(world.url)


def _copy(made: Path, folder: Path) -> Path:
    shutil.copytree(made, folder)
    return folder

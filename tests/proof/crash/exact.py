"""Kill a bot with its relay at one system call after the other of a script, and see what is left each time."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from letopis.outbox import History
from letopis.store import Message
from tests.campaigns.invariants import Ack, Verdict, check, read_store
from tests.campaigns.states import StoreState
from tests.campaigns.victims import Context
from tests.proof.crash import mortals
from tests.proof.crash.gate import Call, Counts, guard, missing
from tests.proof.options import Options
from tests.proof.rows import Row, row_of
from tests.support.promises import PATH, KeptPromises, half_kept, read_promises
from tests.support.victim import ACKS, APART, EARLY, OUTBOX, SECRET, tell_secret, url_of

TIMEOUT_SECONDS: Final = 30.0
_WHAT: Final = "killed at a system call, restarted, drained"
LEAST: Final = 250
PARALLEL_KILLS: Final = 2
_FRAME: Final = 24  # bytes of what SQLite writes before each page

# Starting and joining look at every child: two threads that do so take each other's exit codes.
_children: Final = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """One kill and what was found after it."""

    call: Call | None
    acknowledged: int = 0
    ambiguous: int = 0
    problems: tuple[str, ...] = ()
    violations: int = 0


class Story(NamedTuple):
    """A script, and how to look at what it left behind."""

    script: Callable[..., None]
    aftermath: Callable[[Path, Call], Coroutine[Any, Any, Death]]


def prove(options: Options, context: Context) -> Iterator[Row]:
    """Kill in a first run, which makes the files, in a later one, and in one that erases; and without the promises."""
    if reason := missing():
        yield Row(what=f"{_WHAT} of a run", where="sqlite", missing=reason)
        return
    said, erased = Story(mortals.say, _after_saying), Story(mortals.erase, _after_erasing)
    nothing, made, told = options.folder / "nothing", options.folder / "made", options.folder / "told"
    calls, code = run(made, context, said)
    if not calls:
        yield Row(what=f"{_WHAT} of a run", where="sqlite", missing=f"the kernel takes no filter (ended with {code})")
        return
    yield _row("a first run", *_kill(options, context, said, nothing, most=options.many(82, 5)), least=70)
    yield _row("a later run", *_kill(options, context, said, made, most=options.many(1_000, 8)), least=LEAST)
    asyncio.run(tell_secret(_copy(made, told)))
    (told / ACKS).unlink()
    yield _row("a run that erases", *_kill(options, context, erased, told, most=options.many(60, 4)), least=40)
    for name, story, files, control in (
        ("promised before it is written", said, made, EARLY),
        ("the bot's own books in a transaction of their own", said, made, APART),
        ("erasure promised before it is written", erased, told, EARLY),
    ):
        found = _kill(options, context, story, files, most=options.many(20, 4), without=control)
        yield _row("a later run", *found, control=name)


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
    ours, theirs = context.Pipe()
    process = context.Process(target=story.script, args=(str(folder), theirs), kwargs={"without": without}, daemon=True)
    with ours:
        with _children:
            process.start()
        theirs.close()
        assert process.pid is not None
        try:
            calls = guard(ours, process.pid, counts or _every_call(), kill_at=kill_at, patience=TIMEOUT_SECONDS)
        finally:
            with _children:
                process.join(TIMEOUT_SECONDS)
    return calls, process.exitcode


def _kill(
    options: Options, context: Context, story: Story, made: Path, *, most: int, without: str = ""
) -> tuple[int, list[Death]]:
    """Kill at about so many calls, evenly apart; return how many calls there are, and the deaths."""
    counts = _after_the_first_promise if without else _every_call
    counter = itertools.count()

    def begin() -> Path:
        folder = options.folder / f"{story.script.__name__}-{without}-{made.exists()}-{next(counter)}"
        return _copy(made, folder) if made.exists() else folder

    def one(number: int) -> Death:
        folder = begin()
        try:
            calls, code = run(folder, context, story, kill_at=number, counts=counts(), without=without)
            if code != -9:
                wrong = () if code == 0 else (f"ended with {code}",)
                return Death(call=None, problems=wrong, violations=len(wrong))
            return asyncio.run(story.aftermath(folder, calls[-1]))
        except Exception as error:  # that it does not start again, or hangs, is the worst that can be found
            return Death(call=None, problems=(f"call {number}: {type(error).__name__}: {error}",), violations=1)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    calls, _ = run(begin(), context, story, counts=counts(), without=without)
    with ThreadPoolExecutor(PARALLEL_KILLS) as pool:
        return len(calls), list(pool.map(one, every(len(calls), most, options.seed)))


async def _after_saying(folder: Path, call: Call) -> Death:
    """Restart, continue, let everything be delivered, and check."""
    acks, store, verdict, problems = await _go_on(folder, changes_path=True)
    problems += half_kept(folder / OUTBOX, store)
    return _death(call, problems, verdict, ambiguous=_appends(store) - len(acks))


async def _after_erasing(folder: Path, call: Call) -> Death:
    """Restart, continue, let everything be delivered, and search every file for erased content."""
    acks, store, verdict, problems = await _go_on(folder)
    erased = any(event.type == "message.redacted" for event in store.events)
    if erased or len(acks) > 1:
        secret = SECRET.encode()
        problems += [f"{path.name} holds what was erased" for path in folder.iterdir() if secret in path.read_bytes()]
    return _death(call, problems, verdict, ambiguous=int(erased and len(acks) == 1))


async def _go_on(folder: Path, *, changes_path: bool = False) -> tuple[list[Ack], StoreState, Verdict, list[str]]:
    """Start again, say something more, and let all be delivered; return what was promised, and what is there."""
    promised = read_promises((folder / ACKS).read_bytes()) if (folder / ACKS).exists() else KeptPromises()
    acks = list(promised.acks)
    outbox, url = folder / OUTBOX, url_of(folder)
    problems: list[str] = []
    async with History(outbox, store=url, watch=False) as history:
        receipt = await history.append("chat", Message.user("and then"))
        acks.append(Ack("chat", receipt.event_ids[-1], receipt.sequence))
        if not await history.drained(TIMEOUT_SECONDS):
            problems.append("not drained")
        path = tuple(one.id for one in await history.messages(PATH, last=None))
        if changes_path and path not in promised.possible_paths:
            problems.append(f"the path is {path}, after {promised.paths} changes that have returned")
    verdict = await check([outbox], url, acknowledged=acks, records=promised.records, drained=True)
    return acks, await read_store(url), verdict, problems


def _death(call: Call, problems: Sequence[str], verdict: Verdict, *, ambiguous: int) -> Death:
    return Death(
        call=call,
        acknowledged=verdict.acknowledged,
        ambiguous=ambiguous,
        problems=tuple(f"at {call.name} of {call.file}: {one}" for one in (*problems, *verdict.problems)),
        violations=len(problems) + verdict.problem_count,
    )


def _appends(store: StoreState) -> int:
    """Return how many events are in a history that are promised when their append returns."""
    return sum(one.type != "conversation.started" for one in store.events)


def _copy(made: Path, folder: Path) -> Path:
    shutil.copytree(made, folder)
    return folder


def _row(run_of: str, calls: int, deaths: Sequence[Death], *, least: int = 0, control: str = "") -> Row:
    killed = [one for one in deaths if one.call is not None]
    kinds = Counter(one.call.name for one in killed if one.call is not None)
    which = f"{len(deaths)} of the {calls}" if len(deaths) < calls else f"each of the {calls}"
    what = f"{control}, {_WHAT}" if control else f"{_WHAT}: {which} of {run_of}"
    notes = (
        f"{', '.join(f'{count} at {name}' for name, count in kinds.most_common())};"
        f" {sum(one.acknowledged for one in killed):,} acknowledged,"
        f" {max(0, sum(one.ambiguous for one in killed)):,} kept without an answer"
    )
    problems, found = [one for death in deaths for one in death.problems], sum(one.violations for one in deaths)
    given = (what, "sqlite", len(killed), least, "kills", problems, notes)
    return row_of(*given, violations=found, control=bool(control))

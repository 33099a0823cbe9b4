"""Kill a bot with its relay at one system call after the other of a run, and see what is left each time."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from letopis.outbox import History
from letopis.store import Message
from tests.campaigns.invariants import Ack, examine, read_outbox, read_store
from tests.campaigns.states import StoreState
from tests.campaigns.victims import Context
from tests.proof.crash import script
from tests.proof.crash.books import half_kept
from tests.proof.crash.gate import Call, Counts, guard, missing
from tests.proof.options import Options
from tests.proof.rows import Row

PATIENCE: Final = 30.0
LEAST: Final = 250
AT_ONCE: Final = 2
_FRAME: Final = 24
"""Bytes of what SQLite writes before each page."""

# Starting and joining look at every child: two threads that do so take each other's exit codes.
_children: Final = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """One kill and what was found after it.

    :ivar call: at which it died; ``None`` where it came to its end.
    """

    call: Call | None
    acknowledged: int = 0
    ambiguous: int = 0
    problems: tuple[str, ...] = ()
    violations: int = 0


def prove(options: Options, context: Context) -> Iterator[Row]:
    """Kill in a first run, which makes the files, and in a later one; and without the promises."""
    what = "killed at a system call, restarted, drained"
    if reason := missing():
        yield Row(what=what, where="SQLite", missing=reason)
        return
    made = options.folder / "made"
    calls, _ = run(made, context)
    numbers = every(len(calls), options.many(120, 6), options.seed)
    yield _row(f"{what}: {_share(calls, numbers)} of a first run", _kill(options, context, None, numbers), least=100)
    calls, _ = run(_copy(made, options.folder / "again"), context)
    numbers = every(len(calls), options.many(len(calls), 8), options.seed)
    yield _row(f"{what}: {_share(calls, numbers)} of a later run", _kill(options, context, made, numbers), least=LEAST)
    for name, control in (
        ("promised before it is written", script.EARLY),
        ("the bot's own books in a transaction of their own", script.APART),
    ):
        calls, _ = run(
            _copy(made, options.folder / control), context, counts=_after_the_first_promise(), without=control
        )
        deaths = _kill(
            options, context, made, range(1, len(calls) + 1), counts=_after_the_first_promise, without=control
        )
        yield _row(f"{name}, {what}", deaths, control=True)


def _every_call() -> Counts:
    return lambda _: True


def _after_the_first_promise() -> Counts:
    """Count what is written to the outbox from the first promise to the second: a control breaks in between."""
    promises = 0

    def counts(call: Call) -> bool:
        nonlocal promises
        promises += call.name == "write" and call.file == script.ACKS
        return promises == 1 and call.file == f"{script.OUTBOX}-wal" and call.size > _FRAME

    return counts


def every(count: int, most: int, seed: int) -> list[int]:
    """Return numbers from 1 to ``count``, evenly apart, about ``most`` of them."""
    step = max(1, round(count / most))
    return list(range(1 + seed % step, count + 1, step))


def run(
    folder: Path,
    context: Context,
    *,
    kill_at: int = 0,
    counts: Counts | None = None,
    without: str = "",
) -> tuple[list[Call], int | None]:
    """Run the script, kill it at one of its calls, and return those that it came to, and how it ended."""
    folder.mkdir(exist_ok=True)
    ours, theirs = context.Pipe()
    process = context.Process(target=script.run, args=(str(folder), theirs), kwargs={"without": without}, daemon=True)
    with ours:
        with _children:
            process.start()
        theirs.close()
        assert process.pid is not None
        try:
            calls = guard(ours, process.pid, counts or _every_call(), kill_at=kill_at, patience=PATIENCE)
        finally:
            with _children:
                process.join(PATIENCE)
    return calls, process.exitcode


def _kill(
    options: Options,
    context: Context,
    made: Path | None,
    numbers: Sequence[int],
    *,
    counts: Callable[[], Counts] = _every_call,
    without: str = "",
) -> list[Death]:
    def one(number: int) -> Death:
        folder = options.folder / f"{'first' if made is None else 'later'}-{without}-{number}"
        if made is not None:
            _copy(made, folder)
        try:
            calls, code = run(folder, context, kill_at=number, counts=counts(), without=without)
            if code != -9:
                return Death(
                    call=None, problems=() if code == 0 else (f"ended with {code}",), violations=int(code != 0)
                )
            return asyncio.run(aftermath(folder, calls[-1]))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, numbers))


async def aftermath(folder: Path, call: Call) -> Death:
    """Start again, go on, let all be delivered, and look."""
    acks = script.read_acks(folder / script.ACKS)
    outbox, url = folder / script.OUTBOX, script.url_of(folder)
    problems: list[str] = []
    async with History.open(outbox, store=url, watch=False) as history:
        receipt = await history.append("chat", Message.user("and then"))
        acks.append(Ack("chat", receipt.event_ids[-1], receipt.sequence))
        if not await history.drained(PATIENCE):
            problems.append("not drained")
    store = await read_store(url)
    verdict = examine(store, [read_outbox(outbox)], acknowledged=acks, drained=True)
    problems += half_kept(outbox, store)
    return Death(
        call=call,
        acknowledged=verdict.acknowledged,
        ambiguous=_appends(store) - verdict.acknowledged,
        problems=tuple(f"at {call.name} of {call.file}: {one}" for one in (*problems, *verdict.problems)),
        violations=len(problems) + verdict.problem_count,
    )


def _appends(store: StoreState) -> int:
    """Return how many appends are in a history: in the groups they were of two messages each."""
    alone = sum(one.type == "message.appended" and not one.conversation_id.startswith("group") for one in store.events)
    together = sum(one.type == "message.appended" and one.conversation_id.startswith("group") for one in store.events)
    return alone + together // 2


def _copy(made: Path, folder: Path) -> Path:
    shutil.copytree(made, folder)
    return folder


def _share(calls: Sequence[Call], numbers: Sequence[int]) -> str:
    return f"each of the {len(calls)}" if len(calls) == len(numbers) else f"{len(numbers)} of the {len(calls)}"


def _row(what: str, deaths: Sequence[Death], *, least: int = 0, control: bool = False) -> Row:
    killed = [one for one in deaths if one.call is not None]
    kinds = Counter(one.call.name for one in killed if one.call is not None)
    return Row(
        what=what,
        where="SQLite",
        count=len(killed),
        unit="kills",
        least=least,
        violations=sum(one.violations for one in deaths),
        control=control,
        notes=(
            f"{', '.join(f'{count} at {name}' for name, count in kinds.most_common())};"
            f" {sum(one.acknowledged for one in killed):,} acknowledged,"
            f" {max(0, sum(one.ambiguous for one in killed)):,} kept without an answer"
        ),
        problems=tuple(problem for one in deaths for problem in one.problems)[:20],
    )

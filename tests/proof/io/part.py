"""Let a disk fail in each way, with controls that show that a loss would be seen."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from tests.proof.io import failing, full, opens, readonly, script, slow, store_gone, taken
from tests.proof.io.failing import Fault
from tests.proof.options import Options
from tests.proof.power.cuts import NotHere
from tests.proof.power.states import strace
from tests.proof.rows import Row, row_of

AT_A_TIME: Final = 3  # experiments at a time: most of them mostly wait
MOST: Final = 170  # calls of one kind that fail one by one, drawn by chance where the script makes more
ERRORS: Final = ("EIO", "ENOSPC")
NO_STRACE: Final = "needs strace, and the right to trace"


def prove(options: Options) -> Iterator[Row]:
    """Let the disk fail."""
    template = options.folder / "template"
    template.mkdir()
    asyncio.run(script.make(template))
    work = [*_failing(options), *_slow(options), *_taken(options), *_others(options)]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield from pool.map(lambda one: one(), work)


# Calls that fail.


def _failing(options: Options) -> Iterator[Callable[[], Row]]:
    if options.short:
        yield partial(_once, options, "pwrite64", "EIO", 5)
    else:
        for call in ("pwrite64", "fdatasync", "ftruncate"):
            for error in ERRORS:
                yield partial(_once, options, call, error, MOST)
        for call in ("pwrite64", "fdatasync"):
            for error in ERRORS:
                yield partial(_from_then_on, options, call, error, careless=False)
    yield partial(_from_then_on, options, "pwrite64", "EIO", careless=True)


def _once(options: Options, call: str, error: str, most: int) -> Row:
    def choose(calls: dict[int, int]) -> Sequence[Fault]:
        each = [Fault(thread=thread, k=k) for thread, count in sorted(calls.items()) for k in range(1, count + 1)]
        return each if len(each) <= most else sorted(random.Random(options.seed).sample(each, most), key=str)

    what, where = f"each {call} of a script fails once, in turn", error
    if strace() is None:
        return Row(what=what, where=where, missing=NO_STRACE)
    folder, template = options.folder / f"{call} {error} once", options.folder / "template"
    outcome = failing.fail_each(folder, template, call=call, error=error, once=True, choose=choose)
    least = {"pwrite64": 75, "fdatasync": 15, "ftruncate": 3}[call]
    return _row(what, where, outcome, least=least)


def _from_then_on(options: Options, call: str, error: str, *, careless: bool) -> Row:
    def choose(calls: dict[int, int]) -> Sequence[Fault]:
        # Of the thread that appends, which is the first that is started.
        count = calls[1]
        return [Fault(k=max(1, count * share // 9)) for share in (range(1, 9) if not options.short else (4,))]

    what, where = f"each {call} of a script fails, from the K-th of each thread on", error
    if careless:
        what = f"{what}; the bot takes a refused append for a successful one"
    if strace() is None:
        return Row(what=what, where=where, control=careless, missing=NO_STRACE)
    folder = options.folder / f"{call} {error} {'careless' if careless else 'from then on'}"
    how = {"call": call, "error": error, "once": False, "careless": careless}
    outcome = failing.fail_each(folder, options.folder / "template", choose=choose, **how)
    return _row(what, where, outcome, control=careless)


def _row(what: str, where: str, outcome: failing.Outcome, *, least: int = 0, control: bool = False) -> Row:
    refused = ", ".join(f"{count} {name}" for name, count in outcome.refused.most_common())
    notes = (
        f"{outcome.runs} runs, a fault fired in {outcome.hit}; {outcome.acknowledged:,} events acknowledged;"
        f" raised: {refused or 'nothing, tried again within'}"
    )
    given = (what, where, outcome.faults, least, "faults", outcome.problems, notes)
    return row_of(*given, violations=outcome.bad, control=control)


# A slow disk.


def _slow(options: Options) -> Iterator[Callable[[], Row]]:
    yield partial(_slowly, options, blocking=False)
    yield partial(_slowly, options, blocking=True)


def _slowly(options: Options, *, blocking: bool) -> Row:
    what = f"each flush takes {1000 * slow.DELAY:.0f} ms, the event loop goes on"
    if blocking:
        what = f"{what}; writes in the loop's own thread"
    if strace() is None:
        return Row(what=what, control=blocking, missing=NO_STRACE)
    appends = options.many(12, 3)
    seen = slow.measure(options.folder / f"slow {blocking}", appends=appends, blocking=blocking)
    # A machine that is busy stands still now and then; a loop that waits for the disk does at each append.
    standstills = seen.standstills if seen.standstills > appends // 4 else 0
    notes = (
        f"an append took {min(seen.appends):.2f} to {max(seen.appends):.2f} s; the loop stood still for"
        f" {1000 * sorted(seen.still)[len(seen.still) // 2]:.0f} ms, {1000 * max(seen.still):.0f} at most"
    )
    found = standstills + len(seen.problems)
    return row_of(what, "", appends, 0, "slow appends", seen.problems, notes, violations=found, control=blocking)


# Files that are taken away.


def _taken(options: Options) -> Iterator[Callable[[], Row]]:
    ways = [way for way in taken.WAYS if not options.short or way.name == "-wal removed"]
    for way in ways:
        yield partial(_take, options, way, blind=False)
    yield partial(_take, options, next(way for way in taken.WAYS if way.name == "-wal removed"), blind=True)
    if options.short:
        return
    library = taken.second()
    yield partial(_meet, options, "open", blind=False)
    yield partial(_meet, options, "open", blind=True)
    if library is None:
        yield lambda: Row(
            what="a second SQLite library opens and closes the outbox in the bot's process, another process passes by",
            missing="needs pysqlite3, apsw or sqlean, none of which is installed",
        )
    else:
        yield partial(_meet, options, library, blind=False)


def _take(options: Options, way: taken.Way, *, blind: bool) -> Row:
    found = taken.take(options.folder / f"taken {way.name} {blind}", way, blind=blind)
    return row_of(
        "taken away under a running bot, which is killed then" + ("; nobody looks" if blind else ""),
        f"outbox {way.name}" if not way.suffix else way.name,
        count=1 if blind else found.refused,
        unit="files" if blind else "appends refused",
        problems=found.problems,
        notes=(
            f"{found.acknowledged:,} acknowledged before"
            + ("" if blind else f"; noticed after {1000 * found.noticed:.0f} ms")
        ),
        control=blind,
    )


def _meet(options: Options, by: str, *, blind: bool) -> Row:
    met = taken.meet(options.folder / f"met {by} {blind}", by, blind=blind)
    what = "a raw open()" if by == "open" else f"a second SQLite library ({by})"
    return row_of(
        f"{what} and close of the outbox in the bot's process, another process passes by, the bot is killed",
        "nobody looks" if blind else "",
        count=1 if blind else met.refused,
        unit="locks dropped" if blind else "appends refused",
        problems=met.problems,
        notes=f"{met.acknowledged} acknowledged",
        control=blind,
    )


# Disks without space, or without the right to write; raw opens.


def _others(options: Options) -> Iterator[Callable[[], Row]]:
    commands = full.COMMANDS[: options.many(len(full.COMMANDS), 1)]
    explained = f" and {len(commands)} command{'s' * (len(commands) > 1)} at the start explained"
    yield partial(
        _filled,
        f"file system of {full.MEBIBYTES} MB filled to the last byte; the relay goes on, appends do when there is room"
        + explained,
        lambda: asyncio.run(full.on_a_full_disk(options.folder / "full", commands)),
    )
    yield partial(
        _filled,
        "files may not grow any further (RLIMIT_FSIZE), later they may",
        lambda: full.under_a_limit(options.folder / "limit"),
    )
    for what, work, name in (
        ("ext4 stops writing, as after an error of the disk, and is mounted again", readonly.gone_read_only, "gone"),
        ("file system read-only at the start, then writable", readonly.read_only_at_start, "start"),
    ):
        yield partial(_filled, what, lambda work=work, name=name: asyncio.run(work(options.folder / name)))
    yield partial(_store_gone, options, blind=False)
    yield partial(_store_gone, options, blind=True)
    yield partial(_opened, options, raw=False)
    yield partial(_opened, options, raw=True)


def _filled(what: str, work: Callable[[], full.Filled]) -> Row:
    try:
        found = work()
    except NotHere as missing:
        return Row(what=what, missing=str(missing))
    return row_of(
        what, count=found.refused, unit="refused", problems=found.problems, notes=f"{found.acknowledged:,} acknowledged"
    )


def _store_gone(options: Options, *, blind: bool) -> Row:
    found = asyncio.run(store_gone.take(options.folder / f"store gone {blind}", blind=blind))
    return row_of(
        "SQLite history removed, or replaced by an older copy, under a running bot" + "; nobody looks" * blind,
        count=found.refused,
        unit="files",
        problems=found.problems,
        notes=f"{found.acknowledged:,} acknowledged, each saved one in the file there, the older ones after a start"
        if not blind
        else "",
        control=blind,
    )


def _opened(options: Options, *, raw: bool) -> Row:
    told = opens.trip(options.folder / f"opens {raw}", commands=options.many(len(opens.COMMANDS), 2), raw=raw)
    what = "raw opens by our code of a file that SQLite has open" + ("; one is planted" if raw else "")
    problems = [one.splitlines()[0] for one in told["found"]]
    notes, where = "the whole test suite runs with the same tripwire", "bot, relay and commands in one process"
    return row_of(what, where, len(told["codes"]), 0, "commands", problems, notes, control=raw)

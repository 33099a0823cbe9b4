"""Hand everything hostile to every call, importer and command, on three stores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from random import Random
from typing import Any

from tests.proof.harness import Tally as Results
from tests.proof.inputs import bombs, commands, constructing, corpus, lines, running
from tests.proof.inputs.calls import LEFT_OUT, TABLES
from tests.proof.inputs.calls import untried as calls_untried
from tests.proof.inputs.running import Tally, blocked_at_delivery
from tests.proof.options import Options
from tests.proof.rows import Row, row_of
from tests.proof.stores import Fresh, each, fresh

CALLS = "every public call, one argument hostile: kept equal in the store, or refused by name and nothing written"
BLOCKING = "the same, the blocking history from a thread"
CORPUS = "hostile values at every place of an append: kept equal in the store, or refused by the field's name"
LINES = "lines of a mutated import file: taken and delivered, or refused by number; twice changes nothing"


KEPT = "what tools return, through every adapter: comes back from the store as the framework's own backend gives it"


def prove(options: Options) -> Iterator[Row]:
    """Yield the rows of bad input."""
    random = Random(options.seed)
    yield _surface()
    yield _constructors()
    for store in each(options.folder, "inputs"):
        if store.missing:
            yield Row(what=CALLS, where=store.kind, missing=store.missing)
            continue
        folder = options.folder / store.kind
        folder.mkdir()
        begun = time.monotonic()
        if not options.short or store.kind == "sqlite":
            many = options.many(8, 1)
            yield _of(CALLS, store, asyncio.run(running.proved(store.url, folder, many=many, random=random)), least=500)
            options.tell(f"calls on {store.kind}: {time.monotonic() - begun:.0f} s")
        if not options.short:
            tally = asyncio.run(running.proved_from_threads(store.url, folder, many=3, random=random))
            yield _of(BLOCKING, store, tally, least=300)
        with fresh(store.kind, options.folder, "inputs-corpus") as other:
            some = None if not options.short else 40
            tally = asyncio.run(corpus.tried(other.url, folder, random=random, many=some))
            yield _of(CORPUS, store, tally, least=500)
        with fresh(store.kind, options.folder, "inputs-lines") as other:
            fuzzed = lines.run(other.url, folder, random, options.many(800, 30))
            fuzzed.notes = f"{fuzzed.stored:,} taken, {fuzzed.refused:,} refused"
            yield fuzzed.row(LINES, store.kind, "lines", 500)
        if not options.short or store.kind == "sqlite":
            yield lines.kept_row(KEPT, store.kind, options.folder / f"kept-{store.kind}")
        options.tell(f"{store.kind}: {time.monotonic() - begun:.0f} s")
    yield _control(options)
    yield lines.kept_row(
        "the same where the envelope holds no text", "sqlite", options.folder / "kept-control", control=True
    )
    yield from _commands(options, random)
    yield from _bombs(options)


def _of(what: str, store: Fresh, tally: Tally, *, least: int) -> Row:
    notes = f"{tally.refused:,} refused, {tally.accepted:,} accepted, {tally.compared:,} compared in the store"
    return row_of(what, store.kind, tally.tried, least, "inputs", tally.problems, notes)


def _surface() -> Row:
    what = "public methods and classes that have a hostile run, or a reason why not"
    notes = f"{len(LEFT_OUT)} left out, each for a reason that is written down"
    missing = [*calls_untried(), *constructing.untried()]
    return row_of(what, "", sum(map(len, TABLES.values())), 0, "methods", missing, notes)


def _constructors() -> Row:
    tally = Tally()
    through = constructing.constructed(tally)
    what = "every public constructor, one argument hostile: what it lets through is encoded, or refused by name"
    notes = f"{tally.refused:,} refused, {len(through):,} encoded"
    return row_of(what, "", tally.tried, 500, "inputs", tally.problems, notes)


def _control(options: Options) -> Row:
    what = "text with NUL in it where nothing looks at text before it is appended"
    with fresh("postgresql", options.folder, "inputs-control") as store:
        if store.missing:
            return Row(what=what, where=store.kind, control=True, missing=store.missing)
        found = asyncio.run(blocked_at_delivery(store.url, options.folder))
    return row_of(what, store.kind, 5, 0, "inputs", found, "conversations blocked at delivery", control=True)


def _commands(options: Options, random: Random) -> Iterator[Row]:
    opening = Tally()
    asyncio.run(constructing.opened(options.folder, opening, many=options.many(8, 2), random=random))
    yield _of("options of `open`, hostile", Fresh("sqlite"), opening, least=100)
    runs: tuple[tuple[str, Any, int], ...] = (
        ("options and arguments of every verb of the command, hostile", commands.options, options.many(2, 0)),
        ("variables of the environment, hostile", commands.environment, options.many(4, 1)),
        ("letopis.toml, mutated", commands.configuration, options.many(60, 6)),
        ("the outbox file, damaged or something else", commands.outboxes, options.many(32, 4)),
        ("the command as a process of its own, hostile", commands.processes, options.many(6, 2)),
    )
    for what, run, many in runs:
        if not many:
            continue
        found: Results = run(options.folder, random, many)
        found.notes = "exit codes " + ", ".join(f"{code.strip()}: {n}" for code, n in sorted(found.figures.items()))
        yield found.row(what, unit="runs")


def _bombs(options: Options) -> Iterator[Row]:
    folder = options.folder / "bombs"
    folder.mkdir()
    what = "import of a file that never ends, is one line, nested, compressed: memory is bounded, and it says why"
    empty = bombs.burst(bombs.Bomb("empty", lambda: iter(()), (0,), ""), folder)
    if not empty.megabytes:
        yield Row(what=what, missing="no /proc to measure the memory of a process with")
        return
    some = [one for one in bombs.bombs(options.many(256, 64)) if not options.short or one.name == "one line"]
    bursts = [(one, bombs.burst(one, folder)) for one in some]
    problems = [words for one, burst in bursts for words in bombs.faults(one, burst, empty.megabytes)]
    used = ", ".join(f"{one.name} {burst.megabytes} MB" for one, burst in bursts)
    notes = f"{empty.megabytes} MB for an empty file; {used}"
    yield row_of(what, "", len(bursts), 0, "bombs", problems, notes)
    control = bombs.burst(next(bombs.bombs(options.many(256, 96))), folder, code=bombs.UNBOUNDED)
    found = [words for words in bombs.faults(next(bombs.bombs(1)), control, empty.megabytes) if "MB" in words]
    what = "the same one line where the importer reads lines of any length"
    yield row_of(what, "", 1, 0, "bombs", found, f"{control.megabytes} MB", control=True)

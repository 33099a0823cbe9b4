"""Look into every state of a recorded disk, and cut the power for real, each with a control that does not flush."""

from __future__ import annotations

from collections.abc import Iterator

from tests.proof.options import Options
from tests.proof.power import cuts, states
from tests.proof.power.states import Found
from tests.proof.rows import Row, row_of

WEAK = "synchronous=NORMAL"


def prove(options: Options) -> Iterator[Row]:
    """Cut the power."""
    yield from _states(options)
    yield from _cuts(options)


def _states(options: Options) -> Iterator[Row]:
    what = "power cut after each write and flush of a recorded bot"
    models = "unsynced data dropped, all kept, torn by sector"
    if states.strace() is None:
        yield Row(what=what, where=models, missing="needs strace, and the right to trace")
        return
    for control in (False, True):
        folder = options.folder / ("weak" if control else "states")
        operations = states.record(
            folder, appends=options.many(110, 15), seed=options.seed, pragmas=[WEAK] if control else []
        )
        found = states.replay(
            operations,
            folder,
            prefixes=options.many(250, 30) if control else options.many(1400, 80),
            opened=0 if control else options.many(60, 4),
            seed=options.seed,
        )
        seen = f"{found.prefixes:,} prefixes x {len(states.Model)} models, {found.distinct:,} of them distinct; "
        yield _row(what, models, found, "states", 4_000, seen, control=control)


def _cuts(options: Options) -> Iterator[Row]:
    what, where = "power of a live ext4 file system cut, journal replayed", "ext4 image on XFS, copied by reflink"
    for control in (False, True):
        try:
            found = cuts.cut(
                options.folder / ("weak cuts" if control else "cuts"),
                cuts=options.many(12, 3) if control else options.many(64, 4),
                opened=0 if control else options.many(10, 2),
                seed=options.seed,
                pragmas=[WEAK, "wal_autocheckpoint=100000"] if control else [],
            )
        except cuts.NotHere as missing:
            yield Row(what=what, where=where, control=control, missing=str(missing))
            continue
        yield _row(what, where, found, "power cuts", 60, control=control)


def _row(what: str, where: str, found: Found, unit: str, least: int, notes: str = "", *, control: bool) -> Row:
    what = f"{what}, {WEAK} in the outbox" if control else what
    notes += f"{found.acknowledged:,} events acknowledged; {found.opened} opened and drained by the library"
    least = 0 if control else least
    return row_of(what, where, found.states, least, unit, found.problems, notes, violations=found.bad, control=control)

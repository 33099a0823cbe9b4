"""Restore, delete from, swallow in and move three kinds of stores, with controls."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from functools import partial
from random import Random
from typing import Any, Final
from unittest.mock import patch

from letopis.outbox.relay import reconcile
from letopis.store.maintenance.continuity import LogCount
from tests.proof.harness import Experiment, Setting, Tally, prove_by_kind, prove_table
from tests.proof.options import Options
from tests.proof.restored import cases
from tests.proof.restored.world import World, served, world
from tests.proof.rows import Row
from tests.proof.stores import KINDS

EVERY: Final = 0.2  # seconds between two looks at the store; 30 outside the proof


def prove(options: Options) -> Iterator[Row]:
    """Run them, in the short form in this process: another costs more than what would be done in it."""
    yield from (prove_table if options.short else prove_by_kind)(options, TABLE)


async def done(
    setting: Setting,
    *,
    case: Callable[[World], Awaitable[None]],
    many: int,
    opened: Callable[[Setting, Random], AbstractAsyncContextManager[World]],
    without: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tally:
    """Do a case many times, each with a store of its own.

    :param without: takes away that by which it is noticed.
    """
    tally = Tally(1 if setting.control else setting.many(many, 1))
    for number in range(tally.count):
        chance = Random(f"{setting.seed} {setting.folder.name} {number}")
        often = patch.object(reconcile, "RECONCILE_INTERVAL_SECONDS", EVERY)
        with setting.apart(f"{number}") as here, often, without():
            async with opened(here, chance) as world:
                await case(world)
                tally.blame(world.tally.problems[:5], where=f"case {number}")
    return tally


async def _all_is_there(*_: Any, **__: Any) -> LogCount:
    return LogCount()


@contextmanager
def _no_comparison() -> Iterator[None]:
    with (
        patch.object(reconcile, "RECONCILE_INTERVAL_SECONDS", 1e9),
        patch.object(reconcile.Reconciler, "schedule_all", lambda _: None),
    ):
        yield


def _nothing(*_: Any, **__: Any) -> None:
    """Check nothing."""


QUIET: Final = "restored in quiet"
DELETED: Final = "events deleted from the log: told, and ended by a backup"
SWALLOWED: Final = "rows swallowed by a trigger"
MOVE: Final = "a move to {} killed midway, again and again, while the bot talks"
CASES: Final = (
    # What it is; the kinds of store, and the cases on each; whether the short form has it; how its world is opened.
    (QUIET, cases.in_quiet, KINDS, 3, True, served),
    ("restored while the bot talks", cases.under_load, KINDS, 3, True, served),
    ("restored again, to an older backup, while it heals", cases.twice, KINDS, 3, False, served),
    ("restored beyond the tail: told, then mended by a newer backup", cases.pruned, KINDS, 3, True, served),
    (DELETED, cases.cut_out, KINDS, 3, True, served),
    (SWALLOWED, cases.swallowed, KINDS[:2], 3, True, served),
    (MOVE.format("postgresql"), partial(cases.killed_midway, to="postgresql"), KINDS[::2], 4, True, world),
    (MOVE.format("mariadb"), partial(cases.killed_midway, to="mariadb"), KINDS[:2], 4, False, world),
    (MOVE.format("sqlite"), partial(cases.killed_midway, to="sqlite"), KINDS[:1], 4, False, world),
)
COUNT: Final = "letopis.store.maintenance.continuity.Continuity.count"
CHECK: Final = "letopis.store.database.dialects.check_row_count"
BLIND: Final[Mapping[str, tuple[str, Callable[[], AbstractContextManager[Any]]]]] = {
    QUIET: ("heads compared at the start alone", _no_comparison),
    DELETED: ("the log not counted", partial(patch, COUNT, _all_is_there)),
    SWALLOWED: ("rows not counted", partial(patch, CHECK, _nothing)),
    MOVE.format("sqlite"): ("the old store not closed before the last copy", nullcontext),  # in the move's own process
}
"""The controls: what takes away that by which a case is noticed, in words, and how."""


def table() -> Iterator[Experiment]:
    """Yield the cases, of a short proof each on the kind of store that has had the fewest; and the controls."""
    had: Counter[str] = Counter()
    for what, case, on, many, short, opened in CASES:
        kind = min(on, key=had.__getitem__)
        had[kind] += short
        run = partial(done, case=case, many=many, opened=opened)
        yield Experiment(what, run, "cases", many, on=on, short=(kind,) if short else ())
        if what in BLIND:
            words, without = BLIND[what]
            run = partial(run, without=without)
            yield Experiment(f"{what}, {words}", run, "cases", on=("sqlite",), control=True)


TABLE: Final = tuple(table())

"""Restore, delete from, swallow in, exchange and move three kinds of stores, with controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from functools import partial
from random import Random
from typing import Any, Final
from unittest.mock import patch

from letopis.outbox.relay import reconcile
from letopis.store.maintenance.continuity import LogCount
from tests.proof.harness import Experiment, Setting, Tally, prove_by_kind, prove_table
from tests.proof.options import Options
from tests.proof.restored import cases, wrong
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
    opened: Callable[[Setting, Random, str], AbstractAsyncContextManager[World]],
    without: Callable[[], AbstractContextManager[Any]] = nullcontext,
    defect: str = "",
) -> Tally:
    """Do a case many times, each with a store of its own.

    :param without: takes away that by which it is noticed; ``defect`` does so in the processes that it starts.
    """
    tally = Tally(1 if setting.control else setting.many(many, 1))
    for number in range(tally.count):
        chance = Random(f"{setting.seed} {setting.folder.name} {number}")
        often = patch.object(reconcile, "RECONCILE_INTERVAL_SECONDS", EVERY)
        with setting.apart(f"{number}") as here, often, without():
            async with opened(here, chance, defect) as world:
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


def table() -> Iterator[Experiment]:
    """Yield every kind of case, 101 in all, and without what notices it; the short form has most on one store each."""
    had: Counter[str] = Counter()

    def of(
        what: str, case: Any, *, many: int = 3, opened: Any = served, on: Any = KINDS, short: bool = True, **blind: Any
    ) -> Iterator[Experiment]:
        kind = min(on, key=had.__getitem__)  # the one that has had the fewest
        had[kind] += short
        run = partial(done, case=case, many=many, opened=opened)
        yield Experiment(what, run, "cases", many, on=on, short=(kind,) if short else ())
        if blind:
            what = f"{what}, {blind.pop('control')}"
            yield Experiment(what, partial(run, **blind), "cases", on=("sqlite",), control=True)

    told: dict[str, Any] = {"many": 2, "opened": world}
    blind: dict[str, Any] = {"control": "heads compared at the start alone", "without": _no_comparison}
    yield from of("restored in quiet", cases.in_quiet, **blind)
    yield from of("restored while the bot talks", cases.under_load)
    yield from of("restored again, to an older backup, while it heals", cases.twice, short=False)
    yield from of("restored beyond the tail: told, then mended by a newer backup", cases.pruned)
    uncounted = partial(patch, "letopis.store.maintenance.continuity.Continuity.count", _all_is_there)
    blind = {"control": "the log not counted", "without": uncounted}
    yield from of("events deleted from the log: told, and ended by a backup", cases.cut_out, **blind)
    unchecked = partial(patch, "letopis.store.database.dialects.check_row_count", _nothing)
    blind = {"control": "rows not counted", "without": unchecked}
    yield from of("rows swallowed by a trigger", cases.swallowed, on=KINDS[:2], **blind)
    what = "a relay told of wrong stores {} the first delivery"
    yield from of(what.format("after"), wrong.after_the_first_delivery, **told)
    blind = {"control": "no store compared with the one that the outbox is bound to", "defect": "binding"}
    yield from of(what.format("before"), wrong.before_the_first_delivery, short=False, **told, **blind)
    yield from of("two relays told of two stores while the bot talks", wrong.two_relays, short=False, **told)
    yield from of("a staging copy beside the store", wrong.a_staging_copy, short=False, **told)
    yield from of("another store at the same address for a while", wrong.exchanged, many=2)
    for to, sources in (("postgresql", ("sqlite", "mariadb")), ("mariadb", KINDS[:2]), ("sqlite", ("sqlite",))):
        what, case = f"a move to {to} killed midway, again and again, while the bot talks", cases.killed_midway
        blind = {"control": "the old store not closed before the last copy", "defect": "closing"}
        how: dict[str, Any] = {"many": 4, "opened": world, **(blind if to == "sqlite" else {})}
        yield from of(what, partial(case, to=to), on=sources, short=to == "postgresql", **how)


TABLE: Final = tuple(table())

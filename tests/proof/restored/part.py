"""Restore, delete from, swallow in, exchange and move three kinds of stores, with controls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from random import Random
from typing import Any, Final
from unittest.mock import patch

from letopis.outbox.relay import reconcile
from letopis.store.database import dialects
from letopis.store.maintenance.continuity import Continuity, LogCount
from tests.proof.harness import Experiment, Setting, Tally, in_processes
from tests.proof.options import Options
from tests.proof.restored import cases, wrong
from tests.proof.restored import world as worlds
from tests.proof.restored.cases import CASES, Case
from tests.proof.rows import Row
from tests.proof.stores import KINDS

EVERY: Final = 0.2  # seconds between two looks at the store; 30 outside the proof
SHORT_PATIENCE: Final = 6.0  # seconds that a control is given to notice, which it cannot; half of it in the short form


def prove(options: Options) -> Iterator[Row]:
    """Yield the rows of this part: a process for each kind of store, which mostly waits, and one for the controls."""
    jobs = [*(partial(on_a_store, options, kind) for kind in KINDS), partial(controls, options)]
    if options.short:  # a process costs more than what would be done in it
        with patch.object(wrong, "TOLD", 1), patch.object(cases, "KILLS", 1):
            for job in jobs:
                yield from job()
        return
    yield from in_processes(jobs, at_a_time=len(jobs))


def on_a_store(options: Options, kind: str) -> list[Row]:
    """All that is done to one kind of store, one after the other."""
    return [_proved(options, case, kind) for case in chosen(kind, short=options.short)]


def _proved(options: Options, case: Case, kind: str, **more: Any) -> Row:
    logging.disable()
    what = f"{case.what}, {CONTROLS[case.control][1]}" if more else case.what
    experiment = Experiment(what, partial(done, case=case), "cases", case.many, **more)
    with patch.object(reconcile, "RECONCILE_INTERVAL_SECONDS", EVERY):
        return experiment.prove(options, kind, folder=f"{kind}-{CASES.index(case)}-{len(more)}")


def chosen(kind: str, *, short: bool) -> list[Case]:
    """Return the cases of a kind of store; of a short proof some, each on the kind that has had the fewest."""
    if not short:
        return [case for case in CASES if kind in case.on]
    had: dict[str, list[Case]] = {one: [] for one in KINDS}
    for case in CASES:
        if case.short:
            min((had[one] for one in case.on), key=len).append(case)
    return had[kind]


def controls(options: Options) -> list[Row]:
    """The same cases with what notices them taken away."""
    rows = []
    for case in CASES:
        if case.control:
            with (
                patch.object(worlds, "TIMEOUT_SECONDS", SHORT_PATIENCE / options.many(1, 2)),
                patch.object(wrong, "TOLD", 1),
                patch.object(cases, "KILLS", 0),
            ):
                rows.append(_proved(options, case, "sqlite", control=True))
    return rows


async def done(setting: Setting, *, case: Case) -> Tally:
    tally = Tally(1 if setting.control else setting.many(case.many, 1))
    for number in range(tally.count):
        chance = Random(f"{setting.seed} {case.what} {setting.kind} {number}")
        with setting.apart(f"{number}") as here, CONTROLS[case.control][0]() if setting.control else nullcontext():
            async with case.opened(setting.kind, here.url, here.folder, chance) as world:
                await case.run(world)
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


CONTROLS: Final[Mapping[str, tuple[Callable[[], Any], str]]] = {
    "compare": (_no_comparison, "heads compared at the start alone"),
    "count_log": (lambda: patch.object(Continuity, "count", _all_is_there), "the log not counted"),
    "count_rows": (lambda: patch.object(dialects, "check_row_count", lambda *_, **__: None), "rows not counted"),
    "bind": (
        lambda: patch.object(worlds, "DEFECT", "binding"),
        "no store compared with the one that the outbox is bound to",
    ),
    "close": (lambda: patch.object(worlds, "DEFECT", "closing"), "the old store not closed before the last copy"),
}
"""What takes away that by which a case is noticed, and what that is, in words."""

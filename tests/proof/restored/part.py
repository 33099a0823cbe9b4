"""Restore, delete from, swallow in, exchange and move three kinds of stores, with controls."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest.mock import patch

from letopis.outbox.relay import reconcile
from letopis.store.database import dialects
from letopis.store.maintenance.continuity import Continuity, LogCount
from tests.proof.harness import Tally
from tests.proof.options import Options
from tests.proof.restored import cases, wrong
from tests.proof.restored import world as worlds
from tests.proof.restored.cases import CASES, Case
from tests.proof.rows import Row
from tests.proof.stores import KINDS, Fresh, fresh

EVERY: Final = 0.2  # seconds between two looks at the store; 30 outside the proof
SHORT_PATIENCE: Final = 6.0  # seconds that a control is given to notice, which it cannot; half of it in the short form


def prove(options: Options) -> Iterator[Row]:
    """Yield the rows of this part: a process for each kind of store, which mostly waits, and one for the controls."""
    jobs: list[tuple[Callable[..., list[Row]], tuple[Any, ...]]] = [(on_a_store, (options, kind)) for kind in KINDS]
    jobs.append((controls, (options,)))
    if options.short:  # a process costs more than what would be done in it
        for work, given in jobs:
            with patch.object(wrong, "TOLD", 1), patch.object(cases, "KILLS", 1):
                yield from work(*given)
        return
    with ProcessPoolExecutor(len(jobs), mp_context=multiprocessing.get_context("spawn")) as pool:
        for one in [pool.submit(work, *given) for work, given in jobs]:
            yield from one.result()


def on_a_store(options: Options, kind: str) -> list[Row]:
    """All that is done to one kind of store, one after the other."""
    logging.disable()
    with patch.object(reconcile, "RECONCILE_INTERVAL_SECONDS", EVERY):
        return [row(options, case, kind, options.many(case.many, 1)) for case in chosen(kind, short=options.short)]


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
    logging.disable()
    rows = []
    for case in CASES:
        if case.control:
            with (
                patch.object(reconcile, "RECONCILE_INTERVAL_SECONDS", EVERY),
                CONTROLS[case.control][0](),
                patch.object(worlds, "TIMEOUT_SECONDS", SHORT_PATIENCE / options.many(1, 2)),
                patch.object(wrong, "TOLD", 1),
                patch.object(cases, "KILLS", 0),
            ):
                rows.append(row(options, case, "sqlite", 1, control=case.control))
    return rows


def row(options: Options, case: Case, kind: str, count: int, *, control: str = "") -> Row:
    tally = Tally(count)
    for number in range(count):
        folder = options.folder / f"{kind}-{CASES.index(case)}-{control}-{number}"
        folder.mkdir()
        with fresh(kind, folder, "store") as one:
            if one.missing:
                return Row(what=case.what, where=kind, missing=one.missing)
            chance = Random(f"{options.seed} {case.what} {kind} {number}")
            tally.blame(asyncio.run(_run(case, one, folder, chance)), where=f"case {number}")
    what = f"{case.what}, {CONTROLS[control][1]}" if control else case.what
    return tally.row(what, kind, "cases", case.many, control=bool(control))


async def _run(case: Case, store: Fresh, folder: Path, chance: Random) -> list[str]:
    async with case.opened(store.kind, store.url, folder, chance) as world:
        return await case.run(world)


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

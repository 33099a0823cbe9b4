"""Run mutants of the core and count those that no test notices.

    python -m tests.mutants                          # 400 mutants, an hour at most on two idle cores
    python -m tests.mutants --count 30 --room retry  # some of it
    python -m tests.mutants --keep                   # go on with a run that was cut off
    python -m tests.mutants --again tests/unit/outbox/retry/test_policy.py  # on the survivors of the last run
    python -m tests.mutants --nearest                # measure which test files look at which module, and end
    python -m tests.mutants --publish                # write the last run into the documentation, and end

First the tests run without a mutant, and have to be green; then the controls run, and each has to be caught. Exits with
0 if at least nine of ten mutants were caught, without those that `equivalents.json` explains.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from tests.mutants.lines import CANDIDATES, NEAREST, ROOMS, Recorder, nearest
from tests.mutants.mutations import Mutant, modules_of, mutants_of, sample
from tests.mutants.page import LEAST, published, score, summary, survivors
from tests.mutants.planted import planted
from tests.mutants.running import choose, import_others, in_fork, judge, others
from tests.support.reports import ROOT, report_of, write

PUBLISHED: Final = ROOT / "docs" / "explanation" / "proof.md"


def measure(tests: Sequence[str]) -> dict[str, Any]:
    """Run tests without a mutant; return the lines that each runs, its cost, and what others made and they import.

    :raises RuntimeError: a test fails, also when it runs a second time.
    """

    def run(tests: Sequence[str], folder: Path) -> dict[str, Any]:
        words = [*tests, "-m", "not slow", "--basetemp", str(folder / "tmp")]
        return {**Recorder().run(words), "others": others()}

    measured = in_fork(partial(run, tests), limited=False)
    failed = measured["failed"]
    if (failed and in_fork(partial(run, failed), limited=False)["ended"]) or measured["ended"] not in (0, 1):
        raise RuntimeError(f"fails without a mutant: {failed}")
    for test in failed:
        measured["costs"][test] = math.inf  # one that fails now and then says nothing about a mutant
    return dict(measured)


def rooms_of(names: Sequence[str]) -> dict[str, list[Mutant]]:
    """Return all mutants of some rooms."""
    paths = {name: modules_of(ROOT, ROOMS[name]) for name in names}
    return {name: [one for path in found for one in _mutants_of(str(path))] for name, found in paths.items()}


def room_of(path: str) -> str:
    """Return the room of a module."""
    return next(name for name, folder in ROOMS.items() if Path(path).is_relative_to(folder))


def run(
    mutants: Iterable[Mutant], tests: Callable[[Mutant], list[str]], *, jobs: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Judge mutants until the time is over."""
    end = time.monotonic() + seconds
    with get_context("fork").Pool(jobs) as pool:
        tasks = ((one, tests(one)) for one in mutants if time.monotonic() < end)
        for some in iter(lambda: list(islice(tasks, jobs)), []):
            yield from pool.starmap(judge, some)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=400, help="mutants, 400 by default; fewer are the first of them")
    parser.add_argument("--room", nargs="+", choices=ROOMS, default=list(ROOMS))
    parser.add_argument("--seed", type=int, default=20261129)
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time, 2 by default")
    parser.add_argument("--minutes", type=float, default=60.0, help="no mutant starts later than this")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants", metavar="DIR")
    parser.add_argument("--again", nargs="+", metavar="FILE", help="run tests on the survivors of the last run")
    parser.add_argument("--keep", action="store_true", help="go on with the last run")
    parser.add_argument("--nearest", action="store_true", help=f"measure anew and write {NEAREST.name}")
    parser.add_argument("--publish", action="store_true", help=f"write the last run into {PUBLISHED.relative_to(ROOT)}")
    given = parser.parse_args()
    kept = given.out / "mutants.json"
    if given.publish:
        report = json.loads(kept.read_text(encoding="utf-8"))
        PUBLISHED.write_text(published(report, PUBLISHED.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    if given.nearest:
        table = nearest(measure([f"tests/{name}" for name in CANDIDATES]))
        NEAREST.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        return 0
    lines = given.out / "lines.json"
    if given.again or given.keep:
        measured = json.loads(lines.read_text(encoding="utf-8"))
    else:
        table = json.loads(NEAREST.read_text(encoding="utf-8"))
        measured = measure(sorted({name for names in table.values() for name in names}))
        given.out.mkdir(parents=True, exist_ok=True)
        lines.write_text(json.dumps(measured), encoding="utf-8")
    import_others(measured["others"])
    if given.again:
        report = json.loads(kept.read_text(encoding="utf-8"))
        left = {(one["path"], one["line"], one["diff"]): one for one in survivors(report)}
        modules = sorted({path for path, _, _ in left if room_of(path) in given.room})
        mutants = [one for path in modules for one in _mutants_of(path) if _name(one) in left]
        for verdict in run(mutants, lambda _: given.again, jobs=given.jobs, seconds=given.minutes * 60):
            left[verdict["path"], verdict["line"], verdict["diff"]].update(verdict)
            _tell(verdict)
    else:
        tests = partial(choose, measured=measured, nearest=json.loads(NEAREST.read_text(encoding="utf-8")))
        last = json.loads(kept.read_text(encoding="utf-8")) if given.keep and kept.exists() else {}
        controls = last.get("controls") or list(run(planted(), tests, jobs=given.jobs, seconds=given.minutes * 60))
        for one in controls:
            _tell(one)
        found = rooms_of(given.room)
        parts = [{"room": name, "possible": len(many), "mutants": []} for name, many in found.items()]
        report = report_of(parts, versions={}, seed=given.seed, controls=controls)
        by_room = {part["room"]: part["mutants"] for part in parts}
        for part in last.get("parts", ()):
            by_room[part["room"]] += part["mutants"]
        done = {(one["path"], one["line"], one["diff"]) for many in by_room.values() for one in many}
        drawn = sample(found, given.count, given.seed)
        wanted = (one for one in drawn if _name(one) not in done and one.compiles((ROOT / one.path).read_text("utf-8")))
        for verdict in run(wanted, tests, jobs=given.jobs, seconds=given.minutes * 60):
            by_room[room_of(verdict["path"])].append(verdict)
            _tell(verdict)
            write(report, given.out, "mutants")
    write(report, given.out, "mutants")
    print(summary(report))
    missed = [one for one in report["controls"] if not one["by"]]
    return int(bool(missed) or score(report) < LEAST)


def _mutants_of(path: str) -> list[Mutant]:
    return mutants_of(path, (ROOT / path).read_text(encoding="utf-8"))


def _name(mutant: Mutant) -> tuple[str, int, str]:
    text = (ROOT / mutant.path).read_text(encoding="utf-8")
    return mutant.path, mutant.line(text), mutant.diff(text)


def _tell(verdict: dict[str, Any]) -> None:
    words = f"caught by {verdict['by']}" if verdict["by"] else f"SURVIVED {verdict['tests']} tests\n{verdict['diff']}"
    print(f"{verdict['seconds']:6.1f} s {verdict['path']}:{verdict['line']}: {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())

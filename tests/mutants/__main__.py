"""Run mutants of the core and count those that no test notices.

    python -m tests.mutants                          # 400 mutants, an hour at most on two idle cores
    python -m tests.mutants --count 30 --room retry  # some of it
    python -m tests.mutants --again                  # the survivors of the last run, after they got tests
    python -m tests.mutants --publish                # write the last run into the documentation, and end

First the tests run without a mutant, and have to be green; then the controls run, and each has to be caught. Exits with
0 if at least nine of ten mutants were caught, without those that `equivalents.json` explains.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

from tests.mutants.mutations import ROOMS, Mutant, mutants_of, mutants_of_room, planted, sample
from tests.mutants.page import LEAST, first_look, published, score, summary, survivors, verdicts
from tests.mutants.running import NEAR, choose, judge, measure
from tests.support.forking import as_they_end
from tests.support.reports import ROOT, report_of, write

PUBLISHED: Final = ROOT / "docs" / "explanation" / "proof.md"


def run(
    mutants: Iterable[Mutant], tests: Callable[[Mutant], list[str]], *, jobs: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Judge mutants until the time is over."""
    end = time.monotonic() + seconds
    tasks = ((one, tests(one)) for one in mutants if time.monotonic() < end)
    for verdict in as_they_end(judge, tasks, jobs=jobs):
        caught, place = verdict["by"], f"{verdict['path']}:{verdict['line']}"
        told = f"caught by {caught}" if caught else f"SURVIVED {verdict['tests']} tests\n{verdict['diff']}"
        print(f"{verdict['seconds']:6.1f} s {place}: {told}", file=sys.stderr, flush=True)
        yield verdict


def found_again(verdict: dict[str, Any]) -> Mutant | None:
    """Return the mutant of a verdict, in the code as it is now; ``None`` if the line that it changed is gone."""
    text = (ROOT / verdict["path"]).read_text(encoding="utf-8")
    same = [one for one in mutants_of(verdict["path"], text) if one.diff(text) == verdict["diff"]]
    return min(same, key=lambda one: abs(one.line(text) - verdict["line"]), default=None)


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
    parser.add_argument(
        "--again", action="store_true", help="judge only what survived the last run, of the same sample"
    )
    parser.add_argument("--publish", action="store_true", help=f"write the last run into {PUBLISHED.relative_to(ROOT)}")
    given = parser.parse_args()
    report: dict[str, Any] = {}
    if given.publish or given.again:
        report = json.loads((given.out / "mutants.json").read_text(encoding="utf-8"))
    if given.publish:
        PUBLISHED.write_text(published(report, PUBLISHED.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    tests = partial(choose, measured=measure([f"tests/{name}" for name in NEAR]))
    judged = partial(run, tests=tests, jobs=given.jobs, seconds=given.minutes * 60)
    controls = list(judged(planted()))
    found = {name: mutants_of_room(name) for name in given.room}
    by_room: dict[str, list[dict[str, Any]]] = {name: [] for name in found}
    parts = [{"room": name, "possible": len(many), "mutants": by_room[name]} for name, many in found.items()]
    drawn, kept = sample(found, given.count, given.seed), list[dict[str, Any]]()
    how: dict[str, Any] = {"seed": given.seed}
    if given.again:
        how = {"seed": report["seed"], "first": report.get("first") or first_look(report)}
        left = survivors(report)
        kept = [one for one in verdicts(report) if one not in left]
        drawn = [again for one in left if (again := found_again(one)) is not None]
    report = report_of(parts, versions={}, controls=controls, **how)
    for verdict in chain(kept, judged(drawn)):
        room = next(name for name, folder in ROOMS.items() if Path(verdict["path"]).is_relative_to(folder))
        by_room[room].append(verdict)
        write(report, given.out, "mutants")
    print(summary(report))
    return int(not all(one["by"] for one in controls) or score(report) < LEAST)


if __name__ == "__main__":
    raise SystemExit(main())

"""Run mutants of the core and count those that no test notices.

    python -m tests.mutants                          # 400 mutants, an hour at most on two idle cores
    python -m tests.mutants --count 30 --room retry  # some of it
    python -m tests.mutants --publish                # write the last run into the documentation, and end

First the tests run without a mutant, and have to be green; then the controls run, and each has to be caught. Exits with
0 if at least nine of ten mutants were caught, without those that `equivalents.json` explains.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.mutants.mutations import ROOMS, Mutant, mutants_of, planted, sample
from tests.mutants.running import NEAR, choose, judge, measure
from tests.support.forking import as_they_end
from tests.support.reports import ROOT, made_on, report_of, table, write

PUBLISHED: Final = ROOT / "docs" / "explanation" / "tables" / "mutants.md"
BEGIN: Final = "<!-- mutants: made by `python -m tests.mutants --publish`, not by hand -->"
END: Final = "<!-- end of mutants -->"
EQUIVALENTS: Final = Path(__file__).with_name("equivalents.json")
OUT: Final = ROOT / "build" / "mutants"
JOBS: Final = 2  # mutants at a time
SECONDS: Final = 3_600.0  # no mutant starts later than this
LEAST: Final = 0.9  # the share of mutants that tests have to catch
COLUMNS: Final = {
    "room": "---",
    **dict.fromkeys(("mutants possible", "run", "equivalent", "caught", "survived", "score"), "--:"),
}


def equivalents() -> dict[tuple[str, str], str]:
    """Return why mutants do the same as the code, by module and change."""
    return {(one["path"], one["diff"]): one["reason"] for one in json.loads(EQUIVALENTS.read_text(encoding="utf-8"))}


def score(verdicts: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of mutants that were caught, of those that do something else than the code."""
    known = equivalents()
    told = [bool(one["by"]) for one in verdicts if one["by"] or (one["path"], one["diff"]) not in known]
    return sum(told) / max(len(told), 1)


def page(report: Mapping[str, Any]) -> Iterator[str]:
    known, run = equivalents(), [one for part in report["parts"] for one in part["mutants"]]
    missed = [one for one in run if not one["by"]]
    made = f"Commit {report['commit']}, seed {report['seed']}, {report['date']}, on {made_on(report)}."
    caught = sum(bool(one["by"]) for one in report["controls"])
    yield from (f"{made} {caught} of {len(report['controls'])} controls were caught.", "")
    whole = {"room": "all", "possible": sum(part["possible"] for part in report["parts"]), "mutants": run}
    rows = []
    for part in (*report["parts"], whole):
        judged = part["mutants"]
        caught = sum(bool(one["by"]) for one in judged)
        same = sum((one["path"], one["diff"]) in known for one in judged if not one["by"])
        figures = (part["possible"], len(judged), same, caught, len(judged) - caught - same)
        rows.append((part["room"], *(f"{figure:,}" for figure in figures), f"{100 * score(judged):.0f} %"))
    yield from table(COLUMNS, rows)
    left: list[tuple[str, ...]] = []
    explained: list[tuple[str, ...]] = []
    for one in missed:
        change = " → ".join(f"`{line[2:]}`" for line in one["diff"].splitlines())
        if reason := known.get((one["path"], one["diff"])):
            explained.append((f"`{Path(one['path']).stem}`", change, reason))
        else:
            left.append((f"`{one['path'].partition('/letopis/')[2]}:{one['line']}`", change))
    for title, columns, listed in (
        ("Survivors", ("where", "change"), left),
        ("Equivalent", ("where", "change", "why it does the same"), explained),
    ):
        if listed:
            yield from ("", f"{title}:", "", *table(dict.fromkeys(columns, "---"), listed))
    yield ""


def published(report: Mapping[str, Any], text: str) -> str:
    """Return the page with a run in place of the one that it had.

    :raises ValueError: a control was missed, or the run is of no commit.
    """
    if not all(one["by"] for one in report["controls"]):
        raise ValueError("a control was missed")
    if report["commit"].endswith("-dirty"):
        raise ValueError("only what ran on a commit is published: commit or stash your changes, and run it again")
    before, _, rest = text.partition(BEGIN)
    return "\n".join((f"{before}{BEGIN}\n", *page(report), f"{END}{rest.partition(END)[2]}"))


def run(mutants: Iterable[Mutant], *, measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Judge mutants until the time is over."""
    end, verdicts = time.monotonic() + SECONDS, []
    tasks = ((one, choose(one, measured)) for one in mutants if time.monotonic() < end)
    for verdict in as_they_end(judge, tasks, jobs=JOBS):
        caught, place = verdict["by"], f"{verdict['path']}:{verdict['line']}"
        told = f"caught by {caught}" if caught else f"SURVIVED {verdict['tests']} tests\n{verdict['diff']}"
        print(f"{verdict['seconds']:6.1f} s {place}: {told}", file=sys.stderr, flush=True)
        verdicts.append(verdict)
    return verdicts


def main() -> int:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__, formatter_class=how)
    parser.add_argument("--count", type=int, default=400, help="mutants, 400 by default; fewer are the first of them")
    parser.add_argument("--room", nargs="+", choices=ROOMS, default=list(ROOMS))
    parser.add_argument("--seed", type=int, default=20261129)
    parser.add_argument("--publish", action="store_true", help=f"write the last run into {PUBLISHED.relative_to(ROOT)}")
    given = parser.parse_args()
    if given.publish:
        report = json.loads((OUT / "mutants.json").read_text(encoding="utf-8"))
        PUBLISHED.write_text(published(report, PUBLISHED.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    judged = partial(run, measured=measure(NEAR))
    controls = judged(planted())
    found = {
        name: [one for path in sorted((ROOT / ROOMS[name]).rglob("*.py")) for one in mutants_of(path.relative_to(ROOT))]
        for name in given.room
    }
    verdicts = judged(sample(found, given.count, given.seed))
    parts = [
        {
            "room": name,
            "possible": len(mutants),
            "mutants": [one for one in verdicts if Path(one["path"]).is_relative_to(ROOMS[name])],
        }
        for name, mutants in found.items()
    ]
    report = report_of(parts, versions={}, controls=controls, seed=given.seed)
    write(report, OUT, "mutants")
    print("\n".join(page(report)))
    return int(not all(one["by"] for one in controls) or score(verdicts) < LEAST)


if __name__ == "__main__":
    raise SystemExit(main())

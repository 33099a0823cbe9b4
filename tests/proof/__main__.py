"""Run the proof: all of it, or the parts that are named.

    python -m tests.proof                          # all but soak and campaigns: an hour and a half on two busy cores
    python -m tests.proof --part crash network     # some of it
    python -m tests.proof --short                  # a little of everything and of the campaign chitchat, as CI does
    python -m tests.proof --part soak              # twenty minutes of bots and faults
    python -m tests.proof --part chitchat          # a campaign: real conversations, half an hour
    python -m tests.proof --part crash --rounds 55 # 20,000 processes killed: an hour and a half
    python -m tests.proof --publish                # everything, and the tables of the documentation, of parts that held

Exits with 0 if nothing was violated, every control failed as it has to, and every count was reached.
"""

import argparse
import json
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from tests.proof import totals
from tests.proof.harness import prove_table
from tests.proof.options import Options, Part
from tests.proof.page import fronted, held, published, summary
from tests.proof.rows import Row
from tests.support.reports import ROOT, commit, refusal, report_of, write

PARTS: Final = (
    "simulation",
    "network",
    "blame",
    "crash",
    "restored",
    "erasure",
    "power",
    "io",
    "upgrade",
    "inputs",
    "corruption",
    "clocks",
    "reads",
    "retention",
    "following",
    "security",
    "forks",
    "soak",
)
"""In the order in which they are started, the long ones first: packages with `prove` or a `TABLE` in `part`."""
CAMPAIGNS: Final = ("chitchat", "faults")
"""Modules of `tests.campaigns` with `prove`, not published: they run if they are named; chitchat, if all is short."""
FRONT: Final = ROOT / "docs" / "explanation" / "proof.md"
PUBLISHED: Final = FRONT.parent / "tables" / "proof.md"


def part(name: str) -> Part:
    module = import_module(f"tests.campaigns.{name}" if name in CAMPAIGNS else f"tests.proof.{name}.part")
    if hasattr(module, "prove"):
        found: Part = module.prove
        return found
    return partial(prove_table, table=module.TABLE, at_a_time=getattr(module, "AT_A_TIME", 1))


def prove_here(name: str, *, short: bool, seed: int, rounds: int = 1, work: Part | None = None) -> dict[str, Any]:
    """Run one part in this process, ``work`` or the proof's own, and return its result."""
    started = time.monotonic()
    rows: list[Row] = []
    failed = ""
    with tempfile.TemporaryDirectory(prefix=f"letopis-proof-{name}-", ignore_cleanup_errors=True) as folder:
        try:
            options = Options(short=short, seed=seed, folder=Path(folder), rounds=rounds)
            for row in (work or part(name))(options):
                rows.append(row)
                print(f"{name}: {told(row, short=short)}", file=sys.stderr, flush=True)
        except Exception as error:  # the rows of the part that are there already are not to be lost for it
            failed = f"{type(error).__name__}: {error}"
            traceback.print_exc()
    return {
        "part": name,
        "seconds": round(time.monotonic() - started, 1),
        "failed": failed,
        "rows": [row.to_json() for row in rows],
    }


def prove_apart(name: str, *, short: bool, seed: int, rounds: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "tests.proof", "--only", name, "--seed", str(seed), "--rounds", str(rounds)]
    words += ["--short"] if short else []
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"part": name, "seconds": 0.0, "failed": f"ended with {done.returncode}", "rows": []}
    return report


def told(row: Row, *, short: bool) -> str:
    place = f" [{row.where}]" if row.where else ""
    if row.missing:
        return f"not run: {row.what}{place}: {row.missing}"
    mark = "ok" if row.ok(short=short) else "FAILED"
    kind = "control, " if row.control else ""
    words = f"{mark}: {row.what}{place}: {row.count:,} {row.unit}, {kind}{row.violations:,} violations"
    return "\n    ".join((f"{words}{'; ' if row.notes else ''}{row.notes}", *row.problems[:5]))


def prove(names: Sequence[str], *, short: bool, seed: int, rounds: int, jobs: int) -> dict[str, Any]:
    with ThreadPoolExecutor(jobs) as pool:
        parts = list(pool.map(lambda name: prove_apart(name, short=short, seed=seed, rounds=rounds), names))
    return report_of(parts, versions={"Linux": platform.release()}, seed=seed, short=short)


def failures(report: Mapping[str, Any], *, require: bool = False) -> list[str]:
    short, found = report["short"], []
    for part_report in report["parts"]:
        name = part_report["part"]
        if part_report["failed"]:
            found.append(f"{name}: {part_report['failed']}")
        rows = map(Row.from_json, part_report["rows"])
        found += [f"{name}: {told(row, short=short)}" for row in rows if not row.ok(short=short, require=require)]
    return found


def publish(report: Mapping[str, Any]) -> None:
    """Write the parts that held into the page of tables, and add them to the totals."""
    counted = totals.added(totals.read(), report, held(report))
    page = published(report, PUBLISHED.read_text(encoding="utf-8"))
    PUBLISHED.write_text(page, encoding="utf-8")
    FRONT.write_text(fronted(FRONT.read_text(encoding="utf-8"), page, totals.told(counted)), encoding="utf-8")
    totals.write(counted)


def conclude(report: Mapping[str, Any], kept: Path, *, require: bool = False, besides: Sequence[str] = ()) -> int:
    """Print what a report says, and where it is kept; return the exit code."""
    failed = [*failures(report, require=require), *besides]
    print(summary(report), *(f"FAILED {words}" for words in failed), sep="\n")
    print(f"seed {report['seed']}, commit {report['commit']}, {len(failed)} failures; all figures: {kept}")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.proof", description=(__doc__ or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = (*PARTS, *CAMPAIGNS)
    parser.add_argument("--part", nargs="+", choices=every, metavar="PART", help=", ".join(every))
    parser.add_argument("--short", action="store_true", help="a little of everything: that it works, not how well")
    parser.add_argument("--seed", type=int, default=20261125, help="what chance draws follows from it")
    parser.add_argument("--rounds", type=int, default=1, help="of kills at random, each from the next seed")
    parser.add_argument("--jobs", type=int, default=2, help="parts at a time, 2 by default")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "proof", metavar="DIR")
    parser.add_argument("--publish", action="store_true", help=f"write what held into {PUBLISHED.relative_to(ROOT)}")
    parser.add_argument("--require-all", action="store_true", help="fail if a row cannot be run on this machine")
    parser.add_argument("--only", choices=every, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell that starts the run in the background has it ignored, and an endless import is ended by it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if given.only:
        print(json.dumps(prove_here(given.only, short=given.short, seed=given.seed, rounds=given.rounds)))
        return 0
    if given.rounds < 1:
        parser.error("--rounds is at least 1")
    if given.publish and given.short:
        parser.error("what is published is not short")
    names = given.part or [*(["chitchat"] if given.short else []), *(name for name in PARTS if name != "soak")]
    if given.publish and (campaigns := {*names} & {*CAMPAIGNS}):
        parser.error(f"a campaign is not published: {', '.join(sorted(campaigns))}")
    if given.publish and (reason := refusal()):
        parser.error(reason)
    begun_at = commit()
    report = prove(names, short=given.short, seed=given.seed, rounds=given.rounds, jobs=given.jobs)
    besides = []
    if given.publish and report["commit"] != begun_at:
        besides.append(f"not published: it began at {begun_at} and ended at {report['commit']}")
    elif given.publish:
        publish(report)
    return conclude(report, write(report, given.out, "proof"), require=given.require_all, besides=besides)


if __name__ == "__main__":
    raise SystemExit(main())

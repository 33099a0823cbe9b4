"""Run the benchmark: all of it, or the parts that are named.

    python -m benchmarks                          # everything, at most ten minutes on two cores
    python -m benchmarks --part append read       # some of it
    python -m benchmarks --quick                  # small counts: whether it works, not how fast it is
    python -m benchmarks --publish                # everything, and the page of the documentation

Exits with 0 if every row that was measured is reached; a quick run if every part ended.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Figure, Result
from benchmarks.judging import Figures
from benchmarks.page import front, page, verdict_table
from benchmarks.part_append import append, peers
from benchmarks.part_daemon import daemon
from benchmarks.part_drain import drain
from benchmarks.part_fleet import fleet
from benchmarks.part_growth import growth
from benchmarks.part_loop import loop
from benchmarks.part_read import overlay, read
from benchmarks.part_records import records
from benchmarks.part_small import disk, imports, start
from benchmarks.part_transaction import transaction
from benchmarks.part_turn import turn
from benchmarks.part_wake import wake
from benchmarks.parts import QUICK, Part, Scale, run_part
from benchmarks.peers import PEERS
from benchmarks.plotting import rounded
from benchmarks.table import judge
from tests.support.reports import ROOT, commit, refusal, report_of, write

PARTS: Final[Mapping[str, Part]] = {
    "turn": turn,
    "append": append,
    "peers": peers,
    "transaction": transaction,
    "loop": loop,
    "drain": drain,
    "daemon": daemon,
    "fleet": fleet,
    "wake": wake,
    "read": read,
    "overlay": overlay,
    "records": records,
    "start": start,
    "disk": disk,
    "import": imports,
    "growth": growth,
}
FRONT: Final = ROOT / "docs" / "explanation" / "speed.md"
PUBLISHED: Final = FRONT.parent / "tables" / "speed.md"


def measure(names: Iterable[str], scale: Scale) -> dict[str, Any]:
    """Run parts and return the report; a part that fails is reported, and the others continue."""
    parts = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            result = asyncio.run(run_part(name, PARTS[name], scale))
        except Exception as error:  # the figures of the other parts are not to be lost for it
            print(f"{name} failed: {type(error).__name__}: {error}", file=sys.stderr)
            parts.append(
                {
                    "part": name,
                    "seconds": 0.0,
                    "figures": [],
                    "missing": [{"name": name, "reason": f"failed: {type(error).__name__}"}],
                }
            )
            continue
        parts.append(_to_json(result))
        print(f"{name}: {result.seconds:.0f} s", file=sys.stderr, flush=True)
    return report_of(parts, versions=_versions(), rounds=scale.rounds, factor=scale.factor)


def _to_json(result: Result) -> dict[str, Any]:
    return {
        "part": result.part,
        "seconds": result.seconds,
        "figures": [one.to_json() for one in result.figures],
        "missing": [{"name": one.name, "reason": one.reason} for one in result.missing],
    }


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("letopis", "sqlalchemy", "aiosqlite", "asyncpg", "asyncmy", "orjson"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    for peer in PEERS:
        found[peer.distribution] = peer.installed() or "not installed"
    return found


def figures_of(report: Mapping[str, Any]) -> list[Figure]:
    """Return all figures of a report."""
    return [Figure.from_json(one) for part in report["parts"] for one in part["figures"]]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="small counts: shows that it works, and nothing else")
    parser.add_argument("--whole", action="store_true", help="read from a history of 1e7 messages too: 10 minutes more")
    parser.add_argument("--rounds", type=int, help="alternating rounds, 5 by default")
    parser.add_argument("--files", type=int, help="outbox files of the part fleet, 1,000 by default")
    parser.add_argument(
        "--minutes", type=float, default=0, help="how long the part fleet goes on after that, with an event a second"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks", metavar="DIR")
    parser.add_argument("--publish", action="store_true", help=f"write {PUBLISHED.relative_to(ROOT)} too")
    given = parser.parse_args()
    scale = QUICK if given.quick else Scale(whole=given.whole)
    scale = replace(scale, files=given.files, minutes=given.minutes)
    if given.rounds is not None:
        scale = replace(scale, rounds=given.rounds)
    if given.publish and (given.quick or scale.rounds < 5):
        parser.error("what is published is not quick, and has five rounds or more")
    if given.publish and (reason := refusal()):
        parser.error(reason)
    begun_at = commit()
    report = measure(given.part, scale)
    write(report, given.out, "benchmarks")
    text = page(report)
    (given.out / "speed.md").write_text(text, encoding="utf-8")
    changed = report["commit"] != begun_at
    if given.publish and not changed:
        PUBLISHED.write_text(text, encoding="utf-8")
        FRONT.write_text(front(text), encoding="utf-8")
    figures = figures_of(report)
    for one in figures:
        print(
            f"{one.name:<60} {rounded(one.median):>9} {one.unit:<11} ({rounded(one.low)} to {rounded(one.high)})"
            f"  {one.durability or ''}{' NOT COMPARABLE: ' + '; '.join(one.objections) if one.objections else ''}"
        )
    for part in report["parts"]:
        for missing in part["missing"]:
            print(f"missing: {missing['name']}: {missing['reason']}")
    verdicts = judge(Figures(figures))
    print("\n".join(verdict_table(verdicts)))
    failed = [one for part in report["parts"] for one in part["missing"] if one["reason"].startswith("failed")]
    if given.publish and changed:
        print(f"not published: it began at {begun_at} and ended at {report['commit']}")
        return 1
    missed = [] if given.quick else [one for one in verdicts if one.reached is False]
    return 1 if failed or missed else 0


if __name__ == "__main__":
    raise SystemExit(main())

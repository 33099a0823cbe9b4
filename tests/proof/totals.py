"""Add up what all published runs did: a committed file, a line for each part of a run."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from tests.proof.rows import Row
from tests.support.reports import ROOT

TOTALS: Final = ROOT / "tests" / "proof" / "totals.json"
UNITS: Final = {"kills": "processes killed", "faults": "faults", "inputs": "hostile inputs"}
ACKNOWLEDGED: Final = "acknowledged appends"
_ACKNOWLEDGED: Final = re.compile(r"\b([\d,]+) (?:events )?acknowledged\b(?P<so_far> so far)?")
Counted = Mapping[str, Any]


def read() -> list[Counted]:
    counted: list[Counted] = json.loads(TOTALS.read_text(encoding="utf-8"))
    return counted


def write(counted: Iterable[Counted]) -> None:
    lines = ",\n".join(f" {json.dumps(one)}" for one in counted)
    TOTALS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def added(before: Sequence[Counted], report: Mapping[str, Any], held: Iterable[Mapping[str, Any]]) -> list[Counted]:
    """Return what was counted before and in the parts of a report that held.

    A part that is run again with the same seed on the same commit counts once: some parts would only repeat themselves.
    """
    new: dict[tuple[str, ...], Counted] = {_key(one): one for one in before}
    for part in held:
        if figures := figures_of(map(Row.from_json, part["rows"])):
            of = {"part": part["part"], "commit": report["commit"], "seed": report["seed"], "date": report["date"]}
            new[_key(of)] = of | figures
    return list(new.values())


def figures_of(rows: Iterable[Row]) -> dict[str, int]:
    """Count the killed processes, faults, hostile inputs and acknowledged appends of rows that are no controls."""
    figures: dict[str, int] = {}
    so_far: dict[str, int] = {}
    for row in rows:
        if row.control or row.missing:
            continue
        if name := UNITS.get(row.unit):
            figures[name] = figures.get(name, 0) + row.count
        for match in _ACKNOWLEDGED.finditer(row.notes):
            count = int(match[1].replace(",", ""))
            if match["so_far"]:  # the scenes that a server goes through count on
                so_far[row.where] = max(so_far.get(row.where, 0), count)
            else:
                figures[ACKNOWLEDGED] = figures.get(ACKNOWLEDGED, 0) + count
    if so_far:
        figures[ACKNOWLEDGED] = figures.get(ACKNOWLEDGED, 0) + sum(so_far.values())
    return figures


def told(counted: Sequence[Counted]) -> str:
    """Return the totals in a sentence; empty if nothing has been counted."""
    if not counted:
        return ""
    figures = ", ".join(
        f"{sum(one.get(name, 0) for one in counted):,} {name}" for name in (*UNITS.values(), ACKNOWLEDGED)
    )
    return f"All published runs since {min(one['date'] for one in counted)}, controls left out: **{figures}**."


def _key(counted: Counted) -> tuple[str, ...]:
    return counted["part"], counted["commit"], str(counted["seed"])

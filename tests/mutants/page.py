"""Show a run of mutants, for a terminal and for the page of the documentation."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.support.reports import made_on, table

BEGIN: Final = "<!-- mutants: made by `python -m tests.mutants --publish`, not by hand -->"
END: Final = "<!-- end of mutants -->"
EQUIVALENTS: Final = Path(__file__).with_name("equivalents.json")
LEAST: Final = 0.9  # the share of mutants that tests have to catch


def equivalents() -> dict[tuple[str, str], str]:
    """Return why mutants do the same as the code, by module and change."""
    return {(one["path"], one["diff"]): one["reason"] for one in json.loads(EQUIVALENTS.read_text(encoding="utf-8"))}


def verdicts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [one for part in report.get("parts", ()) for one in part["mutants"]]


def survivors(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the mutants that no test noticed, though they do something else."""
    known = equivalents()
    return [one for one in verdicts(report) if not one["by"] and (one["path"], one["diff"]) not in known]


def first_look(report: Mapping[str, Any]) -> str:
    """Tell what a run found whose survivors then got tests."""
    run, left = len(verdicts(report)), len(survivors(report))
    return f"{run} mutants at commit {report['commit']}: {left} survived, {100 * score(report):.0f} % were caught"


def score(report: Mapping[str, Any]) -> float:
    """Return the share of mutants that were caught, of those that do something else than the code."""
    caught = sum(bool(one["by"]) for one in verdicts(report))
    return caught / max(caught + len(survivors(report)), 1)


def summary(report: Mapping[str, Any]) -> str:
    caught = sum(bool(one["by"]) for one in report["controls"])
    return "\n".join(
        (
            *("  ".join(f"{cell:>12}" for cell in row) for row in ((*_COLUMNS,), *_rows(report))),
            *(f"survived: {one['path']}:{one['line']}\n{one['diff']}" for one in survivors(report)),
            f"{caught} of {len(report['controls'])} controls caught, seed {report['seed']}, commit {report['commit']}",
        )
    )


def published(report: Mapping[str, Any], text: str) -> str:
    """Return the page with a run in place of the one that it had.

    :raises ValueError: the page has no place for it, a control was missed, or the run is of no commit.
    """
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"the page has no lines {BEGIN!r} and {END!r}")
    if not all(one["by"] for one in report["controls"]):
        raise ValueError("a control was missed")
    if report["commit"].endswith("-dirty"):
        raise ValueError("only what ran on a commit is published: commit or stash your changes, and run it again")
    left = [
        (f"`{one['path'].partition('/letopis/')[2]}:{one['line']}`", _code(one["diff"])) for one in survivors(report)
    ]
    missed = {(one["path"], one["diff"]) for one in verdicts(report) if not one["by"]}
    known = [(place, reason) for place, reason in equivalents().items() if place in missed]
    same = [(f"`{Path(path).stem}`", _code(diff), reason) for (path, diff), reason in known]
    made = f"Commit {report['commit']}, seed {report['seed']}, {report['date']}, on {made_on(report)}."
    if "first" in report:
        made += f" First look at {report['first']}; what survived got tests, and alone was judged again."
    lines = [
        f"{made} All {len(report['controls'])} controls were caught.",
        "",
        *table(_COLUMNS, _rows(report)),
        "",
        *_listed("Survivors", ("where", "change"), left),
        *_listed("Equivalent", ("where", "change", "why it does the same"), same),
    ]
    return "\n".join((f"{before}{BEGIN}\n", *lines, f"{END}{after}"))


_FIGURES: Final = ("mutants possible", "run", "equivalent", "caught", "survived", "score")
_COLUMNS: Final = {"room": "---", **dict.fromkeys(_FIGURES, "--:")}


def _rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows, left = [], survivors(report)
    whole = {"room": "all", "possible": sum(part["possible"] for part in report["parts"]), "mutants": verdicts(report)}
    for part in (*report["parts"], whole):
        run = part["mutants"]
        caught, survived = sum(bool(one["by"]) for one in run), sum(one in left for one in run)
        share = f"{100 * caught / max(caught + survived, 1):.0f} %"
        figures = (part["possible"], len(run), len(run) - caught - survived, caught, survived)
        rows.append((part["room"], *(f"{figure:,}" for figure in figures), share))
    return rows


def _listed(title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"{title}:", "", *table(dict.fromkeys(columns, "---"), rows), ""] if rows else []


def _code(diff: str) -> str:
    return " → ".join(f"`{line[2:]}`" for line in diff.splitlines())

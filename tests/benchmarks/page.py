"""Page: the report as a page of the documentation, made from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.benchmarks.figures import Figure
from tests.benchmarks.judging import Figures, Verdict, unequal
from tests.benchmarks.plotting import Bar, bars, rounded
from tests.benchmarks.table import judge

_PLOTS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("Append, one at a time, all at FULL", "append.1", ("append.1.",)),
    ("Append, 64 at once, all at FULL", "append.64", ("append.64.",)),
    ("Append, one at a time, as everybody is when nothing is set", "peers.1", ("peers.1.",)),
    ("Append, 64 at once, as everybody is when nothing is set", "peers.64", ("peers.64.",)),
    ("An append in the caller's own transaction", "transaction", ("transaction.",)),
    ("Lag of the event loop, p99", "loop", ("loop.",)),
    ("Drain into a history store", "drain", ("drain.",)),
    ("While the daemon drains in another process, p99", "daemon", ("daemon.",)),
    ("Wake-up, p99", "wake", ("wake.",)),
    ("The last 50 messages of a thousand", "read.peers", ("read.letopis", "read.peers.")),
    ("The last 50 messages, SQLite", "read.sqlite", ("read.sqlite.",)),
    ("The last 50 messages, PostgreSQL", "read.postgresql", ("read.postgresql.",)),
    ("The last 50 messages, MariaDB", "read.mariadb", ("read.mariadb.",)),
    ("The last 50 messages, with and without pending ones", "overlay", ("overlay.",)),
    ("A relay's start", "start", ("start.",)),
    ("Bytes on disk", "disk", ("disk.",)),
    ("Start-up", "import", ("import.",)),
    ("Ten times the data: append, one at a time", "growth.append.1", ("growth.append.1.",)),
    ("Ten times the data: append, 64 at once", "growth.append.64", ("growth.append.64.",)),
    ("Ten times the data: drain", "growth.drain", ("growth.drain.",)),
    ("Ten times the data: read", "growth.read", ("growth.read.",)),
)
_WORDS: Final = {True: "reached", False: "**not reached**", None: "open"}


def page(report: Mapping[str, Any]) -> str:
    """Return the page of a report, in Markdown."""
    figures = Figures(Figure.from_json(one) for part in report["parts"] for one in part["figures"])
    machine = report["machine"]
    lines = [
        "# Speed",
        "",
        "How fast Letopis is, beside its peers at the same durability, and beside what disk and database allow. This",
        "page is made by `python -m tests.benchmarks --publish`; nothing in it is written by hand.",
        "",
        (
            f"Measured on {report['date']}, in one run, on {machine['processors']} processors; "
            f"{', '.join(f'{name} {version}' for name, version in machine['versions'].items())}."
        ),
        "",
        (
            f"Figures are medians of {report['rounds']} rounds in which all took turns, with the least and the greatest"
            " in brackets. Ratios are those of the rounds: what slows the machine down slows both."
        ),
        "The durability is what the connection that wrote says of itself.",
        "",
        "## What was to be reached",
        "",
        *verdict_table(judge(figures)),
    ]
    for title, _, prefixes in _PLOTS:
        found = [one for prefix in prefixes for one in figures.under(prefix)]
        if found:
            lines += ["", f"## {title}", "", *section(title, found)]
    missing = [one for part in report["parts"] for one in part["missing"]]
    if missing:
        lines += ["", "## What was not measured", ""]
        lines += [f"- {one['name']}: {one['reason']}" for one in missing]
    return "\n".join(lines) + "\n"


def verdict_table(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the rows of the table with what they came to, in Markdown."""
    lines = ["| # | work | condition | wanted | got | |", "|---|---|---|---|---|---|"]
    for verdict in verdicts:
        for place, one in enumerate(verdict.conditions):
            number, work = (str(verdict.number), verdict.work) if place == 0 else ("", "")
            note = f" ({one.note})" if one.note else ""
            cells = (number, work, one.what, one.wanted, (one.got or "-") + note, _WORDS[one.reached])
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return lines


def section(title: str, figures: Sequence[Figure]) -> list[str]:
    """Return a plot of figures of one unit and a table with their durability; says so where that is unequal."""
    ordered = sorted(figures, key=lambda one: one.median, reverse=figures[0].more_is_better)
    warning = unequal(ordered)
    weak = {one.key for one in ordered if one.durability is not None and not one.durability.durable}
    lines = [f":::{{warning}}\n{warning}\n:::", ""] if warning else []
    lines += [
        "```{raw} html",
        bars(
            title,
            ordered[0].unit,
            [
                Bar(
                    label=one.name,
                    median=one.median,
                    low=one.low,
                    high=one.high,
                    ours=".letopis" in one.key or one.key.startswith("growth"),
                    # An open bar only where there are others: alone, nothing is compared.
                    weak=one.key in weak and warning is not None,
                )
                for one in ordered
            ],
        ),
        "```",
        "",
        f"| | {ordered[0].unit} | durability | besides |",
        "|---|---|---|---|",
    ]
    for one in ordered:
        figure = f"{rounded(one.median)} ({rounded(one.low)} to {rounded(one.high)})"
        besides = ", ".join(
            f"{rounded(value)} {name}" for name, value in one.details.items() if name != "blocks the loop"
        )
        if one.details.get("blocks the loop"):
            besides += ", blocks the event loop"
        besides += "".join(f"; not comparable: {objection}" for objection in one.objections)
        lines.append(f"| {one.name} | {figure} | {one.durability or '-'} | {besides} |")
    return lines

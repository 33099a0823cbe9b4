"""Write the report as pages of the documentation: every figure from its JSON alone, and the totals from that page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks import instructions
from benchmarks.figures import Figure
from benchmarks.judging import Figures, Verdict, unequal
from benchmarks.plotting import Bar, bars, rounded
from benchmarks.table import judge
from tests.support.reports import made_on, table

_PLOTS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("A bot's turn: append, then read the last 50", ("turn.wall.sqlite.",)),
    ("A bot's turn: processor time", ("turn.cpu.sqlite.",)),
    ("A session's turn on PostgreSQL: read 40, add 2", ("turn.wall.postgresql.",)),
    ("A session's turn: processor time", ("turn.cpu.postgresql.",)),
    ("Append, one at a time, all at FULL", ("append.1.",)),
    ("Append, 64 at once, all at FULL", ("append.64.",)),
    ("Append, one at a time, as everybody is when nothing is set", ("peers.1.",)),
    ("Append, 64 at once, as everybody is when nothing is set", ("peers.64.",)),
    ("An append in the caller's own transaction", ("transaction.",)),
    ("Lag of the event loop, p99", ("loop.",)),
    ("Drain into a history store", ("drain.",)),
    ("While the daemon drains in another process, p99", ("daemon.",)),
    ("Wake-up, p99", ("wake.",)),
    ("The last 50 messages of a thousand", ("read.letopis", "read.peers.")),
    ("The last 50 messages, SQLite", ("read.sqlite.",)),
    ("The last 50 messages, PostgreSQL", ("read.postgresql.",)),
    ("The last 50 messages, MariaDB", ("read.mariadb.",)),
    ("The last 50 messages, with and without pending ones", ("overlay.",)),
    ("Records: put", ("records.put.",)),
    ("Records: get", ("records.get.",)),
    ("Records: the latest of a thousand", ("records.latest.",)),
    ("Records: list of a hundred", ("records.list.",)),
    ("Records: deletion of a hundred", ("records.delete.",)),
    ("An append beside records", ("records.append.",)),
    ("Many puts of one record", ("records.bytes.",)),
    ("A relay's start", ("start.",)),
    ("Bytes on disk", ("disk.",)),
    ("Start-up", ("import.",)),
    ("Ten times the data: append, one at a time", ("growth.append.1.",)),
    ("Ten times the data: append, 64 at once", ("growth.append.64.",)),
    ("Ten times the data: drain", ("growth.drain.",)),
    ("Ten times the data: read", ("growth.read.",)),
)
_BESIDE: Final[tuple[tuple[str, str, str], ...]] = (
    (_PLOTS[0][0], "Letopis, the question is pending", "OpenAI Agents SQLiteSession, FULL"),
    (_PLOTS[2][0], "Letopis, LetopisSession", "OpenAI Agents SQLAlchemySession"),
    ("Append, one at a time, all at FULL", "Letopis", "ballast.py EventBus, FULL"),
    ("Append, one at a time, all at FULL", "Letopis", "OpenAI Agents SQLiteSession, FULL"),
    ("Append, 64 at once, all at FULL", "Letopis", "ballast.py EventBus, FULL"),
    ("An append in the caller's own transaction", "own transaction with an append", "the same without it"),
    ("The last 50 messages of a thousand", "Letopis", "OpenAI Agents SQLiteSession"),
    (
        "Drain into a history store",
        "Letopis into postgresql, from the outbox",
        "raw driver into postgresql, the same rows",
    ),
    (
        "Drain into a history store",
        "Letopis into postgresql, from the outbox",
        "txoutbox into postgresql, a row insert a message",
    ),
    ("Drain into a history store", "Letopis into mariadb, from the outbox", "raw driver into mariadb, the same rows"),
    ("Drain into a history store", "Letopis into sqlite, from the outbox", "raw driver into sqlite, the same rows"),
    ("Records: get", "get, postgresql, Letopis", "get, postgresql, the driver alone"),
)
"""Of the page of totals: what is measured, the row that is ours, and the one beside it."""
_ROW: Final = re.compile(r"^\| ([^|]+?) \| ([\d.,]+) \(", re.MULTILINE)
_UNIT: Final = re.compile(r"^\|   \| ([^|]+?) \|", re.MULTILINE)
_WORDS: Final = {True: "reached", False: "**not reached**", None: "open"}


def page(report: Mapping[str, Any]) -> str:
    """Return the page of a report, in Markdown: what a user wants to know first, targets and misses last."""
    figures = Figures(Figure.from_json(one) for part in report["parts"] for one in part["figures"])
    lines = ["# Speed: every figure", "", *_answers(figures)]
    for title, prefixes in _PLOTS:
        shown = [figure for prefix in prefixes for figure in figures.under(prefix)]
        if shown:
            lines += ["", f"## {title}", "", *section(title, shown)]
        if prefixes in _EXPLAINED:
            lines += ["", *_EXPLAINED[prefixes]]
    lines += ["", instructions.section(json.loads(instructions.RECORDED.read_text("utf-8")))]
    lines += ["", "## For contributors: targets and misses", "", *verdict_table(judge(figures))]
    missing = [one for part in report["parts"] for one in part["missing"]]
    if missing:
        lines += ["", "## What was not measured", ""]
        lines += [f"- {one['name']}: {one['reason']}" for one in missing]
    lines += [
        "",
        "## How it was measured",
        "",
        (
            f"On {report['date']}, commit {report['commit']}, each chart in one run, on {made_on(report)}. Figures are"
            f" medians of {report['rounds']} rounds in which all took turns, with the least and the greatest in"
            " brackets. Ratios are those of the rounds: what slows the machine down slows both."
        ),
        "",
        "`python -m benchmarks --publish` measures again and writes this; nothing in it is written by hand.",
    ]
    return "\n".join(lines) + "\n"


def front(figures: str) -> str:
    """Return the page of totals: the answers of the page with every figure, and its rows beside those of others."""
    answers, *sections = figures.split("\n## ")
    measured = {title: text for title, _, text in (section.partition("\n") for section in sections)}
    rows = []
    for title, ours, theirs in _BESIDE:
        values = dict(_ROW.findall(measured.get(title, "")))
        if ours in values and theirs in values:
            unit = _UNIT.findall(measured[title])[0]
            mine, other = (float(values[name].replace(",", "")) for name in (ours, theirs))
            first = (mine > other) is ("/s" in unit)
            cells = [f"{name}: {values[name]}" for name in (ours, theirs)]
            cells[0 if first else 1] = f"**{cells[0 if first else 1]}**"
            rows.append((title, unit, *cells))
    lines = [
        answers.replace("# Speed: every figure", "# Speed").rstrip(),
        "",
        *table(dict.fromkeys(("what", "unit", "Letopis", "beside it"), "---"), rows),
        "",
        "What is quicker is bold: we lose some of these. [Every figure](tables/speed.md) is behind them, with its",
        "chart, its durability and what was not reached. [Where the time goes](where-time-goes.md) has profiles.",
        "",
        "## How it was measured",
        "",
        measured["How it was measured"].strip(),
    ]
    return "\n".join(lines) + "\n"


_TURN: Final = (
    "A conversation of a thousand messages. The relay runs between the steps and is not counted: when the last 50 are",
    "read, the question is either still pending or delivered. A pending one costs a look into a second file.",
)
_APPEND: Final = (
    "All of these survive a power cut: each waits until the disk has the data (SQLite's `synchronous=FULL`). The limit",
    "is a thread that only inserts and commits. What blocks the event loop is quicker one at a time, and stops every",
    "other task of the bot meanwhile.",
    "",
    "Most peers do less: they insert a row into a table. Letopis also checks the message, gives it an id that absorbs",
    "retries, numbers it in its conversation, and delivers it to the history store later.",
    "",
    "Durability is what the connection that wrote says of itself, so a peer cannot win by flushing less.",
)
_EXPLAINED: Final = {("turn.wall.sqlite.",): _TURN, ("append.1.",): _APPEND}
"""What is said below a plot, by what it shows."""


def _answers(figures: Figures) -> list[str]:
    """Return what a user asks first, a sentence each; those whose figures were not measured are left out."""
    sentences = []
    turn, theirs = figures.get("turn.wall.sqlite.letopis.pending"), figures.get("turn.wall.sqlite.openai")
    if turn is not None and theirs is not None:
        sentences.append(
            f"A bot's turn, one append and a read of the last 50 messages, takes {rounded(turn.median)} ms;"
            f" OpenAI Agents' SQLiteSession, as durable, takes {rounded(theirs.median)} ms."
        )
    alone, many = figures.get("append.1.letopis"), figures.get("append.64.letopis")
    if alone is not None and "p50 ms" in alone.details:
        sentences.append(
            f"An append takes {rounded(alone.details['p50 ms'])} ms and survives a power cut"
            + (f"; {rounded(many.median)} a second are possible with 64 at once." if many is not None else ".")
        )
    read = figures.get("read.letopis")
    if read is not None:
        sentences.append(
            f"Reading the last 50 messages of a thousand takes {rounded(read.median)} {read.unit},"
            " whether they are delivered or still pending."
        )
    drains = [
        f"{rounded(found.median)} a second into {name}"
        for kind, name in (("sqlite", "SQLite"), ("postgresql", "PostgreSQL"), ("mariadb", "MariaDB"))
        if (found := figures.get(f"drain.{kind}.letopis")) is not None
    ]
    if drains:
        sentences.append(f"The relay delivers {', '.join(drains)}, each event exactly once.")
    return ["On two processors of a shared machine:", "", *(f"- {one}" for one in sentences)] if sentences else []


def verdict_table(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the rows of the table with what they came to, in Markdown."""
    columns = dict.fromkeys(("#", "work", "condition", "wanted", "got", ""), "---")
    rows = []
    for verdict in verdicts:
        for place, one in enumerate(verdict.conditions):
            number, work = (str(verdict.number), verdict.work) if place == 0 else ("", "")
            note = f" ({one.note})" if one.note else ""
            rows.append((number, work, one.what, one.wanted, (one.got or "-") + note, _WORDS[one.reached]))
    return table(columns, rows)


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
        *table({" ": "---", ordered[0].unit: "---", "durability": "---", "besides": "---"}, map(_cells, ordered)),
    ]
    return lines


def _cells(one: Figure) -> tuple[str, ...]:
    besides = ", ".join(f"{rounded(value)} {name}" for name, value in one.details.items() if name != "blocks the loop")
    if one.details.get("blocks the loop"):
        besides += ", blocks the event loop"
    besides += "".join(f"; not comparable: {objection}" for objection in one.objections)
    figure = f"{rounded(one.median)} ({rounded(one.low)} to {rounded(one.high)})"
    return one.name, figure, str(one.durability or "-"), besides

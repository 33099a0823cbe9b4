"""Show the figures of a report as tables, for a terminal and for the pages of the documentation."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from tests.proof.rows import Row
from tests.support.reports import made_on, table

BEGIN: Final = "<!-- figures: made by `python -m tests.proof --publish`, not by hand -->"
END: Final = "<!-- end of figures -->"
TITLES: Final = {
    "crash": "Processes killed",
    "power": "Power lost",
    "io": "The disk fails",
    "network": "The network and the store fail",
    "restored": "Restored and moved stores",
    "blame": "Whose fault it is",
    "simulation": "Simulation",
    "inputs": "Bad input",
    "clocks": "Clocks",
    "reads": "Reads",
    "corruption": "Corruption",
    "forks": "Forks",
    "following": "Followers",
    "erasure": "Erasure",
    "retention": "Retention",
    "upgrade": "Upgrade and rollback",
    "soak": "Soak",
    "security": "Security",
    "patroni": "PostgreSQL under Patroni",
    "galera": "MariaDB Galera",
    "citus": "Citus",
    "controls": "Controls",
}


def published(report: Mapping[str, Any], text: str, *, begin: str = BEGIN) -> str:
    """Return the page with the figures of a report in place of those that it had."""
    tables = _tables_of(_between(text, begin)[1])
    tables.update({one["part"]: _table(report, one) for one in held(report)})
    return _filled(text, "\n".join(tables[name] for name in TITLES if name in tables), begin)


def fronted(text: str, tables: str, totals: str) -> str:
    """Return the page with the totals of all runs, and of each part on the page of tables."""
    columns = {"part": "---", "what was done": "---", "violations": "--:", "controls that failed, as they must": "--:"}
    rows = [_total(name, part) for name, part in _tables_of(_between(tables, BEGIN)[1]).items()]
    return _filled(text, "\n".join([*([f"{totals}\n"] if totals else []), *table(columns, rows), ""]), BEGIN)


def _total(name: str, part: str) -> tuple[str, ...]:
    """Return a part's row: what was done by unit, the most first, and how many of its controls failed as they must."""
    done: Counter[str] = Counter()
    violations = controls = caught = 0
    for line in part.splitlines()[5:]:  # below the title, what it was made on, and the head of the table
        if line.startswith("| "):
            what, _, count, found, *_ = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            number = int(re.sub(r"[^\d].*", "", found.replace(",", "")) or 0)
            if what.startswith("*control:*"):
                controls, caught = controls + (count != "not run"), caught + (number > 0)
            elif count != "not run":
                figure, _, unit = count.partition(" ")
                done[unit] += int(figure.replace(",", ""))
                violations += number
    most = ", ".join(f"{count:,} {unit}" for unit, count in done.most_common(3))
    return TITLES[name], f"{most}{', and more' if len(done) > 3 else ''}", f"{violations:,}", f"{caught} of {controls}"


def _between(text: str, begin: str) -> tuple[str, str, str]:
    before, found, rest = text.partition(begin)
    middle, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"the page has no lines {begin!r} and {END!r}")
    return before, middle, after


def _filled(text: str, middle: str, begin: str) -> str:
    before, _, after = _between(text, begin)
    return f"{before}{begin}\n\n{middle}\n{END}{after}"


def summary(report: Mapping[str, Any]) -> str:
    lines = []
    for one in report["parts"]:
        rows = [Row.from_json(row) for row in one["rows"]]
        real = [row for row in rows if not row.control and not row.missing]
        controls = [row for row in rows if row.control and not row.missing]
        lines.append(
            f"{one['part']:<11} {one['seconds']:>6.0f} s  {sum(row.count for row in real):>9,} in {len(real)} rows,"
            f" {sum(row.violations for row in real)} violations;"
            f" {sum(row.violations > 0 for row in controls)} of {len(controls)} controls failed as they must"
            + (f"; {sum(bool(row.missing) for row in rows)} not run" if any(row.missing for row in rows) else "")
            + (f"; FAILED: {one['failed']}" if one["failed"] else "")
        )
    return "\n".join(lines)


def held(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the parts of a report that showed all they have to: what is published."""
    return [
        part
        for part in report["parts"]
        if not part["failed"] and all(Row.from_json(row).ok(short=report["short"]) for row in part["rows"])
    ]


def _tables_of(text: str) -> dict[str, str]:
    names = {title: name for name, title in TITLES.items()}
    tables: dict[str, str] = {}
    for chunk in text.split("\n### ")[1:]:
        title = chunk.partition("\n")[0]
        tables[names[title]] = f"### {chunk.rstrip()}\n"
    return tables


def _table(report: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    columns = {"what was done": "---", "to": "---", "how often": "--:", "violations": "--:", "": "---"}
    lines = [
        f"### {TITLES[part['part']]}",
        "",
        (
            f"Commit {report['commit']}, seed {report['seed']}, {report['date']}, {part['seconds']:.0f} s on"
            f" {made_on(report)}."
        ),
        "",
        *table(columns, (_cells(Row.from_json(one)) for one in part["rows"])),
    ]
    return "\n".join([*lines, ""])


def _cells(row: Row) -> tuple[str, ...]:
    what = f"*control:* {row.what}" if row.control else row.what
    if row.missing:
        return what, row.where, "not run", "", row.missing
    found = f"{row.violations:,}" + (" (as it must)" if row.control and row.violations else "")
    return what, row.where, f"{row.count:,} {row.unit}", found, row.notes

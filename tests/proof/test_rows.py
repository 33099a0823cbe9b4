"""The proof's own rules: a control that finds nothing fails, and the page keeps tables of parts that did not run."""

from typing import Any

import pytest

from tests.proof.page import BEGIN, END, published, summary
from tests.proof.rows import Row

PAGE = f"# Proof\n\nBy hand.\n\n{BEGIN}\n{END}\n\nNot covered: much.\n"


def report(part: str, *rows: Row) -> dict[str, Any]:
    return {
        "date": "2026-11-25",
        "commit": "abc",
        "seed": 7,
        "short": False,
        "machine": {"processors": 2, "versions": {"SQLite": "3"}},
        "parts": [{"part": part, "seconds": 1.0, "failed": "", "rows": [row.to_json() for row in rows]}],
    }


@pytest.mark.parametrize(
    ("row", "whole", "short"),
    [
        (Row(what="a", count=300, least=300), True, True),
        (Row(what="too few", count=299, least=300), False, True),
        (Row(what="nothing was done", count=0), False, False),
        (Row(what="violated", count=300, violations=1), False, False),
        (Row(what="control", count=300, violations=1, control=True), True, True),
        (Row(what="a control that finds nothing", count=300, control=True), False, False),
        (Row(what="a control that did nothing", violations=1, control=True), False, False),
        (Row(what="not run", missing="no such server"), True, True),
    ],
    ids=lambda value: value.what if isinstance(value, Row) else "",
)
def test_when_a_row_holds(row: Row, whole: bool, short: bool) -> None:
    assert (row.ok(short=False), row.ok(short=True)) == (whole, short)
    assert row.ok(short=False, require=True) == (whole and not row.missing)
    assert Row.from_json(row.to_json()) == row


def test_the_page_takes_the_figures_of_the_parts_that_ran_and_keeps_the_others() -> None:
    first = published(report("power", Row(what="a|b", count=1_234, unit="states")), PAGE)
    both = published(report("crash", Row(what="kills", count=9, unit="kills", control=True, violations=2)), first)
    again = published(report("power", Row(what="c", where="FULL", missing="no root")), both)

    assert "| a\\|b |  | 1,234 states | 0 |  |" in first
    assert both.index("### Processes killed") < both.index("### Power lost")
    assert "| *control:* kills |  | 9 kills | 2 (as it must) |  |" in both and "1,234" in both
    assert "1,234" not in again and "| c | FULL | not run |  | no root |" in again
    assert again.startswith("# Proof\n\nBy hand.") and again.endswith("Not covered: much.\n")
    with pytest.raises(ValueError, match="has no lines"):
        published(report("power"), "# A page without a place")


def test_the_page_takes_nothing_of_a_part_that_did_not_hold() -> None:
    before = published(report("power", Row(what="a", count=1_234, unit="states")), PAGE)

    assert published(report("power", Row(what="too few", count=299, least=300)), before) == before
    broken = report("power", Row(what="b", count=5))
    broken["parts"][0]["failed"] = "TypeError: compare()"
    assert published(broken, before) == before


def test_the_summary_says_how_many_controls_failed() -> None:
    rows = (Row(what="a", count=5), Row(what="b", count=1, control=True), Row(what="c", missing="x"))
    assert "5 in 1 rows, 0 violations; 0 of 1 controls failed as they must; 1 not run" in summary(report("io", *rows))

"""The proof's own rules: a control that finds nothing fails, and a page is made of what ran whole, on a commit."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import __main__ as benchmarks
from tests.proof import __main__ as proof
from tests.proof import totals
from tests.proof.page import BEGIN, END, fronted, published, summary
from tests.proof.rows import Row
from tests.support import reports

PAGE = f"# Proof\n\nBy hand.\n\n{BEGIN}\n{END}\n\nNot covered: much.\n"
ROWS = (
    Row(what="killed", count=1_100, unit="kills", notes="19 times the bot; 1,571 events acknowledged, 1,681 stored"),
    Row(what="killed", count=9, unit="kills", notes="522 changes of records acknowledged; 30 kept without an answer"),
    Row(what="control", count=500, unit="kills", notes="500 acknowledged", violations=1, control=True),
    Row(what="not run", count=0, unit="faults", missing="no such server"),
    Row(what="scene", where="PostgreSQL", count=40, unit="connections", notes="1,193 events acknowledged so far"),
    Row(what="scene", where="PostgreSQL", count=21, unit="refusals", notes="1,906 events acknowledged so far"),
    Row(what="a field is hostile", count=2_730, unit="inputs"),
)


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
    broken = report("power", Row(what="b", count=5))
    broken["parts"][0]["failed"] = "TypeError: compare()"

    assert "| a\\|b |  | 1,234 states | 0 |  |" in first
    assert both.index("### Processes killed") < both.index("### Power lost")
    assert "| *control:* kills |  | 9 kills | 2 (as it must) |  |" in both and "1,234" in both
    assert "1,234" not in again and "| c | FULL | not run |  | no root |" in again
    assert again.startswith("# Proof\n\nBy hand.") and again.endswith("Not covered: much.\n")
    assert published(broken, first) == first
    assert "0 of 1 controls failed as they must; 1 not run" in summary(
        report("io", Row(what="c", control=True), ROWS[3])
    )


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("code.py", *reports.WRITTEN):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("committed\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "first"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(reports, "ROOT", tmp_path)
    return tmp_path


def test_pages_and_new_files_do_not_make_a_checkout_dirty(checkout: Path) -> None:
    clean = reports.commit()
    for name in (*reports.WRITTEN, "new.txt"):
        (checkout / name).write_text("published\n")

    assert (reports.refusal(), reports.commit()) == ("", clean)
    (checkout / "code.py").write_text("changed\n")
    assert "code.py" in reports.refusal()
    assert reports.commit() == f"{clean}-dirty"


@pytest.mark.parametrize(("module", "run"), [(proof, "prove"), (benchmarks, "measure")], ids=["proof", "benchmarks"])
def test_nothing_is_run_to_be_published_of_a_dirty_checkout(
    module: ModuleType, run: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "code.py").write_text("changed\n")
    monkeypatch.setattr(sys, "argv", [module.__name__, "--publish", "--out", str(checkout)])
    monkeypatch.setattr(module, run, lambda *_, **__: pytest.fail("it ran"))

    with pytest.raises(SystemExit, match="2"):
        module.main()


def test_a_run_whose_checkout_changed_meanwhile_is_not_published(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["proof", "--publish", "--out", str(checkout)])
    monkeypatch.setattr(proof, "prove", lambda *_, **__: report("crash", *ROWS) | {"commit": "another"})
    monkeypatch.setattr(proof, "publish", lambda _: pytest.fail("it was published"))

    assert proof.main() == 1


def test_a_published_run_adds_to_the_totals_and_its_repetition_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, front, counted = tmp_path / "tables.md", tmp_path / "proof.md", tmp_path / "totals.json"
    for path in (page, front):
        path.write_text(f"By hand.\n\n{BEGIN}\n{END}\n")
    counted.write_text("[]\n")
    monkeypatch.setattr(proof, "PUBLISHED", page)
    monkeypatch.setattr(proof, "FRONT", front)
    monkeypatch.setattr(totals, "TOTALS", counted)

    for commit in ("abc", "abc", "def"):
        proof.publish(report("crash", *ROWS) | {"commit": commit})
    proof.publish(report("crash", Row(what="too few", count=1, least=2, unit="kills")) | {"commit": "ghi"})

    told = "**2,218 processes killed, 0 faults, 5,460 hostile inputs, 6,954 acknowledged appends**"
    assert f"All published runs since 2026-11-25, controls left out: {told}" in front.read_text()
    assert (
        "| Processes killed | 2,730 inputs, 1,109 kills, 40 connections, and more | 0 | 1 of 1 |" in front.read_text()
    )
    assert len(totals.read()) == 2


def test_the_front_page_has_the_totals_of_the_tables() -> None:
    front = proof.FRONT.read_text(encoding="utf-8")
    told = totals.told(totals.read())

    assert fronted(front, proof.PUBLISHED.read_text(encoding="utf-8"), told) == front

"""Only runs on a commit are published, and what they did is added up."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import __main__ as benchmarks
from tests.proof import __main__ as proof
from tests.proof import totals
from tests.proof.page import BEGIN, END
from tests.proof.rows import Row
from tests.proof.test_rows import report as report_with
from tests.support import reports

ROWS = (
    Row(what="killed", count=1_100, unit="kills", notes="19 times the bot; 1,571 events acknowledged, 1,681 stored"),
    Row(what="killed", count=9, unit="kills", notes="522 changes of records acknowledged; 30 kept without an answer"),
    Row(what="control", count=500, unit="kills", notes="500 acknowledged", violations=1, control=True),
    Row(what="not run", count=0, unit="faults", missing="no such server"),
    Row(what="scene", where="PostgreSQL", count=40, unit="connections", notes="1,193 events acknowledged so far"),
    Row(what="scene", where="PostgreSQL", count=21, unit="refusals", notes="1,906 events acknowledged so far"),
    Row(what="scene", where="MariaDB", count=42, unit="connections", notes="896 events acknowledged so far"),
    Row(what="a field is hostile", count=2_730, unit="inputs"),
)


def report(commit: str = "abc", *rows: Row) -> dict[str, Any]:
    return report_with("crash", *(rows or ROWS)) | {"commit": commit}


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
    module: ModuleType,
    run: str,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (checkout / "code.py").write_text("changed\n")
    monkeypatch.setattr(sys, "argv", [module.__name__, "--publish", "--out", str(checkout)])
    monkeypatch.setattr(module, run, lambda *_, **__: pytest.fail("it ran"))

    with pytest.raises(SystemExit) as ended:
        module.main()

    assert ended.value.code == 2
    assert "commit or stash code.py first" in capsys.readouterr().err


def test_a_run_whose_checkout_changed_meanwhile_is_not_published(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["proof", "--publish", "--out", str(checkout)])
    monkeypatch.setattr(proof, "prove", lambda *_, **__: report("another"))
    monkeypatch.setattr(proof, "publish", lambda _: pytest.fail("it was published"))

    assert proof.main() == 1
    assert "not published" in capsys.readouterr().out


def test_totals_count_what_rows_say_and_no_control() -> None:
    assert totals.figures_of(ROWS) == {
        "processes killed": 1_109,
        "hostile inputs": 2_730,
        "acknowledged appends": 1_571 + 1_906 + 896,
    }


def test_a_published_run_adds_to_the_totals_and_its_repetition_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, counted = tmp_path / "proof.md", tmp_path / "totals.json"
    page.write_text(f"By hand.\n\n{BEGIN}\n{END}\n")
    counted.write_text("[]\n")
    monkeypatch.setattr(proof, "PUBLISHED", page)
    monkeypatch.setattr(totals, "TOTALS", counted)

    for commit in ("abc", "abc", "def"):
        proof.publish(report(commit))
    proof.publish(report("ghi", Row(what="too few", count=1, least=2, unit="kills")))

    assert (
        "since 2026-11-25, controls left out: **2,218 processes killed, 0 faults, 5,460 hostile inputs, 8,746"
        in page.read_text()
    )
    assert len(totals.read()) == 2
    assert page.read_text().count("All published runs") == 1

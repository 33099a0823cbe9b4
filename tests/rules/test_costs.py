"""What tests cost: a run says which have become dear, and fails only far above the limit."""

import json
from pathlib import Path

import pytest

from tests.support import fix_costs
from tests.support.fix_costs import dear_of, renewed

TESTS = """
import time, pytest

@pytest.mark.parametrize("name", ["first", "cheap", "dear", "slow"])
def test_it(name):
    until = time.process_time() + (name != "cheap") / 10
    while time.process_time() < until:
        pass
"""


def test_a_run_fails_for_what_costs_three_times_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "costs.json"
    table.write_text(json.dumps({"files": {}, "tests": {"test_some.py::test_it[slow]": 0.1}}))
    monkeypatch.setattr(fix_costs, "TABLE", table)
    monkeypatch.setattr(fix_costs, "LIMIT_SECONDS", 0.02)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: as here\n")
    plugins = ("-p", "tests.support.fix_costs", "-p", "no:cacheprovider", "--import-mode=importlib")

    assert pytest.main([*plugins, f"--rootdir={tmp_path}", "-m", "not slow", str(tmp_path / "test_some.py")]) == 1
    (said,) = [line for line in capsys.readouterr().out.splitlines() if " costs " in line]
    assert said.startswith("ERROR: test_some.py::test_it[dear] costs")


def test_the_first_of_a_process_pays_for_what_all_share() -> None:
    assert dear_of(("a", "b", "c", "not run"), {"a": 9.0, "b": 0.9, "c": 1.0}) == {"c": 1.0}


def test_recording_measures_the_files_that_run_and_keeps_the_others(tmp_path: Path) -> None:
    (tmp_path / "other.py").touch()
    known = {"other.py::a": 2.0, "some.py::gone": 3.0, "gone.py::a": 3.0}
    table = {"files": {"other.py": 2.0, "some.py": 3.0, "gone.py": 3.0}, "tests": known}

    found = renewed(table, {"some.py::a": 0.4, "some.py::b": 0.5}, tmp_path)
    assert found == {"files": {"other.py": 2.0, "some.py": 0.9}, "tests": {"other.py::a": 2.0, "some.py::b": 0.5}}

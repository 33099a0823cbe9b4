"""What tests cost: a run says which have become dear, and fails only far above the limit."""

import json
from pathlib import Path

import pytest

from tests.support import fix_costs

TESTS = """
import time

def test_the_first_pays_for_what_all_share():
    burn(0.1)

def test_cheap():
    pass

def test_dear():
    burn(0.1)

def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
"""
DEAR = "test_some.py::test_dear"


@pytest.mark.parametrize(
    ("limit", "slow", "code", "said"),
    [
        (10.0, False, 0, None),
        (0.08, False, 0, f"{DEAR} costs"),
        (0.02, False, 1, f"ERROR: {DEAR} costs"),
        (0.02, True, 0, None),
    ],
    ids=["below", "above", "far above", "slow"],
)
def test_a_run_fails_for_what_costs_three_times_the_limit(
    limit: float,
    slow: bool,
    code: int,
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = tmp_path / "costs.json"
    table.write_text(json.dumps({"files": {}, "tests": {DEAR: 0.1} if slow else {}}))
    monkeypatch.setattr(fix_costs, "TABLE", table)
    monkeypatch.setattr(fix_costs, "LIMIT_SECONDS", limit)

    assert run(tmp_path, "-m", "not slow") == code
    lines = [line for line in capsys.readouterr().out.splitlines() if " costs " in line]
    assert len(lines) == (said is not None)
    assert all(line.startswith(said or "") for line in lines)


def test_recording_measures_the_files_that_run_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "costs.json"
    other, gone, file_gone = "test_other.py::test_it", "test_some.py::test_that_is_gone", "test_gone.py::test_it"
    (tmp_path / "test_other.py").touch()
    files = {"test_other.py": 2.0, "test_gone.py": 3.0}
    table.write_text(json.dumps({"files": files, "tests": {other: 2.0, gone: 3.0, file_gone: 3.0}}))
    monkeypatch.setattr(fix_costs, "TABLE", table)
    monkeypatch.setattr(fix_costs, "SLOW_SECONDS", 0.08)

    assert run(tmp_path, "--record-costs") == 0
    found = json.loads(table.read_text())
    assert set(found["files"]) == {"test_other.py", "test_some.py"}
    assert {other, DEAR} <= set(found["tests"])
    assert not {gone, file_gone} & set(found["tests"])


def run(folder: Path, *options: str) -> int:
    (folder / "test_some.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: as here\n")
    plugins = ("-p", "tests.support.fix_costs", "-p", "no:cacheprovider", "--import-mode=importlib")
    return pytest.main([*plugins, f"--rootdir={folder}", *options, str(folder / "test_some.py")])

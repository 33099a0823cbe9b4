"""The mutants' own rules: what is changed, what is drawn, which tests are chosen, and what is published."""

from collections import Counter
from typing import Any

import pytest

from tests.mutants.__main__ import BEGIN, END, equivalents, published, score
from tests.mutants.mutations import Mutant, mutants_of, planted, sample
from tests.mutants.running import choose, nearest
from tests.support.reports import ROOT

MODULE = '''
"""A module, of 1 docstring."""

_SQL = "SELECT a FROM t WHERE b > 2 AND c IS NULL"

def f(a: int = 1) -> int:
    if a < 2 and not a:
        log.info("x", 3)
        g(a, repr=False, size=4096)
    return min(a, 0)
'''
PAGE = f"# Proof\n\nBy hand.\n\n{BEGIN}\n{END}\n\nNot covered: much.\n"


def test_mutants_change_python_and_sql_but_nothing_for_readers_and_no_sizes() -> None:
    changes = {tuple(line[2:] for line in one.diff.splitlines()) for one in mutants_of("m.py", MODULE)}

    sql, condition = '_SQL = "SELECT a FROM t WHERE b > 2 AND c IS NULL"', "if a < 2 and not a:"
    assert changes == {
        (sql, '_SQL = "SELECT a FROM t WHERE b >= 2 AND c IS NULL"'),
        (sql, '_SQL = "SELECT a FROM t WHERE b > 2 AND c IS NOT NULL"'),
        (sql, '_SQL = "SELECT a FROM t WHERE b > 2 OR c IS NULL"'),
        (sql, '_SQL = "SELECT a FROM t WHERE b > 2"'),
        (sql, '_SQL = "SELECT a FROM t WHERE c IS NULL"'),
        ("def f(a: int = 1) -> int:", "def f(a: int = 2) -> int:"),
        (condition, "if a <= 2 and not a:"),
        (condition, "if a < 3 and not a:"),
        (condition, "if a < 2 or not a:"),
        (condition, "if a < 2 and a:"),
        (condition, "if True:"),
        (condition, "if False:"),
        ("g(a, repr=False, size=4096)", "pass"),
        ("return min(a, 0)", "return max(a, 0)"),
        ("return min(a, 0)", "return min(a, 1)"),
    }


def test_a_sample_takes_from_each_room_alike_and_begins_with_a_smaller_one() -> None:
    rooms = {
        name: [Mutant(name, "", place, place, "", (1, 1)) for place in range(size)]
        for name, size in (("large", 90), ("small", 3), ("other", 50))
    }
    drawn = sample(rooms, 30, 7)

    assert Counter(one.path for one in drawn) == {"large": 14, "small": 3, "other": 13}
    assert sample(rooms, 10, 7) == drawn[:10]
    assert sample(rooms, 30, 8) != drawn
    assert len(sample(rooms, 900, 7)) == 143


def test_a_change_of_a_named_statement_is_shown_to_the_tests_that_run_it() -> None:
    rewind = planted()[0]
    lines = (ROOT / rewind.path).read_text(encoding="utf-8").splitlines()
    near = "unit/test_acknowledge.py::near"
    [use] = [number for number, line in enumerate(lines, 1) if "_REWIND," in line]
    measured = {
        "lines": {rewind.path: {str(rewind.lines[0]): [], str(use): ["a.py::dear", "a.py::cheap", near]}},
        "costs": {"a.py::dear": 2.0, "a.py::cheap": 1.0, near: 3.0, "c.py::x": 0.0},
    }

    assert choose(rewind, measured) == [near, "a.py::cheap", "a.py::dear"]


def test_the_nearest_files_begin_with_the_unit_test_and_reach_every_line() -> None:
    lines = {"1": ["a.py::x", "test_m.py::x"], "2": ["b.py::x", "a.py::x"], "3": ["c.py::x"]}
    costs = {"a.py::x": 0.0, "b.py::x": 5.0, "c.py::x": 0.5, "test_m.py::x": 9.0}

    measured = {"lines": {"m.py": lines}, "costs": costs}
    assert nearest(["m.py"], measured) == ["test_m.py", "a.py", "c.py", "b.py"]
    assert nearest(["n.py"], measured) == []


def test_a_value_is_shown_first_to_the_unit_tests_of_the_modules_that_use_it() -> None:
    lines = {"m.py": {"1": ["a.py::x", "test_m.py::x"]}, "n.py": {"7": ["a.py::x", "test_n.py::x"]}}
    costs = {"a.py::x": 0.0, "test_m.py::x": 9.0, "test_n.py::x": 9.0}

    assert nearest(["m.py", "n.py"], {"lines": lines, "costs": costs}) == ["test_m.py", "test_n.py", "a.py"]


def test_controls_and_equivalents_have_their_places_in_the_code() -> None:
    assert len({one.path for one in planted()}) == 6
    for path, diff in equivalents():
        line = diff.partition("\n")[0].removeprefix("- ")
        assert diff in {one.diff for one in mutants_of(path) if line in one.text.splitlines()[one.line - 1]}, path


def report(*caught: str | None, control: str | None = "test", commit: str = "abc") -> dict[str, Any]:
    mutant = {"path": "outbox/letopis/outbox/retry/a.py", "line": 7, "diff": "- a | b\n+ a", "tests": 1}
    return {
        "date": "2026-11-29",
        "commit": commit,
        "seed": 7,
        "machine": {"processors": 2, "versions": {"SQLite": "3"}},
        "controls": [{"by": control}],
        "parts": [{"room": "retry", "possible": 190, "mutants": [{**mutant, "by": by} for by in caught]}],
    }


def test_the_page_takes_a_run_and_keeps_what_is_written_by_hand() -> None:
    run = report("test", "test", None)
    text = published(run, published(report(), PAGE))

    assert "| retry | 190 | 3 | 0 | 2 | 1 | 67 % |" in text and "| all | 190 | 3 | 0 | 2 | 1 | 67 % |" in text
    assert "| `outbox/retry/a.py:7` | `a \\| b` → `a` |" in text
    assert text.startswith("# Proof\n\nBy hand.") and text.endswith("Not covered: much.\n")
    assert text.count("| all |") == 1
    assert score(run["parts"][0]["mutants"]) == pytest.approx(2 / 3)
    for bad, reason in ((report(control=None), "control"), (report(commit="abc-dirty"), "commit or stash")):
        with pytest.raises(ValueError, match=reason):
            published(bad, PAGE)

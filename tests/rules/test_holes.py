"""The page of holes names tests that are there, and controls that are planted."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any, Final

from tests.support.paths import ROOT

PAGE: Final = ROOT / "docs/explanation/holes.md"
INHERITED: Final = ROOT / "store/letopis/store/testing"  # what classes of the conformance tests inherit
NAMED: Final = re.compile(r"`(tests/[\w/]+\.py)((?:::\w+)+)`")
CONTROL: Final = re.compile(r"\*control:\* ([^`|✓]+?) *✓? *\|")
HARNESSES: Final = ("tests/proof", "tests/campaigns", "tests/support")


@cache
def classes(path: Path) -> dict[str, tuple[set[str], set[str]]]:
    """Return the names of the functions of a module, under ``""``, and of its classes, each with those of its bases."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owners: dict[str, Any] = {"": tree, **{node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}}
    return {
        name: (
            {one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)},
            {base.id for base in getattr(node, "bases", ()) if isinstance(base, ast.Name)},
        )
        for name, node in owners.items()
    }


def is_test(path: str, name: str) -> bool:
    """Return True if pytest would collect a test of this name from a file."""
    file = ROOT / path
    owner, _, test = name.rpartition("::")
    if not file.is_file() or not file.name.startswith("test_") or not test.startswith("test_"):
        return False
    own, bases = classes(file).get(owner, (set[str](), set[str]()))
    inherited = ((base, *found) for one in INHERITED.glob("*.py") for base, found in classes(one).items())
    return test in own or any(base in bases and test in names for base, names, _ in inherited)


def rows(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| What ")]


def test_each_row_names_tests_that_are_there() -> None:
    page = PAGE.read_text(encoding="utf-8")
    gone = [f"{path}{name}" for path, name in NAMED.findall(page) if not is_test(path, name.removeprefix("::"))]

    assert not gone
    assert len(rows(page)) > 60
    assert not [row for row in rows(page) if not NAMED.search(row)]


def test_each_control_is_planted() -> None:
    files = [file for name in HARNESSES for file in sorted((ROOT / name).rglob("*.py"))]
    text, page = "\n".join(file.read_text(encoding="utf-8") for file in files), PAGE.read_text(encoding="utf-8")

    assert not [control for control in CONTROL.findall(page) if control not in text]
    assert len(CONTROL.findall(page)) >= 8


def test_the_rule_sees_a_test_that_is_gone() -> None:
    here, inherited = "tests/rules/test_holes.py", "tests/conformance/test_forks.py"

    assert is_test(here, "test_each_control_is_planted")
    assert is_test(inherited, "TestForks::test_a_redacted_message_keeps_its_reactions_where_a_fork_reads_it")
    assert not is_test(here, "test_that_is_gone")
    assert not is_test(here, "rows")
    assert not is_test("tests/rules/test_gone.py", "test_each_control_is_planted")
    assert not is_test(inherited, "TestForks::test_that_is_gone")

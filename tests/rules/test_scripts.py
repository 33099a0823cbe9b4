"""Programs that tests run from strings import what exists: no renaming reaches into a string."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tests.support.paths import ROOT

IMPORT = re.compile(r"^\s*from ((?:letopis|tests)[\w.]*) import ([\w, ]+)$", re.MULTILINE)


def imports(source: str) -> Iterator[tuple[str, str]]:
    """Yield module and name of each import in the strings of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for module, names in IMPORT.findall(node.value):
                yield from ((module, name.strip().split(" as ")[0]) for name in names.split(","))


def exists(module: str, name: str) -> bool:
    """Return True if a module has the name, or there is a module of the name in it."""
    try:
        return hasattr(import_module(module), name) or find_spec(f"{module}.{name}") is not None
    except ModuleNotFoundError as missing:  # a framework is not installed: with it, the name is looked up
        return not str(missing.name).startswith(("letopis", "tests"))
    except ImportError:
        return False


def test_strings_import_what_exists() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: from {module} import {name}"
        for folder in ("tests", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != Path(__file__)
        for module, name in imports(path.read_text(encoding="utf-8"))
        if not exists(module, name)
    ]

    assert not wrong


def test_the_rule_sees_a_name_that_is_gone() -> None:
    found = list(
        imports('SCRIPT = """\nfrom letopis.store import Message, Gone\nfrom letopis.gone import Message\n"""')
    )

    assert [exists(*one) for one in found] == [True, False, False]

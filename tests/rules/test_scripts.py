"""Programs that tests run from strings import what exists: no renaming reaches into a string."""

import re
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from itertools import chain
from types import CodeType

from tests.support.paths import ROOT

IMPORT = re.compile(r"^\s*from ((?:letopis|tests)[\w.]*) import ([\w, ]+)$", re.MULTILINE)


def imports(constant: object) -> Iterator[tuple[str, str]]:
    """Yield module and name of each import in the strings that compiled code holds."""
    if isinstance(constant, str):
        for module, names in IMPORT.findall(constant):
            yield from ((module, name.strip().split(" as ")[0]) for name in names.split(","))
    elif isinstance(constant, CodeType):
        yield from imports(constant.co_consts)
    elif isinstance(constant, tuple):
        yield from chain.from_iterable(map(imports, constant))


def exists(module: str, name: str) -> bool:
    """Return True if a module has the name, or there is a module of the name in it."""
    try:
        return hasattr(import_module(module), name) or find_spec(f"{module}.{name}") is not None
    except ModuleNotFoundError as missing:  # a framework is not installed: with it, the name is looked up
        return not str(missing.name).startswith(("letopis", "tests"))
    except ImportError:
        return False


def test_strings_import_what_exists() -> None:
    paths = [path for folder in ("tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {(path, one) for path in paths for one in imports(SourceFileLoader("a", str(path)).get_code("a"))}

    assert len(found) > 20
    assert not [(path, *one) for path, one in found if not exists(*one)]


def test_the_rule_sees_a_name_that_is_gone() -> None:
    store, gone = (f"letopis.{name} import Message, Gone" for name in ("store", "gone"))
    found = imports(compile(f'SCRIPT = (\'a\', """\nfrom {store}\nfrom {gone}\n""")', "a", "exec"))

    assert [exists(*one) for one in found] == [True, False, False, False]

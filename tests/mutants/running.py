"""Run tests against a mutant, in a process forked for it.

The mutant is compiled in place of its module when the fork imports it: no file is written, and programs that a test
starts do not see it. What other packages the tests import is imported once, before the fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, Final, NoReturn

import pytest

from tests.mutants.lines import MAX_FILES, QUIET, OnSQLite, file_of
from tests.mutants.mutations import Mutant
from tests.support.reports import ROOT

BUDGET_SECONDS: Final = 8.0
"""Tests of a mutant cost this much processor time at most, by what they cost without it."""
_CPU_SECONDS: Final = 20
"""A mutant that needs more processor time than this hangs."""
_WALL_SECONDS: Final = 300.0
_OURS: Final = ("letopis", "tests", "conftest", "__main__")


class FirstFailure(OnSQLite):
    """Plugin: note the first test that fails, and how many ran."""

    def __init__(self, order: Sequence[str]) -> None:
        super().__init__(order)
        self.ran, self.failed = 0, ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call"
        self.pytest_collectreport(report)

    def pytest_collectreport(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        self.failed = self.failed or (report.nodeid if report.failed else "")


def import_others(modules: Iterable[str]) -> None:
    """Import what others made of what the tests import, so that forks need not."""
    with warnings.catch_warnings(), contextlib.suppress(ImportError):
        warnings.simplefilter("ignore")
        for name in modules:
            with contextlib.suppress(Exception):  # what is missing here, a test says
                import_module(name)


def others() -> list[str]:
    """Return the modules of others that are imported here."""
    return sorted(name for name in sys.modules if name.partition(".")[0] not in _OURS)


def in_fork(task: Callable[[Path], Any], *, limited: bool = True) -> Any:
    """Return what a task returns in a process of its own; ``None`` if that process hangs or is killed.

    :param task: is given a temporary folder; what it returns is JSON.
    :param limited: whether its time is.
    :raises RuntimeError: the task failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="letopis-mutant-"))
    answer, output = folder / "answer.json", folder / "output.txt"
    child = os.fork()
    if not child:
        _answer(task, folder, answer, output, limited=limited)
    deadline = time.monotonic() + _WALL_SECONDS
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if limited and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what its tests have started
    try:
        if os.WIFSIGNALED(ended[1]):
            return None
        if not answer.exists():
            raise RuntimeError(output.read_text(encoding="utf-8", errors="replace")[-2_000:])
        return json.loads(answer.read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answer(task: Callable[[Path], Any], folder: Path, answer: Path, output: Path, *, limited: bool) -> NoReturn:
    """Run a task in the forked process, and end that."""
    try:
        os.setsid()
        if limited:
            resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
        target = os.open(output, os.O_CREAT | os.O_WRONLY)
        os.dup2(target, 1)
        os.dup2(target, 2)
        answer.write_text(json.dumps(task(folder)), encoding="utf-8")
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(0)


def judge(mutant: Mutant, tests: Sequence[str]) -> dict[str, Any]:
    """Return what became of a mutant: the test that failed; ``None`` if all passed.

    :param tests: names of tests, or of files; they run in this order.
    """
    text = (ROOT / mutant.path).read_text(encoding="utf-8")
    started = time.monotonic()
    answer = in_fork(lambda folder: _try(mutant, text, tests, folder)) if tests else {"failed": "", "ran": 0}
    by = "hangs" if answer is None else answer["failed"] or None
    ran = 0 if answer is None else answer["ran"]
    return {
        "path": mutant.path,
        "line": mutant.line(text),
        "diff": mutant.diff(text),
        "by": by,
        "tests": ran,
        "seconds": round(time.monotonic() - started, 1),
    }


def _try(mutant: Mutant, text: str, tests: Sequence[str], folder: Path) -> dict[str, Any]:
    name = ".".join(Path(mutant.path).with_suffix("").parts[1:])
    if name in sys.modules:
        raise RuntimeError(f"{name} was imported before the fork")
    plant(ROOT / mutant.path, mutant.source(text))
    try:
        import_module(name)
    except Exception as error:
        return {"failed": f"import: {error}", "ran": 0}
    plugin = FirstFailure(tests)
    # However pytest ends: only what fails in a test, or in the imports of one, is caught.
    pytest.main([*tests, *QUIET, "-x", "--basetemp", str(folder / "tmp")], plugins=[plugin])
    return {"failed": plugin.failed, "ran": plugin.ran}


def plant(path: Path, source: str) -> None:
    """Have a module be imported from another source than its file."""
    usual = SourceFileLoader.get_code

    def get_code(loader: SourceFileLoader, fullname: str) -> CodeType | None:
        if Path(loader.path) != path:
            return usual(loader, fullname)
        code: CodeType = compile(source, str(path), "exec", dont_inherit=True)
        return code

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def choose(mutant: Mutant, measured: Mapping[str, Any], nearest: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the tests that run what a mutant changes: those of the nearest file, then the cheapest of each in turn."""
    costs, rank = measured["costs"], {name: place for place, name in enumerate(nearest.get(mutant.path, ()))}
    names, turns, order = list(costs), defaultdict[str, int](int), list[tuple[bool, int, int, str]]()
    reaching = [names[place] for place in _reaching(mutant, measured["lines"])]
    for test in sorted(reaching, key=lambda test: (costs[test], test)):
        place = rank.get(file_of(test), MAX_FILES)
        order.append((place > 0, turns[file_of(test)], place, test))
        turns[file_of(test)] += 1
    chosen, left = list[str](), BUDGET_SECONDS
    for _, _, _, test in sorted(order):
        if costs[test] <= left:
            chosen.append(test)
            left -= costs[test]
    return chosen


def _reaching(mutant: Mutant, lines: Mapping[str, Mapping[str, Sequence[int]]]) -> set[int]:
    """Return the tests that run a statement or, if it names a value that is used elsewhere, those that use it."""
    first, last = mutant.lines
    own = lines.get(mutant.path, {})
    text = (ROOT / mutant.path).read_text(encoding="utf-8").splitlines()
    named = re.match(r"(?P<indent> *)(?P<name>(self\.)?\w+)(: [\w\[\], |.]+)? = ", text[first - 1])
    if named and (named["name"].startswith("self.") or not named["indent"]):
        word = re.compile(rf"\b{named['name'].removeprefix('self.')}\b")
        where = [mutant.path] if named["indent"] else list(lines)
        using = set[int]()
        for path in where:
            for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
                if word.search(line) and not (path == mutant.path and first <= number <= last):
                    using.update(lines[path].get(str(number), ()))
        if using:
            return using
    reaching = {test for number in range(first, last + 1) for test in own.get(str(number), ())}
    return reaching or {test for tests in own.values() for test in tests}

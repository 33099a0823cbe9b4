"""Run tests against a mutant, in a process forked for it, and measure before which test runs which line; SQLite only.

The mutant is compiled in place of its module when the fork imports it: no file is written, and programs that a test
starts do not see it. What other packages the tests import is imported once, before the fork.
"""

import contextlib
import math
import re
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, Final

import pytest

from tests.mutants.mutations import ROOMS, Mutant
from tests.support.forking import in_fork
from tests.support.reports import ROOT

_CONFORMANCE: Final = (
    "appended_again apply chosen_reads erasure erasure_register forks large_content owner_erasure published rebuild"
    " record_lanes record_transfer records replace retention trims shared_conversations statistics tasks two_writers"
)
NEAR: Final = (
    *(
        f"tests/unit/outbox/{name}"
        for name in ["event_log", "relay", "retry", "pending_reads", "daemon", "history", "operations"]
    ),
    *(f"tests/unit/store/{name}" for name in ["rules", "model", "write", "maintenance"]),
    *(f"tests/conformance/test_{name}.py" for name in _CONFORMANCE.split()),
    *(f"tests/integration/test_{name}.py" for name in ["record_delivery", "reconcile", "relay_stores", "wrong_store"]),
)
"""Where tests that are near a room may be."""
MAX_FILES: Final = 16  # the nearest test files of a module; each covers lines that those before it cover least
BUDGET_SECONDS: Final = 40.0  # tests of a mutant cost this much processor time at most, by what they cost without it
_CPU_SECONDS: Final = 100  # a mutant that needs more processor time than this hangs
_QUIET: Final = (
    *("-q", "--no-header", "--no-summary", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout", "120"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # plugins are imported before the fork
)
_OURS: Final = ("letopis", "tests", "conftest", "__main__")
_SERVERS: Final = ("postgresql", "mariadb")


class OnSQLite:
    """Plugin: leave out tests that need a server, keep the order that was asked for, and note what ran and failed."""

    def __init__(self, order: Sequence[str] = ()) -> None:
        self._order = {name: index for index, name in enumerate(order)}
        self.ran, self.failed = 0, list[str]()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if not _needs_server(item)]
        items.sort(key=lambda item: self._order.get(item.nodeid, 0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call"
        self.pytest_collectreport(report)

    def pytest_collectreport(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


class Recorder(OnSQLite):
    """Plugin: note the lines that each test runs, and what it costs."""

    def __init__(self) -> None:
        super().__init__()
        import coverage

        include = [f"{ROOT / folder}/*" for folder in ROOMS.values()]
        self.coverage = coverage.Coverage(
            data_file=None, config_file=False, include=include, concurrency=["thread", "greenlet"]
        )
        self.costs: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.coverage.switch_context(item.nodeid)
        started = time.process_time()
        try:
            return (yield)
        finally:
            self.costs[item.nodeid] = round(time.process_time() - started, 3)
            self.coverage.switch_context("")


def _needs_server(item: pytest.Item) -> bool:
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    fixtures = item.fixturenames if isinstance(item, pytest.Function) else ()
    return any(name in values or any(name in one for one in fixtures) for name in _SERVERS)


def measure(tests: Sequence[str]) -> dict[str, Any]:
    """Run tests without a mutant; return the cost of each, by line of a module the tests that run it, and imports.

    :raises RuntimeError: a test fails, also when it runs a second time.
    """

    def run(tests: Sequence[str], folder: Path) -> dict[str, Any]:
        recorder = Recorder()
        recorder.coverage.start()
        ended = pytest.main([*tests, "-m", "not slow", "--basetemp", str(folder / "tmp"), *_QUIET], plugins=[recorder])
        recorder.coverage.stop()
        data = recorder.coverage.get_data()
        lines = {
            str(Path(name).relative_to(ROOT)): {
                str(line): [test for test in tests if test] for line, tests in data.contexts_by_lineno(name).items()
            }
            for name in data.measured_files()
        }
        imports = sorted(name for name in sys.modules if name.partition(".")[0] not in _OURS)
        figures = {"ended": int(ended), "failed": recorder.failed, "costs": recorder.costs}
        return {**figures, "lines": lines, "imports": imports}

    measured: dict[str, Any] = in_fork(partial(run, tests))
    failed = measured["failed"]
    again = in_fork(partial(run, failed))["ended"] if failed else 0
    if again or measured["ended"] not in (0, 1):
        raise RuntimeError(f"fails without a mutant: {failed}")
    # One that fails now and then says nothing about a mutant.
    measured["costs"] |= dict.fromkeys(failed, math.inf)
    with warnings.catch_warnings(), contextlib.suppress(ImportError):
        warnings.simplefilter("ignore")
        for name in measured["imports"]:
            with contextlib.suppress(Exception):  # what is missing here, a test says
                import_module(name)
    return measured


def judge(mutant: Mutant, tests: Sequence[str]) -> dict[str, Any]:
    """Return what became of a mutant: ``by`` is the first test that failed, in this order; ``None`` if all passed."""
    started = time.monotonic()
    answer = in_fork(partial(_try, mutant, tests), cpu_seconds=_CPU_SECONDS) if tests else {"failed": [], "ran": 0}
    return {
        "path": mutant.path,
        "line": mutant.line,
        "diff": mutant.diff,
        "by": "hangs" if answer is None else next(iter(answer["failed"]), None),
        "tests": 0 if answer is None else answer["ran"],
        "seconds": round(time.monotonic() - started, 1),
    }


def _try(mutant: Mutant, tests: Sequence[str], folder: Path) -> dict[str, Any]:
    name = ".".join(Path(mutant.path).with_suffix("").parts[1:])
    if name in sys.modules:
        raise RuntimeError(f"{name} was imported before the fork")
    plant(ROOT / mutant.path, mutant.source)
    try:
        import_module(name)
    except Exception as error:
        return {"failed": [f"import: {error}"], "ran": 0}
    plugin = OnSQLite(tests)
    # However pytest ends: only what fails in a test, or in the imports of one, is caught.
    pytest.main([*tests, *_QUIET, "-x", "--basetemp", str(folder / "tmp")], plugins=[plugin])
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


def choose(mutant: Mutant, measured: Mapping[str, Any]) -> list[str]:
    """Return the tests that run what a mutant changes: those of the nearest file, then the cheapest of each in turn."""
    reaching = _reaching(mutant, measured["lines"])
    costs, files = measured["costs"], nearest(list(reaching), measured)
    turns, order = defaultdict[str, int](int), list[tuple[bool, int, int, float, str]]()
    for cost, test in sorted((costs[test], test) for test in set().union(*reaching.values())):
        file = test.partition("::")[0]
        place = files.index(file) if file in files else MAX_FILES
        order.append((place >= len(reaching), turns[file], place, cost, test))
        turns[file] += 1
    chosen, left = list[str](), BUDGET_SECONDS
    for *_, cost, test in sorted(order):
        if cost <= left:
            chosen.append(test)
            left -= cost
    return chosen


def nearest(modules: Sequence[str], measured: Mapping[str, Any]) -> list[str]:
    """Return the test files of modules: their unit tests, then what adds most to each line for what it costs."""
    seconds: defaultdict[str, float] = defaultdict(lambda: 1.0)  # the start of a file costs, too
    for test, cost in measured["costs"].items():
        seconds[test.partition("::")[0]] += cost if cost < math.inf else 0.0
    left: defaultdict[str, set[str]] = defaultdict(set)
    for module in modules:
        for line, tests in measured["lines"].get(module, {}).items():
            for test in tests:
                left[test.partition("::")[0]].add(f"{module}:{line}")
    files, times = list[str](), defaultdict[str, int](int)
    stems = {f"test_{Path(module).stem}{plural}" for module in modules for plural in ("", "s")}
    own = [name for name in sorted(left) if Path(name).stem in stems]
    while left and len(files) < MAX_FILES:
        gain = {name: sum(2.0 ** -times[line] for line in lines) / seconds[name] for name, lines in left.items()}
        files.append(own.pop(0) if own else max(sorted(gain), key=lambda name: gain[name]))
        for line in left.pop(files[-1]):
            times[line] += 1
    return files


def _reaching(mutant: Mutant, lines: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, set[str]]:
    """Return, by module, the tests that run a statement or, if it names a value used elsewhere, those that use it."""
    first, last = mutant.lines
    own = lines.get(mutant.path, {})
    named = re.match(r"(?P<indent> *)(?P<name>(self\.)?\w+)(: [\w\[\], |.]+)? = ", mutant.text.splitlines()[first - 1])
    if named and (named["name"].startswith("self.") or not named["indent"]):
        word = re.compile(rf"\b{named['name'].removeprefix('self.')}\b")
        using = defaultdict[str, set[str]](set)
        for path in [mutant.path] if named["indent"] else list(lines):
            for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
                if word.search(line) and not (path == mutant.path and first <= number <= last):
                    using[path].update(lines[path].get(str(number), ()))
        if any(using.values()):
            return using
    reaching = {test for number in range(first, last + 1) for test in own.get(str(number), ())}
    return {mutant.path: reaching or {test for tests in own.values() for test in tests}}

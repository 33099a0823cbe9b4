"""Measure which tests run which line of the rooms, and what each costs; SQLite only.

`nearest.json` names the test files of each module, so that a run need not measure all candidates again.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.reports import ROOT

OUTBOX: Final = Path("outbox/letopis/outbox")
ROOMS: Final = {
    **{name: OUTBOX / name for name in ("event_log", "relay", "retry", "pending_reads")},
    **{name: Path("store/letopis/store", name) for name in ("write", "rules")},
}
"""The rooms whose modules are mutated."""
NEAREST: Final = Path(__file__).with_name("nearest.json")
CANDIDATES: Final = (
    *("unit/outbox/event_log", "unit/outbox/relay", "unit/outbox/retry", "unit/outbox/pending_reads"),
    *("unit/outbox/history", "unit/outbox/operations", "unit/store/rules", "unit/store/model", "unit/store/write"),
    *("conformance/test_apply.py", "conformance/test_chosen_reads.py", "conformance/test_erasure.py"),
    *("conformance/test_forks.py", "conformance/test_projection.py", "conformance/test_put_back.py"),
    *("conformance/test_rebuild.py", "conformance/test_record_lanes.py", "conformance/test_records.py"),
    *("conformance/test_replace.py", "conformance/test_reset.py", "conformance/test_shared_conversations.py"),
    *("conformance/test_statistics.py", "conformance/test_tasks.py", "conformance/test_two_writers.py"),
    *("integration/test_record_delivery.py", "integration/test_records_anywhere.py", "integration/test_reconcile.py"),
    *("integration/test_relay.py", "integration/test_relay_backlog.py", "integration/test_relay_stores.py"),
    *("integration/test_store_tasks.py", "integration/test_wrong_store.py"),
)
"""Where tests that are near a room may be."""
MAX_FILES: Final = 8
"""Test files of a module; each covers lines that those before it cover least."""
_SERVERS: Final = ("postgresql", "mariadb")


def _needs_server(item: pytest.Item) -> bool:
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    fixtures = item.fixturenames if isinstance(item, pytest.Function) else ()
    return any(name in values or any(name in one for one in fixtures) for name in _SERVERS)


class OnSQLite:
    """Plugin: leave out tests that need a server; keep the order of what was asked for."""

    def __init__(self, order: Sequence[str] = ()) -> None:
        self._order = {name: index for index, name in enumerate(order)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if not _needs_server(item)]
        items.sort(key=lambda item: self._order.get(item.nodeid, 0))


class Recorder(OnSQLite):
    """Plugin: note the lines that each test runs, what it costs, and what fails."""

    def __init__(self) -> None:
        super().__init__()
        import coverage

        include = [f"{ROOT / folder}/*" for folder in ROOMS.values()]
        self._coverage = coverage.Coverage(
            data_file=None, config_file=False, include=include, concurrency=["thread", "greenlet"]
        )
        self.costs: dict[str, float] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._coverage.switch_context(item.nodeid)
        started = time.process_time()
        try:
            return (yield)
        finally:
            self.costs[item.nodeid] = round(time.process_time() - started, 3)
            self._coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def run(self, words: Sequence[str]) -> dict[str, Any]:
        """Run tests; return their costs, and for each line of each module the tests that run it, by place there."""
        self._coverage.start()
        ended = pytest.main([*words, *QUIET], plugins=[self])
        self._coverage.stop()
        data, lines = self._coverage.get_data(), {}
        places = {name: place for place, name in enumerate(self.costs)}
        for name in data.measured_files():
            by_line = data.contexts_by_lineno(name)
            path = str(Path(name).relative_to(ROOT))
            lines[path] = {line: [places[test] for test in tests if test] for line, tests in by_line.items()}
        return {"ended": int(ended), "failed": self.failed, "costs": self.costs, "lines": lines}


QUIET: Final = (
    *("-q", "--no-header", "--no-summary", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout", "120"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # plugins are imported before the fork
)


def nearest(measured: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the test files of each module: its unit test, then what adds most to each line for what it costs."""
    seconds: defaultdict[str, float] = defaultdict(lambda: 1.0)  # the start of a file costs, too
    names = list(measured["costs"])
    for test, cost in measured["costs"].items():
        seconds[file_of(test)] += cost if cost < math.inf else 0.0
    table = {}
    for module, lines in sorted(measured["lines"].items()):
        reach: defaultdict[str, set[int]] = defaultdict(set)
        for line, tests in lines.items():
            for test in tests:
                reach[file_of(names[test])].add(int(line))
        table[module] = _chosen(Path(module), reach, seconds)
    return {module: files for module, files in table.items() if files}


def _chosen(module: Path, reach: Mapping[str, set[int]], seconds: Mapping[str, float]) -> list[str]:
    left, files = dict(reach), list[str]()
    times: defaultdict[int, int] = defaultdict(int)
    own = [name for name in sorted(reach) if Path(name).stem in (f"test_{module.stem}", f"test_{module.stem}s")]
    while left and len(files) < MAX_FILES:
        gain = {name: sum(2.0 ** -times[line] for line in lines) / seconds[name] for name, lines in left.items()}
        best = own.pop(0) if own else max(sorted(gain), key=lambda name: gain[name])
        for line in left.pop(best):
            times[line] += 1
        files.append(best)
    return files


def file_of(test: str) -> str:
    return test.partition("::")[0]

"""Mark tests by what they cost, start the dearest files first, and measure the table anew.

`tests/costs.json` holds processor seconds, those of child processes included: of each file, and of each test that is
``slow``. `pytest -n 2 --record-costs` measures it; run it with nothing beside it.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest

SLOW_SECONDS: Final = 0.5
"""From this cost on a test is ``slow``; so is one on MariaDB that runs on PostgreSQL, too."""
DRIFT: Final = 3.0
"""A test that is not in the table may cost this many times ``SLOW_SECONDS`` before the run says so."""
TABLE: Final = Path(__file__).parents[1] / "costs.json"
PASSED: Final = "LETOPIS_TEST_PASSED"
"""Names a file of tests that need not run again: a run leaves out those in it, and adds those that pass."""
_COST: Final = "cost"
_costs: Final = pytest.StashKey[dict[str, float]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-costs", action="store_true", help=f"measure all tests and write {TABLE.name}")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_costs] = {}


@pytest.hookimpl(tryfirst=True)  # so that -m sees the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is slow, and put the dearest files first: the last worker to end is then one with short ones."""
    table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {"files": {}, "tests": {}}
    names = {item.nodeid for item in items}
    for item in items:
        twin = item.nodeid.replace("mariadb", "postgresql")
        if item.nodeid in table["tests"] or (twin != item.nodeid and twin in names):
            item.add_marker(pytest.mark.slow)
    done = _passed()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = [item for item in items if item.nodeid not in done]
    items.sort(key=lambda item: -table["files"].get(item.nodeid.partition("::")[0], 0.0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    before = _spent()
    try:
        return (yield)
    finally:
        item.config.stash[_costs][item.nodeid] = _spent() - before


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    costs = session.config.stash[_costs]
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_COST] = costs
    elif session.config.getoption("--record-costs"):
        _write(costs)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take in what a worker of xdist has measured."""
    node.config.stash[_costs].update(getattr(node, "workeroutput", {}).get(_COST, {}))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what has passed; with xdist, in the controller alone."""
    if report.when == "call" and report.passed and PASSED in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        with Path(os.environ[PASSED]).open("a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}\n")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    slow = json.loads(TABLE.read_text(encoding="utf-8"))["tests"] if TABLE.exists() else {}
    limit = DRIFT * SLOW_SECONDS
    for name, cost in sorted(config.stash[_costs].items(), key=lambda pair: -pair[1]):
        if slow and cost > limit and name not in slow and not config.getoption("--record-costs"):
            terminalreporter.write_line(f"{name} costs {cost:.1f} s and is not slow in {TABLE.name}: --record-costs")


def _write(costs: dict[str, float]) -> None:
    files: defaultdict[str, float] = defaultdict(float)
    for name, cost in costs.items():
        files[name.partition("::")[0]] += cost
    table = {
        "files": {name: round(cost, 1) for name, cost in sorted(files.items()) if cost >= SLOW_SECONDS},
        "tests": {name: round(cost, 1) for name, cost in sorted(costs.items()) if cost >= SLOW_SECONDS},
    }
    TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _passed() -> frozenset[str]:
    path = Path(os.environ.get(PASSED, ""))
    return frozenset(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else frozenset()


def _spent() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime

"""Mark tests by what they cost, start the dearest files first, and measure the table anew.

`tests/costs.json` holds processor seconds, those of child processes included: of each file, and of each test that is
``slow``. `pytest -n 2 --record-costs` measures it, of all files or of those named; run it with nothing beside it.
"""

import json
import os
import resource
import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest

SLOW_SECONDS: Final = 0.5  # from this cost on a test is ``slow``; so is one on MariaDB that runs on PostgreSQL, too
LIMIT_SECONDS: Final = 1.0
"""Of a test that is not ``slow``: a busy machine adds to processor time, too. A run says which cost more."""
DRIFT: Final = 3.0  # the README's command fails for a test that costs this many times ``LIMIT_SECONDS``
SHOWN: Final = 10
TIMEOUT_SECONDS: Final = 120.0
"""Of each test without a mark of its own; each second of its cost adds thirty, for a machine that is busy."""
TABLE: Final = Path(__file__).parents[1] / "costs.json"
PASSED: Final = "LETOPIS_TEST_PASSED"
"""Names a file of tests that need not run again: a run leaves out those in it, and adds those that pass."""
_COST: Final = "cost"
_DRIFTED: Final = "drifted"
_costs: Final = pytest.StashKey[dict[str, float]]()
_drifted: Final = pytest.StashKey[dict[str, float]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-costs", action="store_true", help=f"measure all tests and write {TABLE.name}")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_costs] = {}
    config.stash[_drifted] = {}


@pytest.hookimpl(tryfirst=True)  # so that -m sees the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is slow, and put the dearest files first: the last worker to end is then one with short ones."""
    table = _table()
    names = {item.nodeid for item in items}
    for item in items:
        twin = item.nodeid.replace("mariadb", "postgresql")
        if item.get_closest_marker("same_sql") is not None:
            twin = twin.replace("postgresql", "sqlite")
        cost = table["tests"].get(item.nodeid)
        if cost is not None or (twin != item.nodeid and twin in names):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS + 30 * (cost or 0)))
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
        costs = item.config.stash[_costs]
        cost = costs[item.nodeid] = _spent() - before
        # The first of a process pays for what all share.
        if cost >= LIMIT_SECONDS and len(costs) > 1 and item.get_closest_marker("slow") is None:
            item.config.stash[_drifted][item.nodeid] = cost


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    costs, drifted = session.config.stash[_costs], session.config.stash[_drifted]
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_COST], output[_DRIFTED] = costs, drifted
    elif session.config.getoption("--record-costs"):
        _write(costs, session.config.rootpath)
    elif session.exitstatus == pytest.ExitCode.OK and _fails(session.config, max(drifted.values(), default=0)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take in what a worker of xdist has measured."""
    output = getattr(node, "workeroutput", {})
    node.config.stash[_costs].update(output.get(_COST, {}))
    node.config.stash[_drifted].update(output.get(_DRIFTED, {}))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what has passed; with xdist, in the controller alone."""
    if report.when == "call" and report.passed and PASSED in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        with Path(os.environ[PASSED]).open("a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}\n")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    drifted = sorted(config.stash[_drifted].items(), key=lambda pair: -pair[1])
    if not config.getoption("--record-costs"):
        for name, cost in drifted[:SHOWN]:
            fails = "ERROR: " if _fails(config, cost) else ""
            terminalreporter.write_line(
                f"{fails}{name} costs {cost:.1f} s, is not slow in {TABLE.name}: --record-costs"
            )


def _fails(config: pytest.Config, cost: float) -> bool:
    # With frameworks installed, whichever test is the first to need one pays for its import.
    return config.option.markexpr == "not slow" and cost > DRIFT * LIMIT_SECONDS


def _write(costs: dict[str, float], root: Path) -> None:
    files: defaultdict[str, float] = defaultdict(float)
    for name, cost in costs.items():
        files[name.partition("::")[0]] += cost
    table = _table()
    known = {name.partition("::")[0] for part in table.values() for name in part}
    others = {name for name in known if name not in files and (root / name).exists()}
    for part, measured in (("files", files), ("tests", costs)):
        kept = {name: cost for name, cost in table[part].items() if name.partition("::")[0] in others}
        kept |= {name: round(cost, 1) for name, cost in measured.items() if cost >= SLOW_SECONDS}
        table[part] = dict(sorted(kept.items()))
    TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _table() -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {"files": {}, "tests": {}}
    if TABLE.exists():
        table.update(json.loads(TABLE.read_text(encoding="utf-8")))
    return table


def _passed() -> frozenset[str]:
    path = Path(os.environ.get(PASSED, ""))
    return frozenset(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else frozenset()


def _spent() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime

"""Mark tests by what they cost, start the dearest files first, and measure the table anew.

`tests/costs.json` holds processor seconds, those of child processes included: of each file, and of each test that is
``slow``. `pytest -n 2 --record-costs` measures it, of all files or of those named; run it with nothing beside it.
"""

import json
import os
import resource
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping
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
Costs = dict[str, float]
_costs: Final = pytest.StashKey[tuple[Costs, Costs]]()  # of all tests, and of those that cost more than they may


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-costs", action="store_true", help=f"measure all tests and write {TABLE.name}")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_costs] = {}, {}


@pytest.hookimpl(tryfirst=True)  # so that -m sees the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is slow, and put the dearest files first: the last worker to end is then one with short ones."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    names = {item.nodeid for item in items}
    for item in items:
        twin = item.nodeid.replace("mariadb", "postgresql")
        cost = table["tests"].get(item.nodeid)
        if cost is not None or (twin != item.nodeid and twin in names):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS + 30 * (cost or 0)))
    passed = Path(os.environ.get(PASSED, ""))
    done = set(passed.read_text(encoding="utf-8").splitlines()) if passed.is_file() else set[str]()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = [item for item in items if item.nodeid not in done]
    items.sort(key=lambda item: -table["files"].get(item.nodeid.partition("::")[0], 0.0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    before = _spent()
    try:
        return (yield)
    finally:
        item.config.stash[_costs][0][item.nodeid] = _spent() - before


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    costs, dear = session.config.stash[_costs]
    dear |= dear_of((item.nodeid for item in session.items if item.get_closest_marker("slow") is None), costs)
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["costs"] = costs, dear
    elif session.config.getoption("--record-costs"):
        table = renewed(json.loads(TABLE.read_text(encoding="utf-8")), costs, session.config.rootpath)
        TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    elif session.exitstatus == pytest.ExitCode.OK and any(_fails(session.config, cost) for cost in dear.values()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for kept, found in zip(node.config.stash[_costs], getattr(node, "workeroutput", {}).get("costs", ()), strict=False):
        kept.update(found)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what has passed; with xdist, in the controller alone."""
    if report.when == "call" and report.passed and PASSED in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        with Path(os.environ[PASSED]).open("a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}\n")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    dear = {} if config.getoption("--record-costs") else config.stash[_costs][1]
    for name, cost in sorted(dear.items(), key=lambda pair: -pair[1])[:SHOWN]:
        fails = "ERROR: " if _fails(config, cost) else ""
        terminalreporter.write_line(f"{fails}{name} costs {cost:.1f} s, is not slow in {TABLE.name}: --record-costs")


def dear_of(names: Iterable[str], costs: Costs) -> Costs:
    """Return those of the tests that cost more than they may; the first of a process pays for what all share."""
    first = next(iter(costs), None)
    return {name: costs[name] for name in names if name != first and costs.get(name, 0.0) >= LIMIT_SECONDS}


def renewed(table: Mapping[str, Costs], costs: Costs, root: Path) -> dict[str, Costs]:
    """Return the table with these costs in place of those of the same files, and without files that are gone."""
    files: defaultdict[str, float] = defaultdict(float)
    for name, cost in costs.items():
        files[name.partition("::")[0]] += cost
    found = {}
    for part, measured in (("files", files), ("tests", costs)):
        kept = {name: cost for name, cost in table[part].items() if name.partition("::")[0] not in files}
        kept = {name: cost for name, cost in kept.items() if (root / name.partition("::")[0]).exists()}
        kept |= {name: round(cost, 1) for name, cost in measured.items() if cost >= SLOW_SECONDS}
        found[part] = dict(sorted(kept.items()))
    return found


def _fails(config: pytest.Config, cost: float) -> bool:
    # With frameworks installed, whichever test is the first to need one pays for its import.
    return config.option.markexpr == "not slow" and cost > DRIFT * LIMIT_SECONDS


def _spent() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime

"""The harness itself: what tests cost, what they may leave out, what they leave behind, and what they must not open."""

import asyncio
import gc
import json
import socket
import sys
from pathlib import Path

import pytest

from letopis.outbox.file.outbox_file import OutboxFile
from tests.support import fix_costs
from tests.support.child import ran
from tests.support.fix_costs import dear_of, renewed
from tests.support.opens import WIRE
from tests.support.peers import silent
from tests.support.required import fail_if_required, missing, program

TESTS = """
import time, pytest

@pytest.mark.parametrize("name", ["first", "cheap", "dear", "slow"])
def test_it(name):
    until = time.process_time() + (name != "cheap") / 10
    while time.process_time() < until:
        pass
"""


def test_a_run_fails_for_what_costs_three_times_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "costs.json"
    table.write_text(json.dumps({"files": {}, "tests": {"test_some.py::test_it[slow]": 0.1}}))
    monkeypatch.setattr(fix_costs, "TABLE", table)
    monkeypatch.setattr(fix_costs, "LIMIT_SECONDS", 0.02)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: as here\n")
    plugins = ("-p", "tests.support.fix_costs", "-p", "no:cacheprovider", "--import-mode=importlib")

    assert pytest.main([*plugins, f"--rootdir={tmp_path}", "-m", "not slow", str(tmp_path / "test_some.py")]) == 1
    (said,) = [line for line in capsys.readouterr().out.splitlines() if " costs " in line]
    assert said.startswith("ERROR: test_some.py::test_it[dear] costs")


LEAVES = """
import asyncio, gc, socket
gc.disable()  # or it may be met before the file ends

class Holder:
    def __init__(self, held):
        self.held, self.itself = held, self

def test_a_socket():
    Holder(socket.socket())

def test_a_task():
    loop = asyncio.new_event_loop()
    Holder(loop.create_task(asyncio.sleep(60)))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

def test_nothing():
    pass
"""


@pytest.mark.parametrize("dev", [(), ("-X", "dev")], ids=["named", "failed"])
def test_what_a_file_leaves_unclosed_is_charged_to_that_file(tmp_path: Path, dev: tuple[str, ...]) -> None:
    (tmp_path / "test_leaves.py").write_text(LEAVES)
    (tmp_path / "test_later.py").write_text("def test_later(): pass")
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    plugins = ("-p", "tests.support.fix_left_behind", "-p", "no:cacheprovider", "--import-mode=importlib")
    files = ("test_leaves.py", "test_later.py")

    done = ran(sys.executable, *dev, "-m", "pytest", *plugins, f"--rootdir={tmp_path}", *(tmp_path / n for n in files))

    assert done.returncode == bool(dev)
    assert ("4 passed, 1 error" if dev else "4 passed") in done.stdout
    assert ("ERROR at teardown of test_nothing" in done.stdout) == bool(dev)
    for line in (
        "test_leaves.py leaves behind:",
        "ResourceWarning: unclosed <socket",
        "Task was destroyed but it is pending!",
    ):
        assert line in (done.stdout if dev else done.stderr)


def test_the_first_of_a_process_pays_for_what_all_share() -> None:
    assert dear_of(("a", "b", "c", "not run"), {"a": 9.0, "b": 0.9, "c": 1.0}) == {"c": 1.0}


def test_recording_measures_the_files_that_run_and_keeps_the_others(tmp_path: Path) -> None:
    (tmp_path / "other.py").touch()
    known = {"other.py::a": 2.0, "some.py::gone": 3.0, "gone.py::a": 3.0}
    table = {"files": {"other.py": 2.0, "some.py": 3.0, "gone.py": 3.0}, "tests": known}

    found = renewed(table, {"some.py::a": 0.4, "some.py::b": 0.5}, tmp_path)
    assert found == {"files": {"other.py": 2.0, "some.py": 0.9}, "tests": {"other.py::a": 2.0, "some.py::b": 0.5}}


@pytest.mark.parametrize(
    ("module", "suffix", "live", "fires"),
    [
        ("letopis.outbox.made_up", "", True, True),
        ("letopis.store.made_up", "-wal", True, True),
        ("letopis.outbox.made_up", "-shm", True, True),
        ("letopis.outbox.made_up", "", False, False),
        ("tests.made_up", "", True, False),
        ("letopis.outbox.made_up", ".relay.lock", True, False),
    ],
)
async def test_the_wire_fires_for_a_live_file_and_code_of_ours(
    module: str, suffix: str, live: bool, fires: bool, tmp_path: Path
) -> None:
    room = {"__name__": module, "path": tmp_path / f"bot.outbox.db{suffix}"}
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
    if not live:
        await outbox.close()
    before = len(WIRE.found)
    exec("path.open('ab').close()", room)  # noqa: S102
    found, WIRE.found[before:] = WIRE.found[before:], []
    await outbox.close()

    assert [told.startswith(f"{room['path']}\n") for told in found] == [True] * fires


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("needs mkfs.xfs: apt-get install xfsprogs", "failed"),
        ("needs chromium: apt-get install chromium", "skipped"),
        ("only SQLite has such values", "skipped"),
    ],
)
def test_required_tool_that_is_missing_fails_the_test(
    reason: str, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETOPIS_TEST_REQUIRE", "postgresql,mkfs.xfs")
    where = (__file__, 1, f"Skipped: {reason}")
    report = fail_if_required(pytest.TestReport("a", (__file__, 1, "a"), {}, "skipped", where, "setup"))

    assert report.outcome == outcome
    assert (str(report.longrepr) == f"mkfs.xfs is required here: Skipped: {reason}") == (outcome == "failed")


def test_skip_names_what_it_needs() -> None:
    with pytest.raises(pytest.skip.Exception, match="needs no-such-program: apt-get install nothing"):
        program("no-such-program", "nothing")
    with pytest.raises(pytest.skip.Exception, match="needs mariadb: it does not answer"):
        missing("mariadb", "it does not answer")


def test_a_connection_is_closed_that_comes_as_its_listener_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def end_after(steps: int) -> None:
        with socket.socket() as client:
            client.setblocking(False)
            async with silent() as port:
                client.connect_ex(("127.0.0.1", port))
                for _ in range(steps):
                    await asyncio.sleep(0)

    left: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: left.append(str(found.exc_value)))
    for steps in range(8):
        asyncio.run(end_after(steps))
        gc.collect(1)  # what is new: a whole collection walks all that the tests before have left
    assert not left

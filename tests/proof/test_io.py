"""The faults of a disk are counted where they fired, and a refusal that comes late is a violation."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from tests.proof.harness import Tally, World
from tests.proof.io.failing import Fault, calls_of, fired_in
from tests.proof.io.gone import Way, compared

TRACE = """\
7 pwrite64(3, "order 1", 7, 0) = 7
8 pwrite64(3, "thread 0", 8, 0) = 8
9 pwrite64(3, "thread 1", 8, 0) = 8
9 pwrite64(5, "\\1\\2"..., 4096, 0) = 4096
9 pwrite64(5, "\\1\\2"..., 4096, 0 <unfinished ...>
8 fdatasync(4) = 0
9 <... pwrite64 resumed>) = 4096
9 fdatasync(5) = 0
7 pwrite64(3, "order 2", 7, 0) = 7
10 pwrite64(5, "\\1\\2"..., 4096, 0) = -1 EIO (Input/output error) (INJECTED)
10 pwrite64(5, "\\1\\2"..., 4096, 0 <unfinished ...>
10 <... pwrite64 resumed>) = -1 EIO (Input/output error) (INJECTED)
7 pwrite64(3, "order 3", 7, 0) = 7
"""


def test_calls_are_counted_by_the_thread_that_makes_them() -> None:
    assert calls_of(TRACE.splitlines(), "pwrite64") == {1: 2}
    assert calls_of(TRACE.splitlines(), "fdatasync") == {0: 1, 1: 1}


def test_a_fault_is_counted_where_it_fired() -> None:
    assert fired_in(TRACE.splitlines()) == {2: 2}
    assert str(Fault(k=3, thread=1)) == "number 3 of thread 1"


def noted(folder: Path, *told: tuple[float, float, str | None]) -> Tally:
    """Return what is found where something was taken away at 2.0, and the bot noted these appends."""
    text = "".join(json.dumps([begun, ended, "c", uuid4().hex, refusal]) + "\n" for begun, ended, refusal in told)
    (folder / "acks").write_text(text)
    return compared(World(folder), Way("emptied", lambda path: None, mended=False), moment=2.0)


def test_what_is_refused_at_once_is_no_violation(tmp_path: Path) -> None:
    tally = noted(tmp_path, (1.0, 1.1, None), (1.9, 2.1, None), (2.0, 2.2, "OutboxUnavailable"))

    assert (tally.refused, tally.problems) == (1, [])
    assert tally.notes == "2 acknowledged before; noticed after 200 ms"


@pytest.mark.parametrize(
    "told",
    [
        [(1.0, 1.1, None), (2.1, 2.2, None), (2.3, 2.4, "OutboxUnavailable")],
        [(2.1, 2.2, "sqlite3.OperationalError")],
        [(1.0, 1.1, None)],
    ],
    ids=["an acknowledgement after the fact", "an error that is not ours", "a refusal that never comes"],
)
def test_a_violation_is_seen(told: list[tuple[float, float, str | None]], tmp_path: Path) -> None:
    assert len(noted(tmp_path, *told).problems) == 1

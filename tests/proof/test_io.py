"""The faults of a disk are counted where they fired, and a refusal that comes late is a violation."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

from tests.proof.io.failing import Fault, calls_of, fired_in
from tests.proof.io.taken import Way, compared

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


def lines(folder: Path, *told: tuple[float, float, str | None]) -> None:
    text = "".join(json.dumps([begun, ended, "c", uuid4().hex, refusal]) + "\n" for begun, ended, refusal in told)
    (folder / "acks").write_text(text)


EMPTIED = Way("emptied", lambda path: None, mended=False)


def test_what_is_refused_at_once_is_no_violation(tmp_path: Path) -> None:
    lines(tmp_path, (1.0, 1.1, None), (1.9, 2.1, None), (2.0, 2.2, "OutboxUnavailable"))
    found = compared(tmp_path, EMPTIED, moment=2.0)

    assert (found.acknowledged, found.refused, found.problems) == (2, 1, [])
    assert abs(found.noticed - 0.2) < 0.001


def test_an_acknowledgement_after_the_fact_is_a_violation(tmp_path: Path) -> None:
    lines(tmp_path, (1.0, 1.1, None), (2.1, 2.2, None), (2.3, 2.4, "OutboxUnavailable"))

    assert len(compared(tmp_path, EMPTIED, moment=2.0).problems) == 1


def test_an_error_that_is_not_ours_and_one_that_never_comes_are_violations(tmp_path: Path) -> None:
    lines(tmp_path, (2.1, 2.2, "sqlite3.OperationalError"))
    assert compared(tmp_path, EMPTIED, moment=2.0).problems == ["refused with sqlite3.OperationalError"]
    lines(tmp_path, (1.0, 1.1, None))
    assert len(compared(tmp_path, EMPTIED, moment=2.0).problems) == 1

"""The faults of a disk are counted where they fired."""

from __future__ import annotations

from tests.proof.io.failing import Fault, calls_of, fired_in

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

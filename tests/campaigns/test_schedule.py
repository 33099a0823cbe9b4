"""The schedule is the same for the same seed, and fires what was asked for."""

from __future__ import annotations

from collections import Counter

from tests.campaigns.schedule import SPARE, Fault, schedule


def test_the_same_seed_gives_the_same_schedule() -> None:
    one = schedule(lines=258_145, kills=20, cuts=20, outages=1, seed=7)

    assert one == schedule(lines=258_145, kills=20, cuts=20, outages=1, seed=7)
    assert one != schedule(lines=258_145, kills=20, cuts=20, outages=1, seed=8)


def test_a_large_input_is_one_wave_with_the_faults_spread_over_it() -> None:
    (wave,) = schedule(lines=258_145, kills=20, cuts=20, outages=1, seed=1)

    assert wave.lines == 258_145
    assert Counter(fault.kind for fault in wave.faults) == {"kill": 20, "cut": 20, "outage": 1}
    assert list(wave.faults) == sorted(wave.faults, key=lambda fault: fault.after)
    assert wave.faults[-1].after < 258_145


def test_a_small_input_comes_in_waves_that_each_go_a_little_further() -> None:
    waves = schedule(lines=2_800, kills=20, cuts=20, outages=1, seed=1)

    assert Counter(fault.kind for wave in waves for fault in wave.faults) == {"kill": 20, "cut": 20, "outage": 1}
    assert all(1 <= len(wave.faults) <= 2 for wave in waves[:-SPARE])
    assert [wave.lines for wave in waves] == sorted({wave.lines for wave in waves})
    assert waves[-1].lines == 2_800


def test_a_small_input_ends_with_waves_for_faults_that_came_too_late() -> None:
    waves = schedule(lines=199, kills=2, cuts=2, outages=0, seed=1)
    last, *spare = waves[-SPARE - 1 :]

    assert last.faults
    assert [wave.faults for wave in spare] == [()] * SPARE
    assert last.lines < spare[0].lines < spare[1].lines < spare[-1].lines == 199


def test_a_fault_that_came_too_late_waits_for_half_as_long_the_next_time() -> None:
    late = Fault(kind="kill", after=0, delay=0.012)

    assert late.sooner() == Fault(kind="kill", after=0, delay=0.006)


def test_without_faults_there_is_one_plain_wave() -> None:
    (wave,) = schedule(lines=10, kills=0, cuts=0, outages=0, seed=1)

    assert (wave.lines, wave.faults) == (10, ())

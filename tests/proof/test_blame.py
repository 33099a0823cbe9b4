"""The scripted cases of whose fault it is: they repeat, they hold for a few seeds, and each control is seen."""

from __future__ import annotations

import pytest

from letopis.store.database.faults import FaultClass
from tests.proof.blame.part import (
    CONTROLS,
    MENDED,
    OUTAGE_LIKE,
    REFUSED,
    REFUSES_EVERYBODY,
    blamed,
    held_up,
    outage_like,
    without,
)
from tests.proof.blame.scripted import Case, run

ASLEEP = Case(seed=3, others=3, fault_class=FaultClass.UNAVAILABLE, code="53200", turns=12, asleep=10.0, bad_at=1)
EVERYBODY = Case(seed=3, others=5, fault_class=REFUSED[0], code=REFUSED[1], everybody=MENDED)


def test_a_case_repeats() -> None:
    assert run(ASLEEP) == run(ASLEEP)


@pytest.mark.parametrize("fault_class", OUTAGE_LIKE)
@pytest.mark.parametrize("others", [1, 3, 30])
def test_one_event_that_fails_like_an_outage_holds_up_nobody_else(fault_class: FaultClass, others: int) -> None:
    case = Case(seed=others, others=others, fault_class=fault_class, code="x", asleep=10.0, bad_at=1)

    assert held_up(case, run(case)) == ""


@pytest.mark.parametrize("ordinary", [False, True])
def test_a_store_that_refuses_everybody_blocks_nobody(ordinary: bool) -> None:
    case = Case(seed=1, others=5, fault_class=REFUSED[0], code=REFUSED[1], everybody=MENDED, ordinary=ordinary)

    assert blamed(case, run(case)) == ""


@pytest.mark.parametrize("control", CONTROLS)
def test_each_control_is_seen(control: str) -> None:
    case = EVERYBODY if control == REFUSES_EVERYBODY else ASLEEP

    assert without(control, case) != ""


def test_the_codes_are_those_of_the_table() -> None:
    assert {code for _, code in outage_like("postgresql")} >= {"53000", "57014", "25006", "42501", "08000"}
    assert {code for _, code in outage_like("mariadb")} >= {"2006", "1969", "1021", "1142"}

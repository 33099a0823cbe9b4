"""Attributing failed deliveries to an event or to the history store."""

from typing import Any

import pytest

from letopis.outbox.retry.fault_attribution import FaultAttribution
from letopis.store.database.faults import POOL_TIMEOUT_CODE, FaultClass, StoreFault

DOWN = StoreFault(fault_class=FaultClass.UNAVAILABLE, code="08006", reason="the connection was lost")


FAILED, TAKEN = FaultAttribution.record_failure, FaultAttribution.record_success
CUT_OFF = FaultAttribution.record_store_fault
REFUSED, CHARGED, FORGOTTEN = FaultAttribution.record_refusal, FaultAttribution.charge, FaultAttribution.forget


def after(*steps: tuple[Any, str]) -> FaultAttribution:
    """Return what is remembered after failures and successes of batches, and what befell one conversation each."""
    attribution = FaultAttribution()
    for step, names in steps:
        step(attribution, list(names) if step in (FAILED, CUT_OFF, TAKEN) else names)
    return attribution


@pytest.mark.parametrize(
    ("steps", "charges", "failing"),
    [
        pytest.param([(FAILED, "a")] * 100, {}, 1, id="alone"),
        pytest.param([(FAILED, "a"), (TAKEN, "b")] * 3, {"a": 3}, 0, id="another gets through after it failed"),
        pytest.param([(TAKEN, "b"), (FAILED, "a")], {}, 1, id="a success before the failure"),
        pytest.param([(FAILED, "a"), (TAKEN, "b"), (TAKEN, "a")], {}, 0, id="its own success clears it"),
        pytest.param([(FAILED, "a"), (TAKEN, "b"), (FORGOTTEN, "a")], {}, 0, id="forgotten"),
        pytest.param([(FAILED, "abc"), (TAKEN, "ab")], {"c": 1}, 0, id="of the same success"),
        pytest.param([(FAILED, "a"), (FAILED, "ab"), (FAILED, "c")], {}, 3, id="failures in a row count once each"),
        pytest.param([(FAILED, "a"), (TAKEN, "")], {}, 1, id="nothing got through"),
    ],
)
def test_a_conversation_is_charged_when_another_gets_through_after_it_failed(
    steps: list[tuple[Any, str]], charges: dict[str, int], failing: int
) -> None:
    attribution = after(*steps)
    assert {name: count for name, count in attribution.charges.items() if count} == charges
    assert attribution.failing_conversations == failing


ALONE = [(FAILED, "xyz"), (REFUSED, "a"), (REFUSED, "b"), (REFUSED, "a"), (REFUSED, "c")]
BLOCKED = [(REFUSED, "a"), (REFUSED, "b"), (CHARGED, "b"), (FORGOTTEN, "a"), (FORGOTTEN, "b")]


@pytest.mark.parametrize(
    ("steps", "evidence", "charges"),
    [
        pytest.param(ALONE, "abc", {}, id="in one batch is no evidence about each"),
        pytest.param([*ALONE, (TAKEN, "d")], "", dict.fromkeys("abcxyz", 1), id="until one succeeds"),
        pytest.param([(REFUSED, "a"), (TAKEN, "b"), (REFUSED, "a"), (REFUSED, "c")], "c", {"a": 1}, id="charged"),
        pytest.param(BLOCKED, "a", {}, id="blocked, and charged or not"),
        pytest.param([(REFUSED, "a"), (TAKEN, "a")], "", {}, id="taken after all"),
    ],
)
def test_conversations_refused_alone_are_evidence_against_the_store(
    steps: list[tuple[Any, str]], evidence: str, charges: dict[str, int]
) -> None:
    attribution = after(*steps)
    assert attribution.refused_alone == tuple(evidence)
    assert {name: count for name, count in attribution.charges.items() if count} == charges


def test_memory_is_bounded() -> None:
    attribution = FaultAttribution()
    for start in range(0, 50_000, 10_000):
        attribution.record_failure([f"c{number}" for number in range(start, start + 10_000)])
        attribution.record_success(["other"])
    assert sum(attribution.charges.get(f"c{number}", 0) > 0 for number in range(50_000)) == 10_000


THREE_TIMES = [(CUT_OFF, "a"), (TAKEN, "c")] * 3
STORM = [(CUT_OFF, "b"), (TAKEN, "b"), (REFUSED, "a")]


@pytest.mark.parametrize(
    ("steps", "counts"),
    [
        *(pytest.param([*THREE_TIMES, *[(REFUSED, "a"), (TAKEN, "b")] * n], True, id="alone") for n in (1, 4)),
        # Connections are cut at random, and this conversation was unlucky again and again.
        *(pytest.param([*THREE_TIMES, *STORM * n], False, id="while others meet one too") for n in (1, 20)),
        pytest.param([*THREE_TIMES, *STORM, (TAKEN, "b"), (REFUSED, "a")], True, id="after the storm"),
        pytest.param(
            [*[(CUT_OFF, "ab"), (TAKEN, "c")] * 3, (REFUSED, "a"), (REFUSED, "b"), (TAKEN, "c")],
            True,
            id="two do not shield each other",
        ),
        pytest.param([(CHARGED, "a"), (CUT_OFF, "a"), (REFUSED, "a")], True, id="one that it alone meets is its own"),
        *(
            pytest.param(
                [*cleared, (REFUSED, "a"), (CUT_OFF, "b"), (TAKEN, "c"), (REFUSED, "a")],
                True,
                id="those before the first charge count for others only",
            )
            for cleared in ([], [(CHARGED, "a"), (TAKEN, "a")])
        ),
    ],
)
def test_what_looks_like_an_outage_counts_if_no_other_conversation_met_one_since(
    steps: list[tuple[Any, str]], counts: bool
) -> None:
    attribution = after(*steps)
    refused = {name for step, name in steps if step is REFUSED}
    assert [attribution.is_charged(DOWN, name) for name in refused] == [counts] * len(refused)


@pytest.mark.parametrize(
    ("failures", "conversation_ids", "of_store"), [(2, ["a"], True), (3, ["a"], False), (3, ["a", "b"], True)]
)
def test_an_outage_is_the_conversations_once_it_alone_failed_three_times(
    failures: int, conversation_ids: list[str], of_store: bool
) -> None:
    attribution = FaultAttribution()
    for _ in range(failures):
        attribution.charge("a")
    assert attribution.is_store_fault(DOWN, conversation_ids) is of_store


@pytest.mark.parametrize(
    "fault",
    [
        StoreFault(fault_class=FaultClass.WRONG_STORE, code="other-store", reason="another store answers"),
        StoreFault(fault_class=FaultClass.UNAVAILABLE, code=POOL_TIMEOUT_CODE, reason="all connections are in use"),
    ],
)
def test_what_no_event_can_cause_is_the_stores_fault_however_often_one_conversation_met_it(fault: StoreFault) -> None:
    attribution = FaultAttribution()
    for _ in range(100):
        attribution.charge("a")
    assert attribution.is_store_fault(fault, ["a"]) and not attribution.is_store_fault(DOWN, ["a"])

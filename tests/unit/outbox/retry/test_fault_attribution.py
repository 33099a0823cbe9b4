"""Attributing failed deliveries to an event or to the history store."""

from __future__ import annotations

from typing import Any

import pytest

from letopis.outbox.retry.fault_attribution import FaultAttribution
from letopis.store.database.faults import POOL_TIMEOUT_CODE, FaultClass, StoreFault

DOWN = StoreFault(fault_class=FaultClass.UNAVAILABLE, code="08006", reason="the connection was lost")


FAILED, TAKEN = FaultAttribution.record_failure, FaultAttribution.record_success
REFUSED, CHARGED, FORGOTTEN = FaultAttribution.record_refusal, FaultAttribution.charge, FaultAttribution.forget


def after(*steps: tuple[Any, str]) -> FaultAttribution:
    """Return what is remembered after failures and successes of batches, and what befell one conversation each."""
    attribution = FaultAttribution()
    for step, names in steps:
        step(attribution, list(names) if step in (FAILED, TAKEN) else names)
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


def test_what_looks_like_an_outage_counts_while_no_other_conversation_meets_one() -> None:
    attribution = charged_three_times("a")
    for _ in range(4):
        attribution.record_refusal("a")
        attribution.record_success(["b"])
        assert attribution.is_charged(DOWN, "a")


def test_what_looks_like_an_outage_does_not_count_while_others_meet_one_too() -> None:
    """A storm: connections are cut at random, and this conversation was unlucky again and again."""
    attribution = charged_three_times("a")
    for _ in range(20):
        attribution.record_store_fault(["b"])
        attribution.record_success(["b"])
        attribution.record_refusal("a")
        assert not attribution.is_charged(DOWN, "a")

    attribution.record_success(["b"])
    attribution.record_refusal("a")
    assert attribution.is_charged(DOWN, "a")


def test_two_that_look_like_an_outage_do_not_shield_each_other() -> None:
    attribution = charged_three_times("a", "b")
    for name in ("a", "b"):
        attribution.record_refusal(name)
    attribution.record_success(["c"])
    assert attribution.is_charged(DOWN, "a") and attribution.is_charged(DOWN, "b")


def test_an_outage_that_only_a_charged_conversation_meets_is_its_own() -> None:
    attribution = FaultAttribution()
    attribution.charge("a")
    attribution.record_store_fault(["a"])
    attribution.record_refusal("a")
    assert attribution.is_charged(DOWN, "a")


@pytest.mark.parametrize("cleared", [False, True])
def test_outages_before_the_first_charge_count_for_others_only(cleared: bool) -> None:
    attribution = FaultAttribution()
    if cleared:
        attribution.charge("a")
        attribution.record_success(["a"])
    attribution.record_refusal("a")
    attribution.record_store_fault(["b"])
    attribution.record_success(["c"])
    attribution.record_refusal("a")

    assert attribution.is_charged(DOWN, "a")


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


def charged_three_times(*conversation_ids: str) -> FaultAttribution:
    """Return what is remembered after the conversations failed three times and another one succeeded each time."""
    attribution = FaultAttribution()
    for _ in range(3):
        attribution.record_store_fault(conversation_ids)
        attribution.record_success(["c"])
    return attribution


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

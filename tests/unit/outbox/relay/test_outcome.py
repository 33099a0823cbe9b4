"""When a refused event is retried and when its lane is blocked; which breaker opens, and what ends its outage."""

from dataclasses import replace

import pytest

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.lanes import Lane
from letopis.outbox.relay.outcome import Breakers, LaneRetries, Refusal, SendResult
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.database.faults import FaultClass
from letopis.store.model.codec import encode
from letopis.store.model.events import Event
from tests.support.relays import Hands, fault

LANE = Lane(
    conversation_id="c",
    owner_id=None,
    head=5,
    delivered=2,
    pruned=0,
    state="ready",
    attempts=0,
    due_at_us=0,
    pending_since_us=None,
    fault_class=None,
    fault=None,
    key=1,
)
REFUSAL = Refusal(
    conversation_id="c",
    sequence=3,
    event=encode(Event(type="custom.said", data={}), conversation_id="c"),
    fault_class="poison",
    fault="no",
)


@pytest.fixture
def retries() -> LaneRetries:
    policy = RetryPolicy(base=1, factor=2, jitter="none", attempts=2)
    return LaneRetries(policy, clock=Clock(), uniform=lambda _, most: most)


def test_an_uncharged_refusal_waits_longer_each_time_and_never_blocks(retries: LaneRetries) -> None:
    found = [retries.refused(LANE, replace(REFUSAL, charged=False)) for _ in range(4)]
    assert [(one.attempts, one.delay, one.blocks) for one in found] == [(0, wait, False) for wait in (1, 2, 4, 8)]
    retries.forget("c")
    assert retries.refused(LANE, replace(REFUSAL, charged=False)).delay == 1


def test_a_first_refusal_blocks_if_it_is_final_or_the_policy_allows_no_retry(retries: LaneRetries) -> None:
    assert retries.refused(LANE, replace(REFUSAL, charged=False, final=True)).blocks
    retries.policy = RetryPolicy(attempts=0)
    assert retries.refused(LANE, REFUSAL).blocks


def test_attempts_of_an_earlier_event_are_not_those_of_a_later_one(retries: LaneRetries) -> None:
    found = retries.refused(replace(LANE, attempts=2), replace(REFUSAL, sequence=4))
    assert (found.attempts, found.lane.delivered, found.blocks) == (1, 3, False)


@pytest.mark.parametrize(
    ("fault_class", "final", "answered"),
    [("poison", False, True), ("diverged", True, True), ("unclassified", False, False)],
)
def test_a_refusal_for_what_the_event_is_shows_that_the_store_answers(
    fault_class: str, final: bool, answered: bool
) -> None:
    assert SendResult(refusals=[replace(REFUSAL, fault_class=fault_class, final=final)]).answered is answered


@pytest.mark.parametrize("wrong", [False, True])
def test_success_ends_an_outage_of_either_breaker_once(wrong: bool) -> None:
    """A wrong store opens the breaker of its outbox alone."""
    hands = Hands()
    clock = Clock(now=hands.now, monotonic=hands.monotonic)
    shared = Breaker(clock=clock, uniform=max)
    breakers = Breakers(shared, clock=clock, uniform=max)
    assert not breakers.record_success()
    breakers.trip(fault(FaultClass.WRONG_STORE if wrong else FaultClass.UNAVAILABLE), ["c"])

    assert (shared.closed, breakers.wrong_store.closed, breakers.current.closed) == (wrong, not wrong, False)
    assert (breakers.wrong_store_reason is not None) is wrong
    assert [breakers.record_success() for _ in range(2)] == [True, False]
    assert breakers.current.closed

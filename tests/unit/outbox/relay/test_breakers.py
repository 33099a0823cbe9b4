"""A wrong store opens the breaker of its outbox alone; a success ends the outage of either, once."""

from __future__ import annotations

import pytest

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.relay.outcome import Breakers
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.store.database.faults import FaultClass
from tests.support.relays import Hands, fault


@pytest.mark.parametrize("wrong", [False, True])
def test_success_ends_an_outage_of_either_breaker_once(wrong: bool) -> None:
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

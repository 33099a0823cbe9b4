"""Isolating the event that makes a batch fail."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from letopis.outbox.relay.outcome import SendResult
from letopis.outbox.relay.poison_isolation import (
    IMMEDIATE_RETRY_LIMIT_SECONDS,
    MAX_UNAVAILABLE_TRIES,
    PoisonIsolation,
)
from letopis.outbox.retry.fault_attribution import FaultAttribution
from letopis.store.database.faults import POOL_TIMEOUT_CODE, FaultClass, StoreFault
from letopis.store.errors import Closed
from letopis.store.model.codec import encode
from letopis.store.model.events import Event
from letopis.store.rules.apply_plan import ApplyResult, LaneBatch, Origin, SequencedEvent
from tests.support.relays import DOWN, POISON, Hands, ToldStore, fault

ORIGIN = Origin(origin_id=uuid4(), epoch=1, name="test")
STRANGE = fault(FaultClass.UNCLASSIFIED, "KeyError")
Refuse = Callable[[Sequence[LaneBatch]], BaseException | None]


def batch(conversation_id: str, count: int, *, first: int = 1) -> LaneBatch:
    def event(sequence: int) -> SequencedEvent:
        said = Event(type="custom.said", data={"n": sequence}, event_id=UUID(int=sequence))
        return SequencedEvent(sequence=sequence, event=encode(said, conversation_id=conversation_id))

    return LaneBatch(conversation_id=conversation_id, deliveries=tuple(map(event, range(first, first + count))))


def batches(count: int, each: int) -> list[LaneBatch]:
    return [batch(f"c{number}", each) for number in range(count)]


def refusing(error: BaseException, *bad: tuple[str, int]) -> Refuse:
    """Refuse every batch that holds one of these events."""

    def refuse(lanes: Sequence[LaneBatch]) -> BaseException | None:
        there = {(lane.conversation_id, one.sequence) for lane in lanes for one in lane.deliveries}
        return error if there & set(bad) else None

    return refuse


def made(store: ToldStore, *, attribution: FaultAttribution | None = None, deadline: float = 5.0) -> PoisonIsolation:
    async def apply(lanes: Sequence[LaneBatch]) -> ApplyResult:
        return await store.apply(ORIGIN, lanes)

    async def no_sleep(_: float) -> None:
        await asyncio.sleep(0)

    return PoisonIsolation(
        apply,
        try_out=store.runtime.try_out,
        attribution=attribution or FaultAttribution(),
        deadline=deadline,
        uniform=random.Random(1).uniform,
        sleep=no_sleep,
    )


def charges(sent: SendResult) -> set[tuple[str, int, bool, bool]]:
    return {(one.conversation_id, one.sequence, one.charged, one.final) for one in sent.refusals}


async def test_appends_with_one_condition_are_parted_last() -> None:
    """A refused event behind one leaves it whole; one inside it has to be found."""
    one = batch("a", 12)
    for place, event in enumerate(one.deliveries):
        if 3 <= place < 9:
            leader = {"turn": str(UUID(int=4))} if place > 3 else {}
            data = orjson.dumps({"letopis.expects": {"sequence": 1, **leader}}).decode()
            event.event = replace(event.event, metadata=data)
    for bad, whole in ((12, True), (10, True), (6, False)):
        store = ToldStore()
        store.refuse = refusing(POISON, ("a", bad))
        sent = await made(store).send([one])

        assert sent.delivered == {"a": bad - 1}
        ends = [lanes[0].deliveries[-1].sequence for lanes in store.batches if lanes[0].deliveries[-1].sequence < bad]
        assert all(end <= 3 or end >= 9 for end in ends) is whole


async def test_one_bad_event_among_two_hundred_conversations_is_found_and_all_else_gets_through() -> None:
    store = ToldStore(refusing(POISON, ("c77", 3)))
    sent = await made(store).send(batches(200, 5))
    assert charges(sent) == {("c77", 3, True, False)}
    assert (sent.delivered["c77"], store.held("c77")) == (2, 2)
    assert sum(sent.delivered.values()) == 199 * 5 + 2
    assert len(store.batches) < 30


LOCKED = fault(FaultClass.CONFLICT, "55P03")


@pytest.mark.parametrize(
    ("error", "bad", "counts", "charged"),
    [
        *(pytest.param(POISON, ("a", where), {"a": 11}, True, id=f"refused at {where}") for where in range(1, 12)),
        pytest.param(LOCKED, ("a", 1), {"a": 1, "b": 2}, False, id="locked by another transaction for long"),
        pytest.param(STRANGE, ("b", 2), {"a": 3, "b": 3, "c": 3}, True, id="strange, and others get through"),
        pytest.param(STRANGE, ("a", 1), {"a": 4}, False, id="strange, with no other conversation"),
    ],
)
async def test_the_good_events_before_the_bad_one_get_through_and_none_after_it(
    error: StoreFault, bad: tuple[str, int], counts: dict[str, int], charged: bool
) -> None:
    store = ToldStore(refusing(error, bad))
    sent = await made(store).send([batch(name, count) for name, count in counts.items()])
    taken = counts | {bad[0]: bad[1] - 1}

    assert charges(sent) == {(*bad, charged, False)}
    assert {name: store.held(name) for name in counts} == taken
    assert sent.delivered == {name: count for name, count in taken.items() if count}
    assert (sent.fault, store.trials) == (None, 0 if error is LOCKED else 1)


@pytest.mark.parametrize(
    ("error", "seconds", "tries"),
    [
        (DOWN, 0.0, MAX_UNAVAILABLE_TRIES),
        (DOWN, IMMEDIATE_RETRY_LIMIT_SECONDS + 0.1, 1),
        (fault(FaultClass.UNAVAILABLE, POOL_TIMEOUT_CODE), 0.0, 1),
    ],
    ids=["shows at once", "shows late", "no connection of this process is free"],
)
async def test_a_store_that_is_away_stops_everything_and_charges_no_conversation(
    hands: Hands, error: StoreFault, seconds: float, tries: int
) -> None:
    def refuse(_: object) -> StoreFault:
        hands.advance(seconds)
        return error

    store = ToldStore(refuse)
    isolation = made(store)
    isolation.monotonic = hands.monotonic
    sent = await isolation.send([batch("a", 3), batch("b", 3)])
    assert sent.fault is error
    assert (sent.refusals, sent.delivered, len(store.batches)) == ([], {}, tries)


@pytest.mark.parametrize(
    ("error", "times"),
    [(DOWN, 1), (fault(FaultClass.CONFLICT, "40P01"), 2), (fault(FaultClass.UNKNOWN_OUTCOME, "08007"), 1)],
    ids=["a connection that was cut while it lay idle", "a conflict", "an answer that was lost"],
)
async def test_what_passes_is_tried_again_at_once(error: StoreFault, times: int) -> None:
    errors = [error] * times
    store = ToldStore(lambda _: errors.pop() if errors else None)
    sent = await made(store).send([batch("a", 3)])
    assert (sent.fault, sent.refusals, sent.delivered) == (None, [], {"a": 3})
    assert sent.faults == {error.fault_class: times}


async def test_a_store_that_never_answers_is_given_up_after_the_deadline() -> None:
    hanging = ToldStore()
    hanging.hold(3_600)
    sent = await made(hanging, deadline=0.05).send([batch("a", 3)])
    assert (sent.fault.fault_class, sent.fault.code) == (FaultClass.UNKNOWN_OUTCOME, "deadline")


async def test_any_error_at_all_is_sorted_not_raised() -> None:
    store = ToldStore(refusing(KeyError("a secret"), ("b", 1)))
    sent = await made(store).send([batch("a", 1), batch("b", 1), batch("c", 1)])
    assert charges(sent) == {("b", 1, True, False)}
    assert "a secret" not in sent.refusals[0].fault and "KeyError" in sent.refusals[0].fault


async def test_use_after_close_is_not_a_fault_of_the_store() -> None:
    with pytest.raises(Closed):
        await made(ToldStore(lambda _: Closed("closed"))).send([batch("a", 1)])


@pytest.mark.parametrize("kind", [FaultClass.UNAVAILABLE, FaultClass.MISCONFIGURED, FaultClass.UNKNOWN_OUTCOME])
async def test_what_looks_like_an_outage_is_the_events_when_it_always_fails_alone(kind: FaultClass) -> None:
    """MariaDB answers a packet that is too large by cutting the connection."""
    store = ToldStore(refusing(fault(kind, "x"), ("big", 3)))
    isolation = made(store)
    outcomes = []
    for number in range(10):
        sent = await isolation.send([batch("big", 5), batch(f"other-{number}", 1)])
        outcomes.append(sent.fault)
        if sent.fault is None:
            break
        await isolation.send([batch(f"probe-{number}", 1)])  # the probe of another conversation gets through

    assert 3 <= len(outcomes) <= 5
    assert charges(sent) == {("big", 3, True, False)}
    assert store.held("big") == 2


async def test_other_content_in_the_history_ends_the_lane_there_for_good() -> None:
    store = ToldStore()
    whole = batch("a", 5)
    await made(store).send([replace(whole, deliveries=whole.deliveries[:2])])
    store.lanes["a"].append((UUID(int=99), b"other"))
    sent = await made(store).send([whole])

    assert charges(sent) == {("a", 3, True, True)}
    assert (sent.delivered, store.held("a")) == ({"a": 2}, 3)


async def test_a_store_that_goes_away_before_the_good_beginning_of_a_lane_charges_nothing() -> None:
    store = ToldStore()
    store.refuse = lambda _: DOWN if len(store.batches) > 1 else None
    whole = batch("a", 5)
    first = whole.deliveries[0].event
    store.lanes["a"] = [(first.event_id, first.digest), (UUID(int=99), b"other")]
    sent = await made(store).send([whole])

    assert (sent.fault, sent.refusals, sent.delivered) == (DOWN, [], {})


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_fails_what_is_called_delivered_is_held_and_nothing_is_skipped(seed: int) -> None:
    """Random faults of every class, random bad events: the store's lanes are prefixes, and `delivered` is true."""
    chance = random.Random(seed)
    bad = {(f"c{chance.randrange(20)}", chance.randrange(1, 8)) for _ in range(chance.randrange(4))}
    kinds = [fault(one) for one in FaultClass] + [KeyError("bug")]

    def refuse(lanes: Sequence[LaneBatch]) -> BaseException | None:
        if chance.random() < 0.15:
            return chance.choice(kinds)
        return refusing(POISON, *bad)(lanes)

    store = ToldStore(refuse)
    isolation = made(store)
    at = {f"c{number}": 0 for number in range(20)}
    for _ in range(60):
        owed = [batch(one, 7 - last, first=last + 1) for one, last in at.items() if last < 7]
        sent = await isolation.send(owed)
        for one, last in sent.delivered.items():
            assert store.held(one) >= last > at[one]
            at[one] = last
        for refusal in sent.refusals:
            assert refusal.sequence == at[refusal.conversation_id] + 1
            assert isinstance(sent.fault, StoreFault | None)

    assert sent.gaps == {}
    worst = {one: min((sequence for name, sequence in bad if name == one), default=8) - 1 for one in at}
    assert at == worst


# Whose fault a refusal is.


def beside(trial: BaseException | None, real: Refuse) -> Refuse:
    """Refuse what a trial sends in one way, and real conversations in another."""
    return lambda lanes: trial if lanes[0].conversation_id.startswith("letopis-trial-") else real(lanes)


def refused_but_for_beginnings(lanes: Sequence[LaneBatch]) -> BaseException | None:
    return None if all(one.sequence == 1 for lane in lanes for one in lane.deliveries) else POISON


REAL = beside(None, lambda _: POISON)
"""Refuse every conversation, and take what a trial sends."""


@pytest.mark.parametrize(
    ("refuse", "lanes", "found", "charged", "cleared"),
    [
        # What an ordinary event is refused for too.
        *((lambda _: POISON, batches(count, 4), "poison 22021", set(), 1) for count in (1, 2, 3, 50)),
        # In other words than an ordinary event: an operator's own rule may require what only their conversations have.
        (
            beside(fault(FaultClass.POISON, "23514"), refusing(POISON, ("a", 2))),
            [batch("a", 3)],
            None,
            {("a", 2, True, False)},
            0,
        ),
        # The store goes away while an ordinary event is tried.
        (beside(DOWN, lambda _: POISON), [batch("a", 3)], "unavailable refused", set(), 0),
        # Three in a row, although an ordinary event is accepted: a column may be narrower than real messages.
        (REAL, batches(50, 4), "poison 22021", set(), 3),
        # A good beginning is no witness: beginnings are taken, and messages are refused.
        (beside(None, refused_but_for_beginnings), batches(5, 2), "poison 22021", set(), 3),
        # A strange fault of three different conversations.
        (lambda _: STRANGE, batches(50, 4), "unclassified KeyError", set(), 1),
    ],
)
async def test_a_refusal_is_the_stores_if_nothing_shows_that_it_is_the_events(
    refuse: Refuse, lanes: list[LaneBatch], found: str | None, charged: set[Any], cleared: int
) -> None:
    store = ToldStore(refuse)
    sent = await made(store).send(lanes)

    assert (sent.fault and f"{sent.fault.fault_class} {sent.fault.code}", charges(sent)) == (found, charged)
    assert len(sent.cleared) == cleared
    if found == "poison 22021" and cleared == 1:
        assert "so it is the history store" in str(sent.fault)
        assert (sent.cleared, sent.answered, store.trials) == (("c0",), False, 1)


@pytest.mark.parametrize("sound", [1, 2, 5, 60])
@pytest.mark.parametrize("bad", [2, 3])
async def test_bad_conversations_that_stand_side_by_side_before_sound_ones_are_each_charged(
    bad: int, sound: int
) -> None:
    """What was not tried yet is tried before the store is found to refuse all."""
    poisoned = [(f"bad-{number}", 1) for number in range(bad)]
    store = ToldStore(refusing(POISON, *poisoned))
    sent = await made(store).send([batch(name, 2) for name, _ in poisoned] + [batch(f"c{n}", 2) for n in range(sound)])
    assert sent.fault is None
    assert charges(sent) == {(*one, True, False) for one in poisoned}
    assert len(sent.delivered) == sound


async def test_the_most_suspicious_conversation_goes_last() -> None:
    attribution = FaultAttribution()
    for others, times in (("worse", 3), ("bad", 2)):
        for _ in range(times):
            attribution.record_failure([others])
            attribution.record_success(["sound"])
    store, names = ToldStore(), ("worse", "suspect", "bad", "sound", "too")
    await made(store, attribution=attribution).send([batch(name, 1) for name in names], suspects=["suspect"])

    sent = [[lane.conversation_id for lane in lanes] for lanes in store.batches]
    assert sent == [["sound", "too"], ["suspect"], ["bad"], ["worse"]]

"""Isolating the event that makes a batch fail."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID, uuid4

import orjson
import pytest

from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.relay.outcome import SendResult
from letopis.outbox.relay.poison_isolation import MAX_UNAVAILABLE_TRIES, PoisonIsolation, _middle
from letopis.outbox.retry.fault_attribution import FaultAttribution
from letopis.store import Message, Seen
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.errors import Closed, OriginSuperseded
from letopis.store.model.codec import EncodedEvent, encode
from letopis.store.model.events import Event
from letopis.store.rules.apply_plan import ApplyResult, LaneBatch, Origin, SequencedEvent
from tests.support.relays import DOWN, POISON, ToldStore, fault

ORIGIN = Origin(origin_id=uuid4(), epoch=1, name="test")
STRANGE = fault(FaultClass.UNCLASSIFIED, "KeyError")


def batch(conversation_id: str, count: int, *, first: int = 1) -> LaneBatch:
    return LaneBatch(
        conversation_id=conversation_id,
        deliveries=tuple(
            SequencedEvent(
                sequence=sequence,
                event=encode(
                    Event(type="custom.said", data={"n": sequence}, event_id=UUID(int=sequence)),
                    conversation_id=conversation_id,
                ),
            )
            for sequence in range(first, first + count)
        ),
    )


def refusing(error: BaseException, *bad: tuple[str, int]) -> Callable[[Sequence[LaneBatch]], BaseException | None]:
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
        try_out=store.outbox_access.try_out,
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


async def test_a_good_batch_goes_in_one_piece() -> None:
    store = ToldStore()
    sent = await made(store).send([batch("a", 3), batch("b", 2)])

    assert sent.delivered == {"a": 3, "b": 2}
    assert (sent.inserted, sent.duplicates, sent.fault, sent.refusals) == (5, 0, None, [])
    assert len(store.batches) == 1


async def test_one_bad_event_among_two_hundred_conversations_is_found_and_all_else_gets_through() -> None:
    store = ToldStore(refusing(POISON, ("c77", 3)))
    sent = await made(store).send([batch(f"c{number}", 5) for number in range(200)])

    assert charges(sent) == {("c77", 3, True, False)}
    assert sent.delivered["c77"] == 2
    assert sum(sent.delivered.values()) == 199 * 5 + 2
    assert store.held("c77") == 2
    assert len(store.batches) < 30


@pytest.mark.parametrize("where", range(1, 12))
async def test_the_good_events_before_the_bad_one_get_through_and_none_after_it(where: int) -> None:
    store = ToldStore(refusing(POISON, ("a", where)))
    sent = await made(store).send([batch("a", 11)])

    assert charges(sent) == {("a", where, True, False)}
    assert store.held("a") == where - 1
    assert sent.delivered == ({"a": where - 1} if where > 1 else {})


async def test_a_store_that_is_away_stops_everything_and_charges_no_conversation() -> None:
    store = ToldStore(lambda _: DOWN)
    sent = await made(store).send([batch("a", 3), batch("b", 3)])

    assert sent.fault is DOWN
    assert (sent.refusals, sent.delivered, len(store.batches)) == ([], {}, MAX_UNAVAILABLE_TRIES)


async def test_a_connection_that_was_cut_while_it_lay_idle_is_no_outage() -> None:
    cut = [DOWN]
    store = ToldStore(lambda _: cut.pop() if cut else None)
    sent = await made(store).send([batch("a", 3)])

    assert (sent.fault, sent.delivered, sent.faults) == (None, {"a": 3}, {"unavailable": 1})


async def test_a_store_that_goes_away_while_the_bad_event_is_looked_for_keeps_what_it_took() -> None:
    store = ToldStore()

    def refuse(lanes: Sequence[LaneBatch]) -> BaseException | None:
        if len(store.batches) > 3:
            return DOWN
        return refusing(POISON, ("c7", 2))(lanes)

    store.refuse = refuse
    sent = await made(store).send([batch(f"c{number}", 3) for number in range(8)])

    assert sent.fault is DOWN
    assert sent.refusals == []
    assert sent.delivered == {one: len(held) for one, held in store.lanes.items() if held}
    assert sent.delivered


async def test_a_conflict_is_tried_again_at_once() -> None:
    faults = [fault(FaultClass.CONFLICT, "40P01"), fault(FaultClass.CONFLICT, "40P01")]
    store = ToldStore(lambda _: faults.pop() if faults else None)
    sent = await made(store).send([batch("a", 3)])

    assert sent.delivered == {"a": 3}
    assert sent.faults == {"conflict": 2}
    assert sent.refusals == []


async def test_a_conversation_in_lasting_conflict_waits_uncharged_and_lets_the_others_through() -> None:
    """Another transaction holds its row locked."""
    store = ToldStore(refusing(fault(FaultClass.CONFLICT, "55P03"), ("a", 1)))
    sent = await made(store).send([batch("a", 1), batch("b", 2)])

    assert sent.delivered == {"b": 2}
    assert charges(sent) == {("a", 1, False, False)}
    assert sent.fault is None


async def test_an_unknown_outcome_is_sent_again_and_absorbed() -> None:
    store = ToldStore()
    lost = [fault(FaultClass.UNKNOWN_OUTCOME, "08007")]
    store.after = lambda: lost.pop() if lost else None
    sent = await made(store).send([batch("a", 3)])

    assert (sent.delivered, sent.inserted, sent.duplicates) == ({"a": 3}, 0, 3)
    assert store.held("a") == 3


async def test_a_store_that_never_answers_is_given_up_after_the_deadline() -> None:
    class Hanging(ToldStore):
        async def apply(self, origin: Origin, lanes: Sequence[LaneBatch]) -> ApplyResult:
            await asyncio.sleep(3_600)
            raise AssertionError

    sent = await made(Hanging(), deadline=0.05).send([batch("a", 3)])

    assert sent.fault is not None
    assert (sent.fault.fault_class, sent.fault.code) == (FaultClass.UNKNOWN_OUTCOME, "deadline")


async def test_a_strange_fault_is_the_events_when_other_conversations_get_through() -> None:
    store = ToldStore(refusing(STRANGE, ("b", 2)))
    sent = await made(store).send([batch("a", 3), batch("b", 3), batch("c", 3)])

    assert charges(sent) == {("b", 2, True, False)}
    assert sent.delivered == {"a": 3, "b": 1, "c": 3}
    assert sent.fault is None


async def test_a_strange_fault_of_three_different_conversations_is_the_stores() -> None:
    store = ToldStore(lambda _: STRANGE)
    sent = await made(store).send([batch(f"c{number}", 4) for number in range(50)])

    assert sent.fault is STRANGE
    assert sent.refusals == []


async def test_a_strange_fault_with_no_other_conversation_is_not_charged() -> None:
    store = ToldStore(refusing(STRANGE, ("a", 1)))
    sent = await made(store).send([batch("a", 4)])

    assert charges(sent) == {("a", 1, False, False)}
    assert sent.fault is None
    assert store.trials == 1


async def test_any_error_at_all_is_sorted_not_raised() -> None:
    store = ToldStore(refusing(KeyError("a secret"), ("b", 1)))
    sent = await made(store).send([batch("a", 1), batch("b", 1), batch("c", 1)])

    assert charges(sent) == {("b", 1, True, False)}
    assert "a secret" not in sent.refusals[0].fault
    assert "KeyError" in sent.refusals[0].fault


async def test_use_after_close_is_not_a_fault_of_the_store() -> None:
    with pytest.raises(Closed):
        await made(ToldStore(lambda _: Closed("closed"))).send([batch("a", 1)])


async def test_what_looks_like_an_outage_is_the_events_when_it_always_fails_alone() -> None:
    """MariaDB answers a packet that is too large by cutting the connection."""
    attribution = FaultAttribution()
    store = ToldStore(refusing(DOWN, ("big", 3)))
    isolation = made(store, attribution=attribution)
    outcomes = []
    for number in range(10):
        sent = await isolation.send([batch("big", 5), batch(f"other-{number}", 1)])
        outcomes.append(sent.fault)
        if sent.fault is not None:  # the probe of another conversation gets through
            await isolation.send([batch(f"probe-{number}", 1)])
        else:
            break

    assert 3 <= len(outcomes) <= 5
    assert charges(sent) == {("big", 3, True, False)}
    assert store.held("big") == 2


async def test_a_lane_that_the_store_has_lost_events_of_is_reported() -> None:
    store = ToldStore()
    sent = await made(store).send([batch("a", 2, first=5), batch("b", 2)])

    assert sent.gaps == {"a": 0}
    assert sent.delivered == {"b": 2}


async def test_other_content_in_the_history_ends_the_lane_there_for_good() -> None:
    store = ToldStore()
    whole = batch("a", 5)
    await made(store).send([replace(whole, deliveries=whole.deliveries[:2])])
    store.lanes["a"].append((UUID(int=99), b"other"))
    sent = await made(store).send([whole])

    assert charges(sent) == {("a", 3, True, True)}
    assert sent.delivered == {"a": 2}
    assert store.held("a") == 3


async def test_a_superseded_outbox_is_no_fault_of_an_event() -> None:
    store = ToldStore(lambda _: OriginSuperseded(origin_id=ORIGIN.origin_id, epoch=1, current=2))
    sent = await made(store).send([batch("a", 1)])

    assert sent.fault is not None
    assert (sent.fault.fault_class, sent.fault.code) == (FaultClass.MISCONFIGURED, "origin-superseded")
    assert "--new-origin" in str(sent.fault)


async def test_suspects_go_on_their_own_after_the_others() -> None:
    store = ToldStore()
    await made(store).send([batch("a", 1), batch("b", 1), batch("c", 1)], suspects=["a"])

    assert [[lane.conversation_id for lane in lanes] for lanes in store.batches] == [["b", "c"], ["a"]]


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

ORDINARY = "letopis-trial-"


def everybody(error: StoreFault, *, ordinary: bool) -> Callable[[Sequence[LaneBatch]], BaseException | None]:
    """Refuse every conversation; with ``ordinary``, what a trial sends too."""

    def refuse(lanes: Sequence[LaneBatch]) -> BaseException | None:
        trial = any(lane.conversation_id.startswith(ORDINARY) for lane in lanes)
        return error if ordinary or not trial else None

    return refuse


@pytest.mark.parametrize("count", [1, 2, 3, 50])
async def test_what_an_ordinary_event_is_refused_for_too_is_the_stores_and_not_charged(count: int) -> None:
    store = ToldStore(everybody(POISON, ordinary=True))
    sent = await made(store).send([batch(f"c{number}", 4) for number in range(count)])

    assert sent.fault is not None
    assert (sent.fault.fault_class, sent.fault.code) == (FaultClass.POISON, "22021")
    assert "so it is the history store" in str(sent.fault)
    assert (sent.refusals, sent.cleared, sent.answered) == ([], ("c0",), False)
    assert store.trials == 1


async def test_what_is_refused_in_other_words_than_an_ordinary_event_is_the_events() -> None:
    """An operator's own rule may require what only their conversations have."""

    def refuse(lanes: Sequence[LaneBatch]) -> BaseException | None:
        if any(lane.conversation_id.startswith(ORDINARY) for lane in lanes):
            return fault(FaultClass.POISON, "23514")
        return refusing(POISON, ("a", 2))(lanes)

    sent = await made(ToldStore(refuse)).send([batch("a", 3)])

    assert charges(sent) == {("a", 2, True, False)}
    assert sent.fault is None


async def test_a_store_that_goes_away_while_an_ordinary_event_is_tried_is_away() -> None:
    def refuse(lanes: Sequence[LaneBatch]) -> BaseException | None:
        return DOWN if any(lane.conversation_id.startswith(ORDINARY) for lane in lanes) else POISON

    sent = await made(ToldStore(refuse)).send([batch("a", 3)])

    assert sent.fault is DOWN
    assert (sent.refusals, sent.cleared) == ([], ())


async def test_three_that_are_refused_in_a_row_with_none_getting_through_make_it_the_store() -> None:
    """Although an ordinary event is accepted: a column may have been narrowed below real messages."""
    store = ToldStore(everybody(POISON, ordinary=False))
    sent = await made(store).send([batch(f"c{number}", 4) for number in range(50)])

    assert sent.fault is not None
    assert sent.fault.fault_class is FaultClass.POISON
    assert sent.refusals == []
    assert len(sent.cleared) == 3


async def test_three_that_are_refused_one_after_the_other_make_it_the_store_too() -> None:
    isolation = made(ToldStore(everybody(POISON, ordinary=False)))
    outcomes = [await isolation.send([batch(name, 1)]) for name in ("a", "b", "b", "c")]

    assert [one.fault is None for one in outcomes] == [True, True, True, False]
    assert [len(one.refusals) for one in outcomes] == [1, 1, 1, 0]
    assert set(outcomes[-1].cleared) == {"a", "b", "c"}


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


async def test_charged_conversations_are_no_evidence_against_the_store() -> None:
    attribution = FaultAttribution()
    poisoned = [(f"bad-{number}", 1) for number in range(4)]
    isolation = made(ToldStore(refusing(POISON, *poisoned)), attribution=attribution)
    await isolation.send([batch("sound", 1), *(batch(name, 1) for name, _ in poisoned)])
    sent = await isolation.send([batch(name, 1) for name, _ in poisoned], suspects=[name for name, _ in poisoned])

    assert sent.fault is None
    assert charges(sent) == {(*one, True, False) for one in poisoned}


async def test_the_good_beginning_of_a_bad_conversation_is_no_witness_against_another() -> None:
    """Beginnings are taken, messages are refused: no conversation succeeded."""

    def refuse(lanes: Sequence[LaneBatch]) -> BaseException | None:
        trial = any(lane.conversation_id.startswith(ORDINARY) for lane in lanes)
        return POISON if not trial and any(one.sequence > 1 for lane in lanes for one in lane.deliveries) else None

    sent = await made(ToldStore(refuse)).send([batch(f"c{number}", 2) for number in range(5)])

    assert sent.fault is not None
    assert sent.refusals == []


@pytest.mark.parametrize("kind", [FaultClass.UNAVAILABLE, FaultClass.MISCONFIGURED, FaultClass.UNKNOWN_OUTCOME])
async def test_whatever_follows_one_event_is_the_events_once_others_got_through(kind: FaultClass) -> None:
    attribution = FaultAttribution()
    store = ToldStore(refusing(fault(kind, "x"), ("big", 3)))
    isolation = made(store, attribution=attribution)
    sent = SendResult()
    for number in range(5):
        sent = await isolation.send([batch("big", 5), batch(f"other-{number}", 1)])
        if sent.fault is None:
            break
        await isolation.send([batch(f"probe-{number}", 1)])

    assert charges(sent) == {("big", 3, True, False)}


async def test_the_most_suspicious_conversation_goes_last() -> None:
    attribution = FaultAttribution()
    for others, times in (("worse", 3), ("bad", 2)):
        for _ in range(times):
            attribution.record_failure([others])
            attribution.record_success(["sound"])
    store = ToldStore()
    await made(store, attribution=attribution).send([batch("worse", 1), batch("bad", 1), batch("sound", 1)])

    assert [lanes[0].conversation_id for lanes in store.batches] == ["sound", "bad", "worse"]


@pytest.mark.parametrize(
    ("appends", "middle"), [((3, 1), 3), ((1, 3), 1), ((2, 2, 3), 2), ((4,), 2), ((-5,), 2), ((3, -2), 3)]
)
def test_events_are_divided_between_two_appends_as_near_to_the_middle_as_can_be(
    appends: tuple[int, ...], middle: int
) -> None:
    """The numbers are of events; negative ones have no condition, and each may be sent without the others."""
    events = list[EncodedEvent]()
    for number in appends:
        messages = [Message.user("x") for _ in range(abs(number))]
        events += prepare("c", messages, after=Seen(sequence=1, version=1) if number > 0 else None).events

    assert _middle([SequencedEvent(sequence=place, event=one) for place, one in enumerate(events, 1)]) == middle

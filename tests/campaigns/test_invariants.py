"""The invariants hold on a sound history, and every way to break one is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from uuid import UUID

import pytest

from tests.campaigns.invariants import (
    Ack,
    OutboxEvent,
    OutboxLane,
    OutboxState,
    StoredEvent,
    StoreState,
    Verdict,
    examine,
)

ORIGIN = UUID(int=1)
STORED, PENDING = 4, 2


def digest(place: int) -> bytes:
    return b"%032d" % place


def stored(place: int) -> StoredEvent:
    return StoredEvent(
        0, place, "a", place, UUID(int=100 + place), ORIGIN, place, "message.appended", digest(place), digest(place)
    )


def kept(place: int) -> OutboxEvent:
    return OutboxEvent("a", place, UUID(int=100 + place), digest(place), digest(place))


@dataclass
class World:
    """Six events of one conversation: four are stored, two pending, and the outbox has let the first go."""

    store: StoreState = field(
        default_factory=lambda: StoreState(
            events=[stored(place) for place in range(1, STORED + 1)],
            lanes={(ORIGIN, "a"): STORED},
            conversations={"a": (STORED, STORED)},
            messages=[("a", place) for place in range(1, STORED + 1)],
            log_heads={0: STORED},
        )
    )
    outbox: OutboxState = field(
        default_factory=lambda: OutboxState(
            name="bot.outbox.db",
            origin_id=ORIGIN,
            events=[kept(place) for place in range(2, STORED + PENDING + 1)],
            lanes={"a": OutboxLane(STORED + PENDING, STORED, 1, "ready")},
        )
    )
    acknowledged: list[Ack] = field(
        default_factory=lambda: [Ack("a", UUID(int=100 + place), place) for place in range(1, STORED + PENDING + 1)]
    )

    def examine(self, *, drained: bool = False) -> Verdict:
        return examine(self.store, [self.outbox], acknowledged=self.acknowledged, drained=drained)

    def change_stored(self, place: int, **fields: object) -> None:
        events = list(self.store.events)
        events[place - 1] = events[place - 1]._replace(**fields)  # type: ignore[arg-type]
        self.store = replace(self.store, events=events)

    def change_lane(self, **fields: object) -> None:
        lane = self.outbox.lanes["a"]._replace(**fields)  # type: ignore[arg-type]
        self.outbox = replace(self.outbox, lanes={"a": lane})


def test_a_sound_history_has_no_problem() -> None:
    verdict = World().examine()

    assert verdict.ok, verdict
    assert (verdict.stored, verdict.pending, verdict.retained, verdict.acknowledged) == (STORED, PENDING, 5, 6)


def test_a_lost_acknowledgement_of_the_relay_is_no_problem() -> None:
    world = World()
    world.change_lane(delivered=STORED - 1)

    assert world.examine().ok


def lose_a_stored_event(world: World) -> None:
    world.store = replace(world.store, events=[world.store.events[0], *world.store.events[2:]])


def lose_the_last_stored_event(world: World) -> None:
    world.store = replace(world.store, events=world.store.events[:-1])


def lose_the_last_stored_event_without_a_trace(world: World) -> None:
    world.store = StoreState(
        events=world.store.events[:-1],
        lanes={(ORIGIN, "a"): STORED - 1},
        conversations={"a": (STORED - 1, STORED - 1)},
        messages=world.store.messages[:-1],
        log_heads={0: STORED - 1},
    )


def double_a_stored_event(world: World) -> None:
    twin = stored(STORED)._replace(position=STORED + 1, version=STORED + 1)
    world.store = replace(world.store, events=[*world.store.events, twin])


def swap_two_stored_events(world: World) -> None:
    world.change_stored(2, event_id=UUID(int=103), sequence=3)
    world.change_stored(3, event_id=UUID(int=102), sequence=2)


def swap_two_contents(world: World) -> None:
    world.change_stored(2, digest=digest(3), content=digest(3))
    world.change_stored(3, digest=digest(2), content=digest(2))


def change_a_stored_content(world: World) -> None:
    world.change_stored(2, content=digest(9))


def store_another_event(world: World) -> None:
    world.change_stored(2, event_id=UUID(int=999))


def skip_a_position(world: World) -> None:
    world.change_stored(STORED, position=STORED + 1)


def put_a_conversation_into_two_partitions(world: World) -> None:
    world.change_stored(STORED, partition=1, position=1)


def move_the_store_lane_too_far(world: World) -> None:
    world.store = replace(world.store, lanes={(ORIGIN, "a"): STORED + 1})


def lose_the_store_lane(world: World) -> None:
    world.store = replace(world.store, lanes={})


def move_the_counter(world: World) -> None:
    world.store = replace(world.store, log_heads={0: STORED + 1})


def miscount_the_messages(world: World) -> None:
    world.store = replace(world.store, conversations={"a": (STORED, STORED - 1)})


def miscount_the_versions(world: World) -> None:
    world.store = replace(world.store, conversations={"a": (STORED + 1, STORED)})


def lose_a_listed_message(world: World) -> None:
    world.store = replace(world.store, messages=world.store.messages[1:])


def list_a_foreign_message(world: World) -> None:
    world.store = replace(world.store, messages=[*world.store.messages, ("a", 9)])


def count_more_as_delivered_than_is_stored(world: World) -> None:
    world.change_lane(delivered=STORED + 1)


def lose_a_pending_event(world: World) -> None:
    world.outbox = replace(world.outbox, events=world.outbox.events[:-1])


def lose_a_pending_event_and_its_place(world: World) -> None:
    lose_a_pending_event(world)
    world.change_lane(head=STORED + 1)


def forget_a_lane(world: World) -> None:
    world.outbox = replace(world.outbox, lanes={}, events=[])


def prune_what_is_pending(world: World) -> None:
    world.change_lane(pruned=STORED + 1)


def change_a_pending_content(world: World) -> None:
    event = world.outbox.events[-1]._replace(content=digest(9))
    world.outbox = replace(world.outbox, events=[*world.outbox.events[:-1], event])


def keep_an_event_twice(world: World) -> None:
    event = world.outbox.events[-1]._replace(event_id=UUID(int=105))
    world.outbox = replace(world.outbox, events=[*world.outbox.events[:-1], event])


def damage_the_outbox(world: World) -> None:
    world.outbox = replace(world.outbox, integrity="row 7 missing from index")


def promise_what_is_nowhere(world: World) -> None:
    world.acknowledged.append(Ack("a", UUID(int=999)))


def promise_another_place(world: World) -> None:
    world.acknowledged[2] = Ack("a", UUID(int=103), 4)


BREAKAGES: list[Callable[[World], None]] = [
    lose_a_stored_event,
    lose_the_last_stored_event,
    lose_the_last_stored_event_without_a_trace,
    double_a_stored_event,
    swap_two_stored_events,
    swap_two_contents,
    change_a_stored_content,
    store_another_event,
    skip_a_position,
    put_a_conversation_into_two_partitions,
    move_the_store_lane_too_far,
    lose_the_store_lane,
    move_the_counter,
    miscount_the_messages,
    miscount_the_versions,
    lose_a_listed_message,
    list_a_foreign_message,
    count_more_as_delivered_than_is_stored,
    lose_a_pending_event,
    lose_a_pending_event_and_its_place,
    forget_a_lane,
    prune_what_is_pending,
    change_a_pending_content,
    keep_an_event_twice,
    damage_the_outbox,
    promise_what_is_nowhere,
    promise_another_place,
]


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_every_breakage_is_found(breakage: Callable[[World], None]) -> None:
    world = World()
    breakage(world)

    verdict = world.examine()

    assert not verdict.ok
    assert verdict.problems


def test_what_must_be_drained_and_is_not_is_a_problem() -> None:
    assert World().examine().ok
    assert not World().examine(drained=True).ok

"""The invariants hold on a sound history, and every way to break one is found."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest

from tests.campaigns.invariants import Verdict, examine
from tests.campaigns.rules import examine_erasure, examine_replayed, examine_wholeness
from tests.campaigns.states import (
    Ack,
    OutboxEvent,
    OutboxLane,
    OutboxState,
    StoredConversation,
    StoredEvent,
    StoredMessage,
    StoreState,
)

ORIGIN = UUID(int=1)
STORED, PENDING = 4, 2
SAID = "message.appended"


def digest(place: int) -> bytes:
    return b"%032d" % place


def stored(place: int, kind: str = SAID, message_id: str | None = None, **more: Any) -> StoredEvent:
    content = digest(place)
    event_id = UUID(int=100 + place)
    return StoredEvent(0, place, "a", place, event_id, ORIGIN, place, kind, content, content, message_id, **more)


def kept(place: int, batch: int | None = None) -> OutboxEvent:
    append = None if batch is None else UUID(int=batch)
    return OutboxEvent("a", place, UUID(int=100 + place), digest(place), digest(place), batch=append)


@dataclass
class World:
    """A store and an outbox that delivers to it, to be broken in one way or another."""

    store: Any
    outbox: Any
    acknowledged: list[Ack] = field(default_factory=list)

    def examine(self, *, drained: bool = False) -> Verdict:
        return examine(self.store, [self.outbox], acknowledged=self.acknowledged, drained=drained)


def change(things: Any, place: Any, **fields: object) -> None:
    things[place] = things[place]._replace(**fields)


def plain(held: int = STORED) -> World:
    """Six events of one conversation: four are stored, two pending, and the outbox has let the first go."""
    return World(
        StoreState(
            events=[stored(place) for place in range(1, held + 1)],
            lanes={(ORIGIN, "a"): held},
            conversations={"a": StoredConversation(held, held)},
            messages=[StoredMessage("a", place) for place in range(1, held + 1)],
            log_heads={0: held},
        ),
        OutboxState(
            name="bot.outbox.db",
            origin_id=ORIGIN,
            events=[kept(place) for place in range(2, STORED + PENDING + 1)],
            lanes={"a": OutboxLane(STORED + PENDING, STORED, 1, "ready")},
        ),
        [Ack("a", UUID(int=100 + place), place) for place in range(1, STORED + PENDING + 1)],
    )


def test_a_sound_history_has_no_problem() -> None:
    verdict = plain().examine()

    assert verdict.ok, verdict
    assert (verdict.stored, verdict.pending, verdict.retained, verdict.acknowledged) == (STORED, PENDING, 5, 6)
    assert not plain().examine(drained=True).ok


def swap(it: World, *names: str) -> None:
    second, third = it.store.events[1:3]
    change(it.store.events, 1, **{name: getattr(third, name) for name in names})
    change(it.store.events, 2, **{name: getattr(second, name) for name in names})


def lose_a_pending_event_and_its_place(it: World) -> None:
    it.outbox.events.pop()
    change(it.outbox.lanes, "a", head=STORED + 1)


def forget_a_lane(it: World) -> None:
    it.outbox.lanes.clear()
    it.outbox.events.clear()


TWIN = stored(STORED)._replace(position=STORED + 1, version=STORED + 1)
BREAKAGES: dict[str, Callable[[World], object]] = {
    "lose a stored event": lambda it: it.store.events.pop(1),
    "lose the last stored event": lambda it: it.store.events.pop(),
    "lose the last stored event without a trace": lambda it: setattr(it, "store", plain(STORED - 1).store),
    "double a stored event": lambda it: it.store.events.append(TWIN),
    "swap two stored events": lambda it: swap(it, "event_id", "sequence"),
    "swap two contents": lambda it: swap(it, "digest", "content"),
    "change a stored content": lambda it: change(it.store.events, 1, content=digest(9)),
    "store another event": lambda it: change(it.store.events, 1, event_id=UUID(int=999)),
    "put a conversation into two partitions": lambda it: change(it.store.events, -1, partition=1, position=1),
    "move the store's lane too far": lambda it: it.store.lanes.update({(ORIGIN, "a"): STORED + 1}),
    "lose the store's lane": lambda it: it.store.lanes.clear(),
    "move the counter": lambda it: it.store.log_heads.update({0: STORED + 1}),
    "miscount the messages": lambda it: change(it.store.conversations, "a", message_count=STORED - 1),
    "lose a listed message": lambda it: it.store.messages.pop(0),
    "list a foreign message": lambda it: it.store.messages.append(StoredMessage("a", 9)),
    "count more as delivered than is stored": lambda it: change(it.outbox.lanes, "a", delivered=STORED + 1),
    "lose a pending event": lambda it: it.outbox.events.pop(),
    "lose a pending event and its place": lose_a_pending_event_and_its_place,
    "forget a lane": forget_a_lane,
    "prune what is pending": lambda it: change(it.outbox.lanes, "a", pruned=STORED + 1),
    "change a pending content": lambda it: change(it.outbox.events, -1, content=digest(9)),
    "keep an event twice": lambda it: change(it.outbox.events, -1, event_id=UUID(int=105)),
    "damage the outbox": lambda it: setattr(it, "outbox", replace(it.outbox, integrity="row 7 missing from index")),
    "promise what is nowhere": lambda it: it.acknowledged.append(Ack("a", UUID(int=999))),
    "promise another place": lambda it: change(it.acknowledged, 2, sequence=4),
}


# --- What the rules of a conversation demand ------------------------------------------------------------------------

RIVAL = UUID(int=2)
TYPES = (
    "conversation.started",
    "message.appended",  # 2 by us, redacted at 7
    "message.appended",  # 3 by the rival
    "message.appended",  # 4 by us, on a reading of 2: put aside for 3
    "message.appended",  # 5 the second event of that turn
    "conversation.rewound",  # 6 by the rival: 3 leaves the path
    "message.redacted",  # 7
    "message.appended",  # 8 by us, on a reading of 7: stands
)
ASIDE = {"expected": 2, "actual": 3}
NOTED = {
    4: {"expects": {"sequence": 2, "version": 2}, "superseded": ASIDE},
    5: {"expects": {"sequence": 2, "version": 2, "turn": str(UUID(int=204))}, "superseded": ASIDE},
    8: {"expects": {"sequence": 5, "version": 7, "types": [SAID]}},
}


def of_two(version: int) -> StoredEvent:
    """One event of the conversation ``a``, that two outboxes write."""
    rival = version in (3, 6)
    sequence = {3: 1, 6: 2}.get(version) or version - sum(one < version for one in (3, 6))
    message_id = {1: None, 6: None, 7: "m-2"}.get(version, f"m-{version}")
    event = stored(version, TYPES[version - 1], message_id, bare=version == 2, noted=NOTED.get(version, {}))
    return event._replace(
        event_id=UUID(int=200 + version),
        origin_id=RIVAL if rival else ORIGIN,
        sequence=sequence,
        digest=None if version == 2 else digest(version),
        to_message_id="m-2" if version == 6 else None,
    )


def kept_of_two(version: int) -> OutboxEvent:
    """The same event in the outbox; what is left of a redacted one has a digest of its own there."""
    event, erased = of_two(version), version == 2
    left = event.digest or digest(77)
    return OutboxEvent("a", event.sequence, event.event_id, left, left, erased, erased, event.type)


def of_deleted(version: int) -> StoredEvent:
    """One event of the conversation ``b``: begun, said, deleted, and spoken to after that."""
    kind = {1: "conversation.started", 3: "conversation.deleted"}.get(version, SAID)
    noted = {"superseded": {"expected": 0, "actual": 3}} if version == 4 else {}
    event = stored(version, kind, f"b-{version}" if kind == SAID else None, bare=version != 3, noted=noted)
    here = {"position": 8 + version, "conversation_id": "b", "event_id": UUID(int=300 + version)}
    return event._replace(**here, digest=digest(3) if version == 3 else None)


def ruled() -> World:
    """Two conversations with everything in them that the rules are about, all of it delivered."""
    of_b = [OutboxEvent("b", n, UUID(int=300 + n), digest(n), digest(n), n != 3, n != 3) for n in range(1, 5)]
    return World(
        StoreState(
            events=[*map(of_two, range(1, 9)), *map(of_deleted, range(1, 5))],
            lanes={(ORIGIN, "a"): 6, (RIVAL, "a"): 2, (ORIGIN, "b"): 4},
            conversations={
                "a": StoredConversation(8, 2, "active", "42"),
                "b": StoredConversation(4, 0, "deleted", "42"),
            },
            messages=[
                *(StoredMessage("a", *row) for row in ((2, None, 7), (3, 6), (4, 4), (5, 5), (8,))),
                *(StoredMessage("b", *row) for row in ((2, 3, 3), (4, 4, 4))),
            ],
            log_heads={0: 12},
            active={"42": "a", "7": None},
        ),
        OutboxState(
            name="bot.outbox.db",
            origin_id=ORIGIN,
            events=[
                *map(kept_of_two, (1, 2, 4, 5, 7, 8)),
                *(one._replace(type=of_deleted(one.sequence).type) for one in of_b),
            ],
            lanes={"a": OutboxLane(6, 6, 0, "ready"), "b": OutboxLane(4, 4, 0, "ready", 3)},
            superseded={("a", 3): UUID(int=204), ("a", 4): UUID(int=205), ("b", 4): UUID(int=304)},
        ),
    )


def test_a_history_with_all_of_the_rules_in_it_is_sound() -> None:
    verdict = ruled().examine(drained=True)

    assert verdict.ok, verdict


def test_what_a_trim_reaches_has_to_be_gone() -> None:
    events = [stored(place) for place in (1, 2)]
    trim = stored(3)._replace(type="conversation.trimmed", message_id=None, trims_upto=1)
    log = {event.version: event for event in (events[0]._replace(digest=None, bare=True), events[1], trim)}
    assert [*examine_erasure(plain().store, "a", log, set())] == []

    found = [*examine_erasure(plain().store, "a", {**log, 1: events[0]}, set())]
    assert found == ["'a' version 1: to be erased, and still there"]


def verdict_of(it: World, place: int, **verdict: int) -> None:
    change(it.store.events, place, noted={**it.store.events[place].noted, "superseded": verdict})


RULE_BREAKAGES: dict[str, Callable[[World], object]] = {
    "a late turn stands": lambda it: change(it.store.events, 3, noted={"expects": NOTED[4]["expects"]}),
    "half a turn stands": lambda it: change(it.store.events, 4, noted={"expects": NOTED[5]["expects"]}),
    "a turn that was in time is put aside": lambda it: verdict_of(it, 7, expected=7, actual=8),
    "a verdict without a condition": lambda it: change(it.store.events, 3, noted={"superseded": ASIDE}),
    "a verdict that names its own outbox": lambda it: verdict_of(it, 3, expected=1, actual=2),
    "a late turn is on the path": lambda it: change(it.store.messages, 2, left_at=None),
    "a turn that stands is off the path": lambda it: change(it.store.messages, 4, left_at=8),
    "left the path before it was said": lambda it: change(it.store.messages, 1, left_at=1),
    "what was rewound over is counted": lambda it: change(it.store.conversations, "a", message_count=3),
    "speaks on after the deletion": lambda it: change(it.store.events, 11, noted={}),
    "is on the path after the deletion": lambda it: change(it.store.messages, 5, left_at=None),
    "is deleted and alive": lambda it: change(it.store.conversations, "b", state="active"),
    "a redacted event keeps its digest": lambda it: change(it.store.events, 1, digest=digest(2)),
    "a redacted event keeps its content": lambda it: change(it.store.events, 1, bare=False),
    "a redaction is not in the list": lambda it: change(it.store.messages, 0, redacted_at=None),
    "a deleted event keeps its content": lambda it: change(it.store.events, 9, bare=False),
    "content is gone that nobody redacted": lambda it: change(it.store.events, 2, digest=None, bare=True),
    "the active conversation is deleted": lambda it: it.store.active.update({"42": "b"}),
    "the active conversation is another's": lambda it: it.store.active.update({"7": "a"}),
    "the outbox keeps redacted content": lambda it: change(it.outbox.events, 1, bare=False),
    "the outbox keeps deleted content": lambda it: change(it.outbox.events, 7, redacted=False),
    "the outbox was not told of a verdict": lambda it: it.outbox.superseded.pop(("a", 3)),
    "the outbox was told of a verdict that is none": lambda it: it.outbox.superseded.update({("a", 6): UUID(int=208)}),
    "erased, and another event": lambda it: change(it.outbox.events, 1, event_id=UUID(int=999)),
}


@pytest.mark.parametrize(
    ("world", "breaks"),
    [*((plain, one) for one in BREAKAGES.values()), *((ruled, one) for one in RULE_BREAKAGES.values())],
    ids=[*BREAKAGES, *RULE_BREAKAGES],
)
def test_every_breakage_is_found(world: Callable[[], World], breaks: Callable[[World], object]) -> None:
    broken = world()
    breaks(broken)

    verdict = broken.examine(drained=world is ruled)

    assert not verdict.ok
    assert verdict.problems


# --- Where the log leads to ------------------------------------------------------------------------------------------

REWOUND = stored(3, "conversation.rewound", to_message_id="1")
ANEW = stored(4, SAID, "5")


def replayed(rows: dict[int, int | None], *more: StoredEvent) -> list[str]:
    """Two messages are said, the second is popped, and another one is said."""
    events = [stored(1, SAID, "1"), stored(2, SAID, "2"), REWOUND, ANEW, *more]
    messages = [StoredMessage("a", version, left) for version, left in rows.items()]
    return [*examine_replayed(replace(plain().store, events=events, messages=messages))]


def test_what_the_log_leads_to_is_right() -> None:
    assert replayed({1: None, 2: 3, 4: None}) == []


@pytest.mark.parametrize(
    "rows",
    [
        {1: None, 2: 3},  # the last one was taken for a duplicate
        {1: None, 2: None},  # the rewind was lost
        {1: None, 2: 3, 4: None, 5: None},  # said twice
        {1: 3, 2: 3, 4: None},  # more left than was asked
        {},
    ],
)
def test_another_path_is_noticed(rows: dict[int, int | None]) -> None:
    assert replayed(rows)


def test_what_was_put_aside_moves_nothing_and_a_reset_takes_all() -> None:
    aside = stored(6, SAID, "3", noted={"superseded": {"expected": 1, "actual": 2}})
    reset = stored(7, "conversation.rewound", resets=True)
    new = stored(8, SAID, "4")

    assert replayed({1: None, 2: 3, 4: None, 6: 6}, aside) == []
    assert replayed({1: 7, 2: 3, 4: 7, 6: 6, 8: None}, aside, reset, new) == []
    assert replayed({1: 7, 2: 3, 4: None, 6: 6, 8: None}, aside, reset, new)


def half(upto: int, state: str = "ready") -> list[str]:
    """Return what is found if the store holds so many of an append of three events, which begins at the second."""
    outbox = OutboxState(
        name="bot.outbox.db",
        origin_id=ORIGIN,
        events=[kept(1), kept(2, 102), kept(3, 102), kept(4, 102)],
        lanes={"a": OutboxLane(4, upto, 0, state)},
    )
    return [*examine_wholeness(outbox, {(ORIGIN, "a", place): stored(place) for place in range(1, upto + 1)})]


def test_half_an_append_with_one_condition_is_noticed() -> None:
    assert [bool(half(upto)) for upto in range(5)] == [False, False, True, True, False]
    assert not half(3, "blocked")

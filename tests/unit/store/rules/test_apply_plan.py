"""What an apply will write follows from what was delivered and what was found, and from nothing else."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import pytest

from letopis.store import Event, HistoryDiverged, InvalidInput, Message
from letopis.store.model import event_types as words
from letopis.store.model.codec import EncodedEvent, encode
from letopis.store.model.events import NO_UPCASTERS
from letopis.store.rules.apply_plan import (
    ComparedLane,
    LaneBatch,
    SequencedEvent,
    StoredEvent,
    check_known,
    check_places,
    compare_with_head,
    select_new,
)
from letopis.store.rules.decoding import decode_events
from letopis.store.rules.preconditions import Conflict
from letopis.store.rules.projection import Projected, conflicts_of_shown, project_events
from letopis.store.rules.reducer import ConversationState
from letopis.store.rules.rows import ConversationRow, MessageRow

ORIGIN, OTHER = UUID(int=1), UUID(int=2)
CHAT = "chat-1"


def encoded(what: Message | words.Body | Event) -> EncodedEvent:
    return encode(Event.of(what, conversation_id=CHAT), conversation_id=CHAT)


def lane(count: int, first: int = 1) -> LaneBatch:
    said = (Message.user(str(number), id=str(number)) for number in range(first, first + count))
    deliveries = tuple(SequencedEvent(sequence=int(one.id), event=encoded(one)) for one in said)
    return LaneBatch(conversation_id=CHAT, deliveries=deliveries)


def stored(*deliveries: SequencedEvent, origin_id: UUID = ORIGIN, **changes: Any) -> dict[UUID, StoredEvent]:
    found = {}
    for delivery in deliveries:
        event = delivery.event
        known = {"event_id": event.event_id, "sequence": delivery.sequence, "digest": event.digest, "salt": event.salt}
        found[event.event_id] = StoredEvent(**{**known, "origin_id": origin_id, **changes})
    return found


def sequences(deliveries: Iterable[SequencedEvent]) -> list[int]:
    return [delivery.sequence for delivery in deliveries]


@pytest.mark.parametrize(
    ("first", "last", "head", "known"),
    [(1, 3, 0, 0), (1, 3, 1, 1), (1, 3, 3, 3), (1, 3, 9, 3), (4, 5, 3, 0), (4, 5, 4, 1)],
)
def test_a_delivery_is_parted_at_the_head(first: int, last: int, head: int, known: int) -> None:
    compared = compare_with_head(lane(last - first + 1, first), head)
    assert sequences(compared.known) + sequences(compared.fresh) == list(range(first, last + 1))
    assert len(compared.known) == known


def compared(count: int = 3) -> ComparedLane:
    return compare_with_head(lane(count), count)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(lambda one: {}, id="not stored"),
        pytest.param(lambda one: stored(*one.known, digest=bytes(32)), id="other content"),
        pytest.param(lambda one: stored(*one.known, sequence=4), id="stored later"),
    ],
)
def test_what_contradicts_the_store_has_diverged(found: Any) -> None:
    one = compared()
    with pytest.raises(HistoryDiverged) as caught:
        check_known(one, ORIGIN, found(one))
    assert (caught.value.sequence, caught.value.event_id) == (1, one.known[0].event.event_id)


def test_what_is_stored_elsewhere_is_in_doubt_until_its_place_was_looked_at() -> None:
    one = compared()
    found = stored(*one.known[:1]) | stored(one.known[1], origin_id=OTHER) | stored(one.known[2], sequence=1)
    doubtful = check_known(one, ORIGIN, found)

    assert sequences(doubtful) == [2, 3]
    check_places(one.lane, doubtful, {})
    check_places(one.lane, doubtful, {2: one.known[1].event.event_id})
    with pytest.raises(HistoryDiverged) as caught:
        check_places(one.lane, doubtful, {3: UUID(int=9)})
    assert caught.value.sequence == 3


def test_a_careful_look_absorbs_what_is_there_already() -> None:
    one = compare_with_head(lane(4), 0)
    assert sequences(select_new(one, {})) == [1, 2, 3, 4]
    assert sequences(select_new(one, stored(one.fresh[0], one.fresh[2], origin_id=OTHER))) == [2, 4]
    for found, refusal in (
        (stored(*one.fresh, salt=None), (1, True)),
        (stored(one.fresh[1], digest=bytes(32)), (2, False)),
    ):
        with pytest.raises(HistoryDiverged) as caught:
            select_new(one, found)
        assert (caught.value.sequence, caught.value.erased) == refusal


def test_a_lane_is_consecutive_and_of_one_conversation() -> None:
    one, two, three = lane(3).deliveries
    stranger = SequencedEvent(sequence=2, event=encode(Event(type="custom.x"), conversation_id="other"))
    zeroth = SequencedEvent(sequence=0, event=one.event)
    for deliveries in ((), (one, three), (two, one), (one, one), (zeroth,), (one, stranger)):
        with pytest.raises(InvalidInput, match="deliveries"):
            LaneBatch(conversation_id=CHAT, deliveries=deliveries)


def delivered(*what: Message | words.Body | Event) -> tuple[SequencedEvent, ...]:
    return tuple(SequencedEvent(sequence=number, event=encoded(one)) for number, one in enumerate(what, start=1))


def row(version: int = 0, *, new: bool = True) -> ConversationRow:
    tally = ConversationState(version=version, created_at=0, updated_at=0)
    return ConversationRow(partition=0, conversation_id=CHAT, conversation=tally, new=new)


def test_an_edit_of_a_redacted_message_is_in_conflict() -> None:
    event = encoded(words.MessageEdited(message_id="a", content="x"))
    known = MessageRow(
        version=1,
        message_id="a",
        content_version=1,
        delivery_version=None,
        role="user",
        state="appended",
        redacted_at=3,
    )
    items = decode_events([SequencedEvent(sequence=4, event=event)], NO_UPCASTERS)

    projected = project_events(row(3, new=False), items, [known])

    assert projected.superseded == {4: Conflict(expected=0, actual=3, erased="message")}


@pytest.mark.parametrize(
    ("changes", "conflict"),
    [
        ({"deleted": True}, Conflict(expected=0, actual=7, erased="conversation")),
        ({"left_at": 9}, Conflict(expected=7, actual=9)),
        ({"conflict": Conflict(expected=1, actual=2), "deleted": True}, Conflict(expected=1, actual=2)),
        ({}, None),
        ({"origin_id": ORIGIN, "deleted": True}, None),  # delivered once more by its own lane
    ],
)
def test_stored_event_tells_the_conflict_of_a_second_append(changes: dict[str, Any], conflict: Conflict | None) -> None:
    delivery = lane(1).deliveries[0]
    [known] = stored(delivery, **{"origin_id": OTHER, "version": 7, **changes}).values()
    assert known.conflict_with(delivery, ORIGIN) == conflict


FIRST = 11
"""The version of the first fresh event: ten are stored."""
FRESH = (4, 5, 7)
"""Their sequences. The delivery says a message again as 6."""


@pytest.mark.parametrize(
    ("cuts", "left", "conflict"),
    [
        ([], {}, None),
        ([], {3: FIRST}, Conflict(expected=3, actual=FIRST)),  # by sequence 4
        ([], {3: FIRST + 2}, None),  # by sequence 7, after it was said again
        ([], {2: FIRST}, None),
        ([], {3: 9}, Conflict(expected=3, actual=9)),  # before the delivery, by another outbox
        ([(0, 9, FIRST + 1)], {}, Conflict(expected=3, actual=FIRST + 1)),  # not loaded, but counted
        ([(3, 9, FIRST)], {}, None),
        ([(0, 9, FIRST + 2)], {}, None),
        ([(5, 9, FIRST), (0, 5, FIRST + 2)], {}, None),
    ],
)
def test_a_message_that_has_left_before_it_is_said_again_is_in_conflict(
    cuts: list[tuple[int, int, int]], left: dict[int, int | None], conflict: Conflict | None
) -> None:
    events = [SequencedEvent(sequence=sequence, event=encoded(Message.user("x"))) for sequence in FRESH]
    text = {"delivery_version": None, "role": "user", "state": "appended", "redacted_at": None, "changed": True}
    rows = [
        MessageRow(
            version=version, message_id="other" if version == 2 else "m", content_version=version, left_at=at, **text
        )
        for version, at in left.items()
    ]
    projected = Projected(row=row(), first=FIRST, events=[one.event for one in events], messages=rows, cuts=cuts)
    found = conflicts_of_shown(projected, decode_events(events, NO_UPCASTERS), {6: 3})
    assert found == ({} if conflict is None else {6: conflict})

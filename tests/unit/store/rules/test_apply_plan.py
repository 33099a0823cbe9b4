"""What an apply will write follows from what was delivered and what was found, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from letopis.store import (
    ConversationStarted,
    CustomEvent,
    Event,
    HistoryDiverged,
    InvalidInput,
    Message,
    MessageEdited,
    MessageFailed,
    MessageSent,
    SequenceGap,
    Upcasters,
)
from letopis.store.database.schema import conversations, messages
from letopis.store.model.codec import EncodedEvent, encode
from letopis.store.model.event_types import Body
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
from letopis.store.rules.decoding import decode_events, target_ids
from letopis.store.rules.preconditions import Conflict
from letopis.store.rules.projection import project_events
from letopis.store.rules.reducer import PROJECTION_RULES, ConversationState
from letopis.store.rules.rows import ConversationRow, MessageRow

ORIGIN, OTHER = UUID(int=1), UUID(int=2)
CHAT = "chat-1"


def encoded(what: Message | Body | Event) -> EncodedEvent:
    return encode(Event.of(what, conversation_id=CHAT), conversation_id=CHAT)


def lane(count: int, first: int = 1) -> LaneBatch:
    return LaneBatch(
        conversation_id=CHAT,
        deliveries=tuple(
            SequencedEvent(sequence=sequence, event=encoded(Message.user(str(sequence), id=str(sequence))))
            for sequence in range(first, first + count)
        ),
    )


def stored(*deliveries: SequencedEvent, origin_id: UUID = ORIGIN, **changes: Any) -> dict[UUID, StoredEvent]:
    return {
        delivery.event.event_id: replace(
            StoredEvent(
                event_id=delivery.event.event_id,
                origin_id=origin_id,
                sequence=delivery.sequence,
                digest=delivery.event.digest,
                salt=delivery.event.salt,
            ),
            **changes,
        )
        for delivery in deliveries
    }


def sequences(deliveries: Iterable[SequencedEvent]) -> list[int]:
    return [delivery.sequence for delivery in deliveries]


@pytest.mark.parametrize(
    ("first", "count", "head", "known", "fresh"),
    [
        (1, 3, 0, [], [1, 2, 3]),
        (1, 3, 1, [1], [2, 3]),
        (1, 3, 3, [1, 2, 3], []),
        (1, 3, 9, [1, 2, 3], []),
        (4, 2, 3, [], [4, 5]),
        (4, 2, 4, [4], [5]),
    ],
)
def test_a_delivery_is_parted_at_the_head(
    first: int, count: int, head: int, known: list[int], fresh: list[int]
) -> None:
    compared = compare_with_head(lane(count, first), head)

    assert (sequences(compared.known), sequences(compared.fresh)) == (known, fresh)


@pytest.mark.parametrize(("first", "head"), [(2, 0), (5, 3), (100, 98)])
def test_a_gap_is_refused(first: int, head: int) -> None:
    with pytest.raises(SequenceGap) as caught:
        compare_with_head(lane(2, first), head)

    assert (caught.value.head, caught.value.first, caught.value.conversation_id) == (head, first, CHAT)
    assert f"rewind to {head + 1}" in str(caught.value)


def compared(count: int = 3) -> ComparedLane:
    return compare_with_head(lane(count), count)


def test_what_is_stored_in_its_own_place_is_in_no_doubt() -> None:
    one = compared()

    assert check_known(one, ORIGIN, stored(*one.known)) == ()


def test_a_redacted_event_is_known_by_its_id() -> None:
    one = compared()

    assert check_known(one, ORIGIN, stored(*one.known, salt=None)) == ()


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
    with pytest.raises(HistoryDiverged) as erased:
        select_new(one, stored(*one.fresh, salt=None))
    assert (erased.value.sequence, erased.value.erased) == (1, True)
    with pytest.raises(HistoryDiverged) as caught:
        select_new(one, stored(one.fresh[1], digest=bytes(32)))
    assert caught.value.sequence == 2


def test_an_event_twice_in_one_delivery_is_absorbed_if_it_is_the_same() -> None:
    first = encoded(Message.user("x", id="m"))
    again, other = encoded(Message.user("x", id="m")), encoded(Message.user("y", id="m"))

    def delivery(second: EncodedEvent) -> ComparedLane:
        pair = (SequencedEvent(sequence=1, event=first), SequencedEvent(sequence=2, event=second))
        return compare_with_head(LaneBatch(conversation_id=CHAT, deliveries=pair), 0)

    assert sequences(select_new(delivery(again), {})) == [1]
    with pytest.raises(HistoryDiverged):
        select_new(delivery(other), {})


def test_a_lane_is_consecutive_and_of_one_conversation() -> None:
    one, two, three = lane(3).deliveries
    stranger = encode(Event(type="custom.x"), conversation_id="other")
    for deliveries in (
        (),
        (one, three),
        (two, one),
        (one, one),
        (SequencedEvent(sequence=0, event=one.event),),
        (one, SequencedEvent(sequence=2, event=stranger)),
    ):
        with pytest.raises(InvalidInput, match="deliveries"):
            LaneBatch(conversation_id=CHAT, deliveries=deliveries)


def delivered(*what: Message | Body | Event) -> tuple[SequencedEvent, ...]:
    return tuple(SequencedEvent(sequence=number, event=encoded(one)) for number, one in enumerate(what, start=1))


def test_a_damaged_event_is_not_read() -> None:
    [good] = delivered(Message.user("whole"))
    changes: tuple[dict[str, Any], ...] = (
        {"data": good.event.data.replace("whole", "wh0le")},
        {"metadata": "{}"},
        {"type": "message.sent"},
    )
    for change in changes:
        with pytest.raises(InvalidInput, match="digest") as caught:
            decode_events([replace(good, event=replace(good.event, **change))], NO_UPCASTERS)
        assert "wh0le" not in str(caught.value)


def test_old_events_are_read_as_every_reader_will() -> None:
    [old] = delivered(Event(type="conversation.renamed", schema_version=2, data={"name": "x"}))
    rules = Upcasters({("conversation.renamed", 2): lambda data: {"title": data["name"]}})

    [item] = decode_events([old], rules)

    assert item.body.to_data() == {"title": "x"}  # of version 3, so still unknown, and shown upcast
    assert target_ids([item]) == frozenset()


def test_the_messages_to_look_up_are_those_that_may_change() -> None:
    items = decode_events(
        delivered(
            Message.user("x", id="a"),
            MessageEdited(message_id="b", content="x"),
            MessageSent(message_id="c"),
            MessageFailed(message_id="c"),
            CustomEvent(name="x", data={"message_id": "d"}),
        ),
        NO_UPCASTERS,
    )

    assert target_ids(items) == {"b", "c"}


def row(version: int = 0, *, new: bool = True) -> ConversationRow:
    tally = ConversationState(version=version, created_at=0, updated_at=0)
    return ConversationRow(partition=0, conversation_id=CHAT, conversation=tally, new=new)


def test_versions_go_on_from_the_conversations() -> None:
    items = decode_events(delivered(Message.user("a", id="a"), MessageSent(message_id="a")), NO_UPCASTERS)

    projected = project_events(row(7, new=False), items)

    assert projected.versions == range(8, 10)
    assert projected.row.conversation.version == 9
    [message] = projected.messages
    assert (message.version, message.content_version, message.delivery_version, message.state) == (8, 8, 9, "sent")
    assert message.new


def test_stored_messages_are_changed_and_those_that_stay_are_left_out() -> None:
    def old(version: int, message_id: str) -> MessageRow:
        return MessageRow(
            version=version,
            message_id=message_id,
            content_version=version,
            delivery_version=None,
            role="user",
            state="appended",
        )

    items = decode_events(
        delivered(
            MessageEdited(message_id="a", content="x"),
            MessageFailed(message_id="a"),
            MessageSent(message_id="nobody"),
            Message.user("again", id="a"),
        ),
        NO_UPCASTERS,
    )

    projected = project_events(row(4, new=False), items, [old(1, "a"), old(2, "b"), old(3, "a")])

    assert [
        (message.version, message.content_version, message.delivery_version, message.state, message.new)
        for message in projected.messages
    ] == [(1, 5, 6, "failed", False), (3, 5, 6, "failed", False), (8, 8, None, "appended", True)]


def test_rows_stand_in_the_order_of_the_columns() -> None:
    items = decode_events(
        delivered(ConversationStarted(owner_id="42", title="t"), Message.tool("x", id="m", author="7")), NO_UPCASTERS
    )
    projected = project_events(row(), items)
    projected.row.number = 3

    conversation = dict(zip(conversations.columns.keys(), projected.row.as_row(), strict=True))
    assert conversation == {
        "partition": 0,
        "conversation_id": CHAT,
        "owner_id": "42",
        "number": 3,
        "title": "t",
        "state": "active",
        "version": 2,
        "message_count": 1,
        "tokens": 0,
        "created_at": 0,
        "updated_at": items[1].delivery.event.occurred_at,
        "forked_from_id": None,
        "forked_from_version": None,
        "metadata": None,
        "forked_from_event": None,
        "inherits": 0,
        "inherited_to": None,
        "retained": 0,
        "rules": PROJECTION_RULES,
        "tags": None,
        "trimmed": 0,
    }
    message = dict(zip(messages.columns.keys(), projected.messages[0].as_row(5, CHAT), strict=True))
    assert message == {
        "partition": 5,
        "conversation_id": CHAT,
        "version": 2,
        "message_id": "m",
        "content_version": 2,
        "delivery_version": None,
        "role": "tool",
        "state": "appended",
        "left_at": None,
        "redacted_at": None,
        "reactions": None,
        "back": None,
        "author": "7",
    }


@pytest.mark.parametrize(
    ("stored", "conflict"),
    [
        ({"deleted": True}, Conflict(expected=0, actual=7, erased="conversation")),
        ({"left_at": 9}, Conflict(expected=7, actual=9)),
        ({"conflict": Conflict(expected=1, actual=2), "deleted": True}, Conflict(expected=1, actual=2)),
        ({}, None),
        ({"origin_id": ORIGIN, "deleted": True}, None),  # delivered once more by its own lane
    ],
)
def test_stored_event_tells_the_conflict_of_a_second_append(stored: dict[str, Any], conflict: Conflict | None) -> None:
    delivery = lane(1).deliveries[0]
    known = {
        "event_id": delivery.event.event_id,
        "origin_id": OTHER,
        "sequence": 1,
        "digest": b"",
        "salt": None,
        "version": 7,
    }

    assert StoredEvent(**{**known, **stored}).conflict_with(delivery, ORIGIN) == conflict

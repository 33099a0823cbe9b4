"""Events of a delivery are decoded alike by the short way and the long one, and damage is found by either."""

import random
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

import orjson
import pytest

from letopis.store import Event, Message, MessageSent
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import EncodedEvent, encode, encode_message
from letopis.store.model.events import NO_UPCASTERS, Upcasters
from letopis.store.rules.apply_plan import SequencedEvent
from letopis.store.rules.decoding import DecodedEvent, are_plain, decode_events, target_ids
from letopis.store.rules.projection import Projected, project_events
from letopis.store.rules.reducer import ConversationState
from letopis.store.rules.rows import ConversationRow

PLAIN: Final = encode_message(Message.user("tea", id="m-1"), conversation_id="chat")


def decoded(*events: EncodedEvent, upcasters: Upcasters = NO_UPCASTERS) -> tuple[DecodedEvent, ...]:
    return decode_events([SequencedEvent(number, event) for number, event in enumerate(events, 1)], upcasters)


@pytest.mark.parametrize(
    "damage",
    [
        {"data": None},
        {"data": b'{"content":"tea"}'},
        {"data": PLAIN.data.replace("tea", "tee")},
        {"metadata": "{"},
        {"metadata": b"\xff"},
        {"digest": b""},
        {"digest": None},
        {"conversation_id": "another"},
        {"type": "message.sent"},
    ],
    ids=str,
)
def test_damage_is_found(damage: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="damaged"):
        decoded(replace(PLAIN, **damage))


def test_messages_that_are_changed_are_loaded_and_new_ones_are_not() -> None:
    sent = encode(Event.of(MessageSent(message_id="m-1"), conversation_id="chat"), conversation_id="chat")
    assert target_ids(decoded(PLAIN)) == frozenset()
    assert target_ids(decoded(PLAIN, sent)) == {"m-1"}


def test_keys_in_another_order_are_the_same_content() -> None:
    keys = orjson.loads(PLAIN.data)
    turned = replace(PLAIN, data=orjson.dumps(dict(reversed(keys.items()))).decode())
    assert turned.data != PLAIN.data
    assert decoded(turned)[0].body == decoded(PLAIN)[0].body


def event_of(rng: random.Random) -> EncodedEvent:
    message = Message.assistant(rng.choice(["tea", "", "é\n"]), tokens=rng.choice([None, 3, 2**63 - 2]))
    metadata = rng.choice([{}, {"a": 1}])
    if rng.random() < 0.2:
        return encode(Event.of(MessageSent(message_id=message.id), conversation_id="chat"), conversation_id="chat")
    event = encode_message(message, conversation_id="chat", metadata=metadata)
    return replace(event, event_id=uuid4(), occurred_at=rng.randrange(100), redacted=rng.random() < 0.1)


def projected(events: list[EncodedEvent], *, plain: bool, upcasters: Upcasters, state: str) -> Projected:
    conversation = ConversationState[int](created_at=5, updated_at=5, version=7, message_count=2)
    conversation.state = state  # type: ignore[assignment]
    row = ConversationRow(partition=0, conversation_id="chat", conversation=conversation)
    items = decoded(*events, upcasters=upcasters)
    return project_events(row, items, plain=plain and are_plain(items))


def test_the_short_way_comes_to_the_same_as_the_long_one() -> None:
    """Decoding and projecting, of random events."""
    rng, short = random.Random(2026), 0
    for _ in range(300):
        events = [event_of(rng) for _ in range(rng.randrange(1, 4))]
        state = rng.choice(["active", "archived", "deleted"])
        long = projected(events, plain=False, upcasters=Upcasters(), state=state)
        assert projected(events, plain=True, upcasters=NO_UPCASTERS, state=state) == long
        short += are_plain(decoded(*events))
    assert short > 100

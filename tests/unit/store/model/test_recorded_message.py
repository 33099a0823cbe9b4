"""A message whose fields are made when they are read is the message that was made at once."""

from dataclasses import fields
from typing import Any
from uuid import uuid4

import orjson
import pytest

from letopis import Message, RecordedMessage
from letopis.store.database.faults import StoreFault
from letopis.store.database.row_mapping import plain_messages
from letopis.store.model.events import from_microseconds

EVENT, ORIGIN = uuid4(), uuid4()
MESSAGES = (
    Message.user("What is tea?", id="m-1"),
    Message.assistant(None, id="m-1", metadata={"z": 1, "a": [None]}, tokens=3),
)


def read(data: str) -> dict[int, RecordedMessage]:
    return plain_messages("chat", [(7, EVENT.bytes, ORIGIN, 3, data, 1_000_000, 2_000_000, False)])


def of_row(message: Message) -> RecordedMessage:
    return read(orjson.dumps(message.to_data()).decode())[7]


def made_at_once(message: Message) -> RecordedMessage:
    return RecordedMessage(
        conversation_id="chat",
        message=message,
        event_id=EVENT,
        origin_id=ORIGIN,
        sequence=3,
        occurred_at=from_microseconds(1_000_000),
        version=7,
        recorded_at=from_microseconds(2_000_000),
    )


either = pytest.mark.parametrize("message", MESSAGES, ids=("text alone", "more than text"))


@either
def test_each_field_is_that_of_a_message_made_at_once(message: Message) -> None:
    expected = made_at_once(message)
    for field in fields(RecordedMessage):
        found: Any = getattr(of_row(message), field.name)  # of a new one each time: no field depends on another
        assert found == getattr(expected, field.name), field.name
        assert type(found) is type(getattr(expected, field.name)), field.name
    assert of_row(message) == expected
    assert repr(of_row(message)) == repr(expected)


@pytest.mark.parametrize("text", ['{"content":"a"', "[1]", "", '{"content":"a","message_id":"m","role":"user"}x'])
def test_damage_is_told_by_the_read_and_not_when_a_field_is_made(text: str) -> None:
    with pytest.raises(StoreFault, match="damaged"):
        read(text)


@pytest.mark.parametrize(
    "changed",
    [
        *({"role": "robot"}, {"content": 1}),
        *({"message_id": wrong} for wrong in ("", "m" * 256, "m\n", None)),
    ],
)
def test_what_this_release_cannot_read_is_left_to_the_whole_read(changed: dict[str, Any]) -> None:
    assert read(orjson.dumps({"content": "a", "message_id": "m", "role": "user", **changed}).decode()) == {}

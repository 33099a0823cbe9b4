"""What is encoded is equal for equal content, decodes to itself, and holds nothing that a store would refuse."""

import math
import re
from collections import OrderedDict
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letopis.store import CustomEvent, Event, InvalidInput, Limits, Message
from letopis.store.model.codec import EncodedEvent, decode, digest_of, encode, encode_message

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text(characters)
keys = st.text(characters, max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4))
objects = st.dictionaries(keys, values, max_size=5)


def custom(data: Any, metadata: Any = None, **fields: Any) -> EncodedEvent:
    return encode(Event(type="custom.x", data=data, metadata=metadata or {}, **fields), conversation_id="chat-1")


@given(objects, objects)
def test_what_is_accepted_comes_back_equal(data: dict[str, Any], metadata: dict[str, Any]) -> None:
    encoded = custom(data, metadata)
    assert decode(encoded.data) == data
    assert decode(encoded.metadata) == metadata
    assert (encoded.metadata is None) == (metadata == {})
    assert "\0" not in encoded.data


def salt_of(encoded: EncodedEvent) -> bytes:
    assert encoded.salt is not None
    return encoded.salt


def same(one: EncodedEvent, other: EncodedEvent) -> bool:
    return one.has_content_of(other.digest, salt_of(other))


def turned(value: Any) -> Any:
    """The same value with the keys of every object in the opposite order."""
    if isinstance(value, dict):
        return {key: turned(item) for key, item in reversed(value.items())}
    return [turned(item) for item in value] if isinstance(value, list) else value


@given(objects, objects)
def test_equal_content_has_an_equal_digest_whatever_the_order_of_its_keys(
    data: dict[str, Any], metadata: dict[str, Any]
) -> None:
    encoded, other = custom(data, metadata), custom(turned(data), turned(metadata))
    assert same(other, encoded) and other.salt != encoded.salt and other.digest != encoded.digest
    for one in (encoded, other):
        assert digest_of("chat-1", "custom.x", 1, one.data, one.metadata, salt_of(encoded)) == encoded.digest


def test_the_digest_is_of_the_content_and_not_of_the_time() -> None:
    encoded = custom({"n": 1}, {"m": 1})
    later = custom({"n": 1}, {"m": 1}, occurred_at=datetime(2030, 1, 1, tzinfo=UTC))
    assert same(later, encoded) and later.event_id != encoded.event_id

    event = Event(type="custom.x", data={"n": 1}, metadata={"m": 1})
    everything = [
        encoded,
        *(custom(data, {"m": 1}) for data in ({"n": 2}, {"n": 1.0}, {"n": True})),
        *(custom({"n": 1}, metadata) for metadata in ({"m": 2}, None)),
        custom({"n": 1}, {"m": 1}, schema_version=2),
        encode(replace(event, type="custom.y"), conversation_id="chat-1"),
        encode(event, conversation_id="chat-2"),
    ]
    assert [same(one, other) for one in everything for other in everything].count(True) == 9


def test_the_digest_is_part_of_the_format() -> None:
    """A change of it would take everything that was ever delivered for something else."""
    encoded = encode(Event.of(Message.user("hi", id="m-1"), conversation_id="chat-1"), conversation_id="chat-1")
    assert encoded.data == '{"content":"hi","message_id":"m-1","role":"user"}'
    salted = digest_of("chat-1", "message.appended", 1, encoded.data, None, bytes(range(16)))
    assert salted.hex() == "c70a0f753c996a0ade606ed33d173816013f24cc6d4ecf214e27cb6cdf46fd88"
    assert digest_of("chat-1", "message.appended", 1, encoded.data.encode(), None, salt_of(encoded)) == encoded.digest
    assert digest_of("c", "a.b", 1, "{}", "{}", b"s") == digest_of("c", "a.b", 1, b"{}", b"{}", b"s")


class Colour(Enum):
    RED = "red"


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class Weather(str, Enum):  # noqa: UP042 - what many programs have; shown as Weather.RAIN
    RAIN = "rain"


class Level(IntEnum):
    HIGH = 3


class Celsius(float):
    """Shown in another way than it is."""

    def __float__(self) -> float:
        return 0.0

    def __repr__(self) -> str:
        return "warm"


class Shouted(str):
    def __str__(self) -> str:
        return self.upper()


def test_subclasses_of_text_and_numbers_are_taken_by_value() -> None:
    inner = {"w": Weather.RAIN, "l": [Level.HIGH, (Celsius(21.5),)], Shouted("key"): Shouted("quiet"), "t": True}
    encoded = custom({Weather.RAIN: inner, "deep": MappingProxyType(OrderedDict(x=Level.HIGH))}, {"m": Weather.RAIN})
    assert encoded.data == ('{"rain":{"w":"rain","l":[3,[21.5]],"key":"quiet","t":true},"deep":{"x":3}}')
    assert encoded.metadata == '{"m":"rain"}'
    assert same(encoded, custom(decode(encoded.data), {"m": "rain"}))


def test_the_fields_of_a_message_are_taken_by_value() -> None:
    class Author(StrEnum):
        BOT = "assistant"

    message = Message(role=Author.BOT, content=Shouted("hi"), id=Weather.RAIN, name=Weather.RAIN, tokens=Level.HIGH)
    plain = Message(role="assistant", content="hi", id="rain", name="rain", tokens=3)
    encoded, other = (encode_message(one, conversation_id="c") for one in (message, plain))
    assert type(message.role) is type(message.id) is str
    assert (encoded.data, encoded.event_id) == (other.data, other.event_id) and same(encoded, other)


@pytest.mark.parametrize("beyond", [2**63, 10**400])
def test_a_subclass_is_held_to_the_same_limits(beyond: int) -> None:
    class Whole(int):
        pass

    for value in (Whole(beyond), Celsius("nan"), Shouted("a\0")):
        with pytest.raises(InvalidInput):
            custom({"a": value})


@pytest.mark.parametrize(
    ("data", "field"),
    [
        *(({"a": value}, "data.a") for value in ("x\0y", math.nan, -math.inf, 2**63, -(2**63) - 1, 10**400)),
        *(({"a": value}, "data.a") for value in (b"x", {1, 2}, Decimal(1), uuid4(), object(), Colour.RED, {2.5: 1})),
        ({"a": datetime(2026, 1, 1, tzinfo=UTC)}, "data.a"),
        *(({"a": value}, f"data.a[{len(value) - 1}]") for value in (["", "\0"], ["\udfff"], [1, math.inf])),
        *((data, "data") for data in ({"a\0": 1}, {1: "x"}, {None: "x"}, {"a": "x" * 1_048_576}, [], "text", None)),
        ({"a": {"b": "\ud800"}}, "data.a.b"),
        ({"\ud83d": 1}, r"data.'\ud83d'"),
        ({"a": ["x", {"b\n": {"c": b""}}]}, r"data.a[1].'b\n'.c"),
        ({"a": deep(64)}, "data.a" + "[0]" * 63),
    ],
)
def test_what_a_store_would_refuse_or_change_is_refused_by_the_name_of_its_field(data: Any, field: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{re.escape(field)}: "):
        custom(data)
    if isinstance(data, dict) and field != "data":
        with pytest.raises(InvalidInput, match=f"^meta{re.escape(field)}: "):
            custom({}, data)


def test_the_limits_are_reached_and_not_passed() -> None:
    limits = Limits(max_bytes=100, max_depth=3)

    def with_limits(data: Any) -> EncodedEvent:
        return encode(Event(type="custom.x", data=data), conversation_id="chat-1", limits=limits)

    assert len(with_limits({"a": "x" * 92}).data) == 100
    assert len(with_limits({"a": "я" * 46}).data.encode()) == 100
    for data in ({"a": "x" * 93}, {"a": "я" * 47}):
        with pytest.raises(InvalidInput, match="the limit is 100"):
            with_limits(data)
    assert with_limits({"a": deep(2)})
    with pytest.raises(InvalidInput, match="nested too deep"):
        with_limits({"a": deep(3)})
    assert custom({"a": deep(63)})
    assert encode(Event(type="custom.x", data={"a": deep(199)}), conversation_id="c", limits=Limits(max_depth=200))


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"max_bytes": 8_388_609}, {"max_depth": 0}, {"max_depth": 201}])
def test_limits_that_no_store_could_keep_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(options))):
        Limits(**options)


@pytest.mark.parametrize("conversation_id", ["", "x" * 256, "a\0", "a\u0085", "\ud800", None, 5])
def test_a_conversation_id_that_is_none_is_refused(conversation_id: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^conversation_id: "):
        encode(Event(type="custom.x"), conversation_id=conversation_id)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        *(({"event_id": wrong}, "event_id") for wrong in ("x", None)),
        *(({"schema_version": wrong}, "schema_version") for wrong in (0, 32_768, True, 1.0)),
        ({"type": "Custom.x"}, "type"),
        ({"occurred_at": datetime(2026, 1, 1)}, "occurred_at"),  # noqa: DTZ001 - the point
        ({"type": "conversation.renamed", "data": {}}, "data.title"),
        ({"type": "conversation.started", "data": {"owner_id": "x" * 256}}, "data.owner_id"),
        ({"type": "conversation.started", "data": {"owner_id": ""}}, "data.owner_id"),
        ({"type": "message.sent", "data": {"message_id": "a\nb"}}, "data.message_id"),
        ({"type": "message.edited", "data": {"message_id": "", "content": "x"}}, "data.message_id"),
        ({"type": "message.appended", "data": {"message_id": "m", "role": "x", "content": ""}}, "role"),
    ],
)
def test_an_envelope_that_is_none_is_refused_and_the_vocabulary_is_taken_strictly(
    fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput, match=f"^{re.escape(field)}: "):
        encode(replace(Event(type="custom.x"), **fields), conversation_id="chat-1")


def test_what_only_the_caller_or_a_newer_release_understands_is_not_looked_into() -> None:
    for event in (
        Event(type="custom.x", data={"message_id": 5, "owner_id": ""}),
        Event(type="weather.changed", data={"owner_id": [1]}),
        Event(type="message.sent", schema_version=2, data={"message_id": {}}),
        Event.of(CustomEvent(name="x", data={"message_id": None}), conversation_id="chat-1"),
    ):
        assert decode(encode(event, conversation_id="chat-1").data) == event.data


def test_an_error_never_shows_the_value() -> None:
    for data in ({"a": "secret\0"}, {"a": ["secret\ud800"]}, {"a": "secret" * 300_000}):
        with pytest.raises(InvalidInput) as caught:
            custom(data)
        assert "secret" not in str(caught.value)


def test_what_is_no_object_is_damage() -> None:
    assert decode(None) == {}
    for text in ("[1]", "1", "null", "{", ""):
        with pytest.raises(ValueError, match=r"."):
            decode(text)


def test_the_trace_in_which_an_event_was_appended_is_no_part_of_its_content() -> None:
    trace = '"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"'

    def digest(metadata: str | None) -> bytes:
        return digest_of("c", "a.b", 1, "{}", metadata, b"salt")

    assert digest("{" + trace + "}") == digest(None)
    assert digest('{"k":1,' + trace + "}") == digest('{"k":1}')
    assert digest('{"k":2,' + trace + "}") != digest('{"k":1}')
    assert digest(trace) != digest(None)


@pytest.mark.parametrize("text", ["", "plain", "\\u0000 as text", "Ж" * 10_000, "\n\t\x01"])
def test_a_message_of_words_alone_is_encoded_as_any_event_is(text: str) -> None:
    message, moment = Message.user(text), datetime(2026, 1, 1, tzinfo=UTC)
    found = encode_message(message, conversation_id="c", occurred_at=moment)
    wanted = encode(Event.of(message, conversation_id="c", occurred_at=moment), conversation_id="c")
    assert same(found, wanted)
    assert found == replace(wanted, salt=found.salt, digest=found.digest)

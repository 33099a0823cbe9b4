"""Messages and their parts survive the way to JSON and back, whatever wrote them."""

import re
from typing import Any
from uuid import UUID

import pytest

from letopis.store import Data, File, InvalidInput, Message, Reasoning, Text, ToolCall, ToolResult, UnknownPart
from letopis.store.model.identifiers import derived_event_id, uuid7
from letopis.store.model.parts import content_from_json, content_text, content_to_json, part_from_json, part_to_json

PARTS = (
    (Text("hi"), {"type": "text", "text": "hi"}),
    (Reasoning("hm"), {"type": "reasoning", "text": "hm"}),
    (File("s3://b/k"), {"type": "file", "uri": "s3://b/k"}),
    (
        File("s3://b/k", "image/png", "k.png"),
        {"type": "file", "uri": "s3://b/k", "media_type": "image/png", "name": "k.png"},
    ),
    (ToolCall("c", "weather"), {"type": "tool_call", "call_id": "c", "name": "weather"}),
    (
        ToolCall("c", "weather", {"a": 1}),
        {"type": "tool_call", "call_id": "c", "name": "weather", "arguments": {"a": 1}},
    ),
    (ToolResult("c", [1]), {"type": "tool_result", "call_id": "c", "output": [1], "status": "ok"}),
    (Data({"x": None}), {"type": "data", "value": {"x": None}}),
    (Data(), {"type": "data"}),
)


@pytest.mark.parametrize(("part", "value"), PARTS)
def test_a_part_is_one_json_object(part: Any, value: dict[str, Any]) -> None:
    assert part_to_json(part) == value
    assert part_from_json(value) == part


@pytest.mark.parametrize(
    "value",
    [
        *({"type": "text"}, {"type": "text", "text": 5}, {"type": "text", "text": "hi", "colour": "red"}),
        *({"type": kind} for kind in (["text"], {"text": 1}, None)),
        *({"type": "hologram", "depth": 3}, {"type": "file", "uri": "u", "name": None}),
        *({"kind": "text", "text": "hi"}, {"text": "hi"}, {}),
    ],
)
def test_a_part_that_is_not_known_is_carried_as_it_is(value: dict[str, Any]) -> None:
    part = part_from_json(value)
    assert part == UnknownPart(value)
    assert part_to_json(part) == value


def test_content_is_text_or_parts() -> None:
    parts = (Text("a"), Reasoning("no"), Text("b"), UnknownPart({"type": "x"}))

    assert content_from_json("a") == content_to_json("a") == "a"
    assert content_from_json(content_to_json(parts)) == parts
    assert content_from_json([]) == ()
    assert content_text(parts) == "a\nb"
    assert content_text("a") == "a"
    for value in (None, 5, {"type": "text"}):
        with pytest.raises(InvalidInput, match="content"):
            content_from_json(value)


def test_a_message_comes_back_from_its_data() -> None:
    about = {
        "name": "bot",
        "tokens": 0,
        "usage": {"input": 1},
        "external_ids": {"telegram": 17},
        "metadata": {"k": [1]},
    }
    message = Message(role="assistant", content=(Text("a"), ToolCall("c", "f", "raw")), id="m-1", **about)
    assert Message.from_data(message.to_data()) == message
    assert Message.user("x", id="m").to_data() == {"message_id": "m", "role": "user", "content": "x"}


def test_an_id_that_the_caller_chose_leads_to_one_event_id_for_ever() -> None:
    message = Message.user("x", id="m-1")
    assert message.event_id is None
    # Part of the data format: a change would make every import append everything again.
    assert derived_event_id("chat-1", "m-1") == UUID("209415cf-45d7-59e5-92f4-27ae0f0db450")
    assert len({derived_event_id(*pair) for pair in (("a", "bc"), ("ab", "c"), ("A", "bc"), ("a ", "bc"))}) == 4


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *(("role", wrong) for wrong in ("narrator", None)),
        *(("content", wrong) for wrong in (5, None, b"x", {"type": "text"}, ["x"], [{"type": "text", "text": "x"}])),
        *(("id", wrong) for wrong in (5, None, "x" * 256, "a\nb", "a\0b", "\udc80")),
        *(("author", wrong) for wrong in (7, "", "x" * 256, "a\nb")),
    ],
)
def test_a_message_that_is_none_is_refused_by_the_name_of_its_field(field: str, wrong: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"^{field}: "):
        Message(**{"role": "user", "content": "x", field: wrong})


@pytest.mark.parametrize(
    ("key", "wrong", "field"),
    [
        *(("message_id", wrong, "data.message_id") for wrong in (None, "", 5)),
        *(("tokens", wrong, "data.tokens") for wrong in (-1, True, 1.0)),
        *(("role", 5, "data.role"), ("role", "narrator", "role"), ("content", None, "content")),
        *(("name", 5, "data.name"), ("usage", [], "data.usage")),
        *(("metadata", None, "data.metadata"), ("external_ids", "x", "data.external_ids")),
    ],
)
def test_data_that_is_no_message_is_refused_by_the_name_of_its_field(key: str, wrong: Any, field: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{re.escape(field)}: "):
        Message.from_data({"message_id": "m", "role": "user", "content": "x", key: wrong})


def test_made_ids_rise_within_a_process() -> None:
    ids = [uuid7() for _ in range(10_000)]
    assert ids == sorted(ids) and len(set(ids)) == len(ids)
    assert {(one.version, one.variant) for one in ids} == {(7, "specified in RFC 4122")}


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool", "developer"])
def test_a_message_of_words_alone_is_made_as_any_other(role: str) -> None:
    make = getattr(Message, role)
    made, named = make("words"), make("words", id="m")
    assert type(made) is Message
    assert isinstance(made.event_id, UUID) and made.event_id.version == 7
    assert made.id == str(made.event_id) != make("words").id
    assert made == Message(role=role, content="words", id=made.id)
    assert named == Message(role=role, content="words", id="m") == Message.from_data(named.to_data())
    assert make([Text("x")]).content == (Text("x"),)


def test_an_assistant_that_only_calls_tools_may_have_no_content() -> None:
    message = Message.assistant(None, id="m", metadata={"tool_calls": [{"id": "c"}]})
    assert message.text == ""
    assert message.to_data()["content"] is None
    assert Message.from_data(message.to_data()) == message
    with pytest.raises(InvalidInput, match="content"):
        Message.from_data({"message_id": "m", "role": "assistant"})


@pytest.mark.parametrize("role", ["user", "system", "developer", "tool"])
def test_no_other_message_may_lack_its_content(role: Any) -> None:
    """`update.message.text` of a picture is None: that must not be recorded as an empty question."""
    with pytest.raises(InvalidInput, match=f"content: of a {role} message must be text or parts, not None"):
        Message(role=role, content=None)

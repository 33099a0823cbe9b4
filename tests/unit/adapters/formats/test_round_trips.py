"""A provider's items come back byte for byte: from messages, from the history and from a context window."""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import orjson
import pytest

from letopis.adapters.formats import ag_ui, anthropic, gemini, openai_chat, openai_responses, ui_message
from letopis.store import Data, File, InvalidInput, Message, Reasoning, Text, ToolCall, ToolResult, UnknownPart, window
from letopis.store.model.codec import decode, encode_message
from tests.unit.adapters.formats.items import (
    Chance,
    Item,
    ag_ui_conversation,
    anthropic_conversation,
    chat_conversation,
    gemini_conversation,
    responses_conversation,
    ui_conversation,
)

FORMATS: dict[str, tuple[ModuleType, Callable[[Chance], list[Item]]]] = {
    "openai_chat": (openai_chat, chat_conversation),
    "openai_responses": (openai_responses, responses_conversation),
    "anthropic": (anthropic, anthropic_conversation),
    "gemini": (gemini, gemini_conversation),
    "ag_ui": (ag_ui, ag_ui_conversation),
    "ui_message": (ui_message, ui_conversation),
}
every_module = pytest.mark.parametrize("module", [module for module, _ in FORMATS.values()], ids=FORMATS)
every_format = pytest.mark.parametrize(("module", "talk"), FORMATS.values(), ids=FORMATS)


def thousand(talk: Callable[[Chance], list[Item]], *, seed: int = 1) -> list[Item]:
    chance, items = Chance(seed), list[Item]()
    while len(items) < 1_000:
        items += talk(chance)
    return items


def stored(message: Message) -> Message:
    encoded = encode_message(message, conversation_id="c")
    return Message.from_data(decode(encoded.data))


@every_format
def test_a_thousand_items_come_back_byte_for_byte(module: Any, talk: Callable[[Chance], list[Item]]) -> None:
    items = thousand(talk)
    before = orjson.dumps(items)
    messages = module.to_messages(items)
    assert orjson.dumps(items) == before, "they were changed"
    assert len(messages) == len(items) or module is ui_message, "where each step of an answer is a message"
    assert orjson.dumps(module.from_messages(messages)) == before
    assert orjson.dumps(module.from_messages([stored(one) for one in messages])) == before


@every_format
def test_what_is_understood_is_not_stored_twice(module: Any, talk: Callable[[Chance], list[Item]]) -> None:
    for message in module.to_messages(thousand(talk)):
        long = [value for value in texts(message.to_data()) if len(value) > 60]
        assert len(long) == len(set(long)), message


def texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for item in inner for text in texts(item)]


@every_format
def test_a_context_window_leaves_the_bytes(module: Any, talk: Callable[[Chance], list[Item]]) -> None:
    """It splits results, and puts them in the order of the calls."""
    for seed in range(60):
        items = talk(Chance(seed))
        messages = module.to_messages(items)
        context = window(messages, last=1_000)
        assert context.made_up == ()
        assert_same_items(module, module.from_messages(context.messages), items)


def assert_same_items(module: Any, found: list[Item], expected: list[Item]) -> None:
    if module is not openai_responses:
        assert orjson.dumps(found) == orjson.dumps(expected)
        return
    # A call is a message of its own there, and its result follows it: of parallel calls, not after the last one.
    assert sorted(map(orjson.dumps, found)) == sorted(map(orjson.dumps, expected))
    called = [item["call_id"] for item in found if "call_id" in item]
    assert called[::2] == called[1::2]


@every_format
def test_an_edited_message_is_built_from_its_content(module: Any, talk: Callable[[Chance], list[Item]]) -> None:
    for seed in range(50):
        for message in module.to_messages(talk(Chance(seed))):
            if message.role == "user":
                edited = replace(message, content="only this is left")
                found = orjson.dumps(module.from_messages([edited])).decode()
                assert "only this is left" in found
                assert message.text == "" or message.text[:60] not in found


@every_module
@pytest.mark.parametrize(
    ("items", "field"),
    [
        ("text", "items"),
        ({"role": "user"}, "items"),
        (None, "items"),
        (["text"], "items[0]"),
        ([{"role": "critic", "content": "x", "parts": []}], "items[0].role"),
        ([{"role": "user", "content": 5, "parts": 5}], "items[0]."),
        ([{"role": "user", "content": ["x"], "parts": ["x"]}], "items[0]."),
        ([{"role": "user", "content": [{"type": "text", "text": 5}], "parts": [{"text": 5}]}], "items[0]."),
        ([{"role": "user", "content": "x", "parts": [], "blob": b"x"}], "item.blob"),
    ],
)
def test_what_is_no_item_is_refused_by_its_place(module: Any, items: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        module.to_messages(items)
    assert caught.value.field.startswith(field)


@every_module
def test_what_is_no_message_is_refused(module: Any) -> None:
    with pytest.raises(InvalidInput, match=r"messages\[1\]"):
        module.from_messages([Message.user("x"), {"role": "user"}])
    forged = Message.user("x", metadata={"format": {"provider": module.PROVIDER, "content": "0" * 12, "item": {}}})
    assert module.from_messages([forged]), "not from a converter, so built from the content"


def test_what_is_understood_becomes_parts() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{ }"}}
    [asked, called, answered] = openai_chat.to_messages(
        [
            {
                "role": "user",
                "name": "Ann",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
                    {"type": "file", "file": {"file_id": "file-1"}},
                    {"type": "hologram", "depth": 3},
                ],
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "a hedgehog"},
        ]
    )

    assert (asked.role, asked.name) == ("user", "Ann")
    assert asked.content == (
        Text("What is this?"),
        File("https://example.org/a.png", "image/png"),
        File("openai:file-1"),
        UnknownPart({"type": "hologram", "depth": 3}),
    )
    assert called.content == (ToolCall("call_1", "look", "{ }"),)
    assert (answered.role, answered.content) == ("tool", (ToolResult("call_1", "a hedgehog"),))


def test_anthropic_blocks_become_parts() -> None:
    called = {"type": "tool_use", "id": "t", "name": "look", "input": {"a": 2}}
    blocks = [{"type": "thinking", "thinking": "hm", "signature": "c2ln"}, called]
    failed = {"type": "tool_result", "tool_use_id": "t", "content": "dark", "is_error": True}
    items = [{"role": "assistant", "content": blocks}, {"role": "user", "content": [failed]}]
    asked, answered = anthropic.to_messages(items)
    assert asked.content == (Reasoning("hm"), ToolCall("t", "look", {"a": 2}))
    assert (answered.role, answered.content) == ("tool", (ToolResult("t", "dark", "error"),))


@pytest.mark.parametrize(
    ("module", "system"),
    [
        (anthropic, "Be brief."),
        (anthropic, [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]),
        (gemini, "Be brief."),
        (gemini, {"parts": [{"text": "Be brief."}], "role": None}),
    ],
)
def test_the_instructions_apart_come_back(module: Any, system: Any) -> None:
    messages = [stored(one) for one in module.to_messages([], system=system)]
    assert module.from_messages(messages) == []
    assert orjson.dumps(module.system_of(messages)) == orjson.dumps(system)
    assert module.system_of([Message.user("x")]) is None
    more = module.system_of([*messages, Message.developer("In Russian.")])
    blocks = more if module is anthropic else more["parts"]
    assert [block["text"] for block in blocks] == ["Be brief.", "In Russian."]


def test_an_item_with_the_sign_of_a_pointer_is_kept() -> None:
    items = [{"role": "user", "content": "x" * 20, "meta": {"$": ["text"]}, "more": {"$": {"$": 1}}, "text": "x" * 20}]
    assert openai_chat.from_messages(openai_chat.to_messages(items)) == items


def test_words_of_other_origin_are_built_from_the_content() -> None:
    message = Message.user([Text("see"), Data({"b": 1, "a": 2})])
    assert openai_chat.from_messages([message])[0]["content"][1] == {"type": "text", "text": '{"b":1,"a":2}'}


@every_module
@pytest.mark.parametrize("value", [b"x", {"x": {1, 2}}, {"a": object()}], ids=["bytes", "set", "object"])
def test_what_is_no_json_is_refused(module: Any, value: Any) -> None:
    unknown = {"type": "hologram", "inner": value}
    with pytest.raises(InvalidInput, match="JSON"):
        module.to_messages([{"role": "user", "content": [unknown], "parts": [unknown]}])


@every_module
def test_an_unknown_block_in_the_shape_of_a_part_keeps_its_order(module: Any) -> None:
    block = {"value": {"b": 1, "a": 2}, "type": "data"}
    items = [{"id": "m", "role": "user", "content": [block], "parts": [block]}]
    messages = [stored(one) for one in module.to_messages(items)]
    assert orjson.dumps(module.from_messages(messages)) == orjson.dumps(items)

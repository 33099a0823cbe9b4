"""A conversation that began with one provider goes on with another, in items that its SDK takes.

The checks by an SDK are skipped where it is not installed.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise, permutations
from types import ModuleType
from typing import Any

import orjson
import pytest

from letopis.adapters.formats import anthropic, gemini, openai_chat, openai_responses
from letopis.store import File, Message, Reasoning, Text, ToolCall, ToolResult, UnknownPart, window
from tests.unit.adapters.formats.items import Item
from tests.unit.adapters.formats.test_round_trips import FORMATS, texts, thousand

Pair = tuple[str, str]


def calls_and_results(target: str, item: Item) -> tuple[list[Pair], list[str]]:
    """Return the calls in an item, by id and name, and the ids of its results; those of Gemini are the names."""
    if target == "openai_chat":
        assert item["role"] != "tool" or isinstance(item["content"], str)
        calls = [(call["id"], call["function"]["name"]) for call in item.get("tool_calls") or ()]
        assert all(len(call_id) <= 40 for call_id, _ in calls)
        return calls, [item["tool_call_id"]] if item["role"] == "tool" else []
    if target == "openai_responses":
        kind = item.get("type")
        calls = [(item["call_id"], item["name"])] if kind == "function_call" else []
        return calls, [item["call_id"]] if kind == "function_call_output" else []
    if target == "anthropic":
        blocks = {kind: [one for one in item["content"] if one["type"] == kind] for kind in ("tool_use", "tool_result")}
        results = blocks["tool_result"]
        assert item["content"] and item["content"][: len(results)] == results, "results come first"
        assert all(isinstance(call["input"], dict) for call in blocks["tool_use"])
        return [(call["id"], call["name"]) for call in blocks["tool_use"]], [one["tool_use_id"] for one in results]
    if target == "ag_ui":
        calls = [(call["id"], call["function"]["name"]) for call in item.get("toolCalls", ())]
        return calls, [item["toolCallId"]] if item["role"] == "tool" else []
    parts = item["parts"]
    if target == "ui_message":
        tools = [part for part in parts if part["type"].startswith("tool-")]
        assert all(part["state"].startswith("output-") for part in tools), "a result outside its call"
        return [(part["toolCallId"], part["type"][5:]) for part in tools], []
    answers = [part["functionResponse"] for part in parts if "functionResponse" in part]
    assert parts and all(isinstance(answer["response"], dict) for answer in answers)
    names = [part["functionCall"]["name"] for part in parts if "functionCall" in part]
    return [(name, name) for name in names], [answer["name"] for answer in answers]


def names_of_pairs(target: str, items: Sequence[Item]) -> list[str]:
    """Return the names of the calls; every call has its own id, and its result next to it."""
    called, waiting = list[Pair](), list[str]()
    assert target != "anthropic" or all(one["role"] != after["role"] for one, after in pairwise(items))
    for item in items:
        calls, results = calls_and_results(target, item)
        if target in ("anthropic", "gemini"):
            assert results == waiting if target == "gemini" else sorted(results) == sorted(waiting)
        elif target == "openai_chat":
            assert results or not waiting, "a call without a result"
        for call_id in results:
            waiting.remove(call_id)
        waiting += [call_id for call_id, _ in calls if target != "ui_message"]
        called += calls
    assert waiting == []
    assert target == "gemini" or len(dict(called)) == len(called)
    return [name for _, name in called]


MODULES: dict[str, ModuleType] = {name: module for name, (module, _) in FORMATS.items()}


@pytest.mark.parametrize(("source", "target"), list(permutations(FORMATS, 2)))
def test_words_calls_and_results_survive(source: str, target: str) -> None:
    module, talk = FORMATS[source]
    messages = window(module.to_messages(thousand(talk, seed=2)), last=10_000).messages
    items = MODULES[target].from_messages(messages)
    calls = [part for one in messages for part in parts_of(one) if isinstance(part, ToolCall)]
    assert len(calls) > 100
    assert names_of_pairs(target, items) == [call.name for call in calls]
    text = "\0".join(texts(items))
    for one in messages:
        if target not in ("anthropic", "gemini") or one.role not in ("system", "developer"):
            assert all(part.text in text for part in parts_of(one) if isinstance(part, Text))
        results = [part.output for part in parts_of(one) if isinstance(part, ToolResult)]
        assert all(output in text for output in results if isinstance(output, str))
    assert orjson.dumps(items), "plain JSON"


def parts_of(message: Message) -> Sequence[Any]:
    content = message.content
    return (Text(content),) if isinstance(content, str) else content or ()


TURN = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "name": "Ann", "content": "Weather in Kazan and Ufa?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Kazan"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ufa"'}},
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "-5"},
    {"role": "tool", "tool_call_id": "call_2", "content": "-7"},
    {"role": "assistant", "content": "Five and seven below."},
]


def test_from_chat_completions_to_each_other_format() -> None:
    messages = openai_chat.to_messages(TURN)

    assert anthropic.system_of(messages) == "Be brief."
    calls = [
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Kazan"}},
        # What a model wrote and is no JSON.
        {"type": "tool_use", "id": "call_2", "name": "weather", "input": {"_raw": '{"city": "Ufa"'}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "call_1", "content": "-5"},
        {"type": "tool_result", "tool_use_id": "call_2", "content": "-7"},
    ]
    assert anthropic.from_messages(messages) == [
        {"role": "user", "content": [{"type": "text", "text": "Weather in Kazan and Ufa?"}]},
        {"role": "assistant", "content": calls},
        {"role": "user", "content": results},
        {"role": "assistant", "content": [{"type": "text", "text": "Five and seven below."}]},
    ]
    called = [{"name": "weather", "args": args} for args in ({"city": "Kazan"}, {"_raw": '{"city": "Ufa"'})]
    answered = [{"name": "weather", "response": {"result": degrees}} for degrees in ("-5", "-7")]
    assert gemini.from_messages(messages)[1:3] == [
        {"role": "model", "parts": [{"functionCall": one} for one in called]},
        {"role": "user", "parts": [{"functionResponse": one} for one in answered]},
    ]


def test_what_stands_beside_a_result_is_kept() -> None:
    messages = [
        Message.assistant([ToolCall("a", "look"), ToolCall("b", "look")]),
        Message.tool([ToolResult("a", "dark"), File("https://e.org/a.png"), Text("a photo")]),
        Message.tool([ToolResult("b", "light")]),
        Message.tool("of an old bot, without a call"),
    ]
    assert openai_chat.from_messages(messages)[1:] == [
        {"role": "tool", "tool_call_id": "a", "content": "dark\n[https://e.org/a.png]\na photo"},
        {"role": "tool", "tool_call_id": "b", "content": "light"},
        {"role": "user", "content": "of an old bot, without a call"},
    ]
    kinds = [block["type"] for block in anthropic.from_messages(messages)[1]["content"]]
    assert kinds == ["tool_result", "tool_result", "image", "text", "text"]


@pytest.mark.parametrize(
    ("uri", "media_type", "expected"),
    [
        ("https://e.org/a.png", None, ("image_url", "input_image", "image", "fileData")),
        ("data:image/png;base64,_-8", None, ("image_url", "input_image", "image", "inlineData")),
        ("https://e.org/a.pdf", None, ("text", "input_file", "document", "fileData")),
        ("data:application/pdf;base64,AAAA", None, ("file", "input_file", "document", "inlineData")),
        ("data:audio/mpeg;base64,AAAA", None, ("input_audio", "input_text", "text", "inlineData")),
        ("openai:file-1", "image/*", ("file", "input_image", "text", "text")),
        ("openai:file-1", None, ("file", "input_file", "text", "text")),
        ("anthropic:file_1", "image/*", ("text", "input_text", "image", "text")),
        ("s3://bucket/key", None, ("text", "input_text", "text", "text")),
        ("gs://bucket/a.mp4", "video/mp4", ("text", "input_text", "text", "fileData")),
    ],
)
def test_a_file_is_what_each_provider_takes_or_a_text_that_names_it(
    uri: str, media_type: str | None, expected: tuple[str, ...]
) -> None:
    message = Message.user([Text("look"), File(uri, media_type)])
    chat = openai_chat.from_messages([message])[0]["content"]
    blocks = [
        chat[1] if isinstance(chat, list) else {"type": "text"},
        openai_responses.from_messages([message])[0]["content"][1],
        anthropic.from_messages([message])[0]["content"][1],
        gemini.from_messages([message])[0]["parts"][1],
    ]

    assert tuple(block.get("type") or next(iter(block)) for block in blocks) == expected
    named = [text for block in blocks for text in texts(block) if text.startswith("[")]
    assert all(";base64," not in text for text in named)
    if uri.endswith("_-8"):
        assert blocks[2]["source"]["data"] == blocks[3]["inlineData"]["data"] == "/+8="


def test_what_no_other_provider_takes_is_left_out() -> None:
    message = Message.assistant([Reasoning("hm"), UnknownPart({"type": "web_search_call"}), Text("found")])
    assert openai_chat.from_messages([message]) == [{"role": "assistant", "content": "found"}]
    assert openai_responses.from_messages([message]) == [{"role": "assistant", "content": "found"}]
    assert anthropic.from_messages([message])[0]["content"] == [{"type": "text", "text": "found"}]
    assert gemini.from_messages([message])[0]["parts"] == [{"text": "found"}]
    for module in (openai_chat, openai_responses, anthropic, gemini):
        assert module.from_messages([Message.assistant([Reasoning("hm")]), Message.assistant(None)]) == []


def test_a_failed_result_says_so_where_it_can() -> None:
    messages = [
        Message.assistant([ToolCall("c", "weather", {"city": "Kazan"})]),
        Message.tool(ToolResult("c", {"reason": "closed"}, "error")),
    ]
    [_, answered] = anthropic.from_messages(messages)
    told = '{"reason":"closed"}'
    failed = {"type": "tool_result", "tool_use_id": "c", "content": told, "is_error": True}
    assert answered["content"][0] == failed
    assert gemini.from_messages(messages)[1]["parts"][0]["functionResponse"]["response"] == {"error": told}
    assert openai_chat.from_messages(messages)[1]["content"] == told


def installed(module: str) -> Any:
    """Import a module of an SDK, or skip: together they are 184 MB, which no other test needs."""
    return pytest.importorskip(
        module, reason=f"{module} is missing: pip install openai anthropic google-genai ag-ui-protocol"
    )


def consumed(value: Any) -> object:
    if isinstance(value, dict):
        return {key: consumed(item) for key, item in value.items()}
    if isinstance(value, str | bytes | int | float) or value is None or not hasattr(value, "__iter__"):
        return value
    return [consumed(item) for item in value]


TYPES: dict[str, tuple[str, str]] = {
    "openai_chat": ("openai.types.chat", "ChatCompletionMessageParam"),
    "openai_responses": ("openai.types.responses", "ResponseInputItemParam"),
    "anthropic": ("anthropic.types", "MessageParam"),
    "gemini": ("google.genai.types", "Content"),
    "ag_ui": ("ag_ui.core", "Message"),
}
"""Module and type of an item, by format."""


def check_of(name: str) -> Callable[[Any], object]:
    """Return what validates an item, with what it holds in iterables, which pydantic leaves for later."""
    module, kind = TYPES[name]
    validate = installed("pydantic").TypeAdapter(getattr(installed(module), kind)).validate_python
    return lambda value: consumed(validate(value))


@pytest.mark.parametrize(("source", "target"), [pair for pair in permutations(FORMATS, 2) if pair[1] in TYPES])
def test_what_is_built_for_a_provider_is_what_its_sdk_takes(source: str, target: str) -> None:
    check = check_of(target)
    module, talk = FORMATS[source]
    messages = window(module.to_messages(thousand(talk, seed=3)), last=10_000).messages
    items: list[Item] = FORMATS[target][0].from_messages(messages)
    assert len(items) > 300
    for item in items:
        check(item)


def test_the_checks_find_what_is_wrong() -> None:
    installed("pydantic")
    for check in map(check_of, TYPES):
        with pytest.raises(ValueError, match="validation error"):
            check({"role": "user", "content": [{"type": "nothing"}], "parts": [{"text": 5}], "type": "message"})


@pytest.mark.parametrize("options", [{}, {"exclude_none": True}, {"by_alias": True}])
def test_what_the_google_sdk_dumps_comes_back(options: dict[str, Any]) -> None:
    types = installed("google.genai.types")
    call = types.FunctionCall(name="weather", args={"b": 1, "a": 2})
    content = types.Content(
        role="model",
        parts=[
            types.Part(text="It rains in Kazan today.", thought=True),
            types.Part(function_call=call, thought_signature=b"\xff\xfe signature"),
            types.Part.from_bytes(data=b"\xfb\xff picture", mime_type="image/png"),
        ],
    )
    dumped = content.model_dump(mode="json", **options)
    messages = gemini.to_messages([dumped])
    assert [type(part).__name__ for part in messages[0].content or ()] == ["Reasoning", "ToolCall", "File"]
    assert orjson.dumps(gemini.from_messages(messages)) == orjson.dumps([dumped])
    assert types.Content.model_validate(gemini.from_messages(messages)[0]) == content

"""What is built for another provider is what its SDK takes; skipped where the SDK is not installed."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import orjson
import pytest

from letopis.adapters.formats import gemini
from letopis.store.rules.context_window import window
from tests.unit.adapters.formats.items import Item
from tests.unit.adapters.formats.test_round_trips import FORMATS, thousand


def installed(module: str) -> Any:
    """Import a module of an SDK, or skip: together they are 184 MB, which no other test needs."""
    return pytest.importorskip(module, reason=f"{module} is missing: pip install openai anthropic google-genai")


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
}
"""Module and type of an item, by format."""


def check_of(name: str) -> Callable[[Any], object]:
    """Return what validates an item, with what it holds in iterables, which pydantic leaves for later."""
    module, kind = TYPES[name]
    validate = installed("pydantic").TypeAdapter(getattr(installed(module), kind)).validate_python
    return lambda value: consumed(validate(value))


@pytest.mark.parametrize(("source", "target"), list(permutations(FORMATS, 2)))
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

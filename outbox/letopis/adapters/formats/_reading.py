"""Read any provider's items and blocks, with errors that name what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from letopis.adapters.formats._media import file_of
from letopis.store.errors import InvalidInput
from letopis.store.model.parts import File, Part, Text, ToolResult, UnknownPart

_TEXT_TYPES: Final = ("text", "input_text", "output_text")  # a tool may give a "type" that cannot be hashed


def objects(value: Any, field: str) -> list[Mapping[str, Any]]:
    """Return a list of JSON objects.

    :raises InvalidInput: it is something else.
    """
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        raise InvalidInput(field, f"must be a list of objects, not {type(value).__name__}")
    found = list(value)
    for place, item in enumerate(found):
        if not isinstance(item, Mapping):
            raise InvalidInput(
                f"{field}[{place}]", f"must be an object, not {type(item).__name__}: give what model_dump() returns"
            )
    return found


def text_in(item: Mapping[str, Any], key: str, field: str) -> str:
    """Return a text that an object must have.

    :raises InvalidInput: it has none.
    """
    value = item.get(key)
    if not isinstance(value, str):
        raise InvalidInput(f"{field}.{key}", f"must be text, not {type(value).__name__}")
    return value


def object_in(item: Mapping[str, Any], key: str, field: str) -> Mapping[str, Any]:
    """Return an object that an object must have.

    :raises InvalidInput: it has none.
    """
    value = item.get(key)
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{field}.{key}", f"must be an object, not {type(value).__name__}")
    return value


def block_part(block: Mapping[str, Any], field: str) -> Part:
    """Convert a block of text or media to a part; other blocks are kept unchanged.

    :raises InvalidInput: a text block has no text.
    """
    if block.get("type") in _TEXT_TYPES:
        return Text(text_in(block, "text", field))
    return file_of(block) or UnknownPart(block)


def openai_content(value: Any, field: str) -> str | tuple[Part, ...]:
    """Return the content of an item in either OpenAI format; a refusal is text.

    :raises InvalidInput: it is neither text nor a list of blocks.
    """
    if isinstance(value, str):
        return value
    return tuple(
        Text(text_in(block, "refusal", f"{field}[{place}]"))
        if block.get("type") == "refusal"
        else block_part(block, f"{field}[{place}]")
        for place, block in enumerate(objects(value, field))
    )


def output_parts(result: ToolResult) -> list[Text | File]:
    """Return a tool's output, in any provider's form, as text and files; other values as JSON text."""
    output = result.output
    if output is None:
        return [] if result.status == "ok" else [Text(result.status)]
    if isinstance(output, str):
        return [Text(output)]
    if not isinstance(output, list | tuple) or not all(isinstance(block, Mapping) for block in output):
        return [Text(json_text(output))]
    parts: list[Text | File] = []
    for block in output:
        if block.get("type") in _TEXT_TYPES and isinstance(text := block.get("text"), str):
            parts.append(Text(text))
        else:
            parts.append(file_of(block) or Text(json_text(block)))
    return parts


def json_text(value: Any) -> str:
    """Return a JSON value as text, with its keys in the order given."""
    return orjson.dumps(value, default=dict).decode()


def arguments_text(arguments: Any) -> str:
    """Return a call's arguments as JSON text, for OpenAI; text is returned unchanged."""
    if arguments is None:
        return "{}"
    return arguments if isinstance(arguments, str) else json_text(arguments)


def arguments_object(arguments: Any) -> dict[str, Any]:
    """Return a call's arguments as an object, for Anthropic and Gemini; text that is not one goes under ``_raw``."""
    if isinstance(arguments, Mapping):
        return dict(arguments)
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        try:
            found = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            found = None
        if isinstance(found, dict):
            return found
    return {"_raw": arguments}

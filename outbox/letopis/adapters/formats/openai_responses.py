"""Convert messages to and from the items of OpenAI Responses.

::

    from letopis.adapters.formats import openai_responses

    output = response.model_dump(mode="json", exclude_none=True)["output"]
    await history.append("chat-1", *openai_responses.to_messages(output))
    items = openai_responses.from_messages((await history.context("chat-1", turns=20)).messages)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from letopis.adapters.formats._call_ids import CallIds
from letopis.adapters.formats._media import OPENAI_FILE, data_uri, is_url, media_type_of, mention
from letopis.adapters.formats._native import to_message, with_own_items
from letopis.adapters.formats._reading import (
    arguments_text,
    json_text,
    objects,
    openai_content,
    output_parts,
    text_in,
)
from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.messages import Message, Role
from letopis.store.model.parts import Content, Data, File, Part, Reasoning, Text, ToolCall, ToolResult, UnknownPart

PROVIDER: Final = "openai.responses"
"""The name of this format in a message's metadata."""
_ROLES: Final = ("system", "developer", "user", "assistant")
_CALLS: Final = {"function_call": "arguments", "custom_tool_call": "input"}
_RESULTS: Final = ("function_call_output", "custom_tool_call_output")


def to_messages(items: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Return one message for each item of ``input=``, or of a response's ``output``.

    Calls and results become parts of messages of their own, and reasoning becomes :class:`~letopis.store.Reasoning`.
    Items of hosted tools are kept as unknown parts. Everything without a field of its own is in the metadata, and
    :func:`from_messages` returns the same bytes.

    :param items: plain JSON values, as ``model_dump(mode="json")`` returns them.
    :raises InvalidInput: an item is not one of this format; the error names it.
    """
    return [_message(item, f"items[{place}]") for place, item in enumerate(objects(items, "items"))]


def from_messages(messages: Iterable[Message | RecordedMessage]) -> list[dict[str, Any]]:
    """Return messages as items of ``input=``.

    A message made by :func:`to_messages` becomes its item again, byte for byte, unless it was edited. Others are built
    from their content, one item for the text and one for each call and result. Author names, reasoning, the error flag
    of a result and parts that Responses does not accept are lost; a file becomes a text that names it.

    :param messages: in order, calls paired with results as ``History.context`` returns them.
    :raises InvalidInput: one of them is not a message.
    """
    items: list[dict[str, Any]] = []
    for message, own, ids in with_own_items(messages, PROVIDER):
        if own is not None:
            items.append(own)
        else:
            items += _items(message, ids)
    return items


def _message(item: Mapping[str, Any], field: str) -> Message:
    kind = item.get("type", "message")
    role: Role = "assistant"
    content: Content
    if kind == "message":
        given = text_in(item, "role", field)
        if given not in _ROLES:
            raise InvalidInput(f"{field}.role", f"must be one of {', '.join(_ROLES)}")
        role, content = cast(Role, given), openai_content(item.get("content"), f"{field}.content")
    elif not isinstance(kind, str):
        raise InvalidInput(f"{field}.type", f"must be text, not {type(kind).__name__}")
    elif kind in _CALLS:
        content = (ToolCall(text_in(item, "call_id", field), text_in(item, "name", field), item.get(_CALLS[kind])),)
    elif kind in _RESULTS:
        role, content = "tool", (ToolResult(text_in(item, "call_id", field), item.get("output")),)
    elif kind == "reasoning":
        content = _reasoning(item, field) or (UnknownPart(item),)
    else:
        # What a hosted tool did, or what the caller answered it.
        role = "tool" if kind.endswith(("_output", "_response")) else "assistant"
        content = (UnknownPart(item),)
    return to_message(item, provider=PROVIDER, role=role, content=content)


def _reasoning(item: Mapping[str, Any], field: str) -> tuple[Part, ...]:
    """Return the text of a reasoning item; none if it is encrypted."""
    return tuple(
        Reasoning(text_in(block, "text", f"{field}.{key}[{place}]"))
        for key in ("summary", "content")
        if item.get(key) is not None
        for place, block in enumerate(objects(item[key], f"{field}.{key}"))
    )


def _items(message: Message, ids: CallIds) -> list[dict[str, Any]]:
    """Return the items of a message that came from elsewhere, in the order of its parts."""
    role = "user" if message.role == "tool" else message.role
    if message.content is None:
        return []
    if isinstance(message.content, str):
        return [{"role": role, "content": message.content}]
    items: list[dict[str, Any]] = []
    blocks: list[dict[str, Any]] = []
    for part in message.content:
        match part:
            case ToolCall() | ToolResult():
                items += _words(role, blocks)
                blocks = []
                items.append(_call(part, ids) if isinstance(part, ToolCall) else _result(part, ids))
            case Text() | File():
                blocks.append(_block(part, media=role == "user"))
            case Data():
                blocks.append(_text(json_text(part.value)))
            case _:
                pass  # reasoning, and what this provider does not know
    return [*items, *_words(role, blocks)]


def _words(role: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not blocks:
        return []
    if role == "user":
        return [{"role": role, "content": blocks}]
    return [{"role": role, "content": "\n".join(block["text"] for block in blocks)}]


def _call(call: ToolCall, ids: CallIds) -> dict[str, Any]:
    return {
        "type": "function_call",
        "call_id": ids.of_call(call),
        "name": call.name,
        "arguments": arguments_text(call.arguments),
    }


def _result(result: ToolResult, ids: CallIds) -> dict[str, Any]:
    blocks = [_block(part) for part in output_parts(result)]
    plain = len(blocks) < 2 and all(block["type"] == "input_text" for block in blocks)
    return {
        "type": "function_call_output",
        "call_id": ids.of_result(result),
        "output": "".join(block["text"] for block in blocks) if plain else blocks,
    }


def _block(part: Text | File, *, media: bool = True) -> dict[str, Any]:
    if isinstance(part, Text):
        return _text(part.text)
    return (_media(part) if media else None) or _text(mention(part))


def _text(words: str) -> dict[str, Any]:
    return {"type": "input_text", "text": words}


def _media(file: File) -> dict[str, Any] | None:
    kind = media_type_of(file)
    uploaded = file.uri.removeprefix(OPENAI_FILE) if file.uri.startswith(OPENAI_FILE) else None
    data = data_uri(file)
    if kind.startswith(("audio/", "video/")) or not (uploaded or data or is_url(file)):
        return None
    if kind.startswith("image/"):
        return {
            "type": "input_image",
            "detail": "auto",
            **({"file_id": uploaded} if uploaded else {"image_url": data or file.uri}),
        }
    if uploaded:
        return {"type": "input_file", "file_id": uploaded}
    if data:
        return {"type": "input_file", "filename": file.name or "file", "file_data": data}
    return {"type": "input_file", "file_url": file.uri}

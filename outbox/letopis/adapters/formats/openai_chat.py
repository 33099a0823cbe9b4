"""Convert messages to and from those of OpenAI Chat Completions.

::

    from letopis.adapters.formats import openai_chat

    answer = completion.choices[0].message.model_dump(exclude_none=True)
    await history.append("chat-1", *openai_chat.to_messages([answer]))
    messages = openai_chat.from_messages((await history.context("chat-1", turns=20)).messages)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from letopis.adapters.formats._call_ids import CallIds
from letopis.adapters.formats._media import OPENAI_FILE, base64_of, data_uri, is_url, media_type_of, mention
from letopis.adapters.formats._native import to_message, with_own_items
from letopis.adapters.formats._reading import (
    arguments_text,
    json_text,
    object_in,
    objects,
    openai_content,
    output_parts,
    text_in,
)
from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.messages import ROLES, Message, Role
from letopis.store.model.parts import Content, Data, File, Part, Reasoning, Text, ToolCall, ToolResult, UnknownPart

PROVIDER: Final = "openai.chat"
"""The name of this format in a message's metadata."""
_AUDIO_FORMATS: Final = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3"}


def to_messages(items: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Return one message for each item of ``messages=``, or of an answer's ``choices[].message``.

    Text, images, audio, files, calls and results become parts; a refusal becomes text. Everything without a field of
    its own is in the metadata, and :func:`from_messages` returns the same bytes.

    :param items: plain JSON values, as ``model_dump(mode="json")`` returns them.
    :raises InvalidInput: an item is not one of this format; the error names it.
    """
    return [_message(item, f"items[{place}]") for place, item in enumerate(objects(items, "items"))]


def from_messages(messages: Iterable[Message | RecordedMessage]) -> list[dict[str, Any]]:
    """Return messages as items of ``messages=``.

    A message made by :func:`to_messages` becomes its item again, byte for byte, unless it was edited. Others are built
    from their content: each result becomes an item, and consecutive calls become one item. Reasoning, the error flag of
    a result and parts that Chat Completions does not accept are lost; a file becomes a text that names it.

    :param messages: in order, calls paired with results as ``History.context`` returns them.
    :raises InvalidInput: one of them is not a message.
    """
    items: list[dict[str, Any]] = []
    merging = False
    for message, own, ids in with_own_items(messages, PROVIDER):
        if own is not None:
            items.append(own)
        else:
            for item in _items(message, ids):
                if merging and item["role"] == "assistant" and "tool_calls" in items[-1]:
                    _merge(items[-1], item)
                else:
                    items.append(item)
        merging = own is None and bool(items)  # a native item stays unchanged
    return items


def _message(item: Mapping[str, Any], field: str) -> Message:
    role, content, name = understood(item, field)
    return to_message(item, provider=PROVIDER, role=role, content=content, name=name)


def understood(item: Mapping[str, Any], field: str) -> tuple[Role, Content | None, str | None]:
    """Return the role, the content and the author's name of an item.

    :raises InvalidInput: it is not one of this format.
    """
    role = text_in(item, "role", field)
    content: Content | None
    if role in ("tool", "function"):
        call_id = text_in(item, "tool_call_id" if role == "tool" else "name", field)
        role, content = "tool", (ToolResult(call_id, item.get("content")),)
    elif role == "assistant":
        content = _answer(item, field)
    elif role in ROLES:
        content = openai_content(item.get("content"), f"{field}.content")
    else:
        raise InvalidInput(f"{field}.role", f"must be one of {', '.join(ROLES)} or function")
    name = item.get("name")
    return cast(Role, role), content, name if isinstance(name, str) and role != "tool" else None


def _answer(item: Mapping[str, Any], field: str) -> Content | None:
    given = item.get("content")
    content = None if given is None else openai_content(given, f"{field}.content")
    before: list[Part] = [Reasoning(text) for text in [item.get("reasoning_content")] if isinstance(text, str)]
    after: list[Part] = [Text(text) for text in [item.get("refusal")] if isinstance(text, str)]
    if item.get("audio") is not None:
        audio = object_in(item, "audio", field)
        after.append(Text(audio["transcript"]) if isinstance(audio.get("transcript"), str) else UnknownPart(audio))
    if item.get("tool_calls") is not None:
        calls = objects(item["tool_calls"], f"{field}.tool_calls")
        after += [_call(call, f"{field}.tool_calls[{place}]") for place, call in enumerate(calls)]
    if item.get("function_call") is not None:
        function = object_in(item, "function_call", field)
        name = text_in(function, "name", f"{field}.function_call")
        after.append(ToolCall(name, name, function.get("arguments")))
    if not before and not after:
        return content
    words: tuple[Part, ...] = content if isinstance(content, tuple) else (Text(content),) if content else ()
    return (*before, *words, *after)


def _call(call: Mapping[str, Any], field: str) -> Part:
    kind = call.get("type", "function")
    if kind not in ("function", "custom"):
        return UnknownPart(call)
    inner = object_in(call, kind, field)
    arguments = inner.get("arguments" if kind == "function" else "input")
    return ToolCall(text_in(call, "id", field), text_in(inner, "name", f"{field}.{kind}"), arguments)


def _items(message: Message, ids: CallIds) -> list[dict[str, Any]]:
    """Return the items of a message that came from elsewhere."""
    if message.content is None or isinstance(message.content, str):
        parts: tuple[Part, ...] = () if message.content is None else (Text(message.content),)
    else:
        parts = message.content
    items = [_result(part, ids) for part in parts if isinstance(part, ToolResult)]
    rest = [part for part in parts if not isinstance(part, ToolResult)]
    if items and message.role == "tool":
        # An image beside a result, for example: no other item may come between results.
        beside = [block["text"] for part in rest if (block := _block(part, media=False)) is not None]
        items[-1]["content"] = "\n".join(filter(None, (items[-1]["content"], *beside)))
        return items
    if items and not rest:
        return items
    role = "user" if message.role == "tool" else message.role
    named = {"name": message.name} if message.name and role == message.role else {}
    if role != "assistant":
        blocks = [block for part in rest if (block := _block(part)) is not None]
        texts = [block["text"] for block in blocks if block["type"] == "text"]
        plain = len(texts) == len(blocks) and (len(texts) < 2 or role != "user")
        return [*items, {"role": role, **named, "content": "\n".join(texts) if plain else blocks}]
    calls = [part for part in rest if isinstance(part, ToolCall)]
    words = [block["text"] for part in rest if (block := _block(part, media=False)) is not None]
    if not calls and not words:
        return items  # only reasoning, or what this provider does not know
    item: dict[str, Any] = {"role": "assistant", **named, "content": "\n".join(words) if words else None}
    if calls:
        item["tool_calls"] = [
            {
                "id": ids.of_call(call),
                "type": "function",
                "function": {"name": call.name, "arguments": arguments_text(call.arguments)},
            }
            for call in calls
        ]
    return [*items, item]


def _result(part: ToolResult, ids: CallIds) -> dict[str, Any]:
    words = [one.text if isinstance(one, Text) else mention(one) for one in output_parts(part)]
    return {"role": "tool", "tool_call_id": ids.of_result(part), "content": "\n".join(words)}


def _block(part: Part, *, media: bool = True) -> dict[str, Any] | None:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case File():
            return (_media(part) if media else None) or {"type": "text", "text": mention(part)}
        case Data():
            return {"type": "text", "text": json_text(part.value)}
    return None


def _media(file: File) -> dict[str, Any] | None:
    kind = media_type_of(file)
    if kind.startswith("image/") and (is_url(file) or data_uri(file)):
        return {"type": "image_url", "image_url": {"url": data_uri(file) or file.uri}}
    if file.uri.startswith(OPENAI_FILE):
        return {"type": "file", "file": {"file_id": file.uri.removeprefix(OPENAI_FILE)}}
    if (inside := base64_of(file)) is None:
        return None
    if kind in _AUDIO_FORMATS:
        return {"type": "input_audio", "input_audio": {"data": inside[1], "format": _AUDIO_FORMATS[kind]}}
    return {"type": "file", "file": {"filename": file.name or "file", "file_data": data_uri(file)}}


def _merge(item: dict[str, Any], more: dict[str, Any]) -> None:
    """Add what an assistant said and called next to its item, because results have to follow all calls at once."""
    words = [text for text in (item["content"], more["content"]) if text]
    item["content"] = "\n".join(words) if words else None
    if calls := [*item.get("tool_calls", ()), *more.get("tool_calls", ())]:
        item["tool_calls"] = calls

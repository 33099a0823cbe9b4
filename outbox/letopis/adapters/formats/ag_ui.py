"""Convert messages to and from those of AG-UI, as in ``MESSAGES_SNAPSHOT`` and ``RunAgentInput.messages``.

::

    from letopis.adapters.formats import ag_ui, thread_page

    page = await thread_page(history, "chat-1", ag_ui.from_messages)
    snapshot = {"type": "MESSAGES_SNAPSHOT", "messages": list(page)}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from letopis.adapters.formats import openai_chat
from letopis.adapters.formats._call_ids import CallIds
from letopis.adapters.formats._media import UPLOADED, base64_of, media_type_of, mention
from letopis.adapters.formats._native import with_own_items
from letopis.adapters.formats._reading import arguments_text, json_text, objects, output_parts, text_in
from letopis.adapters.formats._threads import identified, marked, redacted_ids, to_identified
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.messages import Message, Role
from letopis.store.model.parts import Content, Data, File, Part, Reasoning, Text, ToolCall, ToolResult, UnknownPart

PROVIDER: Final = "ag_ui"
"""The name of this format in a message's metadata."""
_CHAT_KEYS: Final = {"toolCalls": "tool_calls", "toolCallId": "tool_call_id"}
"""Keys that Chat Completions spells differently; the rest of an item is the same there."""


def to_messages(items: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Return one message for each item, under its id, so that appending it again has no effect.

    Reasoning and activities become messages of the assistant. Everything without a field of its own is in the metadata,
    and :func:`from_messages` returns the same bytes.

    :param items: plain JSON values with keys in camel case, as ``model_dump(mode="json", by_alias=True)`` returns them.
    :raises InvalidInput: an item is not one of this format; the error names it.
    """
    return [_message(item, f"items[{place}]") for place, item in enumerate(objects(items, "items"))]


def from_messages(messages: Iterable[Message | RecordedMessage]) -> list[dict[str, Any]]:
    """Return messages as items of AG-UI, which have the ids of the messages.

    A message made by :func:`to_messages` becomes its item again, byte for byte, unless it was edited. Others are built
    from their content: a message with reasoning, or with several results, becomes several items, and all but one get
    the message's id, a hash and a number. ``metadata.letopis`` of an item has ``redacted`` or ``interrupted`` if the
    message is. Unknown parts are lost, and files of an assistant become texts that name them.

    :raises InvalidInput: one of them is not a message.
    """
    messages = list(messages)
    redacted, items = redacted_ids(messages), list[dict[str, Any]]()
    for message, own, ids in with_own_items(messages, PROVIDER):
        made = _items(message, ids) if own is None else [{**own, "id": message.id}]
        items += [marked(item, message, redacted) for item in made]
    return items


def _message(item: Mapping[str, Any], field: str) -> Message:
    given, message_id = text_in(item, "role", field), identified(item, field)
    role: Role = "assistant"
    content: Content | None
    if given == "reasoning":
        content = (Reasoning(text_in(item, "content", field)),)
    elif given == "activity":
        content = (UnknownPart(item),)
    else:
        chat = {_CHAT_KEYS.get(key, key): value for key, value in item.items()}
        role, content, _ = openai_chat.understood(chat, field)
        if item.get("error") and isinstance(content, tuple):
            content = tuple(replace(part, status="error") if isinstance(part, ToolResult) else part for part in content)
    return to_identified(item, message_id, provider=PROVIDER, role=role, content=content, name=item.get("name"))


def _items(message: Message, ids: CallIds) -> list[dict[str, Any]]:
    """Return the items of a message that came from elsewhere: reasoning, what was said and called, and results."""
    role = "assistant" if message.role == "tool" else message.role
    before, words, calls, results = [], list[Text | File](), list[dict[str, Any]](), list[dict[str, Any]]()
    parts: tuple[Part, ...] = message.content if isinstance(message.content, tuple) else (Text(message.text),)
    for part in () if message.content is None else parts:
        match part:
            case Reasoning():
                before.append({"id": "", "role": "reasoning", "content": part.text})
            case ToolCall():
                function = {"name": part.name, "arguments": arguments_text(part.arguments)}
                calls.append({"id": ids.of_call(part), "type": "function", "function": function})
            case ToolResult():
                results.append(_result(part, ids))
            case Text() | File():
                words.append(part)
            case Data():
                words.append(Text(json_text(part.value)))
    said: list[dict[str, Any]] = []
    if words or calls:
        content = _content(words, media=role == "user") if words or role != "assistant" else None
        said = [
            {
                "id": "",
                "role": role,
                **({"name": message.name} if message.name else {}),
                **({} if content is None else {"content": content}),
                **({"toolCalls": calls} if calls and role == "assistant" else {}),
            }
        ]
    items = [*before, *said, *results]
    main = said[0] if said else items[0] if items else None
    for number, item in enumerate(items):
        item["id"] = message.id if item is main else f"{message.id}#{number}"
    return items


def _result(part: ToolResult, ids: CallIds) -> dict[str, Any]:
    output = output_parts(part)
    content = _content(output, media=any(isinstance(block, File) for block in output))
    error = {"error": content if content and isinstance(content, str) else part.status} if part.status != "ok" else {}
    return {"id": "", "role": "tool", "content": content, "toolCallId": ids.of_result(part), **error}


def _content(parts: list[Text | File], *, media: bool) -> str | list[dict[str, Any]]:
    if media and any(isinstance(part, File) for part in parts):
        return [{"type": "text", "text": part.text} if isinstance(part, Text) else _media(part) for part in parts]
    return "\n".join(part.text if isinstance(part, Text) else mention(part) for part in parts)


def _media(file: File) -> dict[str, Any]:
    media_type = media_type_of(file)
    kind = media_type.partition("/")[0]
    known = {"mimeType": media_type} if media_type else {}
    provider, _, handle = file.uri.partition(":")
    source: dict[str, Any] = {"type": "url", "value": file.uri, **known}
    if (inside := base64_of(file)) is not None:
        source = {"type": "data", "value": inside[1], "mimeType": inside[0]}
    elif provider in UPLOADED:
        source = {"type": "file", "value": handle, "provider": provider, **known}
    part = {"type": kind if kind in ("image", "audio", "video") else "document", "source": source}
    return part | ({"metadata": {"filename": file.name}} if file.name else {})

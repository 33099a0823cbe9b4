"""Convert messages to and from those of Anthropic Messages.

::

    from letopis.adapters.formats import anthropic

    answer = response.model_dump(mode="json", include={"role", "content"}, exclude_none=True)
    await history.append("chat-1", *anthropic.to_messages([answer]))
    context = (await history.context("chat-1", turns=20)).messages
    await client.messages.create(system=anthropic.system_of(context), messages=anthropic.from_messages(context), ...)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from letopis.adapters.formats._call_ids import CallIds
from letopis.adapters.formats._media import ANTHROPIC_FILE, base64_of, is_url, media_type_of, mention
from letopis.adapters.formats._native import native_item, to_message, whole_messages, with_own_items
from letopis.adapters.formats._reading import (
    arguments_object,
    block_part,
    json_text,
    objects,
    output_parts,
    text_in,
)
from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.messages import INSTRUCTIONS, Message, Role
from letopis.store.model.parts import Content, Data, File, Part, Reasoning, Text, ToolCall, ToolResult

PROVIDER: Final = "anthropic.messages"
"""The name of this format in a message's metadata."""
SYSTEM: Final = "anthropic.system"
"""The name of the value of ``system=`` in a message's metadata."""
_ROLES: Final = ("user", "assistant", "system")
_IMAGES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})


def to_messages(
    items: Iterable[Mapping[str, Any]], *, system: str | Iterable[Mapping[str, Any]] | None = None
) -> list[Message]:
    """Return one message for each item of ``messages=``, or of an answer, and one for ``system``.

    A user's message that holds only results gets the role ``tool``. Blocks of server tools, redacted thinking and
    search results are kept as unknown parts. Everything without a field of its own is in the metadata, and
    :func:`from_messages` returns the same bytes.

    :param items: plain JSON values, as ``model_dump(mode="json")`` returns them.
    :param system: the value of ``system=``; it becomes the first message.
    :raises InvalidInput: an item is not one of this format; the error names it.
    """
    messages = []
    if system is not None:
        given = system if isinstance(system, str) else objects(system, "system")
        content = _content(given, "system")
        messages.append(to_message({"system": given}, provider=SYSTEM, role="system", content=content))
    return messages + [_message(item, f"items[{place}]") for place, item in enumerate(objects(items, "items"))]


def from_messages(messages: Iterable[Message | RecordedMessage]) -> list[dict[str, Any]]:
    """Return messages as items of ``messages=``.

    A message made by :func:`to_messages` becomes its item again, byte for byte, unless it was edited. Others are built
    from their content, neighbours with the same role as one item, so that the results of parallel calls are together.
    Instructions are left out: see :func:`system_of`. Author names, reasoning and files that Anthropic does not accept
    are lost; such a file becomes a text that names it.

    :param messages: in order, calls paired with results as ``History.context`` returns them.
    :raises InvalidInput: one of them is not a message.
    """
    items: list[dict[str, Any]] = []
    merging = False
    for message, own, ids in with_own_items(messages, PROVIDER):
        if own is not None:
            items.append(own)
            merging = False
        elif message.role not in INSTRUCTIONS and (blocks := _blocks(message, ids)):
            role = "assistant" if message.role == "assistant" else "user"
            if merging and items[-1]["role"] == role:
                items[-1]["content"] = _results_first([*items[-1]["content"], *blocks])
            else:
                items.append({"role": role, "content": _results_first(blocks)})
            merging = True
    return items


def system_of(messages: Iterable[Message | RecordedMessage]) -> str | list[dict[str, Any]] | None:
    """Return the instructions among the messages, as the value of ``system=``; ``None`` if there are none.

    A value that :func:`to_messages` got as ``system`` comes back byte for byte. Several instructions become a list of
    blocks.

    :raises InvalidInput: one of them is not a message.
    """
    found: list[str | list[dict[str, Any]]] = []
    for message in whole_messages(messages, PROVIDER):
        if message.role not in INSTRUCTIONS or native_item(message, PROVIDER) is not None:
            continue
        item = native_item(message, SYSTEM)
        found.append(message.text if item is None else item["system"])
    if len(found) < 2:
        return found[0] if found else None
    return [
        block for one in found for block in ([{"type": "text", "text": one}] if isinstance(one, str) else one) if block
    ]


def _message(item: Mapping[str, Any], field: str) -> Message:
    role = text_in(item, "role", field)
    if role not in _ROLES:
        raise InvalidInput(f"{field}.role", f"must be one of {', '.join(_ROLES)}")
    content = _content(item.get("content"), f"{field}.content")
    if role == "user" and content and not isinstance(content, str):
        role = "tool" if all(isinstance(part, ToolResult) for part in content) else role
    return to_message(item, provider=PROVIDER, role=cast(Role, role), content=content)


def _content(value: Any, field: str) -> Content:
    if isinstance(value, str):
        return value
    return tuple(_part(block, f"{field}[{place}]") for place, block in enumerate(objects(value, field)))


def _part(block: Mapping[str, Any], field: str) -> Part:
    match block.get("type"):
        case "thinking":
            return Reasoning(text_in(block, "thinking", field))
        case "tool_use":
            return ToolCall(text_in(block, "id", field), text_in(block, "name", field), block.get("input"))
        case "tool_result":
            status = "error" if block.get("is_error") else "ok"
            return ToolResult(text_in(block, "tool_use_id", field), block.get("content"), status)
    return block_part(block, field)


def _blocks(message: Message, ids: CallIds) -> list[dict[str, Any]]:
    """Return the blocks of a message that came from elsewhere."""
    if message.content is None or isinstance(message.content, str):
        return [_text(message.content)] if message.content else []
    media = message.role != "assistant"
    return [block for part in message.content if (block := _block(part, ids, media=media)) is not None]


def _block(part: Part, ids: CallIds, *, media: bool) -> dict[str, Any] | None:
    match part:
        case Text():
            return _text(part.text) if part.text else None  # the API refuses empty ones
        case File():
            return _file(part) if media else _text(mention(part))
        case Data():
            return _text(json_text(part.value))
        case ToolCall():
            return {
                "type": "tool_use",
                "id": ids.of_call(part),
                "name": part.name,
                "input": arguments_object(part.arguments),
            }
        case ToolResult():
            block: dict[str, Any] = {"type": "tool_result", "tool_use_id": ids.of_result(part)}
            inner = [_text(one.text) if isinstance(one, Text) else _file(one) for one in output_parts(part)]
            if inner:
                plain = len(inner) == 1 and inner[0]["type"] == "text"
                block["content"] = inner[0]["text"] if plain else inner
            if part.status != "ok":
                block["is_error"] = True
            return block
    return None


def _text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def _file(file: File) -> dict[str, Any]:
    kind = media_type_of(file)
    image = kind.startswith("image/")
    if file.uri.startswith(ANTHROPIC_FILE):
        source = {"type": "file", "file_id": file.uri.removeprefix(ANTHROPIC_FILE)}
    elif (inside := base64_of(file)) is not None and (kind in _IMAGES or kind == "application/pdf"):
        source = {"type": "base64", "media_type": inside[0], "data": inside[1]}
    elif is_url(file) and (image or kind == "application/pdf"):
        source = {"type": "url", "url": file.uri}
    else:
        return _text(mention(file))
    return {"type": "image" if image else "document", "source": source}


def _results_first(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return blocks with the results first, as the API requires."""
    return sorted(blocks, key=lambda block: block["type"] != "tool_result")

"""Convert messages to and from the UIMessage of Vercel's AI SDK, which ``useChat`` shows and sends.

::

    from letopis.adapters.formats import thread_page, ui_message

    page = await thread_page(history, "chat-1", ui_message.from_messages)
    answer = {"messages": list(page), "before": page.next}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import orjson

from letopis.adapters.formats._call_ids import CallIds
from letopis.adapters.formats._media import media_type_of
from letopis.adapters.formats._native import with_own_items
from letopis.adapters.formats._reading import block_part, objects, output_parts, text_in
from letopis.adapters.formats._threads import identified, marked, redacted_ids, to_identified
from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.messages import INSTRUCTIONS, Message, Role
from letopis.store.model.parts import Data, File, Part, Reasoning, Text, ToolCall, ToolResult

PROVIDER: Final = "vercel.ui_message"
"""The name of this format in a message's metadata."""
_ROLES: Final = ("system", "user", "assistant")
_OPEN: Final = ("input-streaming", "input-available", "approval-requested", "approval-responded")
"""The states of a call that has no result yet."""

Item = dict[str, Any]


def to_messages(items: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Return the messages of each item, under its id, so that appending them again has no effect.

    An answer of several steps becomes a message for each step, because a model is to read results before what was said
    after them: the first has the item's id, the others that id, a slash and a number. Sources, data and marks of steps
    are kept as unknown parts. Everything without a field of its own is in the metadata, and :func:`from_messages`
    returns the same bytes.

    :param items: plain JSON values.
    :raises InvalidInput: an item is not one of this format; the error names it.
    """
    return [
        message for place, item in enumerate(objects(items, "items")) for message in _messages(item, f"items[{place}]")
    ]


def from_messages(messages: Iterable[Message | RecordedMessage]) -> list[Item]:
    """Return messages as items for ``useChat``, with the ids of the messages and each result in its call.

    What :func:`to_messages` made becomes its item again, byte for byte, unless it was edited. Others are built from
    their content, one item a message; one that has only results disappears. ``metadata.letopis`` of an item has
    ``redacted`` or ``interrupted`` if the message is. Author names and unknown parts are lost.

    :raises InvalidInput: one of them is not a message.
    """
    messages = list(messages)
    redacted, items, waiting = redacted_ids(messages), list[Item](), dict[str, Item]()
    for message, own, ids in with_own_items(messages, PROVIDER):
        if own is None:
            item = _item(message, ids, waiting)
        elif "role" in own:
            item = {**own, "id": message.id}
        elif items and items[-1]["id"] == own["id"]:
            items[-1]["parts"] += own["parts"]
            item = None
        else:  # a step whose beginning is not among the messages
            item = {"id": message.id, "role": "assistant", "parts": own["parts"]}
        for part in () if own is None else own["parts"]:
            if _tool(part) is not None and part.get("state") in _OPEN:
                waiting[part["toolCallId"]] = part
        if item is not None:
            items.append(item)
        if item is not None or own is not None:
            marked(items[-1], message, redacted)
    return items


def _messages(item: Mapping[str, Any], field: str) -> list[Message]:
    role = text_in(item, "role", field)
    if role not in _ROLES:
        raise InvalidInput(f"{field}.role", f"must be one of {', '.join(_ROLES)}")
    message_id = identified(item, field)
    steps: list[tuple[list[Mapping[str, Any]], list[Part]]] = [([], [])]
    for place, block in enumerate(objects(item.get("parts"), f"{field}.parts")):
        parts = _parts(block, f"{field}.parts[{place}]")
        if _tool(block) is None and any(isinstance(part, ToolResult) for part in steps[-1][1]):
            steps.append(([], []))
        steps[-1][0].append(block)
        steps[-1][1].extend(parts)
    return [
        to_identified(
            {"id": message_id, "parts": blocks} if number else {**item, "parts": blocks},
            f"{message_id}/{number}" if number else message_id,
            provider=PROVIDER,
            role=cast(Role, role),
            content=tuple(parts),
        )
        for number, (blocks, parts) in enumerate(steps)
    ]


def _tool(block: Mapping[str, Any]) -> str | None:
    """Return the name of the tool that a part calls; ``None`` for other parts."""
    kind = block.get("type")
    if kind == "dynamic-tool":
        return cast("str | None", block.get("toolName"))
    return kind[5:] if isinstance(kind, str) and kind.startswith("tool-") else None


def _parts(block: Mapping[str, Any], field: str) -> list[Part]:
    if text_in(block, "type", field) == "reasoning":
        return [Reasoning(text_in(block, "text", field))]
    if (name := _tool(block)) is None:
        return [block_part(block, field)]
    call_id, state = text_in(block, "toolCallId", field), block.get("state")
    call = ToolCall(call_id, name, block.get("input"))
    if state in _OPEN:
        return [call]
    if state == "output-available":
        return [call, ToolResult(call_id, block.get("output"))]
    return [call, ToolResult(call_id, block.get("errorText"), "denied" if state == "output-denied" else "error")]


def _item(message: Message, ids: CallIds, waiting: dict[str, Item]) -> Item | None:
    """Return the item of a message that came from elsewhere; its results go into the calls that wait for them."""
    given: tuple[Part, ...] = message.content if isinstance(message.content, tuple) else (Text(message.text),)
    blocks: list[Item] = []
    for part in () if message.content is None else given:
        match part:
            case Text() | Reasoning():
                blocks.append({"type": part.kind, "text": part.text})
            case File():
                kind = media_type_of(part) or "application/octet-stream"
                named = {"filename": part.name} if part.name else {}
                blocks.append({"type": "file", "mediaType": kind, **named, "url": part.uri})
            case Data():
                blocks.append({"type": "data-json", "data": part.value})
            case ToolCall():
                called = ids.of_call(part)
                waiting[called] = _call(called, part.name, _input(part.arguments))
                blocks.append(waiting[called])
            case ToolResult():
                answered = ids.of_result(part)
                if (call := waiting.pop(answered, None)) is None:  # the call is not among the messages
                    call = _call(answered, ids.name_of(part), None)
                    blocks.append(call)
                call.update(_outcome(part))
    if not blocks and message.content is not None and message.role in ("user", *INSTRUCTIONS):
        blocks.append({"type": "text", "text": ""})  # an item needs a part
    role = "system" if message.role in INSTRUCTIONS else "assistant" if message.role == "tool" else message.role
    return {"id": message.id, "role": role, "parts": blocks} if blocks else None


def _call(call_id: str, name: str, value: Any) -> Item:
    return {"type": f"tool-{name}", "toolCallId": call_id, "state": "input-available", "input": value}


def _input(arguments: Any) -> Any:
    """Return the arguments that a model wrote as JSON values, or as its text if they are none."""
    if isinstance(arguments, str):
        try:
            return orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError:
            return arguments
    return {} if arguments is None else arguments


def _outcome(result: ToolResult) -> Item:
    if result.status == "ok":
        return {"state": "output-available", "output": result.output}
    words = "\n".join(part.text for part in output_parts(result) if isinstance(part, Text))
    return {"state": "output-error", "errorText": words or result.status}

"""Convert messages to and from the contents of Gemini.

::

    from letopis.adapters.formats import gemini

    answer = response.candidates[0].content.model_dump(mode="json", exclude_none=True)
    await history.append("chat-1", *gemini.to_messages([answer]))
    context = (await history.context("chat-1", turns=20)).messages
    config = {"system_instruction": gemini.system_of(context)}
    client.models.generate_content(contents=gemini.from_messages(context), config=config, ...)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from letopis.adapters.formats._call_ids import CallIds
from letopis.adapters.formats._media import base64_of, file_of, is_url, media_type_of, mention
from letopis.adapters.formats._native import native_item, to_message, whole_messages, with_own_items
from letopis.adapters.formats._reading import arguments_object, json_text, objects, output_parts, text_in
from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.messages import INSTRUCTIONS, Message, Role
from letopis.store.model.parts import Data, File, Part, Reasoning, Text, ToolCall, ToolResult, UnknownPart

PROVIDER: Final = "gemini.contents"
"""The name of this format in a message's metadata."""
SYSTEM: Final = "gemini.system"
"""The name of the value of ``system_instruction`` in a message's metadata."""
_ROLES: Final[Mapping[str, Role]] = {"user": "user", "model": "assistant", "function": "tool"}


def to_messages(items: Iterable[Mapping[str, Any]], *, system: str | Mapping[str, Any] | None = None) -> list[Message]:
    """Return one message for each item of ``contents=``, or of a candidate's ``content``, and one for ``system``.

    Keys may be in camel or snake case (``functionCall``, ``function_call``). A content that holds only results gets the
    role ``tool``. Calls without an id are paired by name and order: the second call of ``weather`` in one content is
    ``weather#2``. Code, signatures and everything else without a field of its own is kept, and :func:`from_messages`
    returns the same bytes.

    :param items: plain JSON values, as ``model_dump(mode="json")`` returns them.
    :param system: the value of ``system_instruction``; it becomes the first message.
    :raises InvalidInput: an item is not one of this format; the error names it.
    """
    messages = []
    if system is not None:
        content = system if isinstance(system, str) else _parts(system, "system")
        messages.append(to_message({"system": system}, provider=SYSTEM, role="system", content=content))
    return messages + [_message(item, f"items[{place}]") for place, item in enumerate(objects(items, "items"))]


def from_messages(messages: Iterable[Message | RecordedMessage]) -> list[dict[str, Any]]:
    """Return messages as items of ``contents=``.

    A message made by :func:`to_messages` becomes its item again, byte for byte, unless it was edited. Others are built
    from their content, neighbours with the same role as one item. Instructions are left out: see :func:`system_of`.
    Author names, call ids, reasoning and other providers' uploaded files are lost; such a file becomes a text that
    names it. A result becomes an object: ``{"result": ...}``, or ``{"error": ...}`` if it failed.

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
            role = "model" if message.role == "assistant" else "user"
            if merging and items[-1]["role"] == role:
                items[-1]["parts"] += blocks
            else:
                items.append({"role": role, "parts": blocks})
            merging = True
    return items


def system_of(messages: Iterable[Message | RecordedMessage]) -> str | dict[str, Any] | None:
    """Return the instructions among the messages, as ``system_instruction``; ``None`` if there are none.

    A value that :func:`to_messages` got as ``system`` comes back byte for byte. Several instructions become parts of
    one.

    :raises InvalidInput: one of them is not a message.
    """
    found: list[str | dict[str, Any]] = []
    for message in whole_messages(messages, PROVIDER):
        if message.role in INSTRUCTIONS:
            item = native_item(message, SYSTEM)
            found.append(message.text if item is None else item["system"])
    if len(found) < 2:
        return found[0] if found else None
    return {
        "parts": [
            block for one in found for block in ([{"text": one}] if isinstance(one, str) else one.get("parts") or ())
        ]
    }


def _message(item: Mapping[str, Any], field: str) -> Message:
    given = item.get("role") or "user"
    if given not in _ROLES:
        raise InvalidInput(f"{field}.role", "must be user or model")
    role = _ROLES[given]
    content = _parts(item, field)
    if role == "user" and content and all(isinstance(part, ToolResult) for part in content):
        role = "tool"
    return to_message(item, provider=PROVIDER, role=role, content=content)


def _parts(item: Mapping[str, Any], field: str) -> tuple[Part, ...]:
    blocks = [] if item.get("parts") is None else objects(item["parts"], f"{field}.parts")
    calls, results = dict[str, int](), dict[str, int]()
    return tuple(_part(block, f"{field}.parts[{place}]", calls, results) for place, block in enumerate(blocks))


def _part(block: Mapping[str, Any], field: str, calls: dict[str, int], results: dict[str, int]) -> Part:
    if (call := _either(block, "functionCall", "function_call")) is not None:
        name = text_in(call, "name", f"{field}.functionCall")
        return ToolCall(_call_id(call, name, calls), name, call.get("args"))
    if (result := _either(block, "functionResponse", "function_response")) is not None:
        name = text_in(result, "name", f"{field}.functionResponse")
        response = result.get("response")
        failed = isinstance(response, Mapping) and response.keys() == {"error"}
        return ToolResult(_call_id(result, name, results), response, "error" if failed else "ok")
    if block.get("text") is not None:
        words = text_in(block, "text", field)
        return Reasoning(words) if block.get("thought") else Text(words)
    return file_of(block) or UnknownPart(block)


def _either(block: Mapping[str, Any], camel: str, snake: str) -> Mapping[str, Any] | None:
    found = block.get(camel)
    found = block.get(snake) if found is None else found
    if found is not None and not isinstance(found, Mapping):
        raise InvalidInput(camel, f"must be an object, not {type(found).__name__}")
    return found


def _call_id(given: Mapping[str, Any], name: str, seen: dict[str, int]) -> str:
    """Return the id of a call or a result; without one, its name and its place among those of the same name."""
    if isinstance(call_id := given.get("id"), str) and call_id:
        return call_id
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}#{seen[name]}"


def _blocks(message: Message, ids: CallIds) -> list[dict[str, Any]]:
    """Return the parts of a message that came from elsewhere."""
    if message.content is None or isinstance(message.content, str):
        return [{"text": message.content}] if message.content else []
    return [block for part in message.content for block in _block(part, ids)]


def _block(part: Part, ids: CallIds) -> list[dict[str, Any]]:
    match part:
        case Text():
            return [{"text": part.text}] if part.text else []
        case File():
            return [_file(part)]
        case Data():
            return [{"text": json_text(part.value)}]
        case ToolCall():
            ids.of_call(part)
            return [{"functionCall": {"name": part.name, "args": arguments_object(part.arguments)}}]
        case ToolResult():
            return [{"functionResponse": {"name": ids.name_of(part), "response": _response(part)}}]
    return []


def _response(part: ToolResult) -> dict[str, Any]:
    if part.status == "ok" and isinstance(part.output, Mapping):
        return dict(part.output)
    words = [one.text if isinstance(one, Text) else mention(one) for one in output_parts(part)]
    return {"result" if part.status == "ok" else "error": "\n".join(words)}


def _file(file: File) -> dict[str, Any]:
    if (inside := base64_of(file)) is not None:
        return {"inlineData": {"mimeType": inside[0] or "application/octet-stream", "data": inside[1]}}
    kind = media_type_of(file)
    if is_url(file) or file.uri.startswith("gs://"):
        return {"fileData": {"fileUri": file.uri, **({} if kind.endswith("/*") or not kind else {"mimeType": kind})}}
    return {"text": mention(file)}

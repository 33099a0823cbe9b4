# pyright: reportMissingImports=false
"""Convert messages of Agent Framework to and from those of a history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from agent_framework import Content as FrameworkContent
from agent_framework import Message as FrameworkMessage

from letopis.adapters._messages import items_of
from letopis.adapters.formats import to_message as with_item
from letopis.store import File, InvalidInput, Message, RecordedMessage, Text, ToolCall, ToolResult
from letopis.store.model.messages import ROLES, Role
from letopis.store.model.parts import Content, Part, Reasoning, UnknownPart

PROVIDER: Final = "agent_framework"
"""The name of this format in a message's metadata."""


def to_message(message: FrameworkMessage, field: str = "message") -> Message:
    """Convert a framework message to a history message that holds all of it in its metadata.

    :raises InvalidInput: it is not a message, or holds a value that is not JSON.
    """
    if not isinstance(message, FrameworkMessage):
        raise InvalidInput(field, f"must be a Message of Agent Framework, not {type(message).__name__}")
    item: dict[str, Any] = message.to_dict()
    return with_item(
        item,
        provider=PROVIDER,
        role=_role(message.role),
        content=_content(item.get("contents") or ()),
        name=message.author_name if isinstance(message.author_name, str) else None,
    )


def from_messages(messages: Iterable[Message | RecordedMessage]) -> list[FrameworkMessage]:
    """Convert messages to the framework's; those from elsewhere get their text, calls, results and images.

    :raises InvalidInput: one of them is no message.
    """
    found: list[FrameworkMessage] = []
    for own, chat in items_of(messages, PROVIDER):
        found += [FrameworkMessage.from_dict(own)] if own is not None else map(_from_chat, chat)
    return found


def approvals_in(message: Message) -> frozenset[str]:
    """Return the ids of the calls that a message asks approval for."""
    parts = message.content if isinstance(message.content, tuple) else ()
    asked = (part.value for part in parts if isinstance(part, UnknownPart))
    calls = (one.get("function_call") for one in asked if one.get("type") == "function_approval_request")
    return frozenset(str(one.get("call_id")) for one in calls if isinstance(one, Mapping))


def _role(role: str) -> Role:
    return role if role in ROLES else "user"


def _content(contents: Iterable[Any]) -> Content:
    parts = tuple(_part(one) for one in contents)
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text
    return parts


def _part(content: Mapping[str, Any]) -> Part:
    def text(key: str) -> bool:
        return isinstance(content.get(key), str)

    match content.get("type"):
        case "text" if text("text"):
            return Text(content["text"])
        case "text_reasoning" if text("text"):
            return Reasoning(content["text"])
        case "data" | "uri" if text("uri"):
            return File(content["uri"], content["media_type"] if text("media_type") else None)
        case "function_call" if text("call_id") and text("name"):
            return ToolCall(content["call_id"], content["name"], content.get("arguments"))
        case "function_result" if text("call_id"):
            status = "ok" if content.get("exception") is None else "error"
            return ToolResult(content["call_id"], content.get("result"), status)
    return UnknownPart(content)


def _from_chat(item: Mapping[str, Any]) -> FrameworkMessage:
    """Convert a Chat Completions message, for messages that came from elsewhere."""
    if item["role"] == "tool":
        result = FrameworkContent.from_function_result(item["tool_call_id"], result=item["content"])
        return FrameworkMessage("tool", [result])
    given = item["content"] or ()
    blocks = [{"type": "text", "text": given}] if isinstance(given, str) else given
    contents = [one for block in blocks if (one := _from_block(block)) is not None]
    for call in item.get("tool_calls", ()):
        function = call["function"]
        contents.append(
            FrameworkContent.from_function_call(call["id"], function["name"], arguments=function["arguments"])
        )
    return FrameworkMessage(item["role"], contents, author_name=item.get("name"))


def _from_block(block: Mapping[str, Any]) -> FrameworkContent | None:
    if block["type"] == "text":
        return FrameworkContent.from_text(block["text"])
    if block["type"] == "image_url":
        uri = block["image_url"]["url"]
        kind = uri[5:].partition(";")[0] if uri.startswith("data:") else "image/*"
        return FrameworkContent.from_uri(uri, media_type=kind)
    return None

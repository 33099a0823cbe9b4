# pyright: reportMissingImports=false
"""Convert the numbered messages of Strands' agents to and from those of a history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from strands.types.session import SessionMessage

from letopis.adapters._envelope import seal, unseal
from letopis.adapters.formats import readable, with_own_items
from letopis.adapters.formats import to_message as with_item
from letopis.store import File, Message, RecordedMessage, Text, ToolCall, ToolResult
from letopis.store.model.large_content import REPLACED_TYPE
from letopis.store.model.messages import Role
from letopis.store.model.parts import Content, Part, Reasoning, UnknownPart

PROVIDER: Final = "strands"
"""The name of this format in a message's metadata."""
AGENT: Final = "strands.agent"
"""The metadata key of a message's agent."""
NUMBER: Final = "strands.number"
"""The metadata key of a message's number within its agent."""


def to_message(agent_id: str, given: SessionMessage) -> Message:
    """Convert an agent's message to one that holds all of it in its metadata.

    :raises InvalidInput: the message holds a value that is not JSON, or has more than 64 MiB.
    """
    item = given.to_dict()
    content, role = _understood(item)
    made = with_item(item, provider=PROVIDER, role=role, content=content)
    return replace(made, metadata={**made.metadata, AGENT: agent_id, NUMBER: given.message_id})


def updated_content(given: SessionMessage) -> Content:
    """Return the content of a message that Strands has replaced.

    Readers of the history see the replacement. The last part holds all of it, for :func:`from_recorded`.
    """
    item = given.to_dict()
    return (*_parts(readable(_understood(item)[0])), UnknownPart({"type": REPLACED_TYPE, **seal(item)}))


def number_of(recorded: RecordedMessage) -> int:
    """Return the number of a message within its agent."""
    return int(recorded.message.metadata[NUMBER])


def from_recorded(recorded: RecordedMessage) -> SessionMessage:
    """Return an agent's message as Strands passed it; one that another program has edited, with its text and calls."""
    content = recorded.message.content
    if isinstance(content, tuple) and content and isinstance(content[-1], UnknownPart):
        last = content[-1].value
        if last.get("type") == REPLACED_TYPE:
            return SessionMessage.from_dict(unseal(last))
    ((_, item, _),) = with_own_items([recorded], PROVIDER)
    if item is not None:
        return SessionMessage.from_dict(item)
    at = recorded.occurred_at.isoformat()
    role = "assistant" if recorded.role == "assistant" else "user"
    message: Any = {"role": role, "content": [block for part in _parts(content) if (block := _block(part))]}
    return SessionMessage(message=message, message_id=number_of(recorded), created_at=at, updated_at=at)


def _understood(item: Mapping[str, Any]) -> tuple[Content, Role]:
    """Return the content and role of a message in the history, those of its replacement if it was replaced."""
    message = item["message"] if item.get("redact_message") is None else item["redact_message"]
    blocks = message.get("content")
    if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        blocks = [message]
    parts = tuple(_part(block) for block in blocks)
    if message.get("role") == "assistant":
        role: Role = "assistant"
    else:
        role = "tool" if parts and all(isinstance(part, ToolResult) for part in parts) else "user"
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text, role
    return parts, role


def _part(block: Mapping[str, Any]) -> Part:
    match block:
        case {"text": str(text)}:
            return Text(text)
        case {"reasoningContent": {"reasoningText": {"text": str(text)}}}:
            return Reasoning(text)
        case {"toolUse": {"toolUseId": str(call_id), "name": str(name), **rest}}:
            return ToolCall(call_id, name, rest.get("input"))
        case {"toolResult": {"toolUseId": str(call_id), **rest}}:
            return ToolResult(call_id, _output(rest.get("content")), "error" if rest.get("status") == "error" else "ok")
        case {"image": {"format": str(kind), "source": {"bytes": {"data": str(data)}}}}:
            return File(f"data:image/{kind};base64,{data}", f"image/{kind}")
    return UnknownPart(block)


def _output(content: Any) -> Any:
    """Return a tool's output: its text, or its single value, or else the blocks."""
    match content:
        case [{"text": str(text)}]:
            return text
        case [{"json": value}]:
            return value
    return content


def _parts(content: Content | None) -> Sequence[Part]:
    if content is None:
        return ()
    return (Text(content),) if isinstance(content, str) else content


def _block(part: Part) -> dict[str, Any] | None:
    match part:
        case Text():
            return {"text": part.text}
        case ToolCall():
            return {"toolUse": {"toolUseId": part.call_id, "name": part.name, "input": part.arguments}}
        case ToolResult():
            text = part.output if isinstance(part.output, str) else None
            output = [{"json": part.output} if text is None else {"text": text}]
            status = "error" if part.status != "ok" else "success"
            return {"toolResult": {"toolUseId": part.call_id, "status": status, "content": output}}
    return None

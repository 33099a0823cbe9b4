# pyright: reportMissingImports=false
"""Convert entries of Pydantic AI's log to messages and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from pydantic_ai.conversation_store import ConversationEntry
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    UserPromptPart,
)
from pydantic_core import to_jsonable_python

from letopis.adapters.formats import to_message, with_own_items
from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.identifiers import uuid7
from letopis.store.model.messages import EMPTY, INSTRUCTIONS, Message, Role
from letopis.store.model.parts import Content, File, Part, Reasoning, Text, ToolCall, ToolResult

PROVIDER: Final = "pydantic_ai"
"""The name of this format in a message's metadata, and the metadata key for the entry's own fields."""
_URLS: Final = frozenset({"image-url", "audio-url", "video-url", "document-url"})
_PREFIX_LENGTH: Final = 200  # characters of an entry's id that begin the message ids of its copies
_COUNTS: Final = {"input_tokens": "input", "output_tokens": "output", "cache_read_tokens": "cached"}


def message_of(entry: ConversationEntry) -> Message:
    """Convert an entry to a message that holds all of it, with its text, calls and results as parts.

    :raises InvalidInput: the message holds a value that is not JSON, or the entry's id is not a valid message id.
    """
    if entry.kind != "message":
        raise InvalidInput("new_entries", f"are of the kind {entry.kind!r}, which this release does not know")
    dumped = ModelMessagesTypeAdapter.dump_python([entry.message], mode="json")
    [item] = to_jsonable_python(dumped, inf_nan_mode="null")  # as Pydantic writes JSON
    role, content = _understood(item)
    message = to_message(item, provider=PROVIDER, role=role, content=content)
    tokens, usage = _usage(item.get("usage") or {})
    about = {"id": entry.id, "parent": entry.parent_id, "kind": entry.kind}
    return replace(message, id=entry.id, tokens=tokens, usage=usage, metadata={**message.metadata, PROVIDER: about})


def is_entry(message: RecordedMessage) -> bool:
    """Return True if a message is an entry of Pydantic AI and was not redacted."""
    return isinstance(message.message.metadata.get(PROVIDER), Mapping)


def id_of(message: RecordedMessage) -> str:
    """Return the id of an entry; its message has another one if a branch brought it back to the path."""
    entry_id: str = message.message.metadata[PROVIDER]["id"]
    return entry_id


def copy_of(message: RecordedMessage) -> Message:
    """Return an entry's message to append once more, under an id that tells whose it is after a redaction, too."""
    return replace(message.message, id=f"{_prefix(id_of(message))}{uuid7()}")


def was_entry(message: RecordedMessage, entry_id: str | None) -> bool:
    """Return True if a message was the entry, or a copy of it, and was redacted."""
    if not message.redacted or entry_id is None:
        return False
    return message.id == entry_id or message.id.startswith(_prefix(entry_id))


def _prefix(entry_id: str) -> str:
    return f"{entry_id[:_PREFIX_LENGTH]}~"


def parent_of(message: RecordedMessage) -> str | None:
    """Return the entry before an entry."""
    parent: str | None = message.message.metadata[PROVIDER]["parent"]
    return parent


def entry_of(message: RecordedMessage, parent_id: str | None) -> ConversationEntry:
    """Convert a message to an entry; one that was edited since is built from its content."""
    [(whole, own, _)] = with_own_items([message], PROVIDER)
    found = _built(whole) if own is None else ModelMessagesTypeAdapter.validate_python([own])[0]
    return ConversationEntry(id=id_of(message), parent_id=parent_id, message=found)


def _understood(item: Mapping[str, Any]) -> tuple[Role, Content]:
    parts = item["parts"]
    if item["kind"] == "response":
        return "assistant", _plain([made for part in parts for made in _response_part(part)])
    kinds = {part["part_kind"] for part in parts}
    asked = [made for part in parts if part["part_kind"] == "user-prompt" for made in _prompt(part)]
    results = [_result(part) for part in parts if _is_result(part)]
    if asked or "user-prompt" in kinds:
        return "user", _plain([*results, *asked])
    if results:
        return "tool", tuple(results)
    texts = [Text(part["content"]) for part in parts if isinstance(part.get("content"), str)]
    return ("system" if kinds == {"system-prompt"} else "user"), _plain(texts)


def _response_part(part: Mapping[str, Any]) -> Iterator[Part]:
    match part["part_kind"]:
        case "text":
            yield Text(part["content"])
        case "thinking":
            yield Reasoning(part["content"])
        case "tool-call":
            yield ToolCall(part["tool_call_id"], part["tool_name"], part["args"])
        case "speech" if part.get("transcript"):
            yield Text(part["transcript"])
        case _:
            return  # files, and tools that the provider runs: only in the item


def _prompt(part: Mapping[str, Any]) -> Iterator[Part]:
    content = part["content"]
    for one in [content] if isinstance(content, str) else content:
        if isinstance(one, str):
            yield Text(one)
        elif isinstance(one, Mapping) and one.get("kind") == "text-content":
            yield Text(str(one["content"]))
        elif isinstance(one, Mapping) and one.get("kind") in _URLS:
            yield File(one["url"], media_type=one.get("media_type") or None)


def _is_result(part: Mapping[str, Any]) -> bool:
    return part["part_kind"] in ("tool-return", "retry-prompt") and bool(part.get("tool_call_id"))


def _result(part: Mapping[str, Any]) -> ToolResult:
    done = part["part_kind"] == "tool-return" and part.get("outcome", "success") == "success"
    return ToolResult(part["tool_call_id"], part["content"], "ok" if done else "error")


def _plain(parts: Sequence[Part]) -> Content:
    """Return one text as text."""
    return parts[0].text if len(parts) == 1 and isinstance(parts[0], Text) else tuple(parts)


def _usage(counted: Mapping[str, Any]) -> tuple[int | None, Mapping[str, Any]]:
    usage = {ours: counted[theirs] for theirs, ours in _COUNTS.items() if counted.get(theirs)}
    total = usage.get("input", 0) + usage.get("output", 0)
    return total or None, usage or EMPTY


def _built(message: Message) -> ModelMessage:
    if message.role == "assistant":
        return ModelResponse(parts=[TextPart(message.text)])
    part = SystemPromptPart if message.role in INSTRUCTIONS else UserPromptPart
    return ModelRequest(parts=[part(message.text)])

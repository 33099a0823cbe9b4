# pyright: reportMissingImports=false
"""Convert ADK's events to messages and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from google.adk.events.event import Event
from pydantic_core import to_jsonable_python

from letopis.adapters.formats import gemini, to_message, with_own_items
from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.messages import EMPTY, Message, Role
from letopis.store.model.parts import Content, Text

_PROVIDER: Final = "google_adk"
_USER: Final = "user"
_COUNTS: Final = {
    "prompt_token_count": "input",
    "candidates_token_count": "output",
    "cached_content_token_count": "cached",
    "thoughts_token_count": "reasoning",
}


def message_of(event: Event) -> Message:
    """Convert an event to a message that holds all of it, with its text, calls and results as parts.

    :raises InvalidInput: the event holds a value that is not JSON, or its id cannot be one.
    """
    item: dict[str, Any] = to_jsonable_python(event.model_dump(mode="json", exclude_none=True), inf_nan_mode="null")
    role, content = _understood(item.get("content"), event.author)
    name = event.author if event.author and event.author != _USER else None
    message = to_message(item, provider=_PROVIDER, role=role, content=content, name=name)
    tokens, usage = _usage(item.get("usage_metadata"))
    return replace(message, id=event.id, tokens=tokens, usage=usage)


def moment_of(event: Event) -> datetime | None:
    """Return when an event occurred; ``None`` if its timestamp is not valid."""
    try:
        return datetime.fromtimestamp(event.timestamp, UTC) if event.timestamp >= 0 else None
    except (OverflowError, ValueError, OSError):
        return None


def events_of(messages: Iterable[RecordedMessage]) -> list[Event]:
    """Convert messages to events. One that another program appended, or that was edited, is built from its content."""
    events: list[Event] = []
    for recorded in messages:
        for message, own, _ in with_own_items([recorded], _PROVIDER):
            if own is not None:
                events.append(Event.model_validate(own))
            elif (content := _gemini_content(message)) is not None:
                author = message.name or (_USER if message.role == "user" else message.role)
                timestamp = recorded.occurred_at.timestamp()
                events.append(Event(id=message.id, author=author, content=content, timestamp=timestamp))
    return events


def _understood(item: Mapping[str, Any] | None, author: str) -> tuple[Role, Content | None]:
    if item is None:
        return ("user", "") if author == _USER else ("assistant", None)
    role: Role = "user" if author == _USER else "assistant"
    content: Content = ()
    with suppress(InvalidInput):  # not one of Gemini's roles: the item is kept anyway
        (message,) = gemini.to_messages([item])
        content = message.content or ()
        role = message.role if author != _USER or message.role == "tool" else "user"
    if isinstance(content, tuple) and len(content) == 1 and isinstance(content[0], Text):
        content = content[0].text
    return role, content


def _usage(counted: Mapping[str, Any] | None) -> tuple[int | None, Mapping[str, Any]]:
    if not counted:
        return None, EMPTY
    usage = {ours: counted[theirs] for theirs, ours in _COUNTS.items() if counted.get(theirs)}
    total = counted.get("total_token_count")
    return (total if isinstance(total, int) and total >= 0 else None), usage or EMPTY


def _gemini_content(message: Message) -> Any:
    items = gemini.from_messages([message])
    return items[0] if items else None

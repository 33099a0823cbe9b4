"""Find the references to large content in messages that were read, and put the content in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from letopis.store.model.conversations import Page, RecordedMessage, any_needs_content
from letopis.store.model.large_content import references_of, restored
from letopis.store.model.messages import Message, needs_content
from letopis.store.model.parts import Content, content_from_json, content_to_json

Wanted = Mapping[str, set[str]]
"""The names of large content, by conversation."""
Contents = Mapping[str, Mapping[str, bytes]]
"""Large content by conversation and name."""


def wanted_of(messages: Iterable[RecordedMessage]) -> Wanted | None:
    """Return what the references of messages name; ``None`` if nothing in them is a reference or escaped."""
    messages = tuple(messages)
    if not any_needs_content(messages):
        return None
    wanted: dict[str, set[str]] = {}
    for message in messages:
        if needs_content(message.message):
            names = wanted.setdefault(message.conversation_id, set())
            names |= wanted_in(message.message)
    return wanted


def wanted_in(message: Message) -> set[str]:
    """Return the names of the large content that a message refers to."""
    return references_of(_values(message))


def with_content(message: Message, contents: Mapping[str, bytes]) -> Message:
    """Return a message with its large content in place."""
    content, metadata = restored(_values(message), contents)
    whole: Content | None = None if content is None else content_from_json(content)
    return replace(message, content=whole, metadata=metadata)


def with_contents(page: Page[RecordedMessage], wanted: Wanted, contents: Contents) -> Page[RecordedMessage]:
    """Return a page with large content in place; it is not complete if some of it is missing."""
    items = tuple(
        replace(item, message=with_content(item.message, contents.get(item.conversation_id, {})))
        if item.conversation_id in wanted and needs_content(item.message)
        else item
        for item in page.items
    )
    return replace(page, items=items, complete=page.complete and not missing_of(wanted, contents))


def missing_of(wanted: Wanted, contents: Contents) -> dict[str, set[str]]:
    """Return what is wanted and not there."""
    missing = {name: names - contents.get(name, {}).keys() for name, names in wanted.items()}
    return {name: names for name, names in missing.items() if names}


def _values(message: Message) -> list[Any]:
    return [content_to_json(message.content), message.metadata]

"""Read a conversation for a front end, in pages of its format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from letopis.adapters.formats._native import to_message
from letopis.outbox import History
from letopis.outbox.history.options import DEFAULT_PAGE_SIZE
from letopis.store.model.conversations import Page, RecordedMessage
from letopis.store.model.identifiers import check_identifier, uuid7
from letopis.store.model.messages import Message, Role
from letopis.store.model.parts import Content, ToolCall, ToolResult

_MARKS: Final = "letopis"
"""The key in an item's metadata for what its format has no field for."""
_MAX_DISTANCE: Final = 200
"""How many messages before a page are searched for the call of a result."""


async def thread_page(
    history: History,
    conversation_id: str,
    convert: Callable[[Iterable[RecordedMessage]], list[dict[str, Any]]],
    *,
    last: int = DEFAULT_PAGE_SIZE,
    before: str | None = None,
) -> Page[dict[str, Any]]:
    """Return the newest messages of a conversation as items of a format, oldest first, pending ones included.

    ::

        page = await thread_page(history, "chat-1", ui_message.from_messages, before=cursor)

    A page is longer than ``last`` if it would begin between a call and its result. ``next`` and ``complete`` are those
    of ``History.messages``.

    :param convert: ``from_messages`` of a format.
    :param last: how many messages to read; a message may be several items, or a part of one.
    :param before: the ``next`` of a page.
    :raises InvalidInput: an argument is wrong.
    :raises OutboxUnavailable: the outbox file cannot be read.
    """
    page = await history.messages(conversation_id, last=last, before=before)
    messages, complete = list(page), page.complete
    while page.next is not None and len(messages) < last + _MAX_DISTANCE and _begins_within_call(messages):
        page = await history.messages(conversation_id, last=20, before=page.next)
        messages[:0], complete = page, complete and page.complete
    return Page(tuple(convert(messages)), next=page.next, complete=complete)


def identified(item: Mapping[str, Any], field: str) -> str:
    """Return the id of an item; a new one if it has none, as an answer that no server has named yet.

    :raises InvalidInput: it cannot be the id of a message.
    """
    given = item.get("id")
    return str(uuid7()) if given is None or given == "" else check_identifier(given, f"{field}.id")


def to_identified(
    item: Mapping[str, Any], message_id: str, *, provider: str, role: Role, content: Content | None, name: Any = None
) -> Message:
    """Convert an item to a message with the same id, ``interrupted`` if :func:`marked` says so."""
    name = name if isinstance(name, str) else None
    made = to_message(item, provider=provider, role=role, content=content, name=name)
    metadata = item.get("metadata")
    marks = metadata.get(_MARKS) if isinstance(metadata, Mapping) else None
    interrupted = isinstance(marks, Mapping) and marks.get("interrupted") is True
    return Message(
        role=role,
        content=made.content,
        id=message_id,
        name=made.name,
        metadata=made.metadata,
        status="interrupted" if interrupted else "complete",
    )


def redacted_ids(messages: Iterable[Message | RecordedMessage]) -> frozenset[str]:
    """Return the ids of the messages whose content was taken away."""
    return frozenset(message.id for message in messages if isinstance(message, RecordedMessage) and message.redacted)


def marked(item: dict[str, Any], message: Message, redacted: frozenset[str]) -> dict[str, Any]:
    """Return an item that says in its metadata if the content is gone, or ends where its writer was cut off."""
    marks = {"redacted": message.id in redacted, "interrupted": message.status == "interrupted"}
    if any(marks.values()):
        metadata = item.get("metadata")
        own = metadata if isinstance(metadata, Mapping) else {}
        item["metadata"] = {**own, _MARKS: {key: True for key, value in marks.items() if value}}
    return item


def _begins_within_call(messages: Iterable[RecordedMessage]) -> bool:
    calls = set[str]()
    for message in messages:
        for part in message.content if isinstance(message.content, tuple) else ():
            if isinstance(part, ToolCall):
                calls.add(part.call_id)
            elif isinstance(part, ToolResult) and part.call_id not in calls:
                return True
    return False

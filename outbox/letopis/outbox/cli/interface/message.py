"""Render conversations and messages as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from letopis.outbox.cli.interface.output import note, printable

if TYPE_CHECKING:
    from letopis.store.model.conversations import Conversation, RecordedMessage


def conversation_json(found: Conversation) -> dict[str, Any]:
    """Return the JSON of a conversation; a documented, stable schema."""
    from letopis.store.transfer.timestamps import render_timestamp

    return {
        "conversation_id": found.conversation_id,
        "owner": found.owner_id,
        "number": found.number,
        "title": found.title,
        "state": found.state,
        "active": found.active,
        "version": found.version,
        "messages": found.message_count,
        "tokens": found.tokens,
        "pending": found.pending,
        "created_at": render_timestamp(found.created_at),
        "updated_at": render_timestamp(found.updated_at),
    }


def message_json(found: RecordedMessage) -> dict[str, Any]:
    """Return the JSON of a message; a documented, stable schema."""
    from letopis.store.model.parts import content_to_json
    from letopis.store.transfer.timestamps import render_timestamp

    message = found.message
    return {
        "id": message.id,
        "version": found.version,
        "role": message.role,
        "content": content_to_json(message.content),
        "name": message.name,
        "tokens": message.tokens,
        "usage": dict(message.usage),
        "external_ids": dict(message.external_ids),
        "metadata": dict(message.metadata),
        "occurred_at": render_timestamp(found.occurred_at),
        "recorded_at": None if found.recorded_at is None else render_timestamp(found.recorded_at),
        "saved": found.saved,
        "edited": found.edited,
        "redacted": found.redacted,
        "delivery": found.delivery,
        "delivery_data": dict(found.delivery_data),
    }


def message_text(found: RecordedMessage) -> str:
    """Return a message as text: time, role and marks, then the content."""
    marks = [mark for mark, there in (("edited", found.edited), (found.saved, found.saved != "saved")) if there]
    if found.delivery != "appended":
        marks.append(found.delivery)
    name = f" ({printable(found.message.name)})" if found.message.name else ""
    head = f"{minute(found.occurred_at)}  {found.role}{name}{''.join(f'  [{mark}]' for mark in marks)}"
    content = found.content or ()
    parts = 0 if isinstance(content, str) else sum(1 for part in content if not hasattr(part, "text"))
    words = printable(found.text, lines=True) or ("" if parts else "(redacted)" if found.redacted else "(empty)")
    more = f"({parts} other part{'s' if parts > 1 else ''})" if parts else ""
    body = "\n".join(line for line in (words, more) if line)
    return head + "\n" + "\n".join(f"    {line}" for line in body.split("\n"))


def minute(moment: Any) -> str:
    """Return a moment to the minute, in UTC."""
    return f"{moment:%Y-%m-%d %H:%M}Z"


def say_whether_complete(complete: bool) -> None:
    """Print on stderr that older parts may be missing."""
    if not complete:
        note(
            "the history store cannot be read (`letopis db check` says why): this is what the outbox retains, "
            "older messages may be missing"
        )

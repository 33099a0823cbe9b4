"""Write pending events as JSON values, as the command and the console print them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from letopis.store.model.events import from_microseconds, to_microseconds, utc_now

if TYPE_CHECKING:
    from letopis.outbox.operations.pending_events import PendingEvent


def event_summary(entry: PendingEvent) -> dict[str, Any]:
    """Return an event as JSON values, without its content."""
    return {
        "event_id": str(entry.event_id),
        "conversation_id": entry.conversation_id,
        "owner_id": entry.owner_id,
        "sequence": entry.sequence,
        "type": entry.type,
        "schema_version": entry.schema_version,
        "bytes": entry.size,
        "digest": entry.digest.hex(),
        "occurred_at": iso_moment(entry.occurred_at),
        "appended_at": iso_moment(entry.appended_at),
        "front": entry.front,
        "behind": entry.behind,
        "state": entry.state,
        "attempts": entry.attempts,
        "due_at": iso_moment(entry.due_at) if next_attempt(entry.state, entry.due_at) else None,
        "fault_class": entry.fault_class,
        "fault": entry.fault,
    }


def event_json(entry: PendingEvent) -> dict[str, Any]:
    """Return an event as JSON values, content included."""
    return {**event_summary(entry), "data": json_value(entry.data), "metadata": json_value(entry.metadata)}


def json_value(text: str | None) -> Any:
    """Return the value of stored JSON; the text itself if it is damaged."""
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def iso_moment(microseconds: int) -> str:
    """Return a moment of UTC microseconds as ISO 8601."""
    return from_microseconds(microseconds).isoformat()


def next_attempt(state: str, due_us: int) -> datetime | None:
    """Return when a retrying lane is tried next; ``None`` if it is due, or not retried."""
    return from_microseconds(due_us) if state == "retrying" and due_us > to_microseconds(utc_now()) else None

"""The statements that write events and move lanes, for all that appends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from letopis.store.model.codec import EncodedEvent

INSERT_EVENTS: Final = (
    "INSERT INTO letopis_outbox_events (position, event_id, lane, sequence, type, schema_version, data, metadata,"
    " digest, salt, occurred_at, appended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
INSERT_LANES: Final = (
    "INSERT INTO letopis_outbox_lanes (lane, conversation_id, owner_id, head, delivered, pruned, state, attempts,"
    " due_at, pending_since) VALUES (?, ?, ?, ?, 0, 0, 'ready', 0, 0, ?)"
)
# pending_since is the age of the oldest pending event: where one is pending already it stays, and so does its index,
# which SQLite would write even if the value were the same. An UPSERT is slower.
MOVE_PENDING_LANES: Final = "UPDATE letopis_outbox_lanes SET owner_id = ?, head = ? WHERE lane = ?"
MOVE_SETTLED_LANES: Final = "UPDATE letopis_outbox_lanes SET owner_id = ?, head = ?, pending_since = ? WHERE lane = ?"


def event_row(event: EncodedEvent, *, position: int, lane: int, sequence: int, now_us: int) -> tuple[Any, ...]:
    """Return the row of an event, in the order of ``INSERT_EVENTS``."""
    return (
        position,
        event.event_id.bytes,
        lane,
        sequence,
        event.type,
        event.schema_version,
        event.data,
        event.metadata,
        event.digest,
        event.salt,
        event.occurred_at,
        now_us,
    )

"""The statements that write events and move lanes, for all that appends."""

from __future__ import annotations

from typing import Final

INSERT_EVENTS: Final = (
    "INSERT INTO letopis_outbox_events (position, event_id, lane, sequence, type, schema_version, data, metadata,"
    " digest, salt, occurred_at, appended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
INSERT_LANES: Final = (
    "INSERT INTO letopis_outbox_lanes (lane, conversation_id, owner_id, head, delivered, pruned, state, attempts,"
    " due_at, owed_since) VALUES (?, ?, ?, ?, 0, 0, 'ready', 0, 0, ?)"
)
# owed_since is the age of the oldest pending event: where one is pending already it stays, and so does its index, which
# SQLite would write even if the value were the same. An UPSERT is slower.
MOVE_PENDING_LANES: Final = "UPDATE letopis_outbox_lanes SET owner_id = ?, head = ? WHERE lane = ?"
MOVE_SETTLED_LANES: Final = "UPDATE letopis_outbox_lanes SET owner_id = ?, head = ?, owed_since = ? WHERE lane = ?"

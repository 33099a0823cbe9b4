"""Look up messages in the outbox file, and pending events that change a path."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.event_log.statements import fetch_one
from letopis.store.model.event_types import ConversationDeleted, ConversationRewound, MessageAppended
from letopis.store.model.identifiers import derived_event_id

# The plus keeps SQLite from reading the whole conversation instead.
_BY_EVENT: Final = (
    "SELECT 1 FROM letopis_outbox_log WHERE position IN"
    " (SELECT position FROM letopis_outbox_known_ids WHERE event_id IN (?, ?)) AND +conversation_id = ? AND type = ?"
    " LIMIT 1"
)
# An event that the caller made may have any id. The history store knows those that are delivered.
_PENDING: Final = (
    "SELECT 1 FROM letopis_outbox_lanes AS l JOIN letopis_outbox_events AS e"
    " ON e.lane = l.lane AND e.sequence > l.delivered"
    " WHERE l.conversation_id = ? AND e.type = ? AND json_extract(e.data, '$.message_id') = ? LIMIT 1"
)
_CUT: Final = (
    "SELECT 1 FROM letopis_outbox_lanes AS l JOIN letopis_outbox_events AS e"
    " ON e.lane = l.lane AND e.sequence > l.delivered"
    " WHERE l.conversation_id = ? AND e.type IN (?, ?) LIMIT 1"
)


def holds_message(connection: sa.Connection, conversation_id: str, message_id: str) -> bool:
    """Return True if the file holds the event that appended a message; pruned ones are in the history store."""
    derived = derived_event_id(conversation_id, message_id).bytes
    own = _as_uuid(message_id)
    ids = (derived, derived if own is None else own.bytes)
    return (
        fetch_one(connection, _BY_EVENT, (*ids, conversation_id, MessageAppended.type)) is not None
        or fetch_one(connection, _PENDING, (conversation_id, MessageAppended.type, message_id)) is not None
    )


def cuts_path(connection: sa.Connection, conversation_id: str) -> bool:
    """Return True if a pending event may take messages off the path."""
    values = (conversation_id, ConversationRewound.type, ConversationDeleted.type)
    return fetch_one(connection, _CUT, values) is not None


def _as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None

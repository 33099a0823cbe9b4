"""Targets: whether a message that is to be changed is there, as far as the outbox file knows."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.store.identifiers import derived_event_id
from letopis.store.vocabulary import ConversationDeleted, ConversationRewound, MessageAppended

_BY_EVENT: Final = (
    "SELECT 1 FROM letopis_outbox_events WHERE event_id IN (?, ?) AND conversation_id = ? AND type = ? LIMIT 1"
)
# An event of the caller's own making may have any id. What is delivered of those, the history store knows.
_PENDING: Final = (
    "SELECT 1 FROM letopis_outbox_lanes AS l JOIN letopis_outbox_events AS e"
    " ON e.conversation_id = l.conversation_id AND e.sequence > l.delivered"
    " WHERE l.conversation_id = ? AND e.type = ? AND json_extract(e.data, '$.message_id') = ? LIMIT 1"
)
_CUT: Final = (
    "SELECT 1 FROM letopis_outbox_lanes AS l JOIN letopis_outbox_events AS e"
    " ON e.conversation_id = l.conversation_id AND e.sequence > l.delivered"
    " WHERE l.conversation_id = ? AND e.type IN (?, ?) LIMIT 1"
)


def holds_message(connection: sa.Connection, conversation_id: str, message_id: str) -> bool:
    """Whether the file holds the event that appended a message; one that it let go is in the history store."""
    derived = derived_event_id(conversation_id, message_id).bytes
    made = _as_uuid(message_id)
    ids = (derived, derived if made is None else made.bytes)
    return _any(connection, _BY_EVENT, (*ids, conversation_id, MessageAppended.type)) or _any(
        connection, _PENDING, (conversation_id, MessageAppended.type, message_id)
    )


def cuts_path(connection: sa.Connection, conversation_id: str) -> bool:
    """Whether something pending may take messages off the path."""
    return _any(connection, _CUT, (conversation_id, ConversationRewound.type, ConversationDeleted.type))


def _as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _any(connection: sa.Connection, statement: str, values: tuple[Any, ...]) -> bool:
    cursor = connection.connection.cursor()
    try:
        return cursor.execute(statement, values).fetchone() is not None
    finally:
        cursor.close()

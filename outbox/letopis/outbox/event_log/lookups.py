"""Look up messages in the outbox file, and pending events that change a path."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

import orjson
import sqlalchemy as sa

from letopis.outbox.event_log.append_encoding import made_id
from letopis.outbox.event_log.statements import fetch_all, fetch_one
from letopis.store.model.codec import INTEGER_MAX
from letopis.store.model.event_types import ConversationDeleted, ConversationRewound, MessageAppended
from letopis.store.model.identifiers import derived_event_id
from letopis.store.model.records import Scope
from letopis.store.rules.preconditions import Conflict

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


_LANE: Final = "SELECT 1 FROM letopis_outbox_lanes WHERE conversation_id = ?"
_CONVERSATIONS_OF: Final = (
    "SELECT DISTINCT l.conversation_id FROM letopis_outbox_lanes AS l CROSS JOIN letopis_outbox_events AS e"
    " ON e.lane = l.lane AND e.sequence > {start} WHERE {lanes} AND e.type = ?"
    " AND iif(json_valid(e.data), json_extract(e.data, '$.message_id'), NULL) = ? LIMIT ?"
)
_PENDING_OF: Final = _CONVERSATIONS_OF.format(
    start="l.delivered", lanes="l.pending_since IS NOT NULL AND l.delivered < l.head"
)
_RETAINED_OF: Final = _CONVERSATIONS_OF.format(start="l.pruned", lanes="true")


def conversations_of(connection: sa.Connection, message_id: str, *, retained: bool, limit: int) -> list[str]:
    """Return conversations to which a message was appended, by reading pending (or all retained) events."""
    statement = _RETAINED_OF if retained else _PENDING_OF
    return [row[0] for row in fetch_all(connection, statement, (MessageAppended.type, message_id, limit))]


_AUTHORED: Final = (
    "SELECT conversation_id, json_extract(data, '$.message_id') FROM letopis_outbox_log WHERE type = ?"
    " AND position <= ? AND iif(json_valid(data), json_extract(data, '$.author'), NULL) = ?"
    " ORDER BY conversation_id, sequence"
)


def messages_by(connection: sa.Connection, author: str, *, upto: int = INTEGER_MAX) -> dict[str, list[str]]:
    """Return the ids of an author's messages up to a position, by conversation, by reading all events of the file."""
    found: dict[str, list[str]] = {}
    for conversation_id, message_id in fetch_all(connection, _AUTHORED, (MessageAppended.type, upto, author)):
        found.setdefault(conversation_id, []).append(message_id)
    return found


_ERASING: Final = (
    "SELECT conversation_id FROM letopis_outbox_lanes WHERE owner_id = ?"
    " AND (deleted_at > 0 OR erased_before < reset_at)"
)
_LEFT_OF: Final = (
    "SELECT coalesce(sum(head - delivered), 0), coalesce(sum(state = 'blocked'), 0) FROM letopis_outbox_lanes"
    " WHERE pending_since IS NOT NULL AND delivered < head AND conversation_id IN (SELECT value FROM json_each(?))"
)
_HOLDS_RECORDS: Final = (
    "SELECT 1 FROM letopis_outbox_log WHERE conversation_id = ? AND type <> 'record.cleared' AND data <> '{}' LIMIT 1"
)


def left_of_erasure(connection: sa.Connection, owner: str, erased: Iterable[str] = ()) -> tuple[int, int]:
    """Return the pending events, and the blocked lanes among theirs, of an owner's erasure or of conversations."""
    names = [*erased, *(row[0] for row in fetch_all(connection, _ERASING, (owner,)))]
    scopes = (*([Scope.owner(owner)] if owner else ()), *map(Scope.conversation, names))
    lanes = orjson.dumps([*names, *(scope.name for scope in scopes)]).decode()
    pending, blocked = fetch_all(connection, _LEFT_OF, (lanes,))[0]
    return pending, blocked


def holds_records_of(connection: sa.Connection, owner: str) -> bool:
    """Return True if the file still tells anything of an owner's records."""
    return fetch_one(connection, _HOLDS_RECORDS, (Scope.owner(owner).name,)) is not None


_HOLDS: Final = "SELECT 1 FROM letopis_outbox_known_ids WHERE event_id = ?"
_CONFLICT: Final = "SELECT expected, actual FROM letopis_outbox_superseded WHERE event_id = ?"


def holds_event(connection: sa.Connection, event_id: UUID) -> bool:
    return fetch_one(connection, _HOLDS, (event_id.bytes,)) is not None


def holds_conversation(connection: sa.Connection, conversation_id: str) -> bool:
    return fetch_one(connection, _LANE, (conversation_id,)) is not None


def conflict_of(connection: sa.Connection, event_ids: Iterable[UUID]) -> Conflict | None:
    """Return the conflict by which the history store set one of some events aside; ``None`` if it did not."""
    for event_id in event_ids:
        if (row := fetch_one(connection, _CONFLICT, (event_id.bytes,))) is not None:
            return Conflict(expected=row[0], actual=row[1])
    return None


def holds_message(connection: sa.Connection, conversation_id: str, message_id: str) -> bool:
    """Return True if the file holds the event that appended a message; pruned ones are in the history store."""
    derived = derived_event_id(conversation_id, message_id).bytes
    own = made_id(message_id)
    ids = (derived, derived if own is None else own.bytes)
    return (
        fetch_one(connection, _BY_EVENT, (*ids, conversation_id, MessageAppended.type)) is not None
        or fetch_one(connection, _PENDING, (conversation_id, MessageAppended.type, message_id)) is not None
    )


def cuts_path(connection: sa.Connection, conversation_id: str) -> bool:
    """Return True if a pending event may take messages off the path."""
    values = (conversation_id, ConversationRewound.type, ConversationDeleted.type)
    return fetch_one(connection, _CUT, values) is not None

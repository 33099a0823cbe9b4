"""Apply the effects of appended events to the file, in the transaction that appends them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from letopis.outbox.event_log import drafts
from letopis.outbox.event_log.contents import remove_unshown
from letopis.outbox.event_log.records.log import note_change
from letopis.outbox.event_log.statements import fetch_all, query_all, query_one
from letopis.store.model.codec import INTEGER_MAX, EncodedEvent, decode
from letopis.store.model.event_types import (
    STATE_EVENTS,
    ConversationActivated,
    ConversationDeleted,
    ConversationRewound,
    ConversationTrimmed,
    MessageFailed,
    MessageRedacted,
    MessageSent,
)
from letopis.store.model.large_content import references_in
from letopis.store.rules.preconditions import Conflict
from letopis.store.rules.record_plan import RecordChange
from letopis.store.rules.redaction import MESSAGE_CONTENT_TYPES, strip_event, stripped

if TYPE_CHECKING:
    import sqlalchemy as sa

EFFECT_VERSIONS: Final[Mapping[str, int]] = {
    body.type: body.schema_version
    for body in (
        ConversationActivated,
        ConversationDeleted,
        ConversationRewound,
        ConversationTrimmed,
        MessageFailed,
        MessageRedacted,
        MessageSent,
    )
}
"""The event types with an effect on the file, each with the schema version that is understood."""

MAX_ERASED_PER_TRANSACTION: Final = 500  # sequences whose content one transaction erases, while other writers wait
_ACTIVATED: Final = (
    "INSERT INTO letopis_outbox_owners (owner_id, active_conversation_id, activated_order) VALUES (?, ?, ?)"
    " ON CONFLICT (owner_id) DO UPDATE SET active_conversation_id = excluded.active_conversation_id,"
    " activated_order = excluded.activated_order WHERE excluded.activated_order > activated_order"
)
_DELETED: Final = "UPDATE letopis_outbox_lanes SET deleted = ? WHERE conversation_id = ? AND deleted <= 0"
_SPARED: Final = "UPDATE letopis_outbox_lanes SET deleted = 0 WHERE conversation_id = ? AND abs(deleted) = ?"
_TRIMMED: Final = "UPDATE letopis_outbox_lanes SET deleted = ? WHERE conversation_id = ? AND deleted = 0 AND erased < ?"
# What is erased before a deletion or a reset is everything, and before any other event it is what a trim takes away.
_UNERASED: Final = (
    "SELECT conversation_id, abs(deleted), erased, max(erased, pruned), deleted < 0 AND NOT EXISTS (SELECT 1"
    " FROM letopis_outbox_log AS e WHERE e.conversation_id = letopis_outbox_lanes.conversation_id"
    " AND e.sequence = -deleted AND e.type = 'conversation.rewound'"
    " AND iif(json_valid(e.data), json_extract(e.data, '$.erase'), 0)) FROM letopis_outbox_lanes"
    " WHERE erased < abs(deleted) AND abs(deleted) <= delivered"
)
_GIVEN: Final = "(SELECT value FROM json_each(?))"
_AMONG: Final = f" AND conversation_id IN {_GIVEN}"
_ERASED: Final = (
    "UPDATE letopis_outbox_lanes SET erased = ?1, deleted = iif(deleted = -?1, 0, deleted) WHERE conversation_id = ?2"
)
_REDACTION: Final = (
    "SELECT 1 FROM letopis_outbox_log WHERE conversation_id = ? AND type = 'message.redacted'"
    " AND iif(json_valid(data), json_extract(data, '$.message_id'), NULL) = ? LIMIT 1"
)
_CONTENT: Final = (
    "SELECT {key}, event_id, type, schema_version, data, metadata, digest, salt, occurred_at FROM {table}"
    " WHERE conversation_id = ? AND sequence >= ? AND sequence < ?"
)
# A damaged event belongs to no message, and must not keep the others from being erased.
_OF_MESSAGE: Final = (
    f" AND type IN ({', '.join('?' * len(MESSAGE_CONTENT_TYPES))})"
    f" AND iif(json_valid(data), json_extract(data, '$.message_id'), NULL) IN {_GIVEN}"
)
_MESSAGE_AT: Final = (
    "SELECT iif(json_valid(data), json_extract(data, '$.message_id'), NULL) FROM letopis_outbox_log"
    " WHERE conversation_id = ? AND sequence = ?"
)
_EMPTY_EVENT: Final = (
    "UPDATE letopis_outbox_events SET data = ?, metadata = ?, salt = NULL, redacted = 1 WHERE position = ?"
)
_EMPTY_REPAIR: Final = "UPDATE letopis_outbox_repairs SET data = ?, metadata = ?, salt = NULL WHERE repair_id = ?"
_EMPTY: Final = {
    "letopis_outbox_log": ("position", _EMPTY_EVENT),
    "letopis_outbox_repairs": ("repair_id", _EMPTY_REPAIR),
}


@dataclass(slots=True, kw_only=True)
class Effect:
    """An event that was just appended."""

    conversation_id: str
    owner_id: str | None
    sequence: int
    event: EncodedEvent
    order: int = 0  # of an activation; otherwise 0
    change: RecordChange | None = None
    lane: int = 0
    position: int = 0


def apply_effects(cursor: Any, effects: Iterable[Effect]) -> bool:
    """Apply the effects of appended events. Return True if content was erased, so the WAL has to be truncated."""
    confirmed: list[drafts.DraftKey] = []
    redacted: dict[str, list[str]] = {}
    erased = False
    for effect in effects:
        name, event = effect.conversation_id, effect.event
        if effect.change is not None:
            noted = note_change(
                cursor, effect.change, lane=effect.lane, name=name, sequence=effect.sequence, position=effect.position
            )
            erased = noted or erased
            continue
        match event.type:
            case MessageSent.type | MessageFailed.type:
                data = decode(event.data)
                message_id = str(data["message_id"])
                confirmed.append((name, message_id))
                # Most hold only ids, and there is no content to erase.
                if stripped(event.type, data) != data and is_redacted(cursor, name, message_id):
                    erased = erase_content(cursor, name, message_id) > 0 or erased
            case ConversationActivated.type if effect.owner_id is not None:
                cursor.execute(_ACTIVATED, (effect.owner_id, name, effect.order))
            case ConversationDeleted.type:
                # Its content is erased once the deletion is delivered: until then it is pending itself.
                cursor.execute(_DELETED, (effect.sequence, name))
                drafts.erase(cursor, name, None)
            case ConversationRewound.type if decode(event.data).get("erase") is True:
                cursor.execute(_DELETED, (-effect.sequence, name))
                drafts.erase(cursor, name, None)
            case ConversationTrimmed.type:
                before = decode(event.data).get("sequence", 0) + 1
                cursor.execute(_TRIMMED, (-before, name, before))
                if cursor.rowcount == 0:  # it is being erased up to another place, or nothing is that old
                    erased = erase_content(cursor, name, None, before=before, content_only=True) > 0 or erased
            case MessageRedacted.type:
                message_id = str(decode(event.data)["message_id"])
                redacted.setdefault(name, []).append(message_id)
                drafts.erase(cursor, name, message_id)
                erased = True
            case _:
                pass  # an activation without an owner, or a rewind that erases nothing
    for name, message_ids in redacted.items():
        erase_content(cursor, name, message_ids)
    if confirmed:
        drafts.mark_confirmed(cursor, confirmed)
    return erased


def is_redacted(cursor: Any, conversation_id: str, message_id: str) -> bool:
    """Return True if the file holds the redaction of a message."""
    return query_one(cursor, _REDACTION, (conversation_id, message_id)) is not None


def erase_content(
    cursor: Any,
    conversation_id: str,
    message_id: str | Collection[str] | None,
    *,
    first: int = 0,
    before: int = INTEGER_MAX,
    content_only: bool = False,
) -> int:
    """Erase messages, or a conversation from ``first`` to ``before``, from events and repairs; return how many."""
    of_message = "" if message_id is None else _OF_MESSAGE
    values: Sequence[Any] = (conversation_id, first, before)
    if message_id is not None:
        names = [message_id] if isinstance(message_id, str) else list(message_id)
        values = (*values, *MESSAGE_CONTENT_TYPES, orjson.dumps(names).decode())
    return sum(
        _empty(cursor, conversation_id, table, of_message, values, content_only=content_only) for table in _EMPTY
    )


def erase_repairs(cursor: Any, conversation_id: str) -> None:
    """Erase the originals of all repaired events of a conversation."""
    _empty(cursor, conversation_id, "letopis_outbox_repairs", "", (conversation_id, 0, INTEGER_MAX))


def _empty(
    cursor: Any,
    conversation_id: str,
    table: str,
    of_message: str,
    values: Sequence[Any],
    *,
    content_only: bool = False,
) -> int:
    key, update = _EMPTY[table]
    emptied, shown = [], False
    for row in query_all(cursor, _CONTENT.format(table=table, key=key) + of_message, values):
        stays = content_only and row[2].startswith(STATE_EVENTS)
        if stays or (data := _readable(row[4])) is None or _is_erasure(row[2], data):
            continue
        left = strip_event(EncodedEvent(conversation_id, UUID(bytes=row[1]), *row[2:9]))
        emptied.append((left.data, left.metadata, row[0]))
        shown = shown or bool(references_in(row[2], row[4]))
    cursor.executemany(update, emptied)
    if shown:
        remove_unshown(cursor, conversation_id)
    return len(emptied)


def _is_erasure(type_name: str, data: Mapping[str, Any]) -> bool:
    """Return True for a deletion or a reset: the reason that it gives stays."""
    return type_name == ConversationDeleted.type or (
        type_name == ConversationRewound.type and data.get("erase") is True
    )


def _readable(data: str) -> Mapping[str, Any] | None:
    try:
        return decode(data)
    except ValueError:
        return None


def erase_superseded(cursor: Any, conversation_id: str, conflicts: Mapping[int, Conflict]) -> tuple[bool, bool]:
    """Erase what the store erased through another outbox; return if content was, and if the conversation was."""
    erased = deleted = False
    for sequence, conflict in conflicts.items():
        if conflict.held:
            cursor.execute(_SPARED, (conversation_id, sequence))
        if conflict.erased == "conversation":
            cursor.execute(_DELETED, (sequence, conversation_id))
            deleted = deleted or cursor.rowcount == 1
            erased = erase_content(cursor, conversation_id, None, first=sequence, before=sequence + 1) > 0 or erased
            drafts.erase(cursor, conversation_id, None)
        elif conflict.erased == "message":
            for (message_id,) in query_all(cursor, _MESSAGE_AT, (conversation_id, sequence)):
                if message_id is not None:  # a damaged event belongs to no message, and no other is erased for it
                    erased = erase_content(cursor, conversation_id, message_id) > 0 or erased
                    drafts.erase(cursor, conversation_id, message_id)
    return erased, deleted


def erase_delivered(cursor: Any, conversation_ids: str | None = None) -> bool:
    """Erase a bounded part of the conversations whose deletion or reset is delivered. Return True if any was."""
    values = () if conversation_ids is None else (conversation_ids,)
    unerased = query_all(cursor, _UNERASED + (_AMONG if values else ""), values)
    room = MAX_ERASED_PER_TRANSACTION
    for conversation_id, end, erased, start, trims in unerased:
        upto = min(end, start + room)
        erase_content(cursor, conversation_id, None, first=erased, before=upto, content_only=bool(trims))
        cursor.execute(_ERASED, (upto, conversation_id))
        room -= max(0, upto - start)
        if room <= 0:
            break
    return bool(unerased)


def count_unerased(connection: sa.Connection) -> int:
    """Return how many conversations have content left whose deletion or reset is delivered."""
    return len(fetch_all(connection, _UNERASED))

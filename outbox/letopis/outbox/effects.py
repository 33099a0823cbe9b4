"""Effects: what an appended event does to the file at once, in the transaction that appends it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from letopis.outbox import drafts
from letopis.store.codec import EncodedEvent, decode
from letopis.store.erasure import OF_A_MESSAGE, stripped
from letopis.store.projection import strip
from letopis.store.vocabulary import (
    ConversationActivated,
    ConversationDeleted,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
)

EFFECTIVE: Final[Mapping[str, int]] = {
    body.type: body.schema_version
    for body in (
        ConversationActivated,
        ConversationDeleted,
        MessageEdited,
        MessageFailed,
        MessageRedacted,
        MessageSent,
    )
}
"""The types of events that do something to the file besides being in it, each in the version that is understood."""

_ACTIVATED: Final = (
    "INSERT INTO letopis_outbox_owners (owner_id, active_conversation_id, activated_order) VALUES (?, ?, ?)"
    " ON CONFLICT (owner_id) DO UPDATE SET active_conversation_id = excluded.active_conversation_id,"
    " activated_order = excluded.activated_order WHERE excluded.activated_order > activated_order"
)
_DELETED: Final = "UPDATE letopis_outbox_lanes SET deleted = ? WHERE conversation_id = ? AND deleted = 0"
_GONE: Final = (
    "SELECT conversation_id FROM letopis_outbox_lanes WHERE deleted > 0 AND deleted <= delivered"
    " AND conversation_id IN (SELECT value FROM json_each(?))"
)
_WAS_REDACTED: Final = (
    "SELECT 1 FROM letopis_outbox_events WHERE conversation_id = ? AND type = 'message.redacted'"
    " AND iif(json_valid(data), json_extract(data, '$.message_id'), NULL) = ? LIMIT 1"
)
_CONTENT: Final = (
    "SELECT {key}, event_id, type, schema_version, data, metadata, digest, occurred_at FROM {table}"
    " WHERE conversation_id = ?"
)
# An event that is damaged in the file is nobody's, and must not keep the others from being erased.
_OF_MESSAGE: Final = (
    f" AND type IN ({', '.join('?' * len(OF_A_MESSAGE))})"
    " AND iif(json_valid(data), json_extract(data, '$.message_id'), NULL) = ?"
)
_EMPTY_EVENT: Final = (
    "UPDATE letopis_outbox_events SET data = ?, metadata = ?, digest = ?, redacted = 1 WHERE position = ?"
)
_EMPTY_REPAIR: Final = "UPDATE letopis_outbox_repairs SET data = ?, metadata = ?, digest = ? WHERE repair_id = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """An event that was appended just now.

    :ivar order: of an activation; 0 otherwise.
    """

    conversation_id: str
    owner_id: str | None
    sequence: int
    event: EncodedEvent
    order: int = 0


def take_effect(cursor: Any, effects: Iterable[Effect]) -> bool:
    """Do what appended events do to the file; return whether content was taken out of it.

    Then the old content is still in pages that the WAL holds, until that is cut back.
    """
    confirmed: list[drafts.Key] = []
    erased = False
    for effect in effects:
        name, event = effect.conversation_id, effect.event
        match event.type:
            case MessageSent.type | MessageFailed.type:
                data = decode(event.data)
                message_id = str(data["message_id"])
                confirmed.append((name, message_id))
                # Most say no more than ids: then there is nothing to look for.
                if stripped(event.type, data) != data and was_redacted(cursor, name, message_id):
                    erased = erase(cursor, name, message_id) > 0 or erased
            case ConversationActivated.type if effect.owner_id is not None:
                cursor.execute(_ACTIVATED, (effect.owner_id, name, effect.order))
            case ConversationDeleted.type:
                # Its content goes when the history store has taken the deletion: until then it is what is delivered.
                cursor.execute(_DELETED, (effect.sequence, name))
                drafts.forget(cursor, name, None)
            case MessageRedacted.type:
                message_id = str(decode(event.data)["message_id"])
                erase(cursor, name, message_id)
                drafts.forget(cursor, name, message_id)
                erased = True
            case MessageEdited.type:
                message_id = str(decode(event.data)["message_id"])
                if was_redacted(cursor, name, message_id):
                    erase(cursor, name, message_id)
                    erased = True
            case _:
                pass  # activated in a conversation that is nobody's
    if confirmed:
        drafts.confirmed(cursor, confirmed)
    return erased


def was_redacted(cursor: Any, conversation_id: str, message_id: str) -> bool:
    """Whether the file holds the redaction of a message."""
    return cursor.execute(_WAS_REDACTED, (conversation_id, message_id)).fetchone() is not None


def erase(cursor: Any, conversation_id: str, message_id: str | None) -> int:
    """Strip the events of a message, or of a whole conversation, here and among what was repaired; return how many.

    What is pending stays pending: the history store gets the event, without its content.
    """
    of_message = "" if message_id is None else _OF_MESSAGE
    values: Sequence[Any] = (conversation_id,) if message_id is None else (conversation_id, *OF_A_MESSAGE, message_id)
    done = 0
    for table, key, update in (
        ("letopis_outbox_events", "position", _EMPTY_EVENT),
        ("letopis_outbox_repairs", "repair_id", _EMPTY_REPAIR),
    ):
        cursor.execute(_CONTENT.format(table=table, key=key) + of_message, values)
        emptied = []
        for row in cursor.fetchall():
            if row[2] == ConversationDeleted.type or not _readable(row[4]):
                continue
            left = strip(
                EncodedEvent(
                    conversation_id=conversation_id,
                    event_id=UUID(bytes=row[1]),
                    type=row[2],
                    schema_version=row[3],
                    data=row[4],
                    metadata=row[5],
                    digest=row[6],
                    occurred_at=row[7],
                )
            )
            emptied.append((left.data, left.metadata, left.digest, row[0]))
        cursor.executemany(update, emptied)
        done += len(emptied)
    return done


def _readable(data: str) -> bool:
    try:
        decode(data)
    except ValueError:
        return False
    return True


def erase_delivered(cursor: Any, conversation_ids: str) -> bool:
    """Strip what is left of those conversations whose deletion the history store has taken; whether there were any.

    :param conversation_ids: to look at, as a JSON list.
    """
    cursor.execute(_GONE, (conversation_ids,))
    gone = [row[0] for row in cursor.fetchall()]
    for conversation_id in gone:
        erase(cursor, conversation_id, None)
    return bool(gone)

"""Apply the effects of appended events to the file, in the transaction that appends them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from letopis.outbox.event_log import drafts
from letopis.outbox.event_log.erasing import carry_out, erase_messages
from letopis.outbox.event_log.records.log import note_change
from letopis.outbox.event_log.statements import query_all, query_one
from letopis.store.model.codec import EncodedEvent, decode
from letopis.store.model.event_types import (
    ConversationActivated,
    ConversationDeleted,
    ConversationRewound,
    ConversationTrimmed,
    MessageFailed,
    MessageRedacted,
    MessageSent,
)
from letopis.store.rules.erasure_plan import Cause, ErasurePlan
from letopis.store.rules.preconditions import Conflict
from letopis.store.rules.record_plan import RecordChange
from letopis.store.rules.redaction import stripped

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

_ACTIVATED: Final = (
    "INSERT INTO letopis_outbox_owners (owner_id, active_conversation_id, activated_order) VALUES (?, ?, ?)"
    " ON CONFLICT (owner_id) DO UPDATE SET active_conversation_id = excluded.active_conversation_id,"
    " activated_order = excluded.activated_order WHERE excluded.activated_order > activated_order"
)
# A whole erasure begins again where the last one ended: what a trim removed since left the state.
_DELETED: Final = (
    "UPDATE letopis_outbox_lanes SET deleted_at = ?, erased_before = min(erased_before, reset_at)"
    " WHERE conversation_id = ? AND deleted_at = 0"
)
_RESET: Final = _DELETED.replace("SET deleted_at", "SET reset_at")
# A hold has set the event aside.
_SPARED: Final = (
    "UPDATE letopis_outbox_lanes SET deleted_at = iif(deleted_at = ?2, 0, deleted_at),"
    " reset_at = iif(reset_at = ?2, 0, reset_at), trim_before = iif(trim_before <= ?2, 0, trim_before)"
    " WHERE conversation_id = ?1"
)
_TRIMMED: Final = (
    "UPDATE letopis_outbox_lanes SET trim_before = max(trim_before, ?1) WHERE conversation_id = ?2"
    " AND erased_before < ?1 AND erased_before >= max(deleted_at, reset_at)"
)
_REDACTION: Final = (
    "SELECT 1 FROM letopis_outbox_log WHERE conversation_id = ? AND type = 'message.redacted'"
    " AND iif(json_valid(data), json_extract(data, '$.message_id'), NULL) = ? LIMIT 1"
)
_MESSAGE_AT: Final = (
    "SELECT iif(json_valid(data), json_extract(data, '$.message_id'), NULL) FROM letopis_outbox_log"
    " WHERE conversation_id = ? AND sequence = ?"
)


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
    unconfirmed: drafts.UnconfirmedDraft | None = None


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
        if effect.unconfirmed is not None:
            drafts.mark_unconfirmed(cursor, effect.unconfirmed)
            continue
        match event.type:
            case MessageSent.type | MessageFailed.type:
                data = decode(event.data)
                message_id = str(data["message_id"])
                confirmed.append((name, message_id))
                # Most hold only ids, and there is no content to erase.
                if stripped(event.type, data) != data and is_redacted(cursor, name, message_id):
                    erased = erase_messages(cursor, name, message_id) > 0 or erased
            case ConversationActivated.type if effect.owner_id is not None:
                cursor.execute(_ACTIVATED, (effect.owner_id, name, effect.order))
            case ConversationDeleted.type:
                # Its content is erased once the deletion is delivered: until then it is pending itself.
                cursor.execute(_DELETED, (effect.sequence, name))
                carry_out(cursor, ErasurePlan(lane=name, cause=Cause.DELETION), logged=False)
            # One with a bound belongs to an erasure of the store, which erases here up to its own position.
            case ConversationRewound.type if (data := decode(event.data)).get("erase") is True and "upto" not in data:
                cursor.execute(_RESET, (effect.sequence, name))
                carry_out(cursor, ErasurePlan(lane=name, cause=Cause.RESET), logged=False)
            case ConversationTrimmed.type:
                upto = decode(event.data).get("sequence", 0)
                cursor.execute(_TRIMMED, (upto + 1, name))
                if cursor.rowcount == 0:  # it is to be erased as a whole, or nothing is that old
                    erased = carry_out(cursor, ErasurePlan(lane=name, cause=Cause.TRIM, upto=upto)) > 0 or erased
            case MessageRedacted.type:
                message_id = str(decode(event.data)["message_id"])
                redacted.setdefault(name, []).append(message_id)
                erased = True
            case _:
                pass  # an activation without an owner, or a rewind that erases nothing
    for name, message_ids in redacted.items():
        erase_messages(cursor, name, *message_ids)
    if confirmed:
        drafts.mark_confirmed(cursor, confirmed)
    return erased


def is_redacted(cursor: Any, conversation_id: str, message_id: str) -> bool:
    """Return True if the file holds the redaction of a message."""
    return query_one(cursor, _REDACTION, (conversation_id, message_id)) is not None


def erase_superseded(cursor: Any, conversation_id: str, conflicts: Mapping[int, Conflict]) -> tuple[bool, bool]:
    """Erase what the store erased through another outbox; return if content was, and if the conversation was."""
    erased = deleted = False
    for sequence, conflict in conflicts.items():
        if conflict.held:
            cursor.execute(_SPARED, (conversation_id, sequence))
        if conflict.erased == "conversation":
            cursor.execute(_DELETED, (sequence, conversation_id))
            deleted = deleted or cursor.rowcount == 1
            plan = ErasurePlan(lane=conversation_id, cause=Cause.DELETION, after=sequence - 1, upto=sequence)
            erased = carry_out(cursor, plan) > 0 or erased
        elif conflict.erased == "message":
            for (message_id,) in query_all(cursor, _MESSAGE_AT, (conversation_id, sequence)):
                if message_id is not None:  # a damaged event belongs to no message, and no other is erased for it
                    erased = erase_messages(cursor, conversation_id, message_id) > 0 or erased
    return erased, deleted

"""Repair stuck events and lanes, each verb in an open write transaction of the outbox file.

Only the front of a lane, the event that the others wait for, can be fixed or skipped, and only while its lane is
blocked, paused or retrying: an event that merely waits its turn needs no repair. Nothing is destroyed: the event as it
was goes to ``letopis_outbox_repairs``. A relay may have the old event in flight: the fence of the lease refuses its
result, and if the history store accepted it all the same, the lane is blocked as ``diverged``, which :func:`restore`
ends. What the verbs promise and raise stands with the methods of ``OutboxAdmin``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, Literal
from uuid import UUID

import orjson
import sqlalchemy as sa

from letopis.outbox.alerting.incident_table import note_skipped
from letopis.outbox.event_log.append import insert_event
from letopis.outbox.event_log.effects import is_redacted
from letopis.outbox.event_log.erasing import erase_messages
from letopis.outbox.event_log.event_ids import index_event_ids
from letopis.outbox.event_log.lanes import find_lane
from letopis.outbox.event_log.statements import on_cursor
from letopis.outbox.operations.pending_events import (
    PENDING,
    PendingEvent,
    Selection,
    list_pending,
    list_repairs,
    picked,
    where_clause,
)
from letopis.outbox.relay.store_binding import FENCE
from letopis.store.errors import InvalidInput, LetopisError
from letopis.store.model.codec import DEFAULT_LIMITS, EncodedEvent, Limits, decode, digest_of, encode
from letopis.store.model.event_types import ConversationStarted, EventSkipped, MessageAppended
from letopis.store.model.events import Event, from_microseconds
from letopis.store.model.messages import EMPTY
from letopis.store.model.records import is_record_lane
from letopis.store.rules.record_plan import change_event
from letopis.store.rules.redaction import MESSAGE_CONTENT_TYPES

REPAIRABLE_STATES: Final = ("blocked", "retrying", "paused")
MAX_REASON_CHARACTERS: Final = 2_000
UNKNOWN: Final = "unknown"  # what a tombstone says of an event that the file no longer holds

Verb = Literal["fix", "skip", "restore"]

_KEEP: Final = (
    "INSERT INTO letopis_outbox_repairs (verb, conversation_id, sequence, event_id, type, schema_version, data,"
    " metadata, digest, salt, occurred_at, reason, repaired_by, repaired_at)"
    " VALUES (:verb, :conversation_id, :sequence, :event_id, :type, :schema_version, :data, :metadata, :digest, :salt,"
    " :occurred_at, :reason, :repaired_by, :repaired_at)"
)
_REPLACE: Final = (
    "UPDATE letopis_outbox_events SET event_id = :event_id, type = :type, schema_version = :schema_version,"
    " data = :data, metadata = :metadata, digest = :digest, salt = :salt, redacted = 0"
    " WHERE position = (SELECT position FROM letopis_outbox_event_ids WHERE event_id = :old_id)"
)
_REPLACE_ID: Final = "UPDATE letopis_outbox_event_ids SET event_id = :event_id WHERE event_id = :old_id"
_READY: Final = (
    "UPDATE letopis_outbox_lanes SET state = 'ready', attempts = 0, due_at = 0, fault_class = NULL, fault = NULL"
    " WHERE conversation_id = ?"
)
_PAUSE: Final = "UPDATE letopis_outbox_lanes SET state = 'paused' WHERE conversation_id = ?"
_RESUME: Final = (
    "UPDATE letopis_outbox_lanes SET state = CASE WHEN attempts > 0 THEN 'retrying' ELSE 'ready' END, due_at = 0"
    " WHERE conversation_id = ?"
)

# The first moment stays: operators ask since when the relay is paused.
_PAUSE_RELAY: Final = (
    "INSERT INTO letopis_outbox_pause (only, since, reason, paused_by) VALUES (1, ?, ?, ?)"
    " ON CONFLICT (only) DO UPDATE SET reason = excluded.reason, paused_by = excluded.paused_by"
)
_RESUME_RELAY: Final = "DELETE FROM letopis_outbox_pause"


class NotRepairable(LetopisError):
    """The event is not pending, or not the one that its conversation waits for; nothing was changed."""


def retry(connection: sa.Connection, selection: Selection) -> list[str]:
    """Make blocked and retrying lanes due now, and forget their attempts; return their conversations."""
    return _update(connection, _READY, _lanes(connection, selection, ("blocked", "retrying"), pending=True))


def pause(connection: sa.Connection, selection: Selection) -> list[str]:
    """Pause ready and retrying lanes until :func:`resume`; return their conversations."""
    pending = not selection.conversation_ids
    return _update(connection, _PAUSE, _lanes(connection, selection, ("ready", "retrying"), pending=pending))


def resume(connection: sa.Connection, selection: Selection) -> list[str]:
    """Make paused lanes due now; return their conversations."""
    return _update(connection, _RESUME, _lanes(connection, selection, ("paused",), pending=False))


def pause_relay(connection: sa.Connection, *, now_us: int, reason: str | None = None, by: str | None = None) -> None:
    """Pause the relay until :func:`resume_relay`; a second call only replaces the reason."""
    connection.exec_driver_sql(_PAUSE_RELAY, (now_us, reason, by))


def resume_relay(connection: sa.Connection) -> bool:
    """Resume the relay; return True if it was paused."""
    return connection.exec_driver_sql(_RESUME_RELAY).rowcount == 1


def _lanes(connection: sa.Connection, selection: Selection, states: Sequence[str], *, pending: bool) -> list[str]:
    conditions, parameters = where_clause(selection)
    source = PENDING if selection.fronts or selection.event_ids else " FROM letopis_outbox_lanes AS l"
    only = " AND (l.delivered < l.head OR l.state = 'blocked')" if pending else ""
    statement = (
        f"SELECT DISTINCT l.conversation_id{source} WHERE l.state IN ({', '.join('?' * len(states))}){only}{conditions}"
        " ORDER BY 1"
    )
    return list(connection.exec_driver_sql(statement, (*states, *parameters)).scalars())


def _update(connection: sa.Connection, statement: str, conversation_ids: list[str]) -> list[str]:
    if conversation_ids:
        connection.exec_driver_sql(statement, [(name,) for name in conversation_ids])
    return conversation_ids


def skip(connection: sa.Connection, event_id: UUID, *, reason: str, now_us: int, by: str | None = None) -> PendingEvent:
    """Replace an event by a tombstone (``event.skipped``) in its place; return the event as it was."""
    reason = checked_reason(reason)
    old = _front(connection, event_id)
    if old.type == EventSkipped.type:
        raise NotRepairable(f"event {event_id} is a tombstone already: retry it, or put the original back")
    body = EventSkipped(
        skipped_event_id=str(old.event_id), skipped_type=old.type, digest=old.digest.hex(), reason=reason
    )
    tombstone = _tombstone(old.conversation_id, body, occurred_at=old.occurred_at)
    _replace(connection, old, tombstone, "skip", reason, now_us=now_us, by=by)
    note_skipped(connection, old.conversation_id)
    return old


def skip_missing(
    connection: sa.Connection, conversation_id: str, *, held: int, reason: str, now_us: int
) -> tuple[int, ...]:
    """Put tombstones where nothing holds an event, unless the store holds all; return their sequences."""
    reason = checked_reason(reason)
    lane = find_lane(connection, conversation_id)
    if lane is None or lane.state != "blocked":
        raise NotRepairable("the conversation is not blocked: nothing of it has to be given up")
    start = min(held, lane.head)
    first = min(start, lane.delivered)
    rows = connection.exec_driver_sql(
        "SELECT sequence, occurred_at FROM letopis_outbox_log WHERE conversation_id = ? AND sequence > ?"
        " ORDER BY sequence",
        (conversation_id, first),
    ).fetchall()
    lacking = sorted(set(range(first + 1, lane.head + 1)) - {row[0] for row in rows})
    if not lacking:
        raise NotRepairable("no event of the conversation is missing: skip the one at its front, or retry")
    missing = tuple(sequence for sequence in lacking if sequence > start)
    occurred_at = rows[0][1] if rows else now_us
    body = EventSkipped(skipped_event_id=UNKNOWN, skipped_type=UNKNOWN, digest=UNKNOWN, reason=reason)
    for sequence in missing:
        insert_event(connection, lane, _tombstone(conversation_id, body, occurred_at=occurred_at), sequence, now_us)
    connection.exec_driver_sql(
        "UPDATE letopis_outbox_lanes SET delivered = ?1, pruned = min(pruned, ?1),"
        " pending_since = CASE WHEN ?1 < head THEN coalesce(pending_since, ?2) END WHERE conversation_id = ?3",
        (start, now_us, conversation_id),
    )
    _update(connection, _READY, [conversation_id])
    note_skipped(connection, conversation_id)
    return missing


def _tombstone(conversation_id: str, body: EventSkipped, *, occurred_at: int) -> EncodedEvent:
    event = Event.of(body, conversation_id=conversation_id, occurred_at=from_microseconds(occurred_at))
    if is_record_lane(conversation_id):
        data = orjson.dumps(dict(event.data))
        return change_event(conversation_id, event.type, event_id=event.event_id, occurred_at=occurred_at, data=data)
    return encode(event, conversation_id=conversation_id)


def fix(
    connection: sa.Connection,
    event_id: UUID,
    data: Mapping[str, Any] | None,
    *,
    reason: str,
    now_us: int,
    metadata: Mapping[str, Any] | None = None,
    by: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> PendingEvent:
    """Give an event corrected data, under its id, type and sequence; return the event as it was."""
    reason = checked_reason(reason)
    old = _front(connection, event_id)
    if is_record_lane(old.conversation_id):
        raise NotRepairable("a change of a record cannot be corrected: put the record again, and skip this change")
    event = Event(
        type=old.type,
        data=_decoded(old.data, "data") if data is None else dict(data),
        schema_version=old.schema_version,
        metadata=_decoded(old.metadata, "metadata") if metadata is None else metadata,
        event_id=old.event_id,
        occurred_at=from_microseconds(old.occurred_at),
    )
    encoded = encode(event, conversation_id=old.conversation_id, limits=limits, stored=True)
    if old.type == MessageAppended.type and event.data["message_id"] != _message_id(old.data, event.data["message_id"]):
        raise InvalidInput("data.message_id", "must stay as it was: other events may point at the message")
    if old.salt is not None and encoded.has_content_of(old.digest, old.salt):
        raise InvalidInput("data", "is the same as before: correct what the fault names, or retry")
    _replace(connection, old, encoded, "fix", reason, now_us=now_us, by=by)
    return old


def restore(
    connection: sa.Connection, event_id: UUID, *, reason: str, now_us: int, by: str | None = None
) -> PendingEvent:
    """Put an event back as it was appended; return the event that it replaces."""
    reason = checked_reason(reason)
    present = _front(connection, event_id)
    first = next((repair for repair in list_repairs(connection, present) if repair.verb != "restore"), None)
    if first is None or first.salt is None or (first.event_id == present.event_id and first.digest == present.digest):
        raise NotRepairable(f"event {event_id} is as it was appended: there is nothing to put back")
    content = ("type", "schema_version", "data", "metadata", "digest", "salt", "occurred_at")
    original = EncodedEvent(first.conversation_id, first.event_id, **picked(first, *content))
    _replace(connection, present, original, "restore", reason, now_us=now_us, by=by)
    return present


def _front(connection: sa.Connection, event_id: UUID) -> PendingEvent:
    events = list_pending(connection, Selection(event_ids=(event_id,)), limit=1)
    if not events:
        raise NotRepairable(f"no pending event has the id {event_id}: it was delivered, skipped, or never appended")
    event = events[0]
    if not event.front:
        raise NotRepairable(
            f"event {event_id} only waits behind an earlier one of its conversation: repair that one first"
        )
    if event.state not in REPAIRABLE_STATES:
        raise NotRepairable(f"event {event_id} is not stuck, its lane is {event.state}: pause the lane to change it")
    return event


def checked_reason(reason: str) -> str:
    stripped = reason.strip()
    if not stripped:
        raise InvalidInput("reason", "must not be empty: it is kept")
    if len(stripped) > MAX_REASON_CHARACTERS:
        raise InvalidInput("reason", f"has {len(stripped)} characters, the limit is {MAX_REASON_CHARACTERS}")
    return stripped


def _decoded(text: str | None, field: str) -> Mapping[str, Any]:
    try:
        return EMPTY if text is None else decode(text)
    except ValueError:
        raise InvalidInput(field, "is damaged in the file: give all of it again") from None


def _message_id(data: str, default: str) -> Any:
    """Return the id of the message that the data is of; where the data is damaged, the new id is accepted."""
    try:
        return decode(data).get("message_id")
    except ValueError:
        return default


def _row(event: EncodedEvent | PendingEvent) -> dict[str, Any]:
    return asdict(event) | {"event_id": event.event_id.bytes}


def _replace(
    connection: sa.Connection,
    old: PendingEvent,
    new: EncodedEvent,
    verb: Verb,
    reason: str,
    *,
    now_us: int,
    by: str | None,
) -> None:
    repair = {"verb": verb, "reason": reason, "repaired_by": by, "repaired_at": now_us}
    connection.exec_driver_sql(_KEEP, _row(old) | repair)
    on_cursor(connection, index_event_ids)
    for statement in (_REPLACE, _REPLACE_ID):
        connection.exec_driver_sql(statement, _row(new) | {"old_id": old.event_id.bytes})
    if new.type in MESSAGE_CONTENT_TYPES:
        message = (new.conversation_id, str(_decoded(new.data, "data").get("message_id")))
        if on_cursor(connection, is_redacted, *message):  # redacted before the event was repaired
            on_cursor(connection, erase_messages, *message)
    if ConversationStarted.type in (old.type, new.type):
        _follow_owner(connection, old, new)
    if old.state != "blocked":  # no relay has an event of a blocked lane in flight
        connection.exec_driver_sql(FENCE)
    _update(connection, _READY, [old.conversation_id])


def _follow_owner(connection: sa.Connection, old: PendingEvent, new: EncodedEvent) -> None:
    """Give the lane the owner that the history store will receive, so that a later append can repeat it."""
    content = (old.conversation_id, old.type, old.schema_version, old.data, old.metadata)
    if old.salt is None or digest_of(*content, old.salt) != old.digest:
        return  # damaged: its owner is not known
    before, after = (
        _decoded(data, "data").get("owner_id") if type_ == ConversationStarted.type else None
        for type_, data in ((old.type, old.data), (new.type, new.data))
    )
    if before != after:
        connection.exec_driver_sql(
            "UPDATE letopis_outbox_lanes SET owner_id = ? WHERE conversation_id = ? AND owner_id IS ?",
            (after, old.conversation_id, before),
        )

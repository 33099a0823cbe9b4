"""Carry out erasures in the outbox file: one function over the list of what holds words there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from letopis.outbox.event_log.contents import remove_unshown
from letopis.outbox.event_log.statements import fetch_all, query_all
from letopis.store.model.codec import EncodedEvent, decode
from letopis.store.model.event_types import ConversationRewound
from letopis.store.model.large_content import references_in
from letopis.store.model.records import RECORDS_CLEARED, is_record_lane
from letopis.store.rules.erasure_plan import Cause, ErasurePlan
from letopis.store.rules.redaction import LATER_CONTENT_TYPES, MESSAGE_CONTENT_TYPES, strip_event

if TYPE_CHECKING:
    import sqlalchemy as sa

# ruff: noqa: S608 - the statements are ours
MAX_ERASED_PER_TRANSACTION: Final = 500  # sequences whose content one transaction erases, while other writers wait
_GIVEN: Final = "(SELECT value FROM json_each(?))"
_CONTENT: Final = (
    "SELECT {key}, sequence, event_id, type, schema_version, data, metadata, digest, salt, occurred_at FROM {table}"
    " WHERE conversation_id = ? AND sequence > ? AND sequence <= ? AND salt IS NOT NULL"
)
# A damaged event belongs to no message, and must not keep the others from being erased.
_OF_MESSAGES: Final = (
    f" AND type IN ({', '.join('?' * len(MESSAGE_CONTENT_TYPES))})"
    f" AND iif(json_valid(data), json_extract(data, '$.message_id'), NULL) IN {_GIVEN}"
)
_EMPTY_EVENT: Final = (
    "UPDATE letopis_outbox_events SET data = ?, metadata = ?, salt = NULL, redacted = 1 WHERE position = ?"
)
_EMPTY_REPAIR: Final = "UPDATE letopis_outbox_repairs SET data = ?, metadata = ?, salt = NULL WHERE repair_id = ?"
_DELETE_BODY: Final = "DELETE FROM letopis_outbox_record_bodies WHERE position = ?"
_DELETE_REPLIES: Final = tuple(
    f"DELETE FROM letopis_outbox_{table} WHERE conversation_id = ? AND (? IS NULL OR message_id IN {_GIVEN})"
    for table in ("drafts", "unconfirmed")
)
# What was put since an erasure began is new.
_COVERED: Final = (
    "lane = (SELECT lane FROM letopis_outbox_lanes WHERE conversation_id = ?) AND sequence > ? AND sequence <= ?"
)
_FORGET_RECORDS: Final = f"DELETE FROM letopis_outbox_records WHERE {_COVERED}"
# A clear that erases and is pending was asked for here, and is delivered as it is.
_FORGET_CLEARS: Final = (
    f"DELETE FROM letopis_outbox_record_clears AS c WHERE {_COVERED} AND NOT EXISTS (SELECT 1"
    f" FROM letopis_outbox_events AS e WHERE e.position = c.position AND e.type = '{RECORDS_CLEARED}'"
    " AND iif(json_valid(e.data), json_extract(e.data, '$.erase'), NULL) IS NOT NULL)"
)
# Adapters that keep more in the file than events make this view. Each erasure is inserted into it, with the held
# conversations and owners as a JSON array, for their triggers.
_HAS_ERASING_VIEW: Final = "SELECT 1 FROM sqlite_master WHERE type = 'view' AND name = 'letopis_erasing'"
_TELL_ADAPTERS: Final = "INSERT INTO letopis_erasing (kind, subject, held) VALUES (?, ?, ?)"
# A lane's erasure: everything before its deletion or its last reset, once that is delivered; or what a trim removes.
_WHOLE: Final = "max(deleted_at, reset_at)"
_UNERASED: Final = (
    f"SELECT conversation_id, erased_before, max(erased_before, pruned + 1), {_WHOLE}, trim_before, delivered"
    " FROM letopis_outbox_lanes AS l WHERE erased_before < max(deleted_at, reset_at, trim_before)"
    f" AND iif(erased_before < {_WHOLE}, {_WHOLE} <= delivered, NOT EXISTS (SELECT 1 FROM letopis_outbox_events AS e"
    f" WHERE e.lane = l.lane AND e.sequence > l.delivered AND e.type = 'conversation.trimmed'))"
)
_AMONG: Final = f" AND conversation_id IN {_GIVEN}"
# Of messages that others appended, or that were pruned, the file cannot tell.
_APPENDED: Final = (
    "SELECT json_extract(data, '$.message_id') FROM letopis_outbox_log WHERE conversation_id = ?1"
    " AND type = 'message.appended' AND json_valid(data) AND sequence"
)
_CHANGED_SINCE: Final = (
    "SELECT DISTINCT json_extract(data, '$.message_id') FROM letopis_outbox_log WHERE conversation_id = ?1"
    f" AND sequence BETWEEN ?2 AND ?3 AND salt IS NOT NULL AND type IN {LATER_CONTENT_TYPES} AND json_valid(data)"
    f" AND json_extract(data, '$.message_id') IN ({_APPENDED} < ?2)"
)
_ERASED: Final = "UPDATE letopis_outbox_lanes SET erased_before = ? WHERE conversation_id = ?"


@dataclass(frozen=True, slots=True)
class FileHolder:
    """Something in the file that holds words.

    :ivar name: what it is called in the documentation.
    :ivar columns: the columns that hold words, by table.
    :ivar erase: removes what a plan covers, by a DBAPI cursor; returns how much.
    :ivar logged: it is part of what is delivered: a pending deletion or reset leaves it until its own delivery.
    """

    name: str
    columns: Mapping[str, tuple[str, ...]]
    erase: Callable[[Any, ErasurePlan], int]
    logged: bool


def carry_out(cursor: Any, plan: ErasurePlan, *, logged: bool | None = None) -> int:
    """Remove what a plan covers from everything in the file that holds words; return how much that was.

    Idempotent.

    :param logged: ``False`` to leave the log until the event that asks for the erasure is delivered, ``True`` for the
        log alone: what is outside it by then is new. ``None`` for everything.
    """
    return sum(holder.erase(cursor, plan) for holder in HOLDERS if logged is None or holder.logged is logged)


def erase_messages(cursor: Any, conversation_id: str, *message_ids: str, cause: Cause = Cause.REDACTION) -> int:
    """Remove messages of a conversation from the file; return how much held some of their content."""
    return carry_out(cursor, ErasurePlan(lane=conversation_id, cause=cause, message_ids=frozenset(message_ids)))


def erase_delivered(cursor: Any, conversation_ids: str | None = None) -> bool:
    """Erase a bounded part of the lanes whose deletion, reset or trim is due. Return True if any was.

    :param conversation_ids: the lanes to look at, as a JSON array; ``None`` for all.
    """
    lanes = query_all(
        cursor, _UNERASED + (_AMONG if conversation_ids else ""), (conversation_ids,)[: bool(conversation_ids)]
    )
    room = MAX_ERASED_PER_TRANSACTION
    for conversation_id, erased, first, whole, trim, delivered in lanes:
        cause, end = (Cause.RESET, whole) if erased < whole else (Cause.TRIM, trim)
        before = min(end, first + room)
        carry_out(
            cursor, ErasurePlan(lane=conversation_id, cause=cause, after=erased - 1, upto=before - 1), logged=True
        )
        cursor.execute(_ERASED, (before, conversation_id))
        if cause is Cause.TRIM and before == end:
            changed = [row[0] for row in query_all(cursor, _CHANGED_SINCE, (conversation_id, end, delivered))]
            erase_messages(cursor, conversation_id, *changed, cause=cause)
        room -= max(0, before - first)
        if room <= 0:
            break
    return bool(lanes)


def count_unerased(connection: sa.Connection) -> int:
    """Return how many conversations have content left whose deletion, reset or trim is due."""
    return len(fetch_all(connection, _UNERASED))


def _empty_events(cursor: Any, plan: ErasurePlan) -> int:
    """Strip events; the values of records and the large content that they alone showed go with them."""
    emptied, shown = [], False
    for position, event in _covered(cursor, plan, "letopis_outbox_log", "position"):
        left, metadata = strip_event(event), None
        if not is_record_lane(plan.lane):
            metadata, shown = left.metadata, shown or bool(references_in(event.type, event.data))
        emptied.append((left.data, metadata, position))
    cursor.executemany(_EMPTY_EVENT, emptied)
    cursor.executemany(_DELETE_BODY, [(position,) for *_, position in emptied] if is_record_lane(plan.lane) else ())
    if shown:
        remove_unshown(cursor, plan.lane)
    return len(emptied)


def _empty_repairs(cursor: Any, plan: ErasurePlan) -> int:
    """Strip the originals of repaired events, which may show large content too."""
    originals = list(_covered(cursor, plan, "letopis_outbox_repairs", "repair_id"))
    stripped = [(strip_event(event), repair_id) for repair_id, event in originals]
    cursor.executemany(_EMPTY_REPAIR, [(event.data, event.metadata, repair_id) for event, repair_id in stripped])
    if any(references_in(event.type, event.data) for _, event in originals):
        remove_unshown(cursor, plan.lane)
    return len(originals)


def _covered(cursor: Any, plan: ErasurePlan, table: str, key: str) -> list[tuple[Any, EncodedEvent]]:
    """Return the events of a table that a plan covers, each with its key."""
    statement, values = _CONTENT.format(table=table, key=key), [plan.lane, plan.after, plan.upto]
    if plan.message_ids is not None:
        statement += _OF_MESSAGES
        values += [*MESSAGE_CONTENT_TYPES, orjson.dumps(sorted(plan.message_ids)).decode()]
    covered = []
    for row in query_all(cursor, statement, values):
        try:
            data = decode(row[5])
        except ValueError:
            continue
        event = EncodedEvent(plan.lane, UUID(bytes=row[2]), *row[3:10])
        # What asks for an erasure is delivered as it is.
        asks = event.type in (ConversationRewound.type, RECORDS_CLEARED) and bool(data.get("erase"))
        if not asks and plan.covers(row[1], event.type, data.get("message_id")):
            covered.append((row[0], event))
    return covered


def _delete_replies(cursor: Any, plan: ErasurePlan) -> int:
    """Delete drafts of replies, and the notes of replies that are not confirmed."""
    if plan.keeps_state or plan.cause is Cause.RECORDS:
        return 0  # it concerns what is old, or no conversation
    ids = None if plan.message_ids is None else orjson.dumps(sorted(plan.message_ids)).decode()
    return sum(cursor.execute(statement, (plan.lane, ids, ids)).rowcount for statement in _DELETE_REPLIES)


def forget_records(cursor: Any, plan: ErasurePlan) -> int:
    """Delete what the file tells of the records of a lane, but for its events; a clear has done so already."""
    if not is_record_lane(plan.lane) or plan.cause is Cause.RECORDS:
        return 0
    values = (plan.lane, plan.after, plan.upto)
    return sum(cursor.execute(statement, values).rowcount for statement in (_FORGET_RECORDS, _FORGET_CLEARS))


def tell_adapters(cursor: Any, kind: str, subject: str, held: Collection[str] = ()) -> None:
    """Have adapters erase what they keep in the file of an owner, a person or a conversation."""
    if query_all(cursor, _HAS_ERASING_VIEW):
        cursor.execute(_TELL_ADAPTERS, (kind, subject, orjson.dumps(list(held)).decode()))


def _erase_in_adapters(cursor: Any, plan: ErasurePlan) -> int:
    if plan.message_ids is None and not plan.keeps_state and not is_record_lane(plan.lane):
        tell_adapters(cursor, "conversation", plan.lane)
    return 0


_CONTENT_COLUMNS: Final = ("data", "metadata")
HOLDERS: Final = (
    FileHolder(
        "events, values of records and large content",
        {
            "letopis_outbox_events": _CONTENT_COLUMNS,
            "letopis_outbox_record_bodies": ("body",),
            "letopis_outbox_contents": ("body",),
        },
        _empty_events,
        logged=True,
    ),
    FileHolder(
        "originals of repaired events", {"letopis_outbox_repairs": _CONTENT_COLUMNS}, _empty_repairs, logged=True
    ),
    FileHolder(
        "names of records",
        {
            "letopis_outbox_records": ("namespace", "record_key", "tags"),
            "letopis_outbox_record_clears": ("prefix",),
        },
        forget_records,
        logged=True,
    ),
    FileHolder(
        "drafts and unconfirmed replies",
        {"letopis_outbox_drafts": ("data",), "letopis_outbox_unconfirmed": ()},
        _delete_replies,
        logged=False,
    ),
    FileHolder("what adapters keep", {"letopis_telegram_updates": ("data",)}, _erase_in_adapters, logged=False),
)
"""Everything in an outbox file that holds words; what holds more joins it."""

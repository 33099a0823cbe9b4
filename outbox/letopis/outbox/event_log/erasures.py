"""Carry out in the file what the history store records as erased, up to this moment."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from letopis.outbox.event_log import drafts
from letopis.outbox.event_log.acknowledge import is_current_lease
from letopis.outbox.event_log.append import append_events
from letopis.outbox.event_log.append_encoding import Prepared, prepare
from letopis.outbox.event_log.effects import MAX_ERASED_PER_TRANSACTION, erase_content, erase_repairs
from letopis.outbox.event_log.event_ids import newest_position
from letopis.outbox.event_log.records.log import erase_changes, erase_repairs_of_records, forget_records
from letopis.outbox.event_log.statements import fetch_all, query_all
from letopis.store.model.conversations import Seen
from letopis.store.model.event_types import ConversationDeleted, ConversationRewound
from letopis.store.model.records import FIRST_CONVERSATION_ID, Scope

if TYPE_CHECKING:
    import sqlalchemy as sa

    from letopis.store.erasures import Erasure

LANES_PER_QUESTION: Final = 500
"""Lanes whose owner the history store is asked for at a time."""

# Adapters that keep more in the file than events make this view. Each erasure is inserted into it, with the held
# conversations and owners as a JSON array, for their triggers.
_HAS_ERASING_VIEW: Final = "SELECT 1 FROM sqlite_master WHERE type = 'view' AND name = 'letopis_erasing'"
_TELL_ADAPTERS: Final = "INSERT INTO letopis_erasing (kind, subject, held) VALUES (?, ?, ?)"
_STATE: Final = "SELECT erasures, erasing, origin_id FROM letopis_outbox_origin"
_BEGIN: Final = "UPDATE letopis_outbox_origin SET erasing = ?"
_END: Final = "UPDATE letopis_outbox_origin SET erasures = max(erasures, ?), erasing = NULL"
_ACKNOWLEDGED: Final = "UPDATE letopis_outbox_origin SET acknowledged = max(acknowledged, ?)"
_REPORT: Final = "UPDATE letopis_outbox_relay SET erasures = ?1 WHERE erasures IS NOT ?1"
_OWNERLESS: Final = (
    "SELECT conversation_id FROM letopis_outbox_lanes WHERE owner_id IS NULL AND conversation_id > ?"
    " ORDER BY conversation_id LIMIT ?"
)
_SET_OWNER: Final = (
    "UPDATE letopis_outbox_lanes SET owner_id = ?"
    " WHERE owner_id IS NULL AND conversation_id IN (SELECT value FROM json_each(?))"
)
_SUBJECT: Final = {"owner": "owner_id", "person": "owner_id", "conversation": "conversation_id"}
"""The column that holds the subject of an erasure, by its kind: what a person owns is erased whole."""
# One that was delivered came before the erasure, which is carried out before anything more is delivered.
_RESET_AT: Final = (
    "SELECT max(position) FROM letopis_outbox_log AS e JOIN letopis_outbox_lanes AS l USING (lane)"
    " WHERE l.conversation_id = ? AND sequence > delivered AND (type = 'conversation.deleted'"
    " OR type = 'conversation.rewound' AND iif(json_valid(data), json_extract(data, '$.erase'), 0))"
)
_LANES_OF: Final = (
    "SELECT conversation_id, head, delivered, deleted FROM letopis_outbox_lanes"
    " WHERE {subject} = ? AND conversation_id NOT IN (SELECT value FROM json_each(?))"
    " AND coalesce(owner_id, '') NOT IN (SELECT value FROM json_each(?))"
)
_DRAFTS_OF: Final = (
    "DELETE FROM letopis_outbox_{table} WHERE {subject} = ? AND conversation_id NOT IN (SELECT value FROM json_each(?))"
)
_FORGET_OWNER: Final = "DELETE FROM letopis_outbox_owners WHERE owner_id = ?"
_KEYS: Final = (
    "SELECT conversation_id, lane FROM letopis_outbox_lanes"
    " WHERE conversation_id IN (SELECT value FROM json_each(?)) ORDER BY lane"
)
# Deletions and resets stay as they are, and so does what is damaged: see `erase_content`.
_LEFT: Final = (
    "SELECT min(sequence), max(sequence) FROM letopis_outbox_log WHERE lane = ?1 AND position <= ?2"
    " AND salt IS NOT NULL AND json_valid(data) AND type <> 'conversation.deleted'"
    " AND NOT (type = 'conversation.rewound' AND coalesce(json_extract(data, '$.erase'), 0))"
)
# What an operator has repaired is the original of what is in the log, which may be a tombstone.
_AUTHORED: Final = (
    "SELECT conversation_id, json_extract(data, '$.message_id') FROM {table} WHERE type = 'message.appended'"
    " AND salt IS NOT NULL AND iif(json_valid(data), json_extract(data, '$.author'), NULL) = ?1"
    " AND conversation_id NOT IN (SELECT value FROM json_each(?2))"
)
_AUTHORED_LEFT: Final = (
    f"{_AUTHORED.format(table='letopis_outbox_log')} AND position <= ?3"
    f" UNION {_AUTHORED.format(table='letopis_outbox_repairs')} LIMIT ?4"
)
_HELD_LANES: Final = (
    "SELECT conversation_id FROM letopis_outbox_lanes WHERE owner_id IN (SELECT value FROM json_each(?))"
)


def lanes_without_owner(connection: sa.Connection, *, after: str = "") -> list[str]:
    """Return a page of the conversations here whose owner only the history store may know."""
    values = (after or FIRST_CONVERSATION_ID, LANES_PER_QUESTION)
    return [row[0] for row in fetch_all(connection, _OWNERLESS, values)]


def note_owner(connection: sa.Connection, owner: str, conversation_ids: Collection[str]) -> None:
    """Note that conversations belong to an owner, as the history store says."""
    connection.exec_driver_sql(_SET_OWNER, (owner, _listed(conversation_ids)))


@dataclass(frozen=True, slots=True)
class HeldSubjects:
    """What is on hold in the history store, and is left as it is."""

    conversations: frozenset[str]
    owners: frozenset[str]

    def forbids(self, erasure: Erasure) -> bool:
        return erasure.subject in (self.conversations if erasure.kind == "conversation" else self.owners)


def carry_out_step(
    connection: sa.Connection, erasure: Erasure, *, held: HeldSubjects, incarnation: int, now_us: int
) -> bool | None:
    """Take the next step of an erasure; return True if there is another, ``None`` if another relay has taken over."""
    if not is_current_lease(connection, incarnation):
        return None
    with closing(connection.connection.cursor()) as cursor:
        done, upto, origin_id = query_all(cursor, _STATE)[0]
        if done >= erasure.number:
            return False
        subject, excepted = erasure.subject, (_listed(held.conversations), _listed(held.owners))
        lanes = query_all(cursor, _LANES_OF.format(subject=_SUBJECT[erasure.kind]), (subject, *excepted))
        names = [lane[0] for lane in lanes]
        scopes = [Scope.owner(subject)] if erasure.kind != "conversation" else []
        names += [scope.name for scope in (*scopes, *map(Scope.conversation, names))]
        if upto is None:  # settled once, so that what is appended between two steps is not erased
            reset_here = _reset_here(cursor, erasure, origin_id)
            upto = reset_here or _begin(cursor, erasure, lanes, names, held, now_us=now_us)
            cursor.execute(_BEGIN, (upto,))
        if _erase_some(cursor, names, upto):
            return True
        if erasure.kind == "person" and _erase_authored(cursor, erasure.subject, held, upto):
            return True
        cursor.execute(_END, (erasure.number,))
        return False


def erase_messages(
    connection: sa.Connection, message_ids: Mapping[str, Collection[str]], *, held: HeldSubjects, incarnation: int
) -> bool | None:
    """Erase what the file holds of messages, by conversation; return ``None`` if another relay has taken over."""
    if not is_current_lease(connection, incarnation):
        return None
    with closing(connection.connection.cursor()) as cursor:
        excepted = _held_conversations(cursor, held)
        for name, _ in _keys(cursor, [name for name in message_ids if name not in excepted]):
            erase_content(cursor, name, message_ids[name])
    return True


def _held_conversations(cursor: Any, held: HeldSubjects) -> set[str]:
    of_owners = query_all(cursor, _HELD_LANES, (_listed(held.owners),)) if held.owners else []
    return {*held.conversations, *(row[0] for row in of_owners)}


def _erase_authored(cursor: Any, author: str, held: HeldSubjects, upto: int) -> bool:
    """Erase some of an author's messages, in conversations of others too. Return True if more may be left."""
    values = (author, _listed(_held_conversations(cursor, held)), upto, MAX_ERASED_PER_TRANSACTION)
    rows = query_all(cursor, _AUTHORED_LEFT, values)
    by_conversation: dict[str, list[str]] = {}
    for name, message_id in rows:
        by_conversation.setdefault(name, []).append(message_id)
    for name, message_ids in by_conversation.items():
        erase_content(cursor, name, message_ids)
    return len(rows) == MAX_ERASED_PER_TRANSACTION


def end_erasures(connection: sa.Connection, number: int, *, incarnation: int) -> bool:
    """Record that the erasures up to a number need nothing more here. Return False if another relay has taken over."""
    if not is_current_lease(connection, incarnation):
        return False
    connection.exec_driver_sql(_END, (number,))
    return True


def note_acknowledged(connection: sa.Connection, number: int) -> None:
    """Record that the history store knows the erasures up to a number to be carried out here."""
    connection.exec_driver_sql(_ACKNOWLEDGED, (number,))


def note_report(connection: sa.Connection, report: Mapping[str, Any]) -> None:
    """Have the status tell what the history store says of erasures and holds."""
    connection.exec_driver_sql(_REPORT, (orjson.dumps(report).decode() if any(report.values()) else None,))


def _reset_here(cursor: Any, erasure: Erasure, origin_id: bytes) -> int | None:
    """Return the position at which this outbox itself has reset the conversation: what it appended since is new."""
    if erasure.kind != "conversation" or erasure.origin_id is None or erasure.origin_id.bytes != origin_id:
        return None
    position: int | None = query_all(cursor, _RESET_AT, (erasure.subject,))[0][0]
    return position


def _begin(
    cursor: Any, erasure: Erasure, lanes: Sequence[Any], names: Sequence[str], held: HeldSubjects, *, now_us: int
) -> int:
    """End what the store may not know of yet, erase drafts; return the position up to which events are erased."""
    appends = list[Prepared]()
    for name, head, delivered, deleted in lanes:
        drafts.erase(cursor, name, None)
        erase_repairs(cursor, name)
        if deleted == 0 and head > delivered and (ending := _ending(erasure, name, head, delivered)) is not None:
            appends.append(ending)
    for outcome in append_events(cursor, appends, now_us=now_us) if appends else ():
        if isinstance(outcome, Exception):
            raise outcome
    for table in ("drafts", "unconfirmed"):  # also of conversations that have no event yet
        cursor.execute(
            _DRAFTS_OF.format(table=table, subject=_SUBJECT[erasure.kind]),
            (erasure.subject, _listed(held.conversations)),
        )
    if erasure.kind != "conversation" and erasure.how == "delete":
        cursor.execute(_FORGET_OWNER, (erasure.subject,))
    for name, lane in _keys(cursor, names):
        if name < FIRST_CONVERSATION_ID:
            forget_records(cursor, lane)
            erase_repairs_of_records(cursor, name)
    if query_all(cursor, _HAS_ERASING_VIEW):
        excepted = [*_held_conversations(cursor, held), *held.owners]
        cursor.execute(_TELL_ADAPTERS, (erasure.kind, erasure.subject, _listed(excepted)))
    return newest_position(cursor)


def _ending(erasure: Erasure, name: str, head: int, delivered: int) -> Prepared | None:
    """Return the event that ends or empties a conversation with pending events; ``None`` where the store knows it."""
    # What the store held when the erasure was recorded is reset there, by whoever asked for it. A reset from here would
    # erase what others have said since, so it has no effect where another outbox has the conversation too.
    if erasure.how == "delete":
        return prepare(name, [ConversationDeleted(reason=erasure.reason)])
    if delivered:
        return None
    body = ConversationRewound(reason=erasure.reason, erase=True)
    return prepare(name, [body], expected=Seen(sequence=head, version=0))


def _erase_some(cursor: Any, names: Sequence[str], upto: int) -> bool:
    """Erase a bounded part of the events of lanes up to a position. Return True if more may be left."""
    room = MAX_ERASED_PER_TRANSACTION
    for name, lane in _keys(cursor, names):
        if name < FIRST_CONVERSATION_ID:
            room -= erase_changes(cursor, lane, upto=upto, limit=room)
        else:
            first, last = query_all(cursor, _LEFT, (lane, upto))[0]
            if first is not None:
                end = min(last + 1, first + room)
                erase_content(cursor, name, None, first=first, before=end)
                room -= end - first
                if end <= last:
                    return True
        if room <= 0:
            return True
    return False


def _keys(cursor: Any, names: Sequence[str]) -> list[tuple[str, int]]:
    return query_all(cursor, _KEYS, (_listed(names),))


def _listed(names: Collection[str]) -> str:
    return orjson.dumps(list(names)).decode()

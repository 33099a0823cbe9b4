"""Carry out in the file what the history store records as erased, up to this moment."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from letopis.outbox.event_log.acknowledge import is_current_lease
from letopis.outbox.event_log.append import append_events
from letopis.outbox.event_log.append_encoding import Prepared, prepare
from letopis.outbox.event_log.erasing import (
    MAX_ERASED_PER_TRANSACTION,
    carry_out,
    erase_messages,
    forget_records,
    tell_adapters,
)
from letopis.outbox.event_log.event_ids import newest_position
from letopis.outbox.event_log.held import HeldSubjects
from letopis.outbox.event_log.known_erasures import ErasureState, progress_of, write_erasure
from letopis.outbox.event_log.statements import fetch_all, on_cursor, query_all
from letopis.store.model.conversations import Seen
from letopis.store.model.event_types import ConversationDeleted, ConversationRewound
from letopis.store.model.messages import EMPTY
from letopis.store.model.records import CONVERSATION_SCOPES, FIRST_CONVERSATION_ID, Scope, is_record_lane
from letopis.store.rules.erasure_plan import Cause, ErasurePlan

if TYPE_CHECKING:
    from uuid import UUID

    import sqlalchemy as sa

    from letopis.store.erasures import Erasure

# ruff: noqa: S608 - the statements are ours
LANES_PER_QUESTION: Final = 500
"""Lanes whose owner the history store is asked for at a time."""

_END: Final = "UPDATE letopis_outbox_origin SET erasures = ?, erasure_id = ?, acknowledged = 0"
_ACKNOWLEDGED: Final = "UPDATE letopis_outbox_origin SET acknowledged = 1 WHERE erasure_id IS ?"
_DELETED_AGAIN: Final = "UPDATE letopis_outbox_lanes SET deleted_at = 0 WHERE conversation_id = ? AND deleted_at > 0"
_REPORT: Final = "UPDATE letopis_outbox_relay SET erasures = ?1 WHERE erasures IS NOT ?1"
# Drafts and unconfirmed replies may belong to conversations that have no lane here yet.
_TABLES: Final = ("lanes", "drafts", "unconfirmed")
_OWNERLESS: Final = (
    " UNION ".join(
        f"SELECT conversation_id FROM letopis_outbox_{table} WHERE owner_id IS NULL AND conversation_id > ?1"
        for table in _TABLES
    )
    + " ORDER BY conversation_id LIMIT ?2"
)
_OF_RECORDS: Final = (
    f"SELECT substr(conversation_id, {len(CONVERSATION_SCOPES) + 1}) AS name FROM letopis_outbox_lanes AS r"
    " WHERE conversation_id > ?1 AND conversation_id < ?2 AND NOT EXISTS (SELECT 1 FROM letopis_outbox_lanes AS l"
    f" WHERE l.conversation_id = substr(r.conversation_id, {len(CONVERSATION_SCOPES) + 1}))"
    " ORDER BY conversation_id LIMIT ?3"
)
_SET_OWNER: Final = tuple(
    f"UPDATE letopis_outbox_{table} SET owner_id = ?"
    " WHERE owner_id IS NULL AND conversation_id IN (SELECT value FROM json_each(?))"
    for table in _TABLES
)
_SUBJECT: Final = {"owner": "owner_id", "person": "owner_id", "conversation": "conversation_id"}
"""The column that holds the subject of an erasure, by its kind: what a person owns is erased whole."""
_CAUSE: Final = {"owner": Cause.OWNER, "person": Cause.PERSON, "conversation": Cause.CONVERSATION}
_CONVERSATIONS_OF: Final = " UNION ".join(
    f"SELECT conversation_id FROM letopis_outbox_{table} WHERE {{subject}} = ?1" for table in _TABLES
)
_LANES: Final = (
    "SELECT conversation_id, owner_id, head, delivered, deleted_at FROM letopis_outbox_lanes"
    " WHERE conversation_id IN (SELECT value FROM json_each(?))"
)
# The store may not know whose a conversation is if only a pending event or a draft names the owner.
_OPEN: Final = (
    "SELECT conversation_id FROM letopis_outbox_lanes WHERE deleted_at = 0 AND (owner_id = ?1 AND delivered < head"
    " OR owner_id IS NULL AND conversation_id IN (SELECT conversation_id FROM letopis_outbox_drafts"
    " WHERE owner_id = ?1))"
)
_FORGET_OWNER: Final = "DELETE FROM letopis_outbox_owners WHERE owner_id = ?"
_KEYS: Final = (
    "SELECT conversation_id, lane FROM letopis_outbox_lanes"
    " WHERE conversation_id IN (SELECT value FROM json_each(?)) ORDER BY lane"
)
# What asks for an erasure stays as it is, and so does what is damaged: see `erasing`.
_HAS_WORDS: Final = (
    "salt IS NOT NULL AND json_valid(data) AND type <> 'conversation.deleted'"
    " AND NOT (type IN ('conversation.rewound', 'record.cleared') AND coalesce(json_extract(data, '$.erase'), 0))"
)
_LEFT: Final = (
    "WITH reached AS (SELECT sequence, type, data, salt FROM letopis_outbox_log WHERE lane = ?1 AND position <= ?2)"
    f" SELECT min(sequence), max(sequence) FROM (SELECT sequence FROM reached WHERE {_HAS_WORDS} UNION ALL"
    " SELECT sequence FROM letopis_outbox_repairs AS r WHERE conversation_id = ?3"
    f" AND sequence <= (SELECT max(sequence) FROM reached) AND {_HAS_WORDS})"
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
_ANSWERS: Final = (
    "SELECT json_extract(data, '$.message_id') FROM letopis_outbox_log WHERE conversation_id = ?1 AND position <= ?3"
    " AND type = 'message.appended' AND salt IS NOT NULL AND iif(json_valid(data),"
    " coalesce(json_extract(data, '$.metadata.answers'), json_extract(data, '$.metadata.telegram.answers')), NULL)"
    " IN (SELECT value FROM json_each(?2))"
)


class KnownByStore(NamedTuple):
    """What the history store alone can tell of an owner's conversations that are in this file.

    :ivar bounds: the last version of each conversation that the store may not know to be part of the erasure.
    :ivar records: the conversations of the owner of which the file holds records, and nothing else.
    """

    bounds: Mapping[str, int] = EMPTY
    records: Collection[str] = ()


NOTHING_KNOWN: Final = KnownByStore()


def conversations_without_owner(connection: sa.Connection, *, after: str = "") -> list[str]:
    """Return a page of the conversations here whose owner only the history store may know."""
    values = (after or FIRST_CONVERSATION_ID, LANES_PER_QUESTION)
    return [row[0] for row in fetch_all(connection, _OWNERLESS, values)]


def conversations_of_records(connection: sa.Connection, *, after: str = "") -> list[str]:
    """Return a page of the conversations of which the file holds records, and nothing else."""
    values = (f"{CONVERSATION_SCOPES}{after}", f"{CONVERSATION_SCOPES[:-1]};", LANES_PER_QUESTION)
    return [row[0] for row in fetch_all(connection, _OF_RECORDS, values)]


def note_owner(connection: sa.Connection, owner: str, conversation_ids: Collection[str]) -> None:
    """Note that conversations belong to an owner, as the history store says."""
    for statement in _SET_OWNER:
        connection.exec_driver_sql(statement, (owner, _listed(conversation_ids)))


def open_conversations(connection: sa.Connection, erasure: Erasure) -> list[str]:
    """Return the conversations of an owner of which the store may have a part, and not know that it is the owner's."""
    return [row[0] for row in fetch_all(connection, _OPEN, (erasure.subject,))]


def begin_erasure(
    connection: sa.Connection,
    erasure: Erasure,
    *,
    held: HeldSubjects,
    now_us: int,
    known: KnownByStore = NOTHING_KNOWN,
) -> None:
    """Settle how far an erasure reaches in this file: what is appended from now on is new. Idempotent."""
    with closing(connection.connection.cursor()) as cursor:
        if progress_of(cursor, erasure)[0] is None:
            upto = _begin(cursor, erasure, held, known, now_us=now_us)
            write_erasure(cursor, erasure, ErasureState.BEGUN, upto=upto)


def carry_out_step(
    connection: sa.Connection,
    erasure: Erasure,
    *,
    held: HeldSubjects,
    incarnation: int,
    now_us: int,
    known: KnownByStore = NOTHING_KNOWN,
) -> bool | None:
    """Take the next step of an erasure; return True if there is another, ``None`` if another relay has taken over."""
    if not is_current_lease(connection, incarnation):
        return None
    begin_erasure(connection, erasure, held=held, now_us=now_us, known=known)
    with closing(connection.connection.cursor()) as cursor:
        state, upto = progress_of(cursor, erasure)
        if state is not ErasureState.BEGUN:
            return False
        names = _conversations_of(cursor, erasure, held, known)
        if _erase_some(cursor, erasure, _lanes_of(erasure, names), upto):
            return True
        if erasure.kind == "person" and _erase_authored(cursor, erasure, held, upto):
            return True
        write_erasure(cursor, erasure, ErasureState.CARRIED_OUT, upto=upto)
        return False


def _conversations_of(cursor: Any, erasure: Erasure, held: HeldSubjects, known: KnownByStore) -> list[str]:
    rows = query_all(cursor, _CONVERSATIONS_OF.format(subject=_SUBJECT[erasure.kind]), (erasure.subject,))
    alone = {erasure.subject} if erasure.kind == "conversation" else set(known.records)
    return sorted((alone | {row[0] for row in rows}) - held.spared(cursor))


def _lanes_of(erasure: Erasure, conversations: Sequence[str]) -> list[str]:
    """Return the lanes of an erasure: conversations, and records of them and of the owner."""
    scopes = [Scope.owner(erasure.subject)] if erasure.kind != "conversation" else []
    return [*conversations, *(scope.name for scope in (*scopes, *map(Scope.conversation, conversations)))]


def erase_messages_of(
    connection: sa.Connection,
    message_ids: Mapping[str, Collection[str]],
    *,
    erasure: Erasure,
    held: HeldSubjects,
    incarnation: int,
    now_us: int,
    known: KnownByStore,
) -> bool | None:
    """Erase what the file holds of messages, by conversation; return ``None`` if another relay has taken over."""
    if not is_current_lease(connection, incarnation):
        return None
    begin_erasure(connection, erasure, held=held, now_us=now_us, known=known)
    with closing(connection.connection.cursor()) as cursor:
        for name in message_ids.keys() - held.spared(cursor):
            _erase_with_answers(cursor, name, message_ids[name], erasure)
    return True


def _erase_with_answers(cursor: Any, name: str, message_ids: Collection[str], erasure: Erasure) -> None:
    answers: list[Any] = []
    if erasure.answers:
        upto = progress_of(cursor, erasure)[1]
        answers = query_all(cursor, _ANSWERS, (name, _listed(message_ids), upto))
    erase_messages(cursor, name, *message_ids, *(row[0] for row in answers), cause=Cause.PERSON)


def _erase_authored(cursor: Any, erasure: Erasure, held: HeldSubjects, upto: int) -> bool:
    """Erase some of an author's messages, in conversations of others too. Return True if more may be left."""
    values = (erasure.subject, _listed(held.spared(cursor)), upto, MAX_ERASED_PER_TRANSACTION)
    rows = query_all(cursor, _AUTHORED_LEFT, values)
    by_conversation: dict[str, list[str]] = {}
    for name, message_id in rows:
        by_conversation.setdefault(name, []).append(message_id)
    for name, message_ids in by_conversation.items():
        _erase_with_answers(cursor, name, message_ids, erasure)
    return len(rows) == MAX_ERASED_PER_TRANSACTION


def set_aside(connection: sa.Connection, erasure: Erasure, *, incarnation: int) -> bool:
    """Record that a hold forbids an erasure here. Return False if another relay has taken over."""
    if is_current := is_current_lease(connection, incarnation):
        on_cursor(connection, write_erasure, erasure, ErasureState.KNOWN)
    return is_current


def delete_again(connection: sa.Connection, *, name: str, reason: str | None, now_us: int) -> None:
    """Append the deletion of a conversation again, for a store that has forgotten it."""
    connection.exec_driver_sql(_DELETED_AGAIN, (name,))
    with closing(connection.connection.cursor()) as cursor:
        [outcome] = append_events(cursor, [prepare(name, [ConversationDeleted(reason=reason)])], now_us=now_us)
    if isinstance(outcome, Exception):
        raise outcome


def end_erasures(connection: sa.Connection, number: int, erasure_id: UUID | None) -> None:
    """Record that nothing up to the last erasure of the store is left to do here."""
    connection.exec_driver_sql(_END, (number, erasure_id and erasure_id.bytes))


def note_acknowledged(connection: sa.Connection, erasure_id: UUID | None) -> None:
    """Record that the history store knows the erasures up to one to be carried out here."""
    connection.exec_driver_sql(_ACKNOWLEDGED, (erasure_id and erasure_id.bytes,))


def note_report(connection: sa.Connection, report: Mapping[str, Any]) -> None:
    """Have the status tell what the history store says of erasures and holds."""
    connection.exec_driver_sql(_REPORT, (orjson.dumps(report).decode() if any(report.values()) else None,))


def _begin(cursor: Any, erasure: Erasure, held: HeldSubjects, known: KnownByStore, *, now_us: int) -> int:
    """End what the store may not know of yet, erase drafts; return the position up to which events are erased."""
    names, appends = _conversations_of(cursor, erasure, held, known), list[Prepared]()
    for name in names:
        carry_out(cursor, ErasurePlan(lane=name, cause=_CAUSE[erasure.kind]), logged=False)
    lanes = query_all(cursor, _LANES, (_listed(names),))
    drafted = {*names}.difference(known.records, (row[0] for row in lanes)) if erasure.kind != "conversation" else ()
    for name in drafted:  # what named the owner is gone: nothing leads to the records in the steps that follow
        carry_out(cursor, ErasurePlan(lane=Scope.conversation(name).name, cause=_CAUSE[erasure.kind]), logged=True)
    for name, owner, head, delivered, deleted_at in lanes:
        bound = known.bounds.get(name)
        if deleted_at or (head == delivered and bound is None):
            continue
        # Only a draft names the owner here. Without a bound, the store knows another one.
        if owner is None and erasure.kind != "conversation" and delivered and bound is None:
            continue
        if (ending := _ending(erasure, name, head, delivered, bound)) is not None:
            appends.append(ending)
    for outcome in append_events(cursor, appends, now_us=now_us) if appends else ():
        if isinstance(outcome, Exception):
            raise outcome
    if erasure.kind != "conversation" and erasure.how == "delete":
        cursor.execute(_FORGET_OWNER, (erasure.subject,))
    for name in _lanes_of(erasure, names):
        if is_record_lane(name):
            forget_records(cursor, ErasurePlan(lane=name, cause=_CAUSE[erasure.kind]))
    tell_adapters(cursor, erasure.kind, erasure.subject, (*held.spared(cursor), *held.owners))
    return newest_position(cursor)


def _ending(erasure: Erasure, name: str, head: int, delivered: int, bound: int | None) -> Prepared | None:
    """Return the event that ends or empties a conversation with pending events; ``None`` where the store knows it."""
    # What the store held when the erasure was recorded is reset there, by whoever asked for it. A reset from here would
    # erase what others have said since, so it has no effect where another outbox has the conversation too.
    if erasure.how == "delete":
        return prepare(name, [ConversationDeleted(reason=erasure.reason)])
    if bound is not None:
        # Named for the steps that follow: the draft that did so is gone.
        body = ConversationRewound(reason=erasure.reason, erase=True, upto=bound)
        return prepare(name, [body], owner=erasure.subject)
    if delivered:
        return None
    body = ConversationRewound(reason=erasure.reason, erase=True)
    return prepare(name, [body], expected=Seen(sequence=head, version=0))


def _erase_some(cursor: Any, erasure: Erasure, names: Sequence[str], upto: int) -> bool:
    """Erase a bounded part of the events of lanes up to a position. Return True if more may be left."""
    room = MAX_ERASED_PER_TRANSACTION
    for name, lane in _keys(cursor, names):
        first, last = query_all(cursor, _LEFT, (lane, upto, name))[0]
        if first is not None:
            end = min(last, first + room - 1)
            plan = ErasurePlan(lane=name, cause=_CAUSE[erasure.kind], after=first - 1, upto=end)
            carry_out(cursor, plan, logged=True)
            room -= end - first + 1
            if end < last or room <= 0:
                return True
    return False


def _keys(cursor: Any, names: Sequence[str]) -> list[tuple[str, int]]:
    return query_all(cursor, _KEYS, (_listed(names),))


def _listed(names: Collection[str]) -> str:
    return orjson.dumps(list(names)).decode()

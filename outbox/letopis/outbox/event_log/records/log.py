"""Append changes of records to their lanes, in a write transaction that is already open.

A change is an event of a record lane like any other to the relay. Beside it, the file keeps the newest change of each
record it holds, the bodies of puts, and the prefixes that were cleared. A put whose body a later change made needless
is *hollowed*: its event stays in the lane, with its digest, and the body goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa

from letopis.outbox.event_log.append_plan import event_row
from letopis.outbox.event_log.append_statements import (
    INSERT_EVENTS,
    INSERT_LANES,
    MOVE_PENDING_LANES,
    MOVE_SETTLED_LANES,
)
from letopis.outbox.event_log.effects import Effect
from letopis.outbox.event_log.event_ids import MAX_UNINDEXED_EVENTS, find_positions, write_index
from letopis.outbox.event_log.records.changes import PreparedChange, prepare_clear
from letopis.outbox.event_log.statements import query_all, query_one
from letopis.store.errors import ConversationGone, OutboxUnavailable, RecordConflict, StoreUnavailable
from letopis.store.model.codec import decode, digest_of
from letopis.store.model.event_types import ConversationDeleted, ConversationRewound
from letopis.store.model.identifiers import uuid_of
from letopis.store.model.records import ABSENT, ANY, RECORD_PUT, RECORDS_CLEARED, RecordKey, Scope, range_end
from letopis.store.rules.record_plan import SCHEMA_VERSION, meets

_STATE: Final = (
    "SELECT o.indexed, max(o.indexed, coalesce((SELECT max(position) FROM letopis_outbox_events), 0)),"
    " l.lane, l.head, l.owed_since, l.delivered FROM letopis_outbox_origin AS o"
    " LEFT JOIN letopis_outbox_lanes AS l ON l.conversation_id = ?"
)
_NEW_LANE: Final = "SELECT coalesce(max(lane), 0) + 1 FROM letopis_outbox_lanes"
_SEQUENCE_AT: Final = "SELECT sequence FROM letopis_outbox_events WHERE position = ?"
_DELETED: Final = "SELECT 1 FROM letopis_outbox_lanes WHERE conversation_id = ? AND deleted > 0"
_NEWEST: Final = (
    "SELECT sequence, position, event_id, present, conditional FROM letopis_outbox_records"
    " WHERE lane = ? AND namespace = ? AND record_key = ?"
)
_CLEARED: Final = "SELECT sequence, prefix FROM letopis_outbox_record_clears WHERE lane = ? AND sequence > ?"
_INSERT_BODY: Final = "INSERT INTO letopis_outbox_record_bodies (position, size, body) VALUES (?, ?, ?)"
_DELETE_BODY: Final = "DELETE FROM letopis_outbox_record_bodies WHERE position = ?"
_HOLLOW: Final = "UPDATE letopis_outbox_events SET redacted = 1 WHERE position = ?"
_INSERT_RECORD: Final = (
    "INSERT INTO letopis_outbox_records (lane, namespace, record_key, sequence, position, event_id, present,"
    " conditional, media, size, tags, occurred_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (lane, namespace, record_key) DO UPDATE SET sequence = excluded.sequence,"
    " position = excluded.position, event_id = excluded.event_id, present = excluded.present,"
    " conditional = excluded.conditional, media = excluded.media, size = excluded.size, tags = excluded.tags,"
    " occurred_at = excluded.occurred_at"
)
_UNDER: Final = (
    "SELECT position, present, conditional FROM letopis_outbox_records"
    " WHERE lane = ?1 AND namespace >= ?2 AND (?3 IS NULL OR namespace < ?3)"
)
_CLEAR_UNDER: Final = (
    "DELETE FROM letopis_outbox_records WHERE lane = ?1 AND namespace >= ?2 AND (?3 IS NULL OR namespace < ?3)"
)
_INSERT_CLEAR: Final = "INSERT INTO letopis_outbox_record_clears (position, lane, sequence, prefix) VALUES (?, ?, ?, ?)"
_TO_ERASE: Final = "SELECT position, type FROM letopis_outbox_events WHERE lane = ? AND sequence < ? AND data <> '{}'"
_ERASE: Final = (
    "UPDATE letopis_outbox_events SET data = '{}', metadata = NULL, digest = ?, redacted = 1 WHERE position = ?"
)
_REPAIRS: Final = "SELECT repair_id, type FROM letopis_outbox_repairs WHERE conversation_id = ? AND data <> '{}'"
_ERASE_REPAIR: Final = "UPDATE letopis_outbox_repairs SET data = '{}', metadata = NULL, digest = ? WHERE repair_id = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLook:
    """What the history store held of some records, read before the change without a lock.

    :ivar revisions: ``None`` where there was none.
    :ivar heads: how far the outbox's lanes had got at that moment.
    """

    revisions: Mapping[RecordKey, UUID | None] = field(default_factory=dict)
    heads: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeWritten:
    """The result of one change.

    :ivar sequence: 0 if nothing was written, because the record was there already.
    :ivar revision: the one that the record has now, as far as this outbox knows.
    """

    lane: str
    event_id: UUID
    sequence: int
    revision: UUID | None

    @property
    def kept(self) -> bool:
        """Whether the record that was there stays."""
        return self.sequence == 0


@dataclass(slots=True, kw_only=True)
class _LaneEnd:
    key: int
    head: int
    found: bool
    pending_since: int | None
    delivered: int


class RecordAppend:
    """Changes to write together, as the writer of the outbox takes them."""

    adds_events: Final = True

    def __init__(
        self,
        changes: Sequence[PreparedChange],
        *,
        now_us: Callable[[], int],
        look: StoreLook | None = None,
        trusting: bool = False,
        check_room: Callable[[Any], None],
    ) -> None:
        self._changes = changes
        self._now_us = now_us
        self._look = look
        self._trusting = trusting
        self._check_room = check_room

    def __call__(self, connection: sa.Connection) -> list[ChangeWritten]:
        """Write the changes, all or none."""
        cursor = connection.connection.cursor()
        try:
            return self.run(cursor)
        finally:
            cursor.close()

    def run(self, cursor: Any) -> list[ChangeWritten]:
        """Write the changes on a DBAPI cursor, all or none; the transaction stays usable if they are refused."""
        self._check_room(cursor)
        cursor.execute("SAVEPOINT letopis_records")
        try:
            written = append_changes(
                cursor, self._changes, now_us=self._now_us(), look=self._look, trusting=self._trusting
            )
        except BaseException:  # whatever it was: the rest of the transaction may be committed without these
            cursor.execute("ROLLBACK TO letopis_records")
            cursor.execute("RELEASE letopis_records")
            raise
        cursor.execute("RELEASE letopis_records")
        return written


def append_changes(
    cursor: Any,
    changes: Iterable[PreparedChange],
    *,
    now_us: int,
    look: StoreLook | None = None,
    trusting: bool = False,
) -> list[ChangeWritten]:
    """Write changes in order; on an error the caller rolls all of them back.

    :param look: what the history store held; ``None`` if it could not be asked.
    :param trusting: write a conditional change of a record that the file does not know: the store will decide.
    :raises RecordConflict: a condition does not hold.
    :raises ConversationGone: the conversation was deleted.
    :raises StoreUnavailable: only the history store can tell whether a condition holds.
    """
    written, checked = list[ChangeWritten](), set[Scope]()
    for change in changes:
        if change.scope not in checked:
            checked.add(change.scope)
            name = change.scope.conversation_id
            if name is not None and query_one(cursor, _DELETED, (name,)) is not None:
                raise ConversationGone(conversation_id=name)
        written.append(_append(cursor, change, now_us=now_us, look=look, trusting=trusting))
    return written


def _append(
    cursor: Any, change: PreparedChange, *, now_us: int, look: StoreLook | None, trusting: bool
) -> ChangeWritten:
    event = change.event
    indexed, newest, lane = _read_end(cursor, event.conversation_id)
    # The writer runs its work again when a commit ended in an error that told nothing.
    for position in find_positions(cursor, [event.event_id.bytes], indexed=indexed):
        [(sequence,)] = query_all(cursor, _SEQUENCE_AT, (position,))
        return ChangeWritten(
            lane=event.conversation_id, event_id=event.event_id, sequence=sequence, revision=event.event_id
        )
    row = query_one(cursor, _NEWEST, (lane.key, *change.place)) if change.key else None
    if change.expected is not ANY:
        found = _current(cursor, change, lane, row, look=look, trusting=trusting)
        if found is not change.expected and not meets(change.expected, found):  # type: ignore[arg-type]
            if change.keep:
                return ChangeWritten(
                    lane=event.conversation_id,
                    event_id=event.event_id,
                    sequence=0,
                    revision=found,  # type: ignore[arg-type]
                )
            raise RecordConflict(expected=_named(change.expected), actual=found)  # type: ignore[arg-type]
    position, sequence = newest + 1, lane.head + 1
    cursor.execute(INSERT_EVENTS, event_row(event, position=position, lane=lane.key, sequence=sequence, now_us=now_us))
    if not lane.found:
        cursor.execute(INSERT_LANES, (lane.key, event.conversation_id, None, sequence, now_us))
    elif lane.pending_since is None:
        cursor.execute(MOVE_SETTLED_LANES, (None, sequence, now_us, lane.key))
    else:
        cursor.execute(MOVE_PENDING_LANES, (None, sequence, lane.key))
    if position - indexed >= MAX_UNINDEXED_EVENTS:
        write_index(cursor, indexed=indexed, newest=position)
    if event.type == RECORDS_CLEARED:
        _clear(cursor, change, lane.key, sequence=sequence, position=position)
    else:
        _note(cursor, change, lane.key, row, sequence=sequence, position=position)
    revision = event.event_id if event.type == RECORD_PUT else None
    return ChangeWritten(lane=event.conversation_id, event_id=event.event_id, sequence=sequence, revision=revision)


def _read_end(cursor: Any, name: str) -> tuple[int, int, _LaneEnd]:
    found = query_one(cursor, _STATE, (name,))
    if found is None:
        raise OutboxUnavailable("the outbox file has lost its identity: restore it from a backup, or salvage it")
    indexed, newest, key, head, pending_since, delivered = found
    if key is None:
        [(key,)] = query_all(cursor, _NEW_LANE)
        return indexed, newest, _LaneEnd(key=key, head=0, found=False, pending_since=None, delivered=0)
    return indexed, newest, _LaneEnd(key=key, head=head, found=True, pending_since=pending_since, delivered=delivered)


def _current(
    cursor: Any,
    change: PreparedChange,
    lane: _LaneEnd,
    row: Sequence[Any] | None,
    *,
    look: StoreLook | None,
    trusting: bool,
) -> object:
    """Return the revision that a record has now, as far as is known: ``None`` if there is none.

    Where nothing is known and the caller trusts the store to decide, what the change expects is returned.
    """
    held = None if look is None else look.heads.get(change.event.conversation_id, 0)
    if row is not None and (held is None or row[0] > held):
        return uuid_of(row[2]) if row[3] else None
    for sequence, prefix in query_all(cursor, _CLEARED, (lane.key, held or 0)):
        end = range_end(prefix)
        if (
            change.prefix >= prefix
            and (end is None or change.prefix < end)
            and (held is not None or sequence > lane.delivered)
        ):
            return None
    if look is not None and change.place in look.revisions:
        return look.revisions[change.place]
    if trusting:
        return change.expected
    raise StoreUnavailable("whether the record is as expected")


def _named(expected: object) -> UUID | None:
    return None if expected is ABSENT else expected  # type: ignore[return-value]


def note_change(cursor: Any, change: PreparedChange, lane: int, *, sequence: int, position: int) -> None:
    """Note a change whose event is written."""
    if change.event.type == RECORDS_CLEARED:
        _clear(cursor, change, lane, sequence=sequence, position=position)
    else:
        before = query_one(cursor, _NEWEST, (lane, *change.place))
        _note(cursor, change, lane, before, sequence=sequence, position=position)


def _note(
    cursor: Any, change: PreparedChange, lane: int, before: Sequence[Any] | None, *, sequence: int, position: int
) -> None:
    """Note a put or a deletion as the newest change of its record, and hollow the put that it replaces."""
    event = change.event
    conditional = change.expected is not ANY
    # A put on whose revision a later condition may rest keeps its body, and so does one that had a condition itself:
    # the store has to decide each of them as it was meant.
    if before is not None and before[3] and not before[4] and not conditional:
        _hollow(cursor, before[1])
    body = event.body
    if body is not None:
        cursor.execute(_INSERT_BODY, (position, len(body), body))
    tags = orjson.dumps(dict(change.tags)).decode() if change.tags else None
    cursor.execute(
        _INSERT_RECORD,
        (
            lane,
            *change.place,
            sequence,
            position,
            event.event_id.bytes,
            int(event.type == RECORD_PUT),
            int(conditional),
            change.media.value,
            0 if body is None else len(body),
            tags,
            event.occurred_at,
        ),
    )


def _hollow(cursor: Any, position: int) -> None:
    cursor.execute(_DELETE_BODY, (position,))
    cursor.execute(_HOLLOW, (position,))


def _clear(cursor: Any, change: PreparedChange, lane: int, *, sequence: int, position: int) -> None:
    """Note that all under a prefix is gone, and hollow the puts there."""
    bounds = (lane, change.prefix, range_end(change.prefix))
    for before, present, conditional in query_all(cursor, _UNDER, bounds):
        if present and not conditional:
            _hollow(cursor, before)
    cursor.execute(_CLEAR_UNDER, bounds)
    cursor.execute(_INSERT_CLEAR, (position, lane, sequence, change.prefix))
    if change.erases:
        _erase_before(cursor, lane, change.event.conversation_id, sequence)


def _erase_before(cursor: Any, lane: int, name: str, sequence: int) -> None:
    """Take everything out of the changes of a lane before a sequence; pending ones stay pending, without effect."""
    for position, type_name in query_all(cursor, _TO_ERASE, (lane, sequence)):
        cursor.execute(_DELETE_BODY, (position,))
        cursor.execute(_ERASE, (_empty_digest(name, type_name), position))
    for repair_id, type_name in query_all(cursor, _REPAIRS, (name,)):
        cursor.execute(_ERASE_REPAIR, (_empty_digest(name, type_name), repair_id))


def _empty_digest(name: str, type_name: str) -> bytes:
    return digest_of(name, type_name, SCHEMA_VERSION, b"{}", None)


def erase_records(cursor: Any, effects: Iterable[Effect], *, now_us: int) -> bool:
    """Append what erases the records of conversations that were just deleted or reset. Return True if there are any.

    A reset erases in the records' own lane, where what comes after it is kept, and always: another outbox may have put
    some. What a deletion leaves in the history store, the deletion erases there.
    """
    erased = False
    for effect in effects:
        deleted = effect.event.type == ConversationDeleted.type
        reset = effect.event.type == ConversationRewound.type and decode(effect.event.data).get("erase") is True
        if deleted or reset:
            erased = erase_scope(cursor, Scope.conversation(effect.conversation_id), now_us, always=reset) or erased
    return erased


def erase_scope(cursor: Any, scope: Scope, now_us: int, *, always: bool = False) -> bool:
    """Append what erases the records of a scope, if the file has a lane of them. Return True if it does.

    :param always: also without a lane.
    """
    changes = prepare_clear(scope, erase=True)
    if not always:
        changes = [one for one in changes if _read_end(cursor, one.event.conversation_id)[2].found]
    for change in changes:
        _append(cursor, change, now_us=now_us, look=None, trusting=True)
    return bool(changes)

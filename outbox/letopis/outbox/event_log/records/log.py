"""Note changes of records in the outbox file, in the write transaction that appends their events.

A change is an event of a lane of records, appended and delivered as any other. Beside it, the file keeps the newest
change of each record it holds, the bodies of puts, and the prefixes that were cleared. A put whose body a later change
made needless is *hollowed*: its event stays in the lane, with its digest, and the body goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from letopis.outbox.event_log.erasing import carry_out
from letopis.outbox.event_log.lanes import sequenced_event
from letopis.outbox.event_log.statements import query_all, query_one
from letopis.store.errors import InvalidInput, RecordConflict, StoreUnavailable
from letopis.store.model.codec import decode
from letopis.store.model.identifiers import uuid_of
from letopis.store.model.records import (
    ANY,
    RECORD_PUT,
    RECORD_TYPES,
    RECORDS_CLEARED,
    RecordKey,
    RecordRange,
    range_end,
)
from letopis.store.rules.erasure_plan import Cause, ErasurePlan
from letopis.store.rules.record_plan import RecordChange, decode_change, meets

if TYPE_CHECKING:
    from letopis.outbox.event_log.append_encoding import Prepared

_NEWEST: Final = (
    "SELECT sequence, position, event_id, present, conditional FROM letopis_outbox_records"
    " WHERE lane = ? AND namespace = ? AND record_key = ?"
)
_CLEARED: Final = "SELECT sequence, prefix FROM letopis_outbox_record_clears WHERE lane = ?"
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
_EVENTS: Final = (
    "SELECT position, lane, conversation_id, sequence, event_id, type, schema_version, data, metadata, digest,"
    " salt, occurred_at, redacted FROM letopis_outbox_log WHERE type LIKE 'record.%' ORDER BY position"
)


@dataclass(slots=True)
class KnownRecords:
    """What the file, and the changes planned so far, make of records that conditions name."""

    # sequence and revision of the newest change, by lane and key; no revision for a deletion
    newest: dict[tuple[str, RecordKey], tuple[int, UUID | None]] = field(default_factory=dict)
    clears: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)

    @classmethod
    def read(cls, cursor: Any, appends: Iterable[Prepared], lanes: Mapping[str, Any]) -> KnownRecords | None:
        """Return what the file tells; ``None`` where no change has a condition."""
        changes = [item for prepared in appends for item in prepared.changes]
        if all(item.change.expected is ANY for item in changes):
            return None
        known = cls()
        for name in {item.event.conversation_id for item in changes} & lanes.keys():
            known.clears[name] = query_all(cursor, _CLEARED, (lanes[name].key,))
        for item in changes:
            name, key = item.event.conversation_id, item.change.place
            if item.change.expected is not ANY and name in lanes:
                row = query_one(cursor, _NEWEST, (lanes[name].key, *key))
                if row is not None:
                    known.newest[name, key] = (row[0], uuid_of(row[2]) if row[3] else None)
        return known

    def copy(self) -> KnownRecords:
        return KnownRecords(dict(self.newest), {name: list(clears) for name, clears in self.clears.items()})

    def add(self, lane: str, change: RecordChange, sequence: int) -> None:
        if change.type == RECORDS_CLEARED:
            under = RecordRange(prefix=change.prefix)
            self.newest = {key: held for key, held in self.newest.items() if key[0] != lane or not under.holds(key[1])}
            self.clears.setdefault(lane, []).append((sequence, change.prefix))
        else:
            self.newest[lane, change.place] = (sequence, change.event_id if change.type == RECORD_PUT else None)

    def kept(self, lane: str, change: RecordChange, prepared: Prepared, *, delivered: int) -> tuple[UUID | None] | None:
        """Return the revision that stays because it is not the expected one; ``None`` if the change is written."""
        view, key = prepared.view, change.place
        held = None if view is None else view.heads.get(lane, 0)
        newest = self.newest.get((lane, key))
        cleared = (
            RecordRange(prefix=prefix).holds(key) and sequence > (delivered if held is None else held)
            for sequence, prefix in self.clears.get(lane, ())
        )
        if newest is not None and (held is None or newest[0] > held):
            revision = newest[1]
        elif any(cleared):
            revision = None
        elif view is not None:
            revision = next((record.revision for record in view.records if record.place == key), None)
        elif prepared.trusting:
            return None
        else:
            raise StoreUnavailable("whether the record is as expected")
        if meets(change.expected, revision):
            return None
        if not change.keep:
            raise RecordConflict(
                expected=change.expected if isinstance(change.expected, UUID) else None, actual=revision
            )
        return (revision,)


def note_change(cursor: Any, change: RecordChange, *, lane: int, name: str, sequence: int, position: int) -> bool:
    """Note a change whose event is written. Return True if content was erased."""
    if change.type == RECORDS_CLEARED:
        return _clear(cursor, change, lane, name, sequence, position)
    before = query_one(cursor, _NEWEST, (lane, *change.place))
    conditional = change.expected is not ANY
    # A put on whose revision a later condition may rest keeps its body, and so does one that had a condition itself:
    # the store has to decide each of them as it was meant.
    if before is not None and before[3] and not before[4] and not conditional:
        _hollow(cursor, before[1])
    if change.body is not None:
        cursor.execute(_INSERT_BODY, (position, change.size, change.body))
    tags = orjson.dumps(dict(change.tags)).decode() if change.tags else None
    flags, content = (int(change.type == RECORD_PUT), int(conditional)), (change.media.value, change.size, tags)
    where = (lane, *change.place, sequence, position)
    cursor.execute(_INSERT_RECORD, (*where, change.event_id.bytes, *flags, *content, change.occurred_at))
    return False


def _hollow(cursor: Any, position: int) -> None:
    cursor.execute(_DELETE_BODY, (position,))
    cursor.execute(_HOLLOW, (position,))


def _clear(cursor: Any, change: RecordChange, lane: int, name: str, sequence: int, position: int) -> bool:
    """Note that all under a prefix is gone, and hollow the puts there."""
    bounds = (lane, change.prefix, range_end(change.prefix))
    for before, present, conditional in query_all(cursor, _UNDER, bounds):
        if present and not conditional:
            _hollow(cursor, before)
    cursor.execute(_CLEAR_UNDER, bounds)
    cursor.execute(_INSERT_CLEAR, (position, lane, sequence, change.prefix))
    if change.erases:
        # Pending changes stay pending, without effect.
        carry_out(cursor, ErasurePlan(lane=name, cause=Cause.RECORDS, upto=sequence - 1))
    return change.erases


def rebuild_records(cursor: Any, bodies: Mapping[str, bytes]) -> None:
    """Note all changes of records that the file holds, in order, but puts whose value ``bodies`` lacks."""
    for position, lane, name, *columns in query_all(cursor, _EVENTS):
        sequenced = sequenced_event(name, columns)
        event = sequenced.event
        if event.type == RECORD_PUT:
            body = None if event.redacted else bodies.get(str(decode(event.data).get("sha256")))
            if body is None and not event.redacted:
                continue
            sequenced = replace(sequenced, event=replace(event, body=body))
        try:
            change = decode_change(sequenced)
        except InvalidInput:
            continue
        if change.type in RECORD_TYPES and (change.type != RECORD_PUT or change.body is not None):
            note_change(cursor, change, lane=lane, name=name, sequence=change.sequence, position=position)

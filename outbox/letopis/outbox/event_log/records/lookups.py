"""Read what the outbox file holds of records: their newest changes, and the prefixes that were cleared."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import orjson
import sqlalchemy as sa

from letopis.outbox.event_log.statements import fetch_all, fetch_one
from letopis.store.model.identifiers import uuid_of
from letopis.store.model.records import Media, RecordKey, RecordRange, Scope, range_end, scope_of
from letopis.store.read.records import StoredRecord

_LANES: Final = (
    "SELECT lane, conversation_id, delivered, pruned FROM letopis_outbox_lanes"
    " WHERE conversation_id IN (SELECT value FROM json_each(?))"
)
_CHANGE: Final = (
    "SELECT namespace, record_key, sequence, position, event_id, present, media, size, tags, occurred_at"
    " FROM letopis_outbox_records WHERE lane = ?"
)
_OF_KEY: Final = f"{_CHANGE} AND namespace = ? AND record_key = ?"
# By sequence, because few changes are pending; the plus sign keeps SQLite from reading all of the namespace.
_UNDER: Final = f"{_CHANGE} AND +namespace >= ? AND (?3 IS NULL OR +namespace < ?3) AND sequence > ?"
_CLEARS: Final = "SELECT sequence, prefix FROM letopis_outbox_record_clears WHERE lane = ? AND sequence > ?"
_PENDING: Final = (
    "SELECT r.namespace, r.record_key, r.sequence, r.position, r.event_id, r.present, r.media, r.size, r.tags,"
    " r.occurred_at, l.conversation_id FROM letopis_outbox_lanes AS l JOIN letopis_outbox_records AS r"
    " ON r.lane = l.lane AND r.sequence > l.delivered"
    " WHERE l.pending_since IS NOT NULL AND l.delivered < l.head AND l.conversation_id < char(2)"
)
_PENDING_CLEARS: Final = (
    "SELECT l.conversation_id, c.sequence, c.prefix FROM letopis_outbox_lanes AS l"
    " JOIN letopis_outbox_record_clears AS c ON c.lane = l.lane AND c.sequence > l.delivered"
    " WHERE l.pending_since IS NOT NULL AND l.delivered < l.head AND l.conversation_id < char(2)"
)
_BODY: Final = "SELECT body FROM letopis_outbox_record_bodies WHERE position = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalChange(StoredRecord):
    """The newest change of a record that the file holds."""

    lane: str
    sequence: int
    position: int
    present: bool  # a put; ``False`` for a deletion


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRecords:
    """What the file holds of some records of a scope at one moment."""

    scope: Scope
    changes: Mapping[RecordKey, LocalChange]
    delivered: Mapping[str, int]  # by lane; lanes without a change are left out
    pruned: Mapping[str, int]
    since: Mapping[str, int] = field(default_factory=dict)  # the changes after these sequences were read, by lane
    clears: Sequence[tuple[str, int, bytes]] = ()
    # by position, as far as asked for; ``None`` where the file lacks one, which is damage
    bodies: Mapping[int, bytes | None] = field(default_factory=dict)

    def is_pending(self, change: LocalChange) -> bool:
        """Return True if a change is not delivered yet."""
        return change.sequence > self.delivered[change.lane]

    def tells(self, key: RecordKey, heads: Mapping[str, int]) -> tuple[LocalChange | None] | None:
        """Return what a record is after the heads of its lanes, ``None`` within if it is gone; otherwise ``None``."""
        lane, change = self.scope.lane(key[0]), self.changes.get(key)
        head = heads.get(lane, 0)
        if change is not None and change.sequence > head:
            return (change if change.present else None,)
        cleared = any(
            name == lane and sequence > head and RecordRange(prefix=prefix).holds(key)
            for name, sequence, prefix in self.clears
        )
        return (None,) if cleared else None


def read_places(
    connection: sa.Connection, scope: Scope, places: Collection[RecordKey], *, values: bool
) -> LocalRecords:
    """Return the newest changes of some records, with their values."""
    lanes = _lanes(connection, {scope.lane(key[0]) for key in places})
    changes: dict[RecordKey, LocalChange] = {}
    bodies: dict[int, bytes | None] = {}
    for key in places:
        name = scope.lane(key[0])
        if name not in lanes:
            continue
        row = fetch_one(connection, _OF_KEY, (lanes[name][0], *key))
        if row is not None:
            change = changes[key] = _change(name, row)
            if values and change.present:
                bodies[change.position] = _body(connection, change.position)
    return LocalRecords(
        scope=scope,
        changes=changes,
        delivered={name: row[2] for name, row in lanes.items()},
        pruned={name: row[3] for name, row in lanes.items()},
        clears=_clears(connection, lanes),
        bodies=bodies,
    )


def read_range(
    connection: sa.Connection,
    scope: Scope,
    where: RecordRange,
    *,
    since: Mapping[str, int] | None = None,
    values: int = 0,
) -> LocalRecords:
    """Return the changes of a range of records that are not delivered, or after ``since``, ``values`` with values."""
    lanes = _lanes(connection, scope.lanes)
    changes: dict[RecordKey, LocalChange] = {}
    begins = {name: row[2] if since is None else min(row[2], since.get(name, 0)) for name, row in lanes.items()}
    for name, (key, *_) in lanes.items():
        for row in fetch_all(connection, _UNDER, (key, where.prefix, range_end(where.prefix), begins[name])):
            change = _change(name, row)
            if where.holds(change.place):
                changes[change.place] = change
    puts = (put for put in sorted(changes, reverse=where.reverse) if changes[put].present) if values else ()
    positions = [changes[put].position for put in islice(puts, values)]
    return LocalRecords(
        scope=scope,
        changes=changes,
        delivered={name: row[2] for name, row in lanes.items()},
        pruned={name: row[3] for name, row in lanes.items()},
        since=begins,
        clears=_clears(connection, lanes),
        bodies={position: _body(connection, position) for position in positions},
    )


def read_pending(connection: sa.Connection) -> tuple[list[LocalChange], list[tuple[str, int, bytes]]]:
    """Return the changes of all scopes that are not delivered, and the prefixes cleared: lane, sequence, prefix."""
    changes = [_change(row[10], row[:10]) for row in fetch_all(connection, _PENDING)]
    return changes, [tuple(row) for row in fetch_all(connection, _PENDING_CLEARS)]


def pruned_lanes(connection: sa.Connection, lanes: Collection[str]) -> dict[str, int]:
    """Return up to where the file has pruned lanes of records; those that it keeps whole are left out."""
    return {name: row[3] for name, row in _lanes(connection, lanes).items() if row[3]}


def _lanes(connection: sa.Connection, names: Collection[str]) -> dict[str, Sequence[Any]]:
    rows = fetch_all(connection, _LANES, (orjson.dumps(list(names)).decode(),))
    return {row[1]: row for row in rows}


def _clears(connection: sa.Connection, lanes: Mapping[str, Sequence[Any]]) -> list[tuple[str, int, bytes]]:
    return [
        (name, sequence, prefix)
        for name, row in lanes.items()
        for sequence, prefix in fetch_all(connection, _CLEARS, (row[0], row[3]))
    ]


def _body(connection: sa.Connection, position: int) -> bytes | None:
    row = fetch_one(connection, _BODY, (position,))
    return None if row is None else bytes(row[0])


def _change(lane: str, row: Sequence[Any]) -> LocalChange:
    namespace, key, sequence, position, event_id, present, media, size, tags, occurred_at = row
    return LocalChange(
        scope=scope_of(lane),
        place=(namespace, key),
        lane=lane,
        sequence=sequence,
        position=position,
        revision=uuid_of(event_id),
        present=bool(present),
        media=Media(media),
        size=size,
        tags=orjson.loads(tags) if tags else {},
        updated_at=occurred_at,
    )

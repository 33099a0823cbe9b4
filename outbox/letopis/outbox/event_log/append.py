"""Append encoded events to the log, in a write transaction that is already open."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from operator import attrgetter
from typing import Any, Final

import orjson
import sqlalchemy as sa

from letopis.outbox.event_log import drafts
from letopis.outbox.event_log.append_encoding import Prepared
from letopis.outbox.event_log.append_plan import ERASES_RECORDS, Appended, AppendPlan, LaneEnd, event_row, type_of
from letopis.outbox.event_log.contents import insert_contents
from letopis.outbox.event_log.effects import apply_effects
from letopis.outbox.event_log.event_ids import MAX_UNINDEXED_EVENTS, find_positions, newest_position, write_index
from letopis.outbox.event_log.lanes import Lane
from letopis.outbox.event_log.records.changes import prepare_clear, together
from letopis.outbox.event_log.records.log import KnownRecords
from letopis.outbox.event_log.reused_ids import UsedIds
from letopis.outbox.event_log.statements import query_all, query_one
from letopis.store.errors import LetopisError, OutboxUnavailable
from letopis.store.model.codec import EncodedEvent
from letopis.store.model.event_types import MessageEdited
from letopis.store.model.records import RECORD_TYPES, Scope, conversation_of

INSERT_EVENTS: Final = (
    "INSERT INTO letopis_outbox_events (position, event_id, lane, sequence, type, schema_version, data, metadata,"
    " digest, salt, occurred_at, appended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_LANES: Final = (
    "INSERT INTO letopis_outbox_lanes (lane, conversation_id, owner_id, head, delivered, pruned, state, attempts,"
    " due_at, pending_since) VALUES (?, ?, ?, ?, 0, 0, 'ready', 0, 0, ?)"
)
# pending_since is the age of the oldest pending event: where one is pending already it stays, and so does its index,
# which SQLite would write even if the value were the same. An UPSERT is slower.
_MOVE_PENDING_LANES: Final = "UPDATE letopis_outbox_lanes SET owner_id = ?, head = ? WHERE lane = ?"
_MOVE_SETTLED_LANES: Final = "UPDATE letopis_outbox_lanes SET owner_id = ?, head = ?, pending_since = ? WHERE lane = ?"
# The file's counters and, beside them, the lanes that are there: always at least one row.
_LANE: Final = (
    "SELECT o.indexed, (SELECT max(position) FROM letopis_outbox_events), l.lane, l.conversation_id, l.head,"
    " l.owner_id, l.pruned, l.deleted_at, l.pending_since, l.delivered{more}"
    " FROM letopis_outbox_origin AS o LEFT JOIN letopis_outbox_lanes AS l ON l.conversation_id "
)
_LANES: Final = _LANE.format(more="") + "IN (SELECT value FROM json_each(?))"  # noqa: S608 - ours
# A single event, which is what most bots append, is looked up in the same statement.
_POSITION_OF_ONE: Final = (
    ", (SELECT position FROM letopis_outbox_event_ids WHERE event_id = ?1),"
    " (SELECT position FROM letopis_outbox_events WHERE position > o.indexed AND event_id = ?1)"
)
_LANE_AND_EVENT: Final = _LANE.format(more=_POSITION_OF_ONE) + "= ?2"
_WITH_RECORDS: Final = RECORD_TYPES | ERASES_RECORDS
_IS_LANE: Final = "SELECT 1 FROM letopis_outbox_lanes WHERE conversation_id = ?"
_LAST_LANE: Final = "SELECT coalesce(max(lane), 0) FROM letopis_outbox_lanes"
_UNCOUNTED: Final = "UPDATE letopis_outbox_origin SET uncounted = uncounted + 1"
_SINCE: Final = "SELECT sequence, type FROM letopis_outbox_log WHERE conversation_id = ? AND sequence > ?"
_bytes_of_id: Final = attrgetter("event_id.bytes")


def append_events(cursor: Any, appends: Sequence[Prepared], *, now_us: int) -> list[Appended | LetopisError]:
    """Write ``appends`` in order, in an open write transaction; a refused one has its error in the list."""
    plan = _read_plan(cursor, appends, now_us=now_us)
    outcomes: list[Appended | LetopisError] = []
    for prepared in appends:
        try:
            if prepared.draft is not None:
                drafts.check(cursor, prepared.conversation_id, prepared.draft, prepared.events[0].event_id)
            outcomes.append(plan.add(prepared))
        except LetopisError as refused:
            outcomes.append(refused)
    if plan.event_rows:
        cursor.executemany(INSERT_EVENTS, plan.event_rows)
        if plan.contents:
            insert_contents(cursor, plan.contents)
        pending, settled, new = plan.lane_rows()
        if pending:
            cursor.executemany(_MOVE_PENDING_LANES, pending)
        if settled:
            cursor.executemany(_MOVE_SETTLED_LANES, settled)
        if new:
            cursor.executemany(_INSERT_LANES, new)
        if plan.position - plan.indexed >= MAX_UNINDEXED_EVENTS:
            write_index(cursor, indexed=plan.indexed, newest=plan.position)
    if plan.effects and apply_effects(cursor, plan.effects):
        outcomes = [replace(done, erased=True) if isinstance(done, Appended) else done for done in outcomes]
    return outcomes


def insert_event(connection: sa.Connection, lane: Lane, event: EncodedEvent, sequence: int, now_us: int) -> None:
    """Insert one event where a lane lacks it, after all others in the order of positions."""
    with closing(connection.connection.cursor()) as cursor:
        position = newest_position(cursor) + 1
        row = event_row(event, position, lane.key, sequence, now_us)
        cursor.execute(INSERT_EVENTS, row)
        cursor.execute(_UNCOUNTED)


def erase_records(cursor: Any, conversation_id: str, *, now_us: int) -> None:
    """Append what erases the records of a conversation, if the file has a lane of them."""
    scope = Scope.conversation(conversation_id)
    if query_one(cursor, _IS_LANE, (scope.name,)) is not None:
        append_events(cursor, [together(scope, prepare_clear(scope, erase=True), trusting=True)], now_us=now_us)


def _lanes_beside(appends: Sequence[Prepared]) -> set[str]:
    """Return the lanes of records of appends, and what is beside a lane: its conversation, or the other way round."""
    names = set[str]()
    for prepared in appends:
        if not prepared.changes:
            names.add(Scope.conversation(prepared.conversation_id).name)
        for item in prepared.changes:
            lane = item.event.conversation_id
            names.add(lane)
            if (conversation_id := conversation_of(lane)) is not None:
                names.add(conversation_id)
    return names


def _read_plan(cursor: Any, appends: Sequence[Prepared], *, now_us: int) -> AppendPlan:
    """Read from the file what the plan of ``appends`` depends on."""
    events: list[EncodedEvent] = []
    names = set[str]()
    aliases: list[bytes] = []
    conditional: list[tuple[str, int]] = []
    for prepared in appends:
        events += prepared.events
        if not prepared.changes:
            names.add(prepared.conversation_id)
        if prepared.aliases:
            aliases += [alias.bytes for alias in prepared.aliases.values()]
        if prepared.expects is not None:
            conditional.append((prepared.conversation_id, prepared.expects.sequence))
    types = set(map(type_of, events))
    if with_records := not _WITH_RECORDS.isdisjoint(types):
        names |= _lanes_beside(appends)
    ids = [*map(_bytes_of_id, events), *aliases]
    rows: list[Any] = []
    others: set[str] = names
    if len(ids) == 1:
        name = events[0].conversation_id
        cursor.execute(_LANE_AND_EVENT, (bytearray(ids[0]), name))
        rows += cursor.fetchall()
        others = names - {name}
    if others:
        rows += query_all(cursor, _LANES, (orjson.dumps(list(others)).decode(),))
    if not rows:
        raise OutboxUnavailable("the outbox file has lost its identity: restore it from a backup, or salvage it")
    indexed, newest = rows[0][:2]
    if len(ids) == 1:
        known = [position for position in rows[0][10:] if position is not None]
    else:
        known = find_positions(cursor, ids, indexed=indexed)
    lanes = {row[3]: LaneEnd(row[3], row[2], True, *row[4:10]) for row in rows if row[2] is not None}
    # Most appends are all new, and need no further look at ids.
    repeated = bool(known) or len(set(ids)) < len(ids) or MessageEdited.type in types
    return AppendPlan(
        lanes,
        UsedIds.read(cursor, known, events) if repeated else None,
        now_us,
        indexed,
        position=max(indexed, newest or 0),
        # Lanes that are deleted leave no event behind, so that their numbers may be used again.
        last_lane=0 if len(lanes) == len(names) else query_all(cursor, _LAST_LANE)[0][0],
        since=_find_since(cursor, conditional) if conditional else {},
        records=KnownRecords.read(cursor, appends, lanes) if with_records else None,
    )


def _find_since(cursor: Any, conditional: Sequence[tuple[str, int]]) -> dict[str, list[tuple[int, str]]]:
    """Return the events after the lowest sequence that the conditional appends of a conversation have seen."""
    lowest: dict[str, int] = {}
    for name, sequence in conditional:
        lowest[name] = min(sequence, lowest.get(name, sequence))
    return {name: query_all(cursor, _SINCE, (name, sequence)) for name, sequence in lowest.items()}

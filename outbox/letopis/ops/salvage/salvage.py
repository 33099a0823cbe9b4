"""Recover all events with a valid digest from a damaged outbox file into a new one."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.ops.new_origin import assign_new_origin
from letopis.ops.salvage.sqlite_pages import IndexEntry, Pages, TableRow
from letopis.ops.verify import is_intact
from letopis.outbox.event_log.append import INSERT_EVENTS
from letopis.outbox.event_log.contents import content_rows, insert_contents
from letopis.outbox.event_log.event_ids import RECOUNT, index_event_ids
from letopis.outbox.event_log.known_erasures import ErasureState
from letopis.outbox.event_log.records.log import rebuild_records
from letopis.outbox.event_log.statements import on_cursor
from letopis.outbox.file.inspection import outbox_path
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store.errors import ConfigurationError
from letopis.store.model.codec import decode
from letopis.store.model.large_content import content_name, references_in

_STATES: Final = frozenset(ErasureState)
STATES: Final = frozenset({"ready", "retrying", "blocked", "paused"})
DAMAGED: Final = (
    "events are missing: `letopis outbox skip --missing` puts tombstones in place of those that the history store"
    " does not hold either"
)
_LANE: Final = (
    "INSERT INTO letopis_outbox_lanes (lane, conversation_id, owner_id, head, delivered, pruned, state, attempts,"
    " due_at, pending_since, fault_class, fault, deleted_at, reset_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0, ?, ?, ?, ?, ?)"
)
_REDACTED: Final = "UPDATE letopis_outbox_events SET redacted = 1 WHERE position = ?"
_ORIGIN: Final = (
    "UPDATE letopis_outbox_origin SET origin_id = ?, epoch = ?, store_id = ?, destination = ?, erasures = ?,"
    " erasure_id = ?"
)
_ERASURE: Final = (
    "INSERT INTO letopis_outbox_erasures (erasure_id, number, state, upto, erasure) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (erasure_id) DO NOTHING"
)


@dataclass(frozen=True, slots=True)
class _Event:
    position: int
    lane: int
    values: tuple[Any, ...]  # the columns from event_id to redacted, with the conversation in the lane's place

    @property
    def conversation_id(self) -> str:
        return str(self.values[1])

    @property
    def sequence(self) -> int:
        return int(self.values[2])

    @property
    def appended_at(self) -> int:
        return int(self.values[10])


@dataclass(frozen=True, slots=True)
class _Lane:
    owner_id: str | None = None
    head: int = 0
    delivered: int = 0
    pruned: int = 0
    paused: bool = False
    erasures: tuple[int, ...] = (0, 0)  # sequences of the deletion and of the last reset


@dataclass(frozen=True, slots=True)
class _Origin:
    origin_id: UUID
    epoch: int
    store_id: bytes | None
    destination: str | None
    erasures: int
    erasure_id: bytes | None


@dataclass(slots=True)
class _Found:
    events: dict[tuple[str, int], _Event] = field(default_factory=dict)
    lanes: dict[str, _Lane] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)  # the conversation of each lane
    origin: _Origin | None = None
    erasures: list[tuple[Any, ...]] = field(default_factory=list)
    named: dict[str, set[int]] = field(default_factory=dict)  # the sequences in index entries
    refused: int = 0
    bodies: dict[str, bytes] = field(default_factory=dict)  # values of records, by their checksum
    shown: dict[int, Mapping[str, bytes]] = field(default_factory=dict)  # large content by the position of its event
    contents: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))  # of messages, by lane


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvaged:
    """The result of a recovery."""

    origin_id: UUID
    renewed: bool  # the identity could not be read: the new file has its own, and holds only pending events
    kept: int
    pending: int  # of those that were kept
    lost: Mapping[str, tuple[int, ...]]  # pending events by conversation and sequence; these conversations are blocked
    let_go: int  # delivered events, damaged or before a damaged one: the history store has them
    refused: int  # rows that look like an event and do not match their digest, or contradict an index
    gone: int  # pages that are missing or empty; conversations on them may be lost without a trace

    @property
    def whole(self) -> bool:
        return not (self.lost or self.gone)

    @property
    def lost_count(self) -> int:
        return sum(map(len, self.lost.values()))


async def salvage(damaged: str | os.PathLike[str], to: str | os.PathLike[str]) -> Salvaged:
    """Read a damaged outbox file and its WAL page by page, and write the valid events to a new outbox file."""
    source, target = outbox_path(damaged), outbox_path(to)
    if not source.is_file():
        raise ConfigurationError(f"there is no file {str(source)!r}")
    if target.exists():
        raise ConfigurationError(f"{str(target)!r} exists: name a new file")
    wal = source.with_name(f"{source.name}-wal")
    pages = Pages(source.read_bytes(), wal.read_bytes() if wal.is_file() else b"")
    recovered = _found(pages)
    if not recovered.events and not recovered.lanes:
        raise ConfigurationError(f"{source.name!r} holds nothing of an outbox that could be read")
    events: dict[str, list[_Event]] = defaultdict(list)
    for (name, _), event in sorted(recovered.events.items()):
        events[name].append(event)
    # Without an identity it is unknown whether the outbox ever delivered anything.
    fresh = recovered.origin is not None and recovered.origin.store_id is None
    plans = [
        _plan(name, recovered.lanes.get(name), events.get(name, ()), recovered.named.get(name, set()), fresh=fresh)
        for name in sorted({*events, *recovered.lanes, *recovered.named})
    ]
    file = await OutboxFile.open(target)
    try:
        origin, now = recovered.origin, file.now_us()
        await file.write(lambda connection: _write(connection, plans, recovered, now_us=now))
        origin_id = file.origin.origin_id if origin is None else origin.origin_id
    finally:
        await file.close()
    if origin is None:
        origin_id = (await assign_new_origin(target)).origin.origin_id
    kept = sum(len(plan.events) for plan in plans)
    return Salvaged(
        origin_id=origin_id,
        renewed=origin is None,
        kept=kept,
        pending=sum(event.sequence > plan.lane.delivered for plan in plans for event in plan.events),
        lost={plan.name: plan.lost for plan in plans if plan.lost},
        let_go=sum(plan.let_go for plan in plans),
        refused=recovered.refused,
        gone=pages.gone,
    )


def _found(pages: Pages) -> _Found:
    """Classify the rows of the pages by their shape: table names are not needed, and may be damaged too."""
    recovered = _Found()
    by_page: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    names: dict[int, list[str]] = defaultdict(list)  # of lanes: by their rows, by an index, and by indexes of the bot's
    lanes: dict[int, _Lane] = {}
    rows: list[TableRow] = []
    for row_or_entry in pages.rows():
        if isinstance(row_or_entry, IndexEntry):
            by_page[row_or_entry.page].append(row_or_entry.values)
            match row_or_entry.values:
                case (str() as name, int() as key):
                    names[key].append(name)
                case (bytes() as key, int(), str() as state, int(), None | str()) if (
                    len(key) == 16 and state in _STATES
                ):
                    recovered.erasures.append(row_or_entry.values)
        elif (lane := _lane(row_or_entry)) is not None:
            names[row_or_entry.rowid].insert(0, lane[0])
            recovered.keys[row_or_entry.rowid] = lane[0]
            lanes[row_or_entry.rowid] = lane[1]
        elif (origin := _origin(row_or_entry)) is not None:
            recovered.origin = origin
        elif (body := _body(row_or_entry)) is not None:
            recovered.bodies[sha256(body).hexdigest()] = body
        elif (content := _content(row_or_entry)) is not None:
            recovered.contents[content[0]].append(content[1])
        else:
            rows.append(row_or_entry)
    events: dict[int, _Event] = {}
    for row in rows:
        if (event := _event(row, names)) is None:
            continue
        if not is_intact((*event.values[:9], event.values[11])):
            recovered.refused += 1
        else:
            events[event.position] = event
    recovered.keys |= {event.lane: event.conversation_id for event in events.values()}  # these are proved by digests
    named: dict[int, set[int]] = defaultdict(set)
    _weigh_indexes(recovered, by_page.values(), events, named)
    recovered.lanes = {recovered.keys[key]: lane for key, lane in lanes.items()}
    recovered.named = {recovered.keys[key]: some for key, some in named.items() if key in recovered.keys}
    held = {
        content_name(recovered.keys[lane], sha256(body).hexdigest()): body
        for lane, bodies in recovered.contents.items()
        for body in bodies
        if lane in recovered.keys
    }
    for event in sorted(events.values(), key=lambda event: event.position):
        if event.values[8] is not None and (needed := references_in(event.values[3], event.values[5])):
            if not needed <= held.keys():
                recovered.refused += 1  # no store would accept it
                continue
            recovered.shown[event.position] = {name: held[name] for name in needed}
        recovered.events[event.conversation_id, event.sequence] = event
    return recovered


def _body(row: TableRow) -> bytes | None:
    """Return the value of a record, if a row has the shape of one; the event that names its checksum proves it."""
    match row.values:
        case (None, int(size), bytes(body)) if len(body) == size:
            return body
    return None


def _content(row: TableRow) -> tuple[int, bytes] | None:
    """Return lane and value of large content, if a row has the shape of it; the events that name it prove it."""
    match row.values:
        case (int(lane), str(), int(), int(), int(size), bytes(body)) if len(body) == size:
            return lane, body
    return None


def _weigh_indexes(
    recovered: _Found,
    indexes: Iterable[Sequence[tuple[Any, ...]]],
    events: dict[int, _Event],
    named: dict[int, set[int]],
) -> None:
    """Take out the events that an index contradicts, and note what indexes say of lost ones."""
    truth: dict[type, dict[Any, tuple[Any, ...]]] = {
        bytes: {position: (event.values[0],) for position, event in events.items()},
        int: {position: (event.lane, event.sequence) for position, event in events.items()},
        str: {key: (name,) for key, name in recovered.keys.items()},
    }
    contradicted = set[int]()
    for entries in indexes:
        kind = type(entries[0][0]) if entries[0] else None
        if kind not in truth:
            continue
        said = {entry[-1]: entry[:-1] for entry in entries if len(entry) == (3 if kind is int else 2)}
        known = {key: truth[kind][key] for key in said.keys() & truth[kind].keys()}
        other = {key for key, value in known.items() if said[key] != value}
        if len(known) <= 2 * len(other):
            continue
        if kind is str:
            recovered.keys = {key: name for key, (name,) in said.items()} | recovered.keys
            continue
        contradicted |= other
        for key, sequence in said.values() if kind is int else ():
            named[key].add(sequence)
    recovered.refused += len(contradicted)
    for position in contradicted:
        del events[position]


def _event(row: TableRow, names: Mapping[int, Sequence[str]]) -> _Event | None:
    """Return the event of a row, under that name of its lane which fits its digest."""
    if len(row.values) not in (12, 13) or row.values[0] is not None or row.rowid <= 0:
        return None
    values = (*row.values[1:], *((0,) if len(row.values) == 12 else ()))
    if not (isinstance(values[0], bytes) and isinstance(values[7], bytes) and len(values[7]) == 32):
        return None
    key = values[1]
    if not (isinstance(key, int) and all(isinstance(value, int) and abs(value) < 1 << 53 for value in values[9:])):
        return None
    tried = [_Event(row.rowid, key, (values[0], name, *values[2:])) for name in names.get(key, ("",))]
    return next(
        (candidate for candidate in tried if is_intact((*candidate.values[:9], candidate.values[11]))), tried[0]
    )


def _lane(row: TableRow) -> tuple[str, _Lane] | None:
    match row.values:
        case (
            None,
            str() as name,
            None | str() as owner,
            int() as head,
            int() as delivered,
            int() as pruned,
            str() as state,
            int(),
            int(),
            None | int(),
            None | str(),
            None | str(),
            *rest,
        ) if state in STATES and 0 <= pruned <= delivered <= head and len(rest) <= 4:
            known = tuple(value if isinstance(value, int) and 0 <= value <= head else 0 for value in (*rest, 0, 0)[:2])
            return name, _Lane(owner, head, delivered, pruned, state == "paused", known)
    return None


def _origin(row: TableRow) -> _Origin | None:
    match row.values:
        case (None, bytes() as origin_id, int() as epoch, str(), str(), int(), *rest) if (
            row.rowid == 1 and len(origin_id) == 16 and epoch > 0 and len(rest) in (0, 2, 3, 4, 7)
        ):
            store_id, destination = rest[:2] or (None, None)
            erasures, erasure_id = rest[4:6] if len(rest) > 5 else (0, None)
            if not (isinstance(erasures, int) and isinstance(erasure_id, bytes) and len(erasure_id) == 16):
                erasures, erasure_id = 0, None
            return _Origin(
                UUID(bytes=origin_id),
                epoch,
                store_id if isinstance(store_id, bytes) and len(store_id) == 16 else None,
                destination if isinstance(destination, str) else None,
                erasures,
                erasure_id,
            )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is written of one conversation."""

    name: str
    lane: _Lane
    events: Sequence[_Event]
    lost: tuple[int, ...]
    let_go: int


def _plan(name: str, lane: _Lane | None, events: Sequence[_Event], named: set[int], *, fresh: bool) -> _Plan:
    there = {event.sequence for event in events}
    known = there | named
    if lane is None:
        # How far it was delivered is unknown: it is sent again, and the history store ignores duplicates. What neither
        # an event nor an index names was pruned, after its delivery; in an outbox that never delivered, it is lost.
        first = 0 if fresh else min(known) - 1
        lane = _Lane(_owner(events), first, first, first)
    head = max((lane.head, *known))
    # The history store has the damaged delivered events. A lane has no hole, so earlier events are dropped too.
    hole = max(
        (sequence for sequence in range(lane.pruned + 1, lane.delivered + 1) if sequence not in there),
        default=lane.pruned,
    )
    kept = [event for event in events if event.sequence > hole]
    lost = tuple(sequence for sequence in range(max(lane.delivered, hole) + 1, head + 1) if sequence not in there)
    return _Plan(
        name=name, lane=replace(lane, head=head, pruned=hole), events=kept, lost=lost, let_go=hole - lane.pruned
    )


def _owner(events: Sequence[_Event]) -> str | None:
    for event in events:
        if event.values[3] == "conversation.started" and isinstance(
            owner := decode(event.values[5]).get("owner_id"), str
        ):
            return owner
    return None


def _write(connection: sa.Connection, plans: Sequence[_Plan], recovered: _Found, *, now_us: int) -> None:
    if (origin := recovered.origin) is not None:
        place = (origin.origin_id.bytes, origin.epoch + 1, origin.store_id, origin.destination)
        connection.exec_driver_sql(_ORIGIN, (*place, origin.erasures, origin.erasure_id))
        for erasure in recovered.erasures:
            connection.exec_driver_sql(_ERASURE, erasure)
    keys = {plan.name: key for key, plan in enumerate(plans, 1)}
    position = 0
    with closing(connection.connection.cursor()) as cursor:
        for event in sorted((event for plan in plans for event in plan.events), key=lambda event: event.position):
            position = max(position + 1, event.position)
            event_id, name, *rest, redacted = event.values
            cursor.execute(INSERT_EVENTS, (position, event_id, keys[name], *rest))
            if redacted:
                cursor.execute(_REDACTED, (position,))
            insert_contents(cursor, content_rows(recovered.shown.get(event.position, {}), keys[name], position))
        index_event_ids(cursor)
    for plan in plans:
        lane = plan.lane
        waits = [event.appended_at for event in plan.events if event.sequence > lane.delivered]
        pending_since = min((*waits, now_us)) if lane.delivered < lane.head else None
        state = "blocked" if plan.lost else "paused" if lane.paused else "ready"
        fault = ("damaged", DAMAGED) if plan.lost else (None, None)
        counters = (lane.head, lane.delivered, lane.pruned, state, pending_since)
        values = (keys[plan.name], plan.name, lane.owner_id, *counters, *fault, *lane.erasures)
        connection.exec_driver_sql(_LANE, values)
    on_cursor(connection, rebuild_records, recovered.bodies)
    connection.exec_driver_sql(RECOUNT)

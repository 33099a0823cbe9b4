"""Salvage: take every event that proves itself out of a damaged outbox file, into a new one, with a receipt."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.file import OutboxFile, outbox_path
from letopis.outbox.pages import Pages, Row
from letopis.outbox.rebirth import give_new_origin
from letopis.outbox.soundness import intact
from letopis.store.codec import decode
from letopis.store.errors import ConfigurationError

STATES: Final = frozenset({"ready", "retrying", "blocked", "paused"})
DAMAGED: Final = (
    "events are missing: `letopis outbox skip --missing` puts tombstones in the place of those that the history store"
    " does not hold either"
)
_INSERT: Final = (
    "INSERT INTO letopis_outbox_events (position, event_id, conversation_id, sequence, type, schema_version, data,"
    " metadata, digest, occurred_at, appended_at, redacted) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_LANE: Final = (
    "INSERT INTO letopis_outbox_lanes (conversation_id, owner_id, head, delivered, pruned, state, attempts, due_at,"
    " owed_since, fault_class, fault, deleted) VALUES (?, ?, ?, ?, ?, ?, 0, 0, ?, ?, ?, ?)"
)
_ORIGIN: Final = "UPDATE letopis_outbox_origin SET origin_id = ?, epoch = ?"


@dataclass(frozen=True, slots=True)
class _Event:
    position: int
    values: tuple[Any, ...]  # the columns from event_id to redacted

    @property
    def conversation_id(self) -> str:
        return str(self.values[1])

    @property
    def sequence(self) -> int:
        return int(self.values[2])

    @property
    def appended_at(self) -> int:
        return int(self.values[9])


@dataclass(frozen=True, slots=True)
class _Lane:
    owner_id: str | None = None
    head: int = 0
    delivered: int = 0
    pruned: int = 0
    paused: bool = False
    deleted: int = 0


@dataclass(slots=True)
class _Found:
    events: dict[tuple[str, int], _Event] = field(default_factory=dict)
    lanes: dict[str, _Lane] = field(default_factory=dict)
    origin: tuple[UUID, int] | None = None
    named: dict[str, int] = field(default_factory=dict)  # the highest sequence that an index entry names
    refused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvaged:
    """What became of the events of a damaged file.

    :ivar origin_id: the new file's identity; that of the damaged one, under its next epoch, where it could be read.
    :ivar renewed: whether it could not, so that the new file has one of its own and holds what was pending only.
    :ivar kept: events in the new file, of which ``pending`` are not delivered.
    :ivar lost: pending events that are in none of the two, by conversation and sequence. Their conversations are
        blocked, and wait for a person.
    :ivar let_go: delivered events that were damaged, or lay before one that was: the history store has them.
    :ivar gone: pages of the file that are missing or empty: where any are, conversations may be lost of which there is
        no trace.
    :ivar refused: rows that look like an event and do not match their digest, or are contradicted by an index.
    """

    origin_id: UUID
    renewed: bool
    kept: int
    pending: int
    lost: Mapping[str, tuple[int, ...]]
    let_go: int
    refused: int
    gone: int

    @property
    def whole(self) -> bool:
        """Whether nothing is lost."""
        return not (self.lost or self.gone)

    @property
    def lost_count(self) -> int:
        """How many events are lost."""
        return sum(map(len, self.lost.values()))


async def salvage(damaged: str | os.PathLike[str], to: str | os.PathLike[str]) -> Salvaged:
    """Read a damaged outbox file and its WAL page by page, and write what proves itself to a new outbox file.

    An event proves itself by its digest, and by the indexes if they speak of it. What has no digest is taken as it is
    read: the marks of conversations (which a relay compares with the history store when it starts) and times. Drafts,
    unconfirmed replies, incidents and what is kept of repairs are not taken over.

    The damaged file is read as bytes and stays as it is. No bot and no relay may have it open.

    :raises ConfigurationError: the damaged file is not there or holds no event, or the new one is there already.
    :raises OutboxUnavailable: the new file cannot be written.
    """
    source, target = outbox_path(damaged), outbox_path(to)
    if not source.is_file():
        raise ConfigurationError(f"there is no file {str(source)!r}")
    if target.exists():
        raise ConfigurationError(f"{str(target)!r} exists and is left as it is: name a new file")
    wal = source.with_name(f"{source.name}-wal")
    pages = Pages(source.read_bytes(), wal.read_bytes() if wal.is_file() else b"")
    found = _found(pages)
    if not found.events and not found.lanes:
        raise ConfigurationError(f"{source.name!r} holds nothing of an outbox that could be read")
    plans = [_plan(name, lane, events) for name, lane, events in _by_conversation(found)]
    file = await OutboxFile.open(target)
    try:
        now = file.now_us()
        origin = found.origin
        await file.write(lambda connection: _write(connection, plans, origin, now_us=now))
        origin_id = file.origin.origin_id if origin is None else origin[0]
    finally:
        await file.close()
    if origin is None:
        origin_id = (await give_new_origin(target)).origin.origin_id
    kept = sum(len(plan.events) for plan in plans)
    return Salvaged(
        origin_id=origin_id,
        renewed=origin is None,
        kept=kept,
        pending=sum(one.sequence > plan.lane.delivered for plan in plans for one in plan.events),
        lost={plan.name: plan.lost for plan in plans if plan.lost},
        let_go=sum(plan.let_go for plan in plans),
        refused=found.refused,
        gone=pages.gone,
    )


def _found(pages: Pages) -> _Found:
    """Sort what the pages hold, by its shape: names of tables are not needed, and may be damaged too."""
    found = _Found()
    ids: dict[int, Any] = {}
    places: dict[int, tuple[str, int]] = {}
    rows: list[Row] = []
    for one in pages.rows():
        if isinstance(one, Row):
            rows.append(one)
            continue
        match one.values:
            case (bytes() as event_id, int() as rowid) if len(event_id) == 16:
                ids[rowid] = event_id
            case (str() as name, int() as sequence, int() as rowid) if sequence > 0:
                places[rowid] = (name, sequence)
                found.named[name] = max(found.named.get(name, 0), sequence)
            case _:
                pass
    for row in rows:
        if (event := _event(row)) is not None:
            contradicted = ids.get(event.position, event.values[0]) != event.values[0] or places.get(
                event.position, (event.conversation_id, event.sequence)
            ) != (event.conversation_id, event.sequence)
            before = found.events.get((event.conversation_id, event.sequence))
            if contradicted or not intact((*event.values[:8], event.values[10])):
                found.refused += 1
            elif before is None or before.position < event.position:
                found.events[event.conversation_id, event.sequence] = event
        elif (lane := _lane(row)) is not None:
            found.lanes[lane[0]] = lane[1]
        elif (origin := _origin(row)) is not None:
            found.origin = origin
    return found


def _event(row: Row) -> _Event | None:
    if len(row.values) not in (11, 12) or row.values[0] is not None or row.rowid <= 0:
        return None
    values = (*row.values[1:], *((0,) if len(row.values) == 11 else ()))
    if not (isinstance(values[0], bytes) and isinstance(values[7], bytes) and len(values[7]) == 32):
        return None
    if not all(isinstance(one, int) and abs(one) < 1 << 53 for one in values[8:]):
        return None
    return _Event(row.rowid, values)


def _lane(row: Row) -> tuple[str, _Lane] | None:
    match row.values:
        case (
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
        ) if state in STATES and 0 <= pruned <= delivered <= head and len(rest) <= 1:
            deleted = rest[0] if rest and isinstance(rest[0], int) and 0 <= rest[0] <= head else 0
            return name, _Lane(owner, head, delivered, pruned, state == "paused", deleted)
        case _:
            return None


def _origin(row: Row) -> tuple[UUID, int] | None:
    match row.values:
        case (None, bytes() as origin_id, int() as epoch, str(), str(), int()) if (
            row.rowid == 1 and len(origin_id) == 16 and epoch > 0
        ):
            return UUID(bytes=origin_id), epoch
        case _:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What of one conversation is written."""

    name: str
    lane: _Lane
    events: Sequence[_Event]
    lost: tuple[int, ...]
    let_go: int


def _by_conversation(found: _Found) -> Iterable[tuple[str, _Lane | None, Sequence[_Event]]]:
    events: dict[str, list[_Event]] = defaultdict(list)
    for (name, _), event in sorted(found.events.items()):
        events[name].append(event)
    for name in sorted({*events, *found.lanes, *found.named}):
        lane = found.lanes.get(name)
        if lane is None and name in found.named and not events.get(name):
            # Its row and all its events are gone: an index still says that they were.
            lane = _Lane(head=found.named[name])
        elif lane is not None:
            lane = replace(lane, head=max(lane.head, found.named.get(name, 0)))
        yield name, lane, events.get(name, ())


def _plan(name: str, lane: _Lane | None, events: Sequence[_Event]) -> _Plan:
    there = {one.sequence for one in events}
    if lane is None:
        # How far it was delivered is not known: it is sent again, which the history store absorbs.
        first = min(there) - 1
        lane = _Lane(_owner(events), max(there), first, first)
    head = max((lane.head, *there))
    # What is delivered and damaged the history store has; a lane has no hole, so what lies before it goes too.
    hole = max((one for one in range(lane.pruned + 1, lane.delivered + 1) if one not in there), default=lane.pruned)
    kept = [one for one in events if one.sequence > hole]
    lost = tuple(one for one in range(max(lane.delivered, hole) + 1, head + 1) if one not in there)
    return _Plan(
        name=name,
        lane=replace(lane, head=head, pruned=hole),
        events=kept,
        lost=lost,
        let_go=hole - lane.pruned,
    )


def _owner(events: Sequence[_Event]) -> str | None:
    for one in events:
        if one.values[3] == "conversation.started" and isinstance(owner := decode(one.values[5]).get("owner_id"), str):
            return owner
    return None


def _write(connection: sa.Connection, plans: Sequence[_Plan], origin: tuple[UUID, int] | None, *, now_us: int) -> None:
    if origin is not None:
        connection.exec_driver_sql(_ORIGIN, (origin[0].bytes, origin[1] + 1))
    taken: Counter[int] = Counter()
    events = sorted((one for plan in plans for one in plan.events), key=lambda one: one.position)
    for one in events:
        taken[one.position] += 1
        connection.exec_driver_sql(_INSERT, (one.position if taken[one.position] == 1 else None, *one.values))
    for plan in plans:
        lane = plan.lane
        waits = [one.appended_at for one in plan.events if one.sequence > lane.delivered]
        owed = min((*waits, now_us)) if lane.delivered < lane.head else None
        state = "blocked" if plan.lost else "paused" if lane.paused else "ready"
        fault = ("damaged", DAMAGED) if plan.lost else (None, None)
        connection.exec_driver_sql(
            _LANE,
            (plan.name, lane.owner_id, lane.head, lane.delivered, lane.pruned, state, owed, *fault, lane.deleted),
        )


__all__ = ("Salvaged", "salvage")

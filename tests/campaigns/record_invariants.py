"""Examine the records of outboxes and a history store: the last value of each, and an exact ledger of the changes.

Like :mod:`tests.campaigns.invariants`, it reads with plain SQL and shares no code with the library but the digest. What
each record must be follows from the changes that the outboxes keep, replayed up to where the store has got.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.model.codec import digest_of
from tests.campaigns.states import snapshot, uuid_of

TURNS: Final = "turns"
"""Begins the conversations each message of which is committed together with a record that names it in a tag."""
MESSAGE_TAG: Final = "message"
MARK: Final = "\x01"
_SPACE: Final = f"{MARK}s:"

Place = tuple[str, str, str]  # scope, namespace and key of a record


class RecordAck(NamedTuple):
    """What a bot was promised: the change returned."""

    lane: str
    event_id: UUID
    sequence: int | None
    sha256: str | None


class Change(NamedTuple):
    """A change as its outbox keeps it, in the order of positions; ``content`` is the digest of what the row holds."""

    position: int
    sequence: int
    event_id: UUID
    type: str
    data: Mapping[str, Any]
    digest: bytes
    content: bytes
    redacted: bool
    body: str | None

    def place(self, lane: str) -> Place:
        return scope_of(lane), self.data.get("namespace", ""), self.data.get("key", "")


class ChangeLane(NamedTuple):
    """How far an outbox's lane of records has got."""

    head: int
    delivered: int
    pruned: int
    state: str


class Entry(NamedTuple):
    event_id: UUID
    digest: bytes | None
    superseded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOutbox:
    name: str
    origin_id: UUID
    lanes: Mapping[str, ChangeLane] = field(default_factory=dict)
    changes: Mapping[str, Sequence[Change]] = field(default_factory=dict)
    superseded: Collection[tuple[str, int]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordStore:
    heads: Mapping[tuple[UUID, str], tuple[int, int]] = field(default_factory=dict)
    ledger: Mapping[tuple[UUID, str], Mapping[int, Entry]] = field(default_factory=dict)
    rows: Mapping[Place, tuple[UUID, str]] = field(default_factory=dict)
    deleted: Collection[str] = ()


def scope_of(lane: str) -> str:
    return lane.rpartition(":")[0] if lane.startswith(_SPACE) else lane


def examine_records(
    store: RecordStore,
    outboxes: Sequence[RecordOutbox],
    *,
    acknowledged: Iterable[RecordAck] = (),
    turns: Collection[UUID] = (),
    drained: bool = False,
) -> list[str]:
    """Return every promise about records that is broken, in words."""
    found: list[str] = []
    for outbox in outboxes:
        found += _outbox_problems(outbox)
        found += _transfer_problems(store, outbox, drained=drained)
    found += _ledger_problems(store)
    found += _value_problems(store, outboxes)
    found += _lost(store, outboxes, acknowledged)
    found += _halves(outboxes, turns)
    return found


def _outbox_problems(outbox: RecordOutbox) -> Iterable[str]:
    for lane, changes in outbox.changes.items():
        where = f"{outbox.name}: {lane!r}"
        marks = outbox.lanes.get(lane)
        if marks is None or [one.sequence for one in changes] != list(range(marks.pruned + 1, marks.head + 1)):
            yield f"{where} keeps {len(changes)} changes, and is at {marks}"
        for one in changes:
            if one.digest != one.content:
                yield f"{where} {one.sequence}: content does not match its digest"
            if one.type == "record.put" and not one.redacted and one.body != one.data.get("sha256"):
                yield f"{where} {one.sequence}: the value is not what was put"


def _transfer_problems(store: RecordStore, outbox: RecordOutbox, *, drained: bool) -> Iterable[str]:
    for lane, marks in outbox.lanes.items():
        where = f"{lane!r} of {outbox.name}"
        head, floor = store.heads.get((outbox.origin_id, lane), (0, 0))
        if not marks.delivered <= head <= marks.head:
            yield f"{where}: the store has {head}, the outbox counts {marks.delivered} delivered of {marks.head}"
        if floor > marks.pruned:
            yield f"{where}: the ledger begins after {floor}, and the outbox could send {marks.pruned + 1} again"
        if drained and (marks.delivered < marks.head or marks.state != "ready"):
            yield f"{where}: {marks.head - marks.delivered} changes still pending, lane {marks.state}"
        ledger = store.ledger.get((outbox.origin_id, lane), {})
        for one in outbox.changes.get(lane, ()):
            entry = ledger.get(one.sequence)
            if entry is None:
                continue
            comparable = entry.digest is not None and "namespace" in one.data
            if entry.event_id != one.event_id or (comparable and entry.digest != one.digest):
                yield f"{where} {one.sequence}: applied as another change than was appended"
            if entry.superseded and one.sequence <= marks.delivered and (lane, one.sequence) not in outbox.superseded:
                yield f"{where} {one.sequence}: superseded in the store, and the outbox is not told"


def _ledger_problems(store: RecordStore) -> Iterable[str]:
    for origin, lane in store.ledger.keys() - store.heads.keys():
        yield f"{lane!r} from {origin}: a ledger, and no head"
    for (origin, lane), (head, floor) in store.heads.items():
        ledger = store.ledger.get((origin, lane), {})
        if sorted(ledger) != list(range(floor + 1, head + 1)):
            yield f"{lane!r} from {origin}: the ledger has {len(ledger)} changes, not {floor + 1}..{head}"
        for event_id, times in Counter(one.event_id for one in ledger.values()).items():
            if times > 1:
                yield f"{lane!r} from {origin}: change {event_id} was applied {times} times"


def _value_problems(store: RecordStore, outboxes: Sequence[RecordOutbox]) -> Iterable[str]:
    changes: dict[Place, dict[UUID, list[Change]]] = defaultdict(lambda: defaultdict(list))
    clears: dict[tuple[UUID, str], list[Change]] = defaultdict(list)
    lanes: dict[tuple[str, str], str] = {}
    for outbox in outboxes:
        for lane, kept in outbox.changes.items():
            head, _ = store.heads.get((outbox.origin_id, lane), (0, 0))
            ledger = store.ledger.get((outbox.origin_id, lane), {})
            for one in kept:
                if one.sequence > head or (one.sequence in ledger and ledger[one.sequence].superseded):
                    continue
                if one.type == "record.cleared":
                    clears[outbox.origin_id, lane].append(one)
                elif "namespace" in one.data:
                    place = one.place(lane)
                    lanes[place[:2]] = lane
                    changes[place][outbox.origin_id].append(one)
    for scope in store.deleted:
        for place in store.rows:
            if place[0] == scope:
                yield f"{place}: there, and its conversation is deleted"
    for place, by_origin in changes.items():
        lane = lanes[place[:2]]
        known = {outbox.origin_id for outbox in outboxes}
        if place[0] in store.deleted or any(name == lane and origin not in known for origin, name in store.heads):
            continue  # an outbox that is not here may have changed it
        allowed: dict[UUID | None, str | None] = {}
        older = False  # whether a change that was pruned may be the last one
        for outbox in outboxes:
            covering = [one for one in clears[outbox.origin_id, lane] if place[1].startswith(one.data["namespace"])]
            mine = sorted([*by_origin[outbox.origin_id], *covering], key=lambda one: one.position)
            for one in reversed(mine):
                put = one.type == "record.put"
                allowed[one.event_id if put else None] = one.data["sha256"] if put else None
                if not (put and one.redacted) and not one.data.get("keep"):
                    break
            else:
                older = older or (lane in outbox.lanes and outbox.lanes[lane].pruned > 0)
                allowed.setdefault(None, None)
        revision, value = store.rows.get(place, (None, None))
        if revision in allowed and allowed[revision] != value:
            yield f"{place}: the value is not the one that was put as {revision}"
        gone_back = any(one.event_id == revision for one in chain(*by_origin.values()))
        if revision not in allowed and (gone_back or not older):
            yield f"{place}: the store holds {revision}, the last change is another one"
    for place in store.rows.keys() - changes.keys():
        if outboxes and not any(marks.pruned for outbox in outboxes for marks in outbox.lanes.values()):
            known = {outbox.origin_id for outbox in outboxes}
            if {origin for origin, lane in store.heads if scope_of(lane) == place[0]} <= known:
                yield f"{place}: there, and nobody has put it"


def _lost(store: RecordStore, outboxes: Sequence[RecordOutbox], acknowledged: Iterable[RecordAck]) -> Iterable[str]:
    kept = {
        (lane, one.event_id): one for outbox in outboxes for lane, changes in outbox.changes.items() for one in changes
    }
    applied = {
        (lane, one.event_id): sequence for (_, lane), ledger in store.ledger.items() for sequence, one in ledger.items()
    }
    for ack in acknowledged:
        one = kept.get((ack.lane, ack.event_id))
        sequence = applied.get((ack.lane, ack.event_id)) if one is None else one.sequence
        pruned = max((outbox.lanes[ack.lane].pruned for outbox in outboxes if ack.lane in outbox.lanes), default=0)
        if sequence is None:
            if ack.sequence is None or ack.sequence > pruned:
                yield f"{ack.lane!r}: change {ack.event_id} was acknowledged and is LOST"
        elif ack.sequence is not None and sequence != ack.sequence:
            yield f"{ack.lane!r}: change {ack.event_id} is at {sequence}, acknowledged at {ack.sequence}"
        if one is not None and "namespace" in one.data and one.data.get("sha256") != ack.sha256:
            yield f"{ack.lane!r} {sequence}: another value than the one that was acknowledged"


def _halves(outboxes: Sequence[RecordOutbox], turns: Collection[UUID]) -> Iterable[str]:
    named = {
        UUID(hex=one.data["tags"][MESSAGE_TAG])
        for outbox in outboxes
        for changes in outbox.changes.values()
        for one in changes
        if MESSAGE_TAG in one.data.get("tags", {})
    }
    for message in named - set(turns):
        yield f"half: a record was put with message {message}, which is not there"
    if not any(marks.pruned for outbox in outboxes for marks in outbox.lanes.values()):
        for message in set(turns) - named:
            yield f"half: message {message} is there, and not the record that was put with it"


def read_record_outbox(path: Path) -> RecordOutbox:
    """Read the records of an outbox file in one snapshot."""
    with snapshot(path) as (connection, origin):
        lanes = connection.execute(
            "SELECT conversation_id, head, delivered, pruned, state FROM letopis_outbox_lanes"
            " WHERE conversation_id < char(2)"
        ).fetchall()
        rows = connection.execute(
            "SELECT l.conversation_id, l.position, l.sequence, l.event_id, l.type, l.data, l.digest, l.schema_version,"
            " l.metadata, l.salt, l.redacted, b.body FROM letopis_outbox_log AS l"
            " LEFT JOIN letopis_outbox_record_bodies AS b ON b.position = l.position"
            " WHERE l.conversation_id < char(2) ORDER BY l.conversation_id, l.sequence"
        )
        changes: dict[str, list[Change]] = defaultdict(list)
        for lane, position, sequence, event_id, kind, data, digest, version, metadata, salt, redacted, body in rows:
            changes[lane].append(
                Change(
                    position,
                    sequence,
                    UUID(bytes=event_id),
                    kind,
                    json.loads(data),
                    digest,
                    digest if salt is None else digest_of(lane, kind, version, data, metadata, salt),
                    bool(redacted),
                    None if body is None else sha256(body).hexdigest(),
                )
            )
        superseded = connection.execute(
            "SELECT conversation_id, sequence FROM letopis_outbox_superseded WHERE conversation_id < char(2)"
        ).fetchall()
    return RecordOutbox(
        name=path.name,
        origin_id=origin,
        lanes={name: ChangeLane(*marks) for name, *marks in lanes},
        changes=changes,
        superseded={(lane, sequence) for lane, sequence in superseded},
    )


async def read_record_store(connection: AsyncConnection) -> RecordStore:
    """Read the records of a history store; nothing should write to it meanwhile."""

    async def rows(statement: str) -> Sequence[Sequence[Any]]:
        return (await connection.execute(sa.text(statement))).all()

    lanes = await rows("SELECT origin_id, conversation_id, sequence, floor FROM letopis_lanes")
    heads = [lane for lane in lanes if lane[1].startswith(MARK)]
    entries = await rows(
        "SELECT origin_id, conversation_id, sequence, event_id, digest, superseded FROM letopis_record_ledger"
    )
    records = await rows("SELECT record_id, scope, namespace, record_key, revision, body FROM letopis_records")
    parts = await rows("SELECT record_id, body FROM letopis_record_parts ORDER BY record_id, part")
    deleted = await rows("SELECT conversation_id FROM letopis_conversations WHERE state = 'deleted'")
    ledger: dict[tuple[UUID, str], dict[int, Entry]] = defaultdict(dict)
    for origin, lane, sequence, event_id, digest, superseded in entries:
        entry = Entry(uuid_of(event_id), None if digest is None else bytes(digest), bool(superseded))
        ledger[uuid_of(origin), lane][sequence] = entry
    whole: dict[UUID, bytes] = defaultdict(bytes)
    for record_id, body in parts:
        whole[uuid_of(record_id)] += bytes(body)
    return RecordStore(
        heads={(uuid_of(row[0]), row[1]): (row[2], row[3]) for row in heads},
        ledger=ledger,
        rows={
            (row[1], bytes(row[2]).decode(), bytes(row[3]).decode()): (
                uuid_of(row[4]),
                sha256(whole[uuid_of(row[0])] if row[5] is None else bytes(row[5])).hexdigest(),
            )
            for row in records
            if not row[1].startswith(f"{MARK}m:")  # the large content of messages
        },
        deleted=[f"\x01c:{row[0]}" for row in deleted],
    )

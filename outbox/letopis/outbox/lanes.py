"""Lanes: what is owed to the history store, and what is to be delivered next; read in an open transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox.clock import Waits
from letopis.store.codec import EncodedEvent
from letopis.store.identifiers import uuid_of
from letopis.store.making import quick
from letopis.store.plan import Delivery, LaneBatch

MAX_EVENTS: Final = 500
MAX_BYTES: Final = 4 * 1024 * 1024
MAXLANES: Final = 200
PERLANE: Final = 100
FULL_LANE: Final = 10
"""Events of one lane that count when lanes are chosen for a batch. A lane costs the store as much as some events, so a
backlog goes in fewer lanes and more of each; where it has fewer than 50, all of them take part in every batch."""
BYTES_PERLANE: Final = 64 * 1024
"""What each lane may take of a batch by bytes, however many others are due."""

SAMPLE: Final = 10_000
"""Pending events that are measured exactly by :func:`counts`."""

LANE: Final = (
    "SELECT conversation_id, owner_id, head, delivered, pruned, state, attempts, due_at, owed_since, fault_class, fault"
    " FROM letopis_outbox_lanes"
)
_OWED: Final = LANE + " WHERE delivered < head AND state IN ('ready', 'retrying') ORDER BY owed_since"
_EVENT: Final = (
    "SELECT sequence, event_id, type, schema_version, data, metadata, digest, occurred_at, redacted"
    " FROM letopis_outbox_events"
)
_NEXT: Final = _EVENT + " WHERE conversation_id = ? AND sequence > ? ORDER BY sequence LIMIT ?"
_LAST: Final = _EVENT + " WHERE conversation_id = ? AND sequence <= ? ORDER BY sequence DESC LIMIT ?"
_HELD: Final = "SELECT 1 FROM letopis_outbox_hold"
_INCARNATION: Final = "SELECT incarnation FROM letopis_outbox_relay"

_encoded: Final = quick(EncodedEvent)
_delivered: Final = quick(Delivery)

_TAILS: Final = (
    "SELECT conversation_id, delivered FROM letopis_outbox_lanes"
    " WHERE conversation_id > ? AND delivered > pruned ORDER BY conversation_id LIMIT ?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One conversation's queue as the outbox file holds it.

    :ivar head: the last sequence that was appended; ``delivered`` the last one that the history store has; events up
        to ``pruned`` are no longer in the file.
    :ivar state: ``ready``, ``retrying``, ``blocked`` or ``paused``.
    :ivar attempts: how often the event after ``delivered`` was refused.
    :ivar due_at_us: UTC microseconds before which a retrying lane waits.
    :ivar owed_since_us: since when the oldest undelivered event waits; ``None`` where nothing does.
    """

    conversation_id: str
    owner_id: str | None
    head: int
    delivered: int
    pruned: int
    state: str
    attempts: int
    due_at_us: int
    owed_since_us: int | None
    fault_class: str | None
    fault: str | None

    @property
    def pending(self) -> int:
        """Events that wait."""
        return self.head - self.delivered


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What is to be delivered next.

    :ivar batches: one a lane, oldest debt first.
    :ivar lanes: the state of those lanes.
    :ivar broken: lanes of which the next event is not in the file, so that nothing can be delivered.
    :ivar full: whether a limit was met, so that more may be due.
    :ivar wait: seconds until a lane that waits now is due, as far as this look saw one; ``None`` where none does.
    :ivar incarnation: the relay that held the lease when this was read; what is written back is fenced by it.
    """

    batches: tuple[LaneBatch, ...]
    lanes: Mapping[str, Lane]
    broken: tuple[Lane, ...]
    wait: float | None
    incarnation: int
    full: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The outbox in figures.

    :ivar pending_bytes: of data and metadata. Exact up to 10,000 pending events, beyond that extrapolated from them.
    :ivar oldest_owed_us: since when the oldest event is owed, UTC microseconds; ``None`` where nothing is.
    :ivar lanes: by state, of those that owe something.
    """

    pending: int
    pending_bytes: int
    oldest_owed_us: int | None
    lanes: Mapping[str, int]


def next_batch(
    connection: sa.Connection,
    *,
    waits: Waits,
    max_events: int = MAX_EVENTS,
    max_bytes: int = MAX_BYTES,
    max_lanes: int = MAXLANES,
    per_lane: int = PERLANE,
    exclude: Collection[str] = (),
) -> Due:
    """Read what is due: oldest debt first, every lane its share, so that a long one does not starve the rest.

    Memory is bounded by the limits, whatever the backlog. A single event larger than ``max_bytes`` still goes, alone.
    Nothing is due while a person holds the relay back.

    :param exclude: conversations to leave out.
    """
    cursor = connection.connection.cursor()
    try:
        lanes: list[Lane] = []
        gathered, full = 0, False
        wait: float | None = None
        held = cursor.execute(_HELD).fetchone() is not None
        cursor.execute(_OWED)
        for row in () if held else _rows(cursor):
            lane = lane_of(row)
            if lane.conversation_id in exclude:
                continue
            if lane.state == "retrying" and (left := waits.remaining(lane.conversation_id, lane.due_at_us)) > 0:
                wait = left if wait is None else min(wait, left)
                continue
            lanes.append(lane)
            gathered += min(lane.pending, FULL_LANE)
            if len(lanes) >= max_lanes or gathered >= max_events:
                full = True
                break
        batches, broken = _read(cursor, lanes, max_events=max_events, max_bytes=max_bytes, per_lane=per_lane)
        found = {batch.conversation_id for batch in batches}
        return Due(
            batches=tuple(batches),
            lanes={lane.conversation_id: lane for lane in lanes if lane.conversation_id in found},
            broken=tuple(broken),
            wait=wait,
            incarnation=incarnation_of(cursor),
            full=full,
        )
    finally:
        cursor.close()


def _read(
    cursor: Any, lanes: Sequence[Lane], *, max_events: int, max_bytes: int, per_lane: int
) -> tuple[list[LaneBatch], list[Lane]]:
    batches: list[LaneBatch] = []
    broken: list[Lane] = []
    left = max_bytes
    lane_bytes = max(BYTES_PERLANE, max_bytes // max(1, len(lanes)))
    for lane, quota in zip(lanes, _shares(lanes, max_events=max_events, per_lane=per_lane), strict=True):
        deliveries: list[Delivery] = []
        taken = 0
        crowded = False
        cursor.execute(_NEXT, (lane.conversation_id, lane.delivered, quota))
        for row in _rows(cursor):
            if row[0] != lane.delivered + len(deliveries) + 1:
                break
            delivery = _delivery(lane.conversation_id, row)
            size = _size(delivery.event)
            # The first event of a lane goes where the batch has room for it, the first of the batch in any case.
            room = min(left, lane_bytes) - taken if deliveries else left if batches else size
            if size > room:
                crowded = True
                break
            deliveries.append(delivery)
            taken += size
        if deliveries:
            batches.append(LaneBatch(conversation_id=lane.conversation_id, deliveries=tuple(deliveries)))
        elif not crowded:
            broken.append(lane)
        left -= taken
        if left <= 0:
            break
    return batches, broken


def _shares(lanes: Sequence[Lane], *, max_events: int, per_lane: int) -> list[int]:
    """Return how many events each lane may send: an equal share first, then what is left over to the oldest."""
    if len(lanes) < 2:
        return [max_events for _ in lanes]  # nobody else has to wait for it
    share = max(1, max_events // len(lanes))
    shares = [min(lane.pending, share, per_lane) for lane in lanes]
    over = max_events - sum(shares)
    for place, lane in enumerate(lanes):
        more = min(over, min(lane.pending, per_lane) - shares[place])
        if more > 0:
            shares[place] += more
            over -= more
    return shares


def tails(connection: sa.Connection, *, after: str = "", limit: int = 500) -> Mapping[str, int]:
    """Return how far each lane is delivered that still holds delivered events, a page of them by conversation id."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(_TAILS, (after, limit))
        return dict(cursor.fetchall())
    finally:
        cursor.close()


def find_lane(connection: sa.Connection, conversation_id: str) -> Lane | None:
    """Return a conversation's lane; ``None`` where nothing was ever appended to it here."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(LANE + " WHERE conversation_id = ?", (conversation_id,))
        row = cursor.fetchone()
        return None if row is None else lane_of(row)
    finally:
        cursor.close()


def pending_events(connection: sa.Connection, conversation_id: str) -> tuple[Delivery, ...]:
    """Return what the history store does not hold yet of a conversation, in order."""
    lane = find_lane(connection, conversation_id)
    if lane is None or lane.pending == 0:
        return ()
    cursor = connection.connection.cursor()
    try:
        cursor.execute(_NEXT, (conversation_id, lane.delivered, lane.pending))
        return tuple(_delivery(conversation_id, row) for row in cursor.fetchall())
    finally:
        cursor.close()


def tail_events(connection: sa.Connection, conversation_id: str, *, last: int) -> tuple[Delivery, ...]:
    """Return the newest ``last`` delivered events of a conversation that the file still holds, in order."""
    lane = find_lane(connection, conversation_id)
    if lane is None:
        return ()
    cursor = connection.connection.cursor()
    try:
        cursor.execute(_LAST, (conversation_id, lane.delivered, last))
        return tuple(_delivery(conversation_id, row) for row in reversed(cursor.fetchall()))
    finally:
        cursor.close()


def counts(connection: sa.Connection) -> Counts:
    """Return the outbox in figures; reads no more than what is owed."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(
            "SELECT state, count(*), sum(head - delivered), min(owed_since) FROM letopis_outbox_lanes"
            " WHERE delivered < head GROUP BY state"
        )
        rows = cursor.fetchall()
        pending = sum(row[2] for row in rows)
        cursor.execute(
            "SELECT count(*), coalesce(sum(octets), 0) FROM (SELECT length(CAST(e.data AS BLOB))"
            " + coalesce(length(CAST(e.metadata AS BLOB)), 0) AS octets FROM letopis_outbox_lanes AS l"
            " JOIN letopis_outbox_events AS e ON e.conversation_id = l.conversation_id AND e.sequence > l.delivered"
            " WHERE l.delivered < l.head LIMIT ?)",
            (SAMPLE,),
        )
        sampled, octets = next(_rows(cursor))
        owed = [row[3] for row in rows if row[3] is not None]
        return Counts(
            pending=pending,
            pending_bytes=octets if pending <= sampled or not sampled else octets * pending // sampled,
            oldest_owed_us=min(owed, default=None),
            lanes=dict.fromkeys(("ready", "retrying", "blocked", "paused"), 0) | {row[0]: row[1] for row in rows},
        )
    finally:
        cursor.close()


def _rows(cursor: Any) -> Iterator[tuple[Any, ...]]:
    """Yield rows one by one: a whole page of large events would not be bounded in memory."""
    while (row := cursor.fetchone()) is not None:
        yield row


def incarnation_of(cursor: Any) -> int:
    cursor.execute(_INCARNATION)
    row = cursor.fetchone()
    return 0 if row is None else int(row[0])


def lane_of(row: Sequence[Any]) -> Lane:
    return Lane(
        conversation_id=row[0],
        owner_id=row[1],
        head=row[2],
        delivered=row[3],
        pruned=row[4],
        state=row[5],
        attempts=row[6],
        due_at_us=row[7],
        owed_since_us=row[8],
        fault_class=row[9],
        fault=row[10],
    )


def _delivery(conversation_id: str, row: Sequence[Any]) -> Delivery:
    sequence, event_id, type_name, schema_version, data, metadata, digest, occurred_at, redacted = row
    return _delivered(
        sequence=sequence,
        event=_encoded(
            conversation_id=conversation_id,
            event_id=uuid_of(event_id),
            type=type_name,
            schema_version=schema_version,
            data=data,
            metadata=metadata,
            digest=digest,
            occurred_at=occurred_at,
            redacted=bool(redacted),
        ),
    )


def _size(event: EncodedEvent) -> int:
    data, metadata = event.data, event.metadata
    size = len(data) if data.isascii() else len(data.encode())
    return size if metadata is None else size + len(metadata.encode())

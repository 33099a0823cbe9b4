"""Read the lanes of the outbox file: their state, their pending events, and the next batch to deliver."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from letopis.outbox.concurrency.clock import RetryTimers
from letopis.outbox.event_log.bound_store import UNBOUND, StoreBinding, binding_of
from letopis.outbox.event_log.contents import content_sizes
from letopis.outbox.event_log.statements import fetch_all, on_cursor, query_all, query_one
from letopis.store.model.codec import EncodedEvent
from letopis.store.model.identifiers import partition_of, uuid_of
from letopis.store.model.large_content import MARK_IN_JSON
from letopis.store.model.records import RECORD_PUT, is_record_lane, scope_of
from letopis.store.rules.apply_plan import LaneBatch, SequencedEvent
from letopis.store.rules.preconditions import batch_of

if TYPE_CHECKING:
    import sqlalchemy as sa

MAX_EVENTS: Final = 500
MAX_BYTES: Final = 4 * 1024 * 1024
MAX_LANES: Final = 200
MAX_EVENTS_PER_LANE: Final = 100
TARGET_EVENTS_PER_LANE: Final = 10
"""Events of one lane that count when lanes are chosen for a batch. A lane costs the store as much as several events, so
a backlog is delivered from fewer lanes and more of each; if there are fewer than 50, all take part in every batch."""
MIN_BYTES_PER_LANE: Final = 64 * 1024  # bytes of a batch that each lane may take, however many others are due

MAX_WHOLE_EVENTS: Final = 5_000
MAX_WHOLE_BYTES: Final = 16 * 1024 * 1024
"""An append whose events share one condition is delivered whole up to this size; no reader sees a part of it."""

MAX_MEASURED_EVENTS: Final = 10_000  # pending events that :func:`count_lanes` measures exactly

SELECT_LANE: Final = (
    "SELECT conversation_id, owner_id, head, delivered, pruned, state, attempts, due_at, pending_since, fault_class,"
    " fault, lane FROM letopis_outbox_lanes"
)
_PENDING_LANES: Final = SELECT_LANE + (
    " WHERE pending_since IS NOT NULL AND delivered < head AND state IN ('ready', 'retrying') ORDER BY pending_since"
)
_LANE_OF: Final = SELECT_LANE + " WHERE conversation_id = ?"
SELECT_EVENT: Final = (
    "SELECT sequence, event_id, type, schema_version, data, metadata, digest, salt, occurred_at, redacted"
    " FROM letopis_outbox_log"
)
_NEXT: Final = SELECT_EVENT + " WHERE lane = ? AND sequence > ? ORDER BY sequence LIMIT ?"
_VALUE: Final = (
    "SELECT b.position, b.size FROM letopis_outbox_events AS e"
    " JOIN letopis_outbox_record_bodies AS b ON b.position = e.position"
    " WHERE e.lane = ? AND e.sequence = ?"
)
_BODY: Final = "SELECT body FROM letopis_outbox_record_bodies WHERE position = ?"
_PAUSED: Final = "SELECT 1 FROM letopis_outbox_pause"
_INCARNATION: Final = "SELECT incarnation FROM letopis_outbox_relay"
_DELIVERED: Final = (
    "SELECT conversation_id, delivered FROM letopis_outbox_lanes"
    " WHERE conversation_id > ? AND delivered > 0 ORDER BY conversation_id LIMIT ?"
)
_DELIVERED_OF: Final = (
    "SELECT conversation_id, delivered FROM letopis_outbox_lanes"
    " WHERE conversation_id IN (SELECT value FROM json_each(?)) AND delivered > 0"
)
_COUNT_PENDING: Final = (
    "SELECT state, count(*), sum(head - delivered), min(pending_since) FROM letopis_outbox_lanes"
    " WHERE pending_since IS NOT NULL AND delivered < head GROUP BY state"
)
_COUNT_BLOCKED: Final = (
    "SELECT count(*), coalesce(sum(fault_class = 'lost'), 0) FROM letopis_outbox_lanes WHERE state = 'blocked'"
)
_MEASURE_PENDING: Final = (
    "SELECT count(*), coalesce(sum(octets), 0) FROM (SELECT length(CAST(e.data AS BLOB))"
    " + coalesce(length(CAST(e.metadata AS BLOB)), 0)"
    " + coalesce((SELECT b.size FROM letopis_outbox_record_bodies AS b WHERE b.position = e.position), 0)"
    " + iif(instr(e.data, ':content:'), coalesce((SELECT sum(c.size) FROM letopis_outbox_contents AS c"
    " WHERE c.lane = e.lane AND c.first_position = e.position), 0), 0)"
    " AS octets FROM letopis_outbox_lanes AS l"
    " JOIN letopis_outbox_events AS e ON e.lane = l.lane AND e.sequence > l.delivered"
    " WHERE l.pending_since IS NOT NULL AND l.delivered < l.head LIMIT ?)"
)
_LOST: Final = (
    "SELECT l.conversation_id, coalesce((SELECT min(e.sequence) - 1 FROM letopis_outbox_events AS e"
    " WHERE e.lane = l.lane AND e.sequence > l.delivered), l.head)"
    " FROM letopis_outbox_lanes AS l WHERE l.state = 'blocked' AND l.fault_class = 'lost'"
)


@dataclass(frozen=True, slots=True)
class Lane:
    """One conversation's queue as the outbox file holds it. Times are UTC microseconds."""

    conversation_id: str
    owner_id: str | None
    head: int  # the last sequence that was appended
    delivered: int  # the last sequence that the history store has confirmed
    pruned: int  # the last sequence that is no longer in the file
    state: str  # ``ready``, ``retrying``, ``blocked`` or ``paused``
    attempts: int  # how often the event after ``delivered`` was refused
    due_at_us: int
    pending_since_us: int | None
    fault_class: str | None
    fault: str | None
    key: int  # of the lane in the rows of its events

    @property
    def pending(self) -> int:
        return self.head - self.delivered


@dataclass(frozen=True, slots=True, kw_only=True)
class DueBatches:
    """What is to be delivered next."""

    batches: tuple[LaneBatch, ...]  # one per lane, the longest pending first
    lanes: Mapping[str, Lane]
    broken: tuple[Lane, ...]  # lanes whose next event is not in the file, so that they cannot be delivered
    wait: float | None  # seconds until the first waiting lane that was read is due
    incarnation: int  # the relay that held the lease when this was read; outcomes are fenced by it
    full: bool = False  # a limit was reached or another partition is due, so more may be
    bound: StoreBinding = UNBOUND
    suspects: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneCounts:
    """The number of lanes and pending events of an outbox."""

    pending: int
    pending_bytes: int  # of data and metadata; extrapolated beyond 10,000 pending events
    oldest_pending_us: int | None
    lanes: Mapping[str, int]  # by state; pending lanes, and all blocked ones
    lost: int = 0  # blocked lanes with events that neither the history store nor this file holds


def next_batch(
    connection: sa.Connection,
    *,
    waits: RetryTimers,
    max_events: int = MAX_EVENTS,
    max_bytes: int = MAX_BYTES,
    max_lanes: int = MAX_LANES,
    per_lane: int = MAX_EVENTS_PER_LANE,
    exclude: Collection[str] = (),
    partitions: int = 1,
) -> DueBatches:
    """Read the longest pending lanes of one partition, each with a share, so that a long one starves no other."""
    with closing(connection.connection.cursor()) as cursor:
        lanes: list[Lane] = []
        partition: int | None = None
        counted, full = 0, False
        wait: float | None = None
        paused = query_one(cursor, _PAUSED) is not None
        cursor.execute(_PENDING_LANES)
        for row in () if paused else iter(cursor.fetchone, None):
            lane = Lane(*row)
            if lane.conversation_id in exclude:
                continue
            if lane.state == "retrying" and (left := waits.remaining(lane.conversation_id, lane.due_at_us)) > 0:
                wait = left if wait is None else min(wait, left)
                continue
            if partitions > 1:
                name = lane.conversation_id
                own = scope_of(name).partition(partitions) if is_record_lane(name) else partition_of(name, partitions)
                partition = own if partition is None else partition
                if own != partition:
                    full = True
                    continue
            lanes.append(lane)
            counted += min(lane.pending, TARGET_EVENTS_PER_LANE)
            if len(lanes) >= max_lanes or counted >= max_events:
                full = True
                break
        batches, broken = _read_batches(cursor, lanes, max_events=max_events, max_bytes=max_bytes, per_lane=per_lane)
        batched = {batch.conversation_id for batch in batches}
        return DueBatches(
            batches=tuple(batches),
            lanes={lane.conversation_id: lane for lane in lanes if lane.conversation_id in batched},
            broken=tuple(broken),
            wait=wait,
            incarnation=incarnation_of(cursor),
            full=full,
            bound=binding_of(cursor),
            suspects=[lane.conversation_id for lane in lanes if lane.attempts],
        )


def _read_batches(
    cursor: Any, lanes: Sequence[Lane], *, max_events: int, max_bytes: int, per_lane: int
) -> tuple[list[LaneBatch], list[Lane]]:
    batches: list[LaneBatch] = []
    broken: list[Lane] = []
    left = max_bytes
    lane_bytes = max(MIN_BYTES_PER_LANE, max_bytes // max(1, len(lanes)))
    for lane, quota in zip(lanes, _shares(lanes, max_events=max_events, per_lane=per_lane), strict=True):
        events: list[SequencedEvent] = []
        taken = 0
        crowded = False
        contents: Mapping[int, int] | None = None
        cursor.execute(_NEXT, (lane.key, lane.delivered, quota))
        bodies = cursor.connection.cursor() if is_record_lane(lane.conversation_id) else None
        for row in iter(cursor.fetchone, None):
            if row[0] != lane.delivered + len(events) + 1:
                break
            sequenced = sequenced_event(lane.conversation_id, row)
            size = _size(sequenced.event)
            if bodies is None and MARK_IN_JSON in sequenced.event.data:
                if contents is None:
                    contents = content_sizes(cursor.connection.cursor(), lane.key, lane.delivered)
                size += contents.get(row[0], 0)
            value: Any | None = None
            if bodies is not None and row[2] == RECORD_PUT and not sequenced.event.redacted:
                value = query_one(bodies, _VALUE, (lane.key, row[0]))
                size += 0 if value is None else value[1]
            # The first event of a lane is taken if the batch has room for it, the first of the batch in any case.
            room = min(left, lane_bytes) - taken if events else left if batches else size
            if size > room:
                crowded = True
                break
            if value is not None:  # read only now: most do not fit beside another
                sequenced.event.body = query_all(bodies, _BODY, (value[0],))[0][0]
            events.append(sequenced)
            taken += size
        if events and (rest := _rest_of_append(cursor, lane, events[-1])):
            events += rest
            taken += sum(_size(follower.event) for follower in rest)
        if events:
            batches.append(
                LaneBatch(conversation_id=lane.conversation_id, deliveries=tuple(events), pruned=lane.pruned)
            )
        elif not crowded:
            broken.append(lane)
        left -= taken
        if left <= 0:
            break
    return batches, broken


def _rest_of_append(cursor: Any, lane: Lane, last: SequencedEvent) -> list[SequencedEvent]:
    """Return the events that share the condition of a batch's last one; none if they are too many for a batch."""
    batch_id = batch_of(last.event) if last.sequence < lane.head else None
    if batch_id is None:
        return []
    rest: list[SequencedEvent] = []
    size = 0
    cursor.execute(_NEXT, (lane.key, last.sequence, MAX_WHOLE_EVENTS + 1))
    for row in iter(cursor.fetchone, None):
        sequenced = sequenced_event(lane.conversation_id, row)
        if row[0] != last.sequence + len(rest) + 1 or batch_of(sequenced.event) != batch_id:
            return rest
        rest.append(sequenced)
        size += _size(sequenced.event)
        if size > MAX_WHOLE_BYTES:
            return []
    return rest if len(rest) <= MAX_WHOLE_EVENTS else []


def _shares(lanes: Sequence[Lane], *, max_events: int, per_lane: int) -> list[int]:
    """Return the number of events for each lane: equal shares first, the remainder to the longest pending."""
    if len(lanes) < 2:
        return [max_events for _ in lanes]  # no other lane has to wait
    share = max(1, max_events // len(lanes))
    shares = [min(lane.pending, share, per_lane) for lane in lanes]
    left = max_events - sum(shares)
    for index, lane in enumerate(lanes):
        more = min(left, min(lane.pending, per_lane) - shares[index])
        if more > 0:
            shares[index] += more
            left -= more
    return shares


def delivered_positions(connection: sa.Connection, *, after: str = "", limit: int = 500) -> Mapping[str, int]:
    """Return the delivered sequence of each lane with a delivered event, one page by conversation id."""
    return dict(fetch_all(connection, _DELIVERED, (after, limit)))


def delivered_positions_of(connection: sa.Connection, *, conversation_ids: Collection[str]) -> Mapping[str, int]:
    """Return the delivered sequence of these lanes, as far as they have a delivered event."""
    return dict(fetch_all(connection, _DELIVERED_OF, (orjson.dumps(list(conversation_ids)).decode(),)))


def lost_lanes(connection: sa.Connection) -> Mapping[str, int]:
    """Return lanes with events that nothing holds, each with the sequence that the store has to reach first."""
    return dict(fetch_all(connection, _LOST))


def find_lane(connection: sa.Connection, conversation_id: str) -> Lane | None:
    """Return a conversation's lane; ``None`` if no event was ever appended to it here."""
    return on_cursor(connection, lane_of, conversation_id)


def lane_of(cursor: Any, conversation_id: str) -> Lane | None:
    row = query_one(cursor, _LANE_OF, (conversation_id,))
    return None if row is None else Lane(*row)


def count_lanes(connection: sa.Connection) -> LaneCounts:
    """Count lanes and pending events; reads only pending lanes."""
    return on_cursor(connection, lane_counts_of)


def lane_counts_of(cursor: Any) -> LaneCounts:
    """Count the lanes and pending events of the outbox file of a DBAPI cursor."""
    rows = query_all(cursor, _COUNT_PENDING)
    ((blocked, lost),) = query_all(cursor, _COUNT_BLOCKED)
    ((measured, octets),) = query_all(cursor, _MEASURE_PENDING, (MAX_MEASURED_EVENTS,))
    pending = sum(row[2] for row in rows)
    return LaneCounts(
        pending=pending,
        pending_bytes=octets if pending <= measured or not measured else octets * pending // measured,
        oldest_pending_us=min((row[3] for row in rows if row[3] is not None), default=None),
        lanes=dict.fromkeys(("ready", "retrying", "blocked", "paused"), 0)
        | {row[0]: row[1] for row in rows}
        | {"blocked": blocked},
        lost=lost,
    )


def incarnation_of(cursor: Any) -> int:
    """Return the incarnation of the relay that last took the lease; 0 before the first."""
    row = query_one(cursor, _INCARNATION)
    return 0 if row is None else int(row[0])


def sequenced_event(conversation_id: str, row: Sequence[Any]) -> SequencedEvent:
    """Return the event of a row of the log, from its sequence on."""
    sequence, event_id, type_name, schema_version, data, metadata, digest, salt, occurred_at, redacted = row
    if type(data) is not str:
        data = ""  # the file was damaged: this text matches no digest
    values = (type_name, schema_version, data, metadata, digest, salt, occurred_at, redacted == 1)
    return SequencedEvent(sequence, EncodedEvent(conversation_id, uuid_of(event_id), *values))


def _size(event: EncodedEvent) -> int:
    data, metadata = event.data, event.metadata
    size = len(data) if data.isascii() else len(data.encode())
    return size if metadata is None else size + len(metadata.encode())

"""Record delivery outcomes in the lane rows, in a write transaction that is already open."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import orjson
import sqlalchemy as sa

from letopis.outbox.event_log.append import erase_records
from letopis.outbox.event_log.effects import erase_superseded
from letopis.outbox.event_log.erasing import erase_delivered
from letopis.outbox.event_log.lanes import Lane, find_lane, incarnation_of
from letopis.outbox.event_log.statements import on_cursor, query_all
from letopis.store.errors import OutboxUnavailable
from letopis.store.rules.preconditions import Conflict

MAX_FAULT_LENGTH: Final = 500

_POSITIONS: Final = (
    "SELECT conversation_id, delivered, head FROM letopis_outbox_lanes"
    " WHERE conversation_id IN (SELECT value FROM json_each(?))"
)
# `pending_since` is the age of the oldest pending event. It never falls behind the moment at which a rewound lane
# became pending again, and never lies in the future of a clock that was set back.
_ACKNOWLEDGE: Final = (
    "UPDATE letopis_outbox_lanes SET delivered = :sequence,"
    " state = CASE state WHEN 'paused' THEN 'paused' ELSE 'ready' END,"
    " attempts = 0, due_at = 0, fault_class = NULL, fault = NULL,"
    " pending_since = CASE WHEN :sequence < head THEN coalesce((SELECT"
    " min(:now, max(coalesce(letopis_outbox_lanes.pending_since, 0), appended_at)) FROM letopis_outbox_events AS e"
    " WHERE e.lane = letopis_outbox_lanes.lane AND e.sequence = :sequence + 1), :now) END"
    " WHERE conversation_id = :conversation_id AND delivered < :sequence AND head >= :sequence"
)
_SUPERSEDE: Final = (
    "INSERT INTO letopis_outbox_superseded (expected, actual, conversation_id, sequence, event_id)"
    " SELECT ?1, ?2, conversation_id, sequence, event_id FROM letopis_outbox_log"
    " WHERE conversation_id = ?3 AND sequence = ?4"
    " ON CONFLICT (conversation_id, sequence) DO UPDATE SET expected = ?1, actual = ?2, event_id = excluded.event_id"
)
# The history store has lost its verdicts together with the events; the next delivery brings new ones.
_DELETE_VERDICTS: Final = "DELETE FROM letopis_outbox_superseded WHERE conversation_id = ? AND sequence > ?"
_RECORD_FAULT: Final = (
    "UPDATE letopis_outbox_lanes SET state = :state, attempts = :attempts, due_at = :due_at,"
    " fault_class = :fault_class, fault = :fault WHERE conversation_id = :conversation_id AND delivered = :delivered"
    " AND state IN ('ready', 'retrying') AND attempts IN (:before, :attempts)"
)
# An operator alone can decide about a lane that diverged, is lost or damaged.
_CLEAR_FAULT: Final = (
    "UPDATE letopis_outbox_lanes SET state = 'ready', attempts = 0, due_at = 0, fault_class = NULL, fault = NULL"
    " WHERE conversation_id = :conversation_id AND delivered < head"
    " AND (state = 'retrying' OR state = 'blocked' AND fault_class IN ('poison', 'unclassified'))"
)
_REWIND: Final = (
    "UPDATE letopis_outbox_lanes SET delivered = max(:head, pruned), attempts = 0, due_at = 0,"
    " pending_since = CASE WHEN max(:head, pruned) < head THEN :now END,"
    " state = CASE WHEN state = 'paused' THEN 'paused' WHEN pruned > :head THEN 'blocked' ELSE 'ready' END,"
    " fault_class = CASE WHEN pruned > :head THEN :fault_class END,"
    " fault = CASE WHEN pruned > :head THEN :fault END"
    " WHERE conversation_id = :conversation_id AND delivered > :head"
)
_UNBLOCK_RECOVERED: Final = (
    "UPDATE letopis_outbox_lanes SET state = 'ready', attempts = 0, due_at = 0, fault_class = NULL, fault = NULL,"
    " delivered = max(delivered, :upto), pending_since = CASE WHEN :upto < head THEN coalesce(pending_since, :now) END"
    " WHERE conversation_id = :conversation_id AND state = 'blocked' AND fault_class = 'lost'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """The result of an acknowledgement."""

    events: int
    missed: tuple[str, ...]  # did not move: already there, no longer in the file, or asked beyond their head
    erased: bool = False  # content was taken out of the file, so the WAL has to be truncated


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewound:
    """The result of a rewind."""

    events: int
    lost: int  # events that neither the history store nor this file holds; the lane is blocked if any


def acknowledge(
    connection: sa.Connection,
    delivered: Mapping[str, int],
    *,
    now_us: int,
    superseded: Mapping[str, Mapping[int, Conflict]] | None = None,
) -> Acknowledged:
    """Advance lanes, never back or beyond their head, to what the history store has confirmed; clear their fault."""
    with closing(connection.connection.cursor()) as cursor:
        rows = query_all(cursor, _POSITIONS, (orjson.dumps(list(delivered)).decode(),))
        wanted = (
            {"conversation_id": name, "sequence": sequence, "now": now_us} for name, sequence in delivered.items()
        )
        cursor.executemany(_ACKNOWLEDGE, list(wanted))
        moved = {name: delivered[name] - before for name, before, head in rows if before < delivered[name] <= head}
        if cursor.rowcount != len(moved):
            raise OutboxUnavailable(
                f"{cursor.rowcount} of {len(moved)} lanes took their acknowledgement: it will be retried"
            )
        erased = False
        for conversation_id, conflicts in (superseded or {}).items():
            for sequence, conflict in conflicts.items():
                cursor.execute(_SUPERSEDE, (conflict.expected, conflict.actual, conversation_id, sequence))
            emptied, deleted = erase_superseded(cursor, conversation_id, conflicts)
            if deleted:
                erase_records(cursor, conversation_id, now_us=now_us)
            erased = erased or emptied
        erased = (bool(moved) and erase_delivered(cursor, orjson.dumps(list(moved)).decode())) or erased
        return Acknowledged(
            events=sum(moved.values()), missed=tuple(name for name in delivered if name not in moved), erased=erased
        )


def schedule_retry(
    connection: sa.Connection, lane: Lane, *, attempts: int, due_at_us: int, fault_class: str, fault: str
) -> bool:
    """Schedule a retry of the lane's next event. Return False if the lane has moved meanwhile."""
    return _record_fault(connection, lane, "retrying", attempts, due_at_us, fault_class, fault)


def block_lane(connection: sa.Connection, lane: Lane, *, attempts: int, fault_class: str, fault: str) -> bool:
    """Block a lane at its next event until an operator decides. Return False if the lane has moved meanwhile."""
    return _record_fault(connection, lane, "blocked", attempts, 0, fault_class, fault)


def clear_fault(connection: sa.Connection, conversation_ids: Collection[str]) -> int:
    """Clear what was charged to lanes though it was the store's fault, and unblock them; return how many."""
    return sum(
        connection.exec_driver_sql(_CLEAR_FAULT, {"conversation_id": conversation_id}).rowcount
        for conversation_id in conversation_ids
    )


def _record_fault(
    connection: sa.Connection, lane: Lane, state: str, attempts: int, due_at_us: int, fault_class: str, fault: str
) -> bool:
    values = {
        "state": state,
        "conversation_id": lane.conversation_id,
        "delivered": lane.delivered,
        "before": lane.attempts,  # an operator who retries meanwhile begins anew: an older refusal no longer counts
        "attempts": attempts,
        "due_at": due_at_us,
        "fault_class": fault_class,
        "fault": fault[:MAX_FAULT_LENGTH],
    }
    return connection.exec_driver_sql(_RECORD_FAULT, values).rowcount == 1


def rewind_lane(connection: sa.Connection, conversation_id: str, head: int, *, now_us: int) -> Rewound:
    """Make a lane pending again from ``head + 1``, as far as the file reaches; block it if events are missing."""
    lane = find_lane(connection, conversation_id)
    if lane is None or lane.delivered <= head:
        return Rewound(events=0, lost=0)
    lost = max(0, lane.pruned - head)
    fault = (
        f"the history store holds this conversation up to sequence {head} and this outbox from"
        f" {lane.pruned + 1} on: {lost} events in between are in neither; restore a newer backup of the"
        " history store, or give them up with `letopis outbox skip --missing`"
    )
    if lost and lane.delivered == lane.pruned and lane.state in ("blocked", "paused") and lane.fault == fault:
        return Rewound(events=0, lost=0)  # recorded already
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute(
            _REWIND,
            {"conversation_id": conversation_id, "head": head, "now": now_us, "fault_class": "lost", "fault": fault},
        )
        cursor.execute(_DELETE_VERDICTS, (conversation_id, head))
    return Rewound(events=lane.delivered - max(head, lane.pruned), lost=lost)


def unblock_recovered(connection: sa.Connection, conversation_id: str, upto: int, *, now_us: int) -> bool:
    """Unblock a lane that was ``lost`` if the history store now holds up to ``upto``. Return True if it was."""
    values = {"conversation_id": conversation_id, "upto": upto, "now": now_us}
    return connection.exec_driver_sql(_UNBLOCK_RECOVERED, values).rowcount == 1


def is_current_lease(connection: sa.Connection, incarnation: int) -> bool:
    """Return True if the relay of this incarnation still is the one that may record outcomes."""
    return on_cursor(connection, incarnation_of) == incarnation

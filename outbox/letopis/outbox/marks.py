"""Marks: what became of deliveries, written back to the lanes; each function works in an open write transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
import sqlalchemy as sa

from letopis.outbox.effects import erase_delivered
from letopis.outbox.lanes import LANE, Lane, incarnation_of, lane_of
from letopis.store.errors import OutboxUnavailable
from letopis.store.turns import Conflict

FAULT_LENGTH: Final = 500

# `owed_since` is the age of the oldest event that is owed. It never steps back behind the moment at which a rewound
# lane became owed again, and never lies in the future of a clock that was set back.
_ACKNOWLEDGE: Final = (
    "UPDATE letopis_outbox_lanes SET delivered = :sequence,"
    " state = CASE state WHEN 'paused' THEN 'paused' ELSE 'ready' END,"
    " attempts = 0, due_at = 0, fault_class = NULL, fault = NULL,"
    " owed_since = (SELECT min(:now, max(coalesce(letopis_outbox_lanes.owed_since, 0), appended_at))"
    " FROM letopis_outbox_events AS e"
    " WHERE e.conversation_id = letopis_outbox_lanes.conversation_id AND e.sequence = :sequence + 1)"
    " WHERE conversation_id = :conversation_id AND delivered < :sequence AND head >= :sequence"
)
_SUPERSEDE: Final = (
    "INSERT INTO letopis_outbox_superseded (expected, actual, conversation_id, sequence, event_id)"
    " SELECT ?1, ?2, conversation_id, sequence, event_id FROM letopis_outbox_events"
    " WHERE conversation_id = ?3 AND sequence = ?4"
    " ON CONFLICT (conversation_id, sequence) DO UPDATE SET expected = ?1, actual = ?2, event_id = excluded.event_id"
)
# What the history store has lost, it has no verdict on any more; the next delivery brings one.
_UNJUDGED: Final = "DELETE FROM letopis_outbox_superseded WHERE conversation_id = ? AND sequence > ?"
_RETRY: Final = (
    "UPDATE letopis_outbox_lanes SET state = 'retrying', attempts = :attempts, due_at = :due_at,"
    " fault_class = :fault_class, fault = :fault"
    " WHERE conversation_id = :conversation_id AND delivered = :delivered AND state IN ('ready', 'retrying')"
)
_BLOCK: Final = (
    "UPDATE letopis_outbox_lanes SET state = 'blocked', attempts = :attempts, due_at = 0,"
    " fault_class = :fault_class, fault = :fault"
    " WHERE conversation_id = :conversation_id AND delivered = :delivered AND state IN ('ready', 'retrying')"
)
_REWIND: Final = (
    "UPDATE letopis_outbox_lanes SET delivered = max(:head, pruned), owed_since = :now, attempts = 0, due_at = 0,"
    " state = CASE WHEN state = 'paused' THEN 'paused' WHEN pruned > :head THEN 'blocked' ELSE 'ready' END,"
    " fault_class = CASE WHEN pruned > :head THEN :fault_class END,"
    " fault = CASE WHEN pruned > :head THEN :fault END"
    " WHERE conversation_id = :conversation_id AND delivered > :head"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """What an acknowledgement changed.

    :ivar missed: lanes that did not move: there already, gone from the file, or asked beyond their head.
    :ivar erased: whether content was taken out of the file: the WAL is to be cut back.
    """

    events: int
    missed: tuple[str, ...]
    erased: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewound:
    """What a rewind changed.

    :ivar events: that will be sent again.
    :ivar lost: that neither the history store nor this file holds any more; the lane is blocked if there are any.
    """

    events: int
    lost: int


def acknowledge(
    connection: sa.Connection,
    delivered: Mapping[str, int],
    *,
    now_us: int,
    superseded: Mapping[str, Mapping[int, Conflict]] | None = None,
) -> Acknowledged:
    """Note how far the history store holds lanes; a lane that stood in trouble is well again.

    Never moves a lane back, or beyond its head: such lanes are reported, and whoever asked has a stale view. What is
    left in the file of a conversation whose deletion is delivered goes.

    :param delivered: conversation id to the last sequence that the history store holds.
    :param superseded: the verdicts of the history store, by conversation and sequence.
    """
    cursor = connection.connection.cursor()
    try:
        before = _positions(cursor, delivered)
        cursor.executemany(
            _ACKNOWLEDGE,
            [
                {"conversation_id": conversation_id, "sequence": sequence, "now": now_us}
                for conversation_id, sequence in delivered.items()
            ],
        )
        moved = {
            conversation_id: sequence - before[conversation_id][0]
            for conversation_id, sequence in delivered.items()
            if conversation_id in before and before[conversation_id][0] < sequence <= before[conversation_id][1]
        }
        if cursor.rowcount != len(moved):
            raise OutboxUnavailable(
                f"{cursor.rowcount} of {len(moved)} lanes took their acknowledgement: it is given again"
            )
        for conversation_id, verdicts in (superseded or {}).items():
            cursor.executemany(
                _SUPERSEDE,
                [
                    (conflict.expected, conflict.actual, conversation_id, sequence)
                    for sequence, conflict in verdicts.items()
                ],
            )
        erased = bool(moved) and erase_delivered(cursor, orjson.dumps(list(moved)).decode())
        return Acknowledged(
            events=sum(moved.values()), missed=tuple(one for one in delivered if one not in moved), erased=erased
        )
    finally:
        cursor.close()


def retry_later(
    connection: sa.Connection,
    lane: Lane,
    *,
    attempts: int,
    due_at_us: int,
    fault_class: str,
    fault: str,
) -> bool:
    """Have a lane wait before the event after ``lane.delivered`` is tried again; whether it still stood there.

    :param attempts: how often that event was refused by now; the same as before where none is charged.
    """
    return _mark(connection, _RETRY, lane, attempts, due_at_us, fault_class, fault)


def block(connection: sa.Connection, lane: Lane, *, attempts: int, fault_class: str, fault: str) -> bool:
    """Have a lane wait for a person, at the event after ``lane.delivered``; whether it still stood there."""
    return _mark(connection, _BLOCK, lane, attempts, 0, fault_class, fault)


def _mark(
    connection: sa.Connection, sql: str, lane: Lane, attempts: int, due_at_us: int, fault_class: str, fault: str
) -> bool:
    changed = connection.exec_driver_sql(
        sql,
        {
            "conversation_id": lane.conversation_id,
            "delivered": lane.delivered,
            "attempts": attempts,
            "due_at": due_at_us,
            "fault_class": fault_class,
            "fault": fault[:FAULT_LENGTH],
        },
    )
    return changed.rowcount == 1


def rewind(connection: sa.Connection, conversation_id: str, head: int, *, now_us: int) -> Rewound:
    """Send a lane again from ``head + 1``, which is as far as the history store holds it.

    What was pruned from the file cannot be sent again: then the lane goes back as far as the file reaches and is
    blocked, for a person to decide; nothing is skipped over by itself.
    """
    cursor = connection.connection.cursor()
    try:
        cursor.execute(LANE + " WHERE conversation_id = ?", (conversation_id,))
        row = cursor.fetchone()
        if row is None or (lane := lane_of(row)).delivered <= head:
            return Rewound(events=0, lost=0)
        lost = max(0, lane.pruned - head)
        cursor.execute(
            _REWIND,
            {
                "conversation_id": conversation_id,
                "head": head,
                "now": now_us,
                "fault_class": "lost",
                "fault": f"the history store holds this conversation up to sequence {head} and this outbox from"
                f" {lane.pruned + 1} on: {lost} events in between are in neither; restore a newer backup of the"
                " history store, then retry",
            },
        )
        cursor.execute(_UNJUDGED, (conversation_id, head))
        return Rewound(events=lane.delivered - max(head, lane.pruned), lost=lost)
    finally:
        cursor.close()


def holds(connection: sa.Connection, incarnation: int) -> bool:
    """Whether the relay of this incarnation still is the one that may write results back."""
    cursor = connection.connection.cursor()
    try:
        return incarnation_of(cursor) == incarnation
    finally:
        cursor.close()


def _positions(cursor: Any, conversation_ids: Collection[str]) -> dict[str, tuple[int, int]]:
    found = {}
    for conversation_id in conversation_ids:
        cursor.execute(
            "SELECT delivered, head FROM letopis_outbox_lanes WHERE conversation_id = ?",
            (conversation_id,),
        )
        if (row := cursor.fetchone()) is not None:
            found[conversation_id] = (row[0], row[1])
    return found

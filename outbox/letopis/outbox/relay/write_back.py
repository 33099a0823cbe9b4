"""Write the outcome of a delivery back to the lanes, in one transaction fenced by the lease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from letopis.outbox.event_log.acknowledge import (
    Acknowledged,
    Rewound,
    acknowledge,
    block_lane,
    clear_fault,
    is_current_lease,
    rewind_lane,
    schedule_retry,
)
from letopis.outbox.event_log.lanes import DueBatches
from letopis.outbox.relay.heartbeat import Heartbeat, write_heartbeat
from letopis.outbox.relay.lane_retries import LaneFailure
from letopis.outbox.relay.send_result import SendResult


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenBack:
    """What writing back changed.

    :ivar marked: the failures whose lane had not moved meanwhile.
    """

    acknowledged: Acknowledged
    marked: tuple[LaneFailure, ...]
    rewound: Mapping[str, Rewound]


def write_back(
    connection: sa.Connection,
    *,
    due: DueBatches,
    sent: SendResult,
    failures: Sequence[LaneFailure],
    heartbeat: Heartbeat,
    incarnation: int,
    now_us: int,
) -> WrittenBack | None:
    """Write a delivery back in an open write transaction; return ``None`` if another relay has taken over.

    :param due: what was sent, as it was read; its incarnation is the fence.
    :param failures: the lanes that wait for a retry or are blocked.
    :param incarnation: of the relay that delivers; 0 without a lease.
    """
    if not is_current_lease(connection, due.incarnation):
        return None
    acknowledged = acknowledge(connection, sent.delivered, now_us=now_us, superseded=sent.superseded)
    marked = tuple(one for one in failures if _mark(connection, one))
    clear_fault(connection, sent.cleared)
    rewound = {one: rewind_lane(connection, one, head, now_us=now_us) for one, head in sent.gaps.items()}
    heartbeat = replace(heartbeat, delivered=acknowledged.events)
    write_heartbeat(connection, incarnation, heartbeat, now_us=now_us)
    return WrittenBack(acknowledged=acknowledged, marked=marked, rewound=rewound)


def _mark(connection: sa.Connection, failure: LaneFailure) -> bool:
    if failure.due_at_us is None:
        return block_lane(
            connection,
            failure.lane,
            attempts=failure.attempts,
            fault_class=failure.fault_class,
            fault=failure.fault,
        )
    return schedule_retry(
        connection,
        failure.lane,
        attempts=failure.attempts,
        due_at_us=failure.due_at_us,
        fault_class=failure.fault_class,
        fault=failure.fault,
    )

"""Bind an outbox to another history store, because its own is lost, and send again what the outbox holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.event_log.acknowledge import rewind_lane
from letopis.outbox.event_log.bound_store import StoreBinding, read_binding, rebind_store
from letopis.outbox.event_log.statements import fetch_all

# Outcomes that a relay reports under an earlier incarnation are refused, as after a takeover.
_FENCE: Final = "UPDATE letopis_outbox_relay SET incarnation = incarnation + 1"
_DELIVERED: Final = (
    "SELECT conversation_id, delivered, pruned FROM letopis_outbox_lanes WHERE delivered > 0 ORDER BY conversation_id"
)
# A lane with no event left to send would look delivered: it is set back by the events that were lost.
_SET_BACK: Final = (
    "UPDATE letopis_outbox_lanes SET delivered = ?1, pruned = ?1, pending_since = ?2"
    " WHERE conversation_id = ?3 AND delivered = head"
    " AND state IN ('blocked', 'paused')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebound:
    """The result of binding an outbox to another store.

    :ivar before: the binding until now.
    :ivar store_id: the store that it is bound to from now on.
    :ivar destination: where that store is.
    :ivar resent: delivered events that the store does not hold and the outbox sends again.
    :ivar lost: the number of those that were pruned from the outbox, by conversation. Each of these is blocked as
        ``lost``, until a backup of the old store is found, or ``letopis outbox skip --missing`` puts tombstones in
        their place.
    """

    before: StoreBinding
    store_id: UUID
    destination: str
    resent: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)


def delivered_lanes(connection: sa.Connection) -> Sequence[tuple[str, int, int]]:
    """Return id, last delivered and last pruned sequence of each lane with a delivered event."""
    return fetch_all(connection, _DELIVERED)


def preview(connection: sa.Connection, *, store_id: UUID, destination: str, heads: Mapping[str, int]) -> Rebound:
    """Return what :func:`rebind_outbox` would do now, and change nothing.

    :param heads: the last sequence of each lane that the other store holds.
    """
    resent, lost = 0, dict[str, int]()
    for name, delivered, pruned in delivered_lanes(connection):
        head = heads.get(name, 0)
        resent += max(0, delivered - max(head, pruned))
        if pruned > head:
            lost[name] = pruned - head
    return Rebound(
        before=read_binding(connection), store_id=store_id, destination=destination, resent=resent, lost=lost
    )


def rebind_outbox(
    connection: sa.Connection, *, store_id: UUID, destination: str, heads: Mapping[str, int], now_us: int
) -> Rebound:
    """Bind the outbox to another store and send it again what it lacks; in an open write transaction.

    Deliveries that a relay has in flight to the old store are fenced off. No event is skipped: a conversation that lost
    events is blocked, even if no event of it is left to send.
    """
    done = preview(connection, store_id=store_id, destination=destination, heads=heads)
    for name, delivered, _ in delivered_lanes(connection):
        head = heads.get(name, 0)
        if delivered > head and rewind_lane(connection, name, head, now_us=now_us).lost:
            connection.exec_driver_sql(_SET_BACK, (head, now_us, name))
    rebind_store(connection, store_id=store_id, destination=destination)
    connection.exec_driver_sql(_FENCE)
    return done

"""Check whether a store's log accepts deliveries, in the rows that every apply locks."""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.schema import log_heads


class LogState(IntEnum):
    """The value of ``letopis_log_heads.closed``, the same in each partition."""

    OPEN = 0
    """Deliveries are accepted."""
    CLOSING = 1
    """A move is finishing. Cancelling it opens the store again."""
    MOVED = 2
    """The history was moved for good: the new store accepts deliveries, or is about to."""
    ARRIVING = 3
    """A move into this store is not finished: it holds part of a history."""


_MOVED: Final = "the history was moved away from this store: deliver to the one it was moved to"
_REASONS: Final = {
    LogState.CLOSING: "the history is being moved away from this store: deliveries wait until that is done",
    LogState.ARRIVING: "the move into this store is not finished: run `letopis move` again, with the same --to",
}


def refusal(state: int) -> StoreFault:
    """Return the fault for delivering to, or reading from, a store in a state other than ``OPEN``."""
    arriving = state == LogState.ARRIVING
    return StoreFault(
        fault_class=FaultClass.WRONG_STORE,
        code="arriving" if arriving else "moved",
        reason=_REASONS.get(LogState(state), _MOVED) if state in tuple(LogState) else _MOVED,
    )


def check_counters(states: Collection[int], *, expected: int) -> None:
    """Check that all counters which an apply has locked exist, and accept deliveries."""
    if len(states) != expected:
        raise StoreFault(
            fault_class=FaultClass.MISCONFIGURED,
            code="partitions",
            reason="the store has fewer log partitions than when it was opened: open it again",
        )
    if closed := max(states):
        raise refusal(closed)


async def count_partitions(connection: AsyncConnection) -> int:
    """Return how many partitions the log has."""
    heads = sa.select(sa.func.count(), sa.func.max(log_heads.c.closed)).select_from(log_heads)
    count, closed = (await connection.execute(heads)).one()
    if closed == LogState.ARRIVING:
        raise refusal(closed)
    return int(count)

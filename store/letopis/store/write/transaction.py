"""Hold what the phases of one apply share, and check that the batch reached the right store."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import LOG_IDLE_SECONDS, Dialect
from letopis.store.database.schema import origins, store
from letopis.store.database.store_identity import (
    check_identity,
    check_not_moved,
    missing_identity_fault,
    read_identity,
)
from letopis.store.errors import ErasuresPending, OriginSuperseded
from letopis.store.holds import Subject
from letopis.store.model.records import lane_partition
from letopis.store.read.task_marks import Task
from letopis.store.rules.apply_plan import Origin, TableRow

_LAST_SEEN_INTERVAL_US: Final = 3_600_000_000
"""How often an origin's ``last_seen_at`` is written: it is one more locked row of an apply, and the same for all."""


@dataclass(slots=True, kw_only=True)
class ApplyTransaction:
    """An open transaction in which one batch is applied."""

    connection: AsyncConnection
    dialect: Dialect
    origin: Origin
    partitions: int
    now: int  # to record, in microseconds
    # Partition and name in bytes, the order of the primary keys on all three databases: every transaction locks in this
    # order, so that none deadlocks.
    lock_order: Callable[[str], tuple[int, bytes]] = field(init=False)
    appended: Sequence[TableRow] = ()  # in each partition their positions count from 1
    counters: Mapping[int, int] = field(default_factory=dict)  # the position of each partition before them
    holds: frozenset[Subject] = frozenset()  # what holds forbade to erase when it was asked
    erasing: bool = False  # some events erase what came before
    erased: bool = False  # content was taken out of what is stored
    released: list[Task] = field(default_factory=list)  # to erase what is retained, and no fork reads any more
    held: set[int] = field(default_factory=set)  # partitions that stay on their hosts
    log_locked_at: float = math.inf  # the monotonic clock just before the counters were locked

    def __post_init__(self) -> None:
        partitions = self.partitions
        self.lock_order = cache(lambda name: (lane_partition(name, partitions), name.encode()))

    @property
    def stood_still(self) -> bool:
        """Whether the log has been held so long that the database may have ended the transaction."""
        return time.monotonic() - self.log_locked_at >= LOG_IDLE_SECONDS

    def partitions_of(self, conversation_ids: Iterable[str]) -> list[int]:
        return sorted({self.lock_order(name)[0] for name in conversation_ids})

    async def in_lock_order(self, names: Iterable[str]) -> list[list[str]]:
        """Return names in the order of their locks, split into lists that one statement locks."""
        ordered = sorted(names, key=self.lock_order)
        if self.dialect.spreads:
            partitions = {self.lock_order(name)[0] for name in ordered} - self.held
            await self.dialect.hold(self.connection, partitions)
            self.held |= partitions
        return self.dialect.lockable(ordered, lambda name: self.lock_order(name)[0])

    def execute(self, statement: sa.Executable, **parameters: Any) -> Awaitable[sa.CursorResult[Any]]:
        return self.connection.execute(statement, parameters)


class Registration:
    """Registers origins in a store; the statements are compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        known = origins.c.origin_id == sa.bindparam("origin")
        # The store's own row comes with it, so that its check costs no statement of its own.
        self._found = (
            sa.select(store.c.store_id, store.c.moved_to, *origins.c)
            .select_from(store.outerjoin(origins, known))
            .where(store.c.id == 1)
        )
        self._locked = dialect.locked(sa.select(origins).where(known))

    async def register(self, transaction: ApplyTransaction) -> None:
        """Check the store's identity and make the origin known to it."""
        origin, now = transaction.origin, transaction.now
        connection, dialect = transaction.connection, transaction.dialect
        row = (await connection.execute(self._found, {"origin": origin.origin_id})).first()
        if row is None:
            raise missing_identity_fault()
        check_identity(row.store_id, origin.store_id)
        check_not_moved(row.moved_to)
        if row.origin_id is None:
            await _check_erasures(connection, origin)
            await dialect.insert(connection, origins, [(*_identity(origin), now, now, origin.erasures)])
            return
        # Read without a lock: a copy may take over a moment later in any case, and deliveries of both are distinguished
        # under the lane's lock.
        _check_epoch(origin, row)
        if (
            (row.epoch, row.name) != (origin.epoch, origin.name)
            or row.erasures != origin.erasures
            or abs(now - row.last_seen_at) > _LAST_SEEN_INTERVAL_US
        ):
            row = (await connection.execute(self._locked, {"origin": origin.origin_id})).one()
            _check_epoch(origin, row)
            if row.erasures != origin.erasures:
                await _check_erasures(connection, origin)
            values = (*_identity(origin), row.first_seen_at, now, origin.erasures)
            await dialect.overwrite(connection, origins, [values])


def _identity(origin: Origin) -> TableRow:
    return origin.origin_id, origin.epoch, origin.name


async def _check_erasures(connection: AsyncConnection, origin: Origin) -> None:
    """Let nobody acknowledge another erasure than the last one of the store."""
    last = await read_identity(connection)
    if (last.erasures, last.erasure_id) != (origin.erasures, origin.erasure_id):
        raise ErasuresPending(carried_out=origin.erasures, last=last.erasures)


def _check_epoch(origin: Origin, row: sa.Row[Any]) -> None:
    if row.epoch > origin.epoch:
        raise OriginSuperseded(origin_id=origin.origin_id, epoch=origin.epoch, current=row.epoch)

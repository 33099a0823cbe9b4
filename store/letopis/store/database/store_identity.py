"""Identify the history store in a database, and check that it is the expected one and accepts deliveries."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Final, cast
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.schema import holds, log_heads, store
from letopis.store.model.events import from_microseconds

if TYPE_CHECKING:
    from letopis.store.database.sqlite_file import FileConnection


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
_REASONS: Final[Mapping[int, str]] = {
    LogState.CLOSING: "the history is being moved away from this store: deliveries wait until that is done",
    LogState.ARRIVING: "the move into this store is not finished: run `letopis move` again, with the same --to",
}


def refusal(state: int) -> StoreFault:
    """Return the fault for delivering to, or reading from, a store in a state other than ``OPEN``."""
    code = "arriving" if state == LogState.ARRIVING else "moved"
    return StoreFault(fault_class=FaultClass.WRONG_STORE, code=code, reason=_REASONS.get(state, _MOVED))


def check_counters(states: Collection[int], *, expected: int) -> None:
    """Check that all counters which an apply has locked exist, and accept deliveries."""
    if len(states) != expected:
        reason = "the store has fewer log partitions than when it was opened: open it again"
        raise StoreFault(fault_class=FaultClass.MISCONFIGURED, code="partitions", reason=reason)
    if closed := max(states):
        raise refusal(closed)


async def count_partitions(connection: AsyncConnection) -> int:
    heads = sa.select(sa.func.count(), sa.func.max(log_heads.c.closed)).select_from(log_heads)
    count, closed = (await connection.execute(heads)).one()
    if closed == LogState.ARRIVING:
        raise refusal(closed)
    return int(count)


async def read_heads(connection: AsyncConnection) -> dict[int, int]:
    """Return the last position of each partition of the log, in their order."""
    heads = sa.select(log_heads.c.partition, log_heads.c.position).order_by(log_heads.c.partition)
    return {row.partition: row.position for row in await connection.execute(heads)}


RECHECK_SECONDS: Final = 5.0
"""Age at which the check of a connection is repeated: behind a pooler, the database may change under a connection."""

_CHECKED: Final = "letopis_store_id"
_LAST_ERASURE: Final = sa.select(log_heads.c.erasures).limit(1).scalar_subquery().label("erasures")
_LAST_ERASURE_ID: Final = sa.select(log_heads.c.erasure_id).limit(1).scalar_subquery().label("erasure_id")
_HOLDS: Final = sa.select(sa.func.count()).select_from(holds).scalar_subquery().label("holds")
_SELECT: Final = sa.select(
    store.c.store_id, store.c.moved_to, store.c.moved_at, _LAST_ERASURE, _LAST_ERASURE_ID, _HOLDS
).where(store.c.id == 1)

_FILE_IDENTITY: Final = "SELECT store_id FROM letopis_store WHERE id = 1"

_expected: ContextVar[UUID | None] = ContextVar("letopis_expected_store", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreIdentity:
    """The identity of a history store: created with its tables, and kept by backups, replicas and moves.

    :ivar moved_to: where the history was moved to, without secrets, after which nothing is delivered here; ``None``
        while it is here.
    :ivar erasures: the number of the last erasure that is recorded here; see :class:`~letopis.store.ErasureRegister`.
    :ivar erasure_id: its id.
    :ivar holds: how many holds there are.
    """

    store_id: UUID
    moved_to: str | None = None
    moved_at: datetime | None = None
    erasures: int = 0
    erasure_id: UUID | None = None
    holds: int = 0


@contextmanager
def expect_store(store_id: UUID | None) -> Iterator[None]:
    """Restrict reads in this context to one store, and create no missing store; ``None`` allows any."""
    token = _expected.set(store_id)
    try:
        yield
    finally:
        _expected.reset(token)


def expected_store_id() -> UUID | None:
    """Return the identity of the only store to read in this context, or ``None`` for any."""
    return _expected.get()


async def read_identity(connection: AsyncConnection) -> StoreIdentity:
    """Return the identity of the store that is open on ``connection``."""
    row = (await connection.execute(_SELECT)).first()
    if row is None:
        raise missing_identity_fault()
    moved_at = None if row.moved_at is None else from_microseconds(row.moved_at)
    return StoreIdentity(
        store_id=row.store_id,
        moved_to=row.moved_to,
        moved_at=moved_at,
        erasures=row.erasures or 0,
        erasure_id=row.erasure_id,
        holds=row.holds,
    )


async def renew_identity(connection: AsyncConnection, *, now: int) -> StoreIdentity:
    """Give the store that is open on ``connection`` a new identity, and return it. The caller commits."""
    changed = await connection.execute(sa.update(store).where(store.c.id == 1).values(store_id=uuid4(), created_at=now))
    if changed.rowcount != 1:
        raise missing_identity_fault()
    return await read_identity(connection)


async def check_connection(connection: AsyncConnection) -> None:
    """Check that a connection without a transaction leads to the expected store."""
    if (wanted := expected_store_id()) is None:
        return
    if not isinstance(cast("object", connection), AsyncConnection):
        # Of a file: it costs next to nothing there, and is in the snapshot of what is read.
        if (row := cast("FileConnection", connection).run(_FILE_IDENTITY).fetchone()) is None:
            raise missing_identity_fault()
        if row[0] != wanted.bytes:
            raise wrong_store_fault(UUID(bytes=row[0]), wanted)
        return
    store_id, at = connection.info.get(_CHECKED, (None, 0.0))
    if store_id is None or time.monotonic() - at > RECHECK_SECONDS:
        store_id = (await read_identity(connection)).store_id
        await connection.rollback()
        connection.info[_CHECKED] = (store_id, time.monotonic())
    check_identity(store_id, wanted)


def check_identity(found: UUID, wanted: UUID | None) -> None:
    """Check that a store is the one that an outbox is bound to."""
    if wanted is not None and found != wanted:
        raise wrong_store_fault(found, wanted)


def wrong_store_fault(found: UUID, wanted: UUID) -> StoreFault:
    reason = (
        f"this is history store {short_id(found)}, and the outbox is bound to {short_id(wanted)}: name the right one;"
        " only if that one is gone for good, bind the outbox again with `letopis outbox rebind`"
    )
    return StoreFault(fault_class=FaultClass.WRONG_STORE, code="identity", reason=reason)


def check_not_moved(moved_to: str | None) -> None:
    if moved_to is not None:
        raise moved_fault(moved_to)


def moved_fault(moved_to: str) -> StoreFault:
    reason = f"the history was moved away from this store, to {moved_to}: deliver there"
    return StoreFault(fault_class=FaultClass.WRONG_STORE, code="moved", reason=reason)


def missing_identity_fault() -> StoreFault:
    reason = "the identity of the store is gone (letopis_store is empty): restore the database"
    return StoreFault(fault_class=FaultClass.MISCONFIGURED, code="identity", reason=reason)


def short_id(store_id: UUID) -> str:
    return store_id.hex[:8]

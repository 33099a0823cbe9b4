"""Decide which of the two stores of a move takes deliveries.

The source decides, in its own transactions, so at most one of the two is ever open::

    source   OPEN -> CLOSING -> MOVED              CLOSING -> OPEN cancels the move
    target           ARRIVING ---------> OPEN      only after the source is MOVED, which is final

Each step locks the identity, then the counters, as an apply does, and starts only from the state before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid5

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.schema import conversations, events, lanes, log_heads, messages, origins, owners, store
from letopis.store.database.store_identity import LogState
from letopis.store.errors import ConfigurationError, MoveFailed
from letopis.store.model.events import now_microseconds
from letopis.store.ops.move.endpoint import Endpoint

_ARRIVING_NAME: Final = "a move of this store"
_TABLES_OF_A_HISTORY: Final = (origins, owners, conversations, events, lanes, messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRecord:
    """The identity and the log state of a store."""

    store_id: UUID
    created_at: int
    moved_to: str | None  # where a source's history went, or that of an ARRIVING target comes from
    moved_at: int | None  # when a source was closed, or the run of the move that may write to a target
    state: LogState
    heads: Mapping[int, int]  # the last position of each partition of the log
    erasures: int  # the number of the last erasure
    erasure_id: UUID | None


def arriving_id(store_id: UUID) -> UUID:
    """Return the identity of a target until the move is done, derived from the source's."""
    return uuid5(store_id, _ARRIVING_NAME)


async def read_store_record(connection: AsyncConnection, *, end: Endpoint | None = None) -> StoreRecord:
    identity: Any = sa.select(store).where(store.c.id == 1)
    if end is not None:
        identity = end.dialect.locked(identity)
    row = (await connection.execute(identity)).one()
    counters: Sequence[Any] = (await connection.execute(sa.select(log_heads).order_by(log_heads.c.partition))).all()
    if end is not None:
        counters = await end.dialect.lock_heads(connection, [counter.partition for counter in counters])
    return StoreRecord(
        store_id=row.store_id,
        created_at=row.created_at,
        moved_to=row.moved_to,
        moved_at=row.moved_at,
        state=LogState(max((counter.closed for counter in counters), default=LogState.OPEN)),
        heads={counter.partition: counter.position for counter in counters},
        erasures=counters[0].erasures if counters else 0,
        erasure_id=counters[0].erasure_id if counters else None,
    )


async def claim_target(target: Endpoint, source: StoreRecord, *, source_address: str) -> bool:
    """Make a fresh store this run's target, or take over an unfinished move. Return False if that is done already."""

    async def work(connection: AsyncConnection) -> int | None:
        record = await read_store_record(connection, end=target)
        if record.state is LogState.OPEN:
            if source.state is LogState.MOVED and record.store_id == source.store_id:
                return None
            if source.state is LogState.MOVED:
                raise ConfigurationError(
                    f"the history was moved to {target.address}, but the database there does not hold it: restore "
                    "it from a backup"
                )
            if record.store_id == source.store_id:
                raise ConfigurationError(
                    f"{target.address} is the store to be moved, or a copy of it: name an empty database"
                )
            for table in _TABLES_OF_A_HISTORY:
                if (await connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1))).first() is not None:
                    raise ConfigurationError(f"{target.address} already holds another history: name an empty database")
        elif record.state is not LogState.ARRIVING:
            raise ConfigurationError(
                f"the history of {target.address} was moved away to {record.moved_to}: name an empty database"
            )
        elif record.store_id != arriving_id(source.store_id):
            raise ConfigurationError(
                f"{target.address} holds part of another history, from an unfinished move of {record.moved_to}: "
                "name an empty database"
            )
        if record.heads.keys() != source.heads.keys():
            await connection.execute(sa.delete(log_heads))
            rows = [{"partition": partition, "position": 0, "closed": 0} for partition in source.heads]
            await connection.execute(sa.insert(log_heads), rows)
        fence = max(now_microseconds(), (record.moved_at or 0) + 1)
        await _update_record(connection, store_id=arriving_id(source.store_id), moved_to=source_address, moved_at=fence)
        await connection.execute(sa.update(log_heads).values(closed=LogState.ARRIVING))
        return fence

    target.fence = None
    target.fence = await target.write(work)
    return target.fence is not None


async def close_source(source: Endpoint, target_address: str) -> StoreRecord:
    """Close the source. All deliveries it accepted are committed then, and it accepts no others."""

    async def work(connection: AsyncConnection) -> StoreRecord:
        record = await read_store_record(connection, end=source)
        if record.state is not LogState.OPEN:
            raise MoveFailed("another run of the move has closed the source: this one stops")
        # Higher each time: a cancelled run must not take a later closing for its own.
        moved_at = max(now_microseconds(), (record.moved_at or 0) + 1)
        await _update_record(connection, store_id=record.store_id, moved_to=target_address, moved_at=moved_at)
        await connection.execute(sa.update(log_heads).values(closed=LogState.CLOSING))
        return await read_store_record(connection)

    return await source.write(work)


async def commit_handover(source: Endpoint, closed: StoreRecord) -> None:
    """Hand the history over to the target: from here the move can only be finished."""

    async def work(connection: AsyncConnection) -> None:
        record = await read_store_record(connection, end=source)
        if (record.moved_to, record.moved_at, record.heads) != (closed.moved_to, closed.moved_at, closed.heads) or (
            record.state not in (LogState.CLOSING, LogState.MOVED)
        ):
            raise MoveFailed("the move was cancelled meanwhile: the source is open, or was closed again")
        await connection.execute(sa.update(log_heads).values(closed=LogState.MOVED))

    await source.write(work)


async def open_target(target: Endpoint, source: StoreRecord) -> None:
    """Open the target under the source's identity: it is the history store from now on."""

    async def work(connection: AsyncConnection) -> None:
        for partition, position in source.heads.items():
            await connection.execute(
                sa.update(log_heads)
                .where(log_heads.c.partition == partition)
                .values(
                    position=position,
                    closed=LogState.OPEN,
                    erasures=source.erasures,
                    erasure_id=source.erasure_id,
                )
            )
        await _update_record(
            connection, store_id=source.store_id, moved_to=None, moved_at=None, created_at=source.created_at
        )

    await target.write(work)


async def reopen_source(source: Endpoint) -> str | None:
    """Open the source of an unfinished move. Return where it was being moved, or ``None`` if it was open."""

    async def work(connection: AsyncConnection) -> str | None:
        record = await read_store_record(connection, end=source)
        if record.state is LogState.OPEN:
            return None
        if record.state is LogState.MOVED:
            raise ConfigurationError(
                f"the history was moved to {record.moved_to}, which takes the deliveries or is about to: run the move "
                "again to finish it; it can no longer be cancelled"
            )
        if record.state is LogState.ARRIVING:
            raise ConfigurationError(
                f"this is the target of an unfinished move: to cancel that, name its source, {record.moved_to}"
            )
        # The time stays, so that the next closing gets a later one.
        await _update_record(connection, store_id=record.store_id, moved_to=None, moved_at=record.moved_at)
        await connection.execute(sa.update(log_heads).values(closed=LogState.OPEN))
        return record.moved_to

    return await source.write(work)


async def _update_record(connection: AsyncConnection, **values: UUID | str | int | None) -> None:
    await connection.execute(sa.update(store).where(store.c.id == 1).values(values))

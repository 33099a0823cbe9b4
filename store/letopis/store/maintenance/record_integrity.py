"""Check that the records of a history store are whole, and that no change of their lanes is missing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.schema import origins, record_lanes, record_ledger, record_parts, record_tags, records
from letopis.store.model.records import Scope, shown_lane

_MAX_NAMED: Final = 20


async def record_problems(connection: AsyncConnection) -> AsyncIterator[str]:
    """Yield the problems of records: ledgers with gaps, values that are not whole, rows that belong to nothing."""
    async for problem in _ledgers(connection):
        yield problem
    async for problem in _values(connection):
        yield problem
    for table in (record_parts, record_tags):
        same = sa.and_(records.c.partition == table.c.partition, records.c.record_id == table.c.record_id)
        strays = (
            sa.select(sa.func.count()).select_from(table.outerjoin(records, same)).where(records.c.record_id.is_(None))
        )
        if count := (await connection.execute(strays)).scalar_one():
            yield f"{count} rows of {table.name} belong to no record"


async def _ledgers(connection: AsyncConnection) -> AsyncIterator[str]:
    key = ("partition", "lane", "origin_id")
    held = (
        sa.select(
            *(record_ledger.c[name] for name in key),
            sa.func.count().label("held"),
            sa.func.min(record_ledger.c.sequence).label("first"),
            sa.func.max(record_ledger.c.sequence).label("last"),
        )
        .group_by(*(record_ledger.c[name] for name in key))
        .subquery()
    )
    same = sa.and_(*(record_lanes.c[name] == held.c[name] for name in key))
    counted = record_lanes.c.sequence - record_lanes.c.floor
    wrong = (
        sa.select(record_lanes.c.lane, record_lanes.c.floor, record_lanes.c.sequence, held.c.held)
        .select_from(record_lanes.outerjoin(held, same))
        .where(
            sa.or_(
                sa.func.coalesce(held.c.held, 0) != counted,
                sa.and_(counted > 0, held.c.first != record_lanes.c.floor + 1),
                sa.and_(counted > 0, held.c.last != record_lanes.c.sequence),
            )
        )
    )
    for row in await _first(connection, wrong):
        yield (
            f"{shown_lane(row.lane)}: the ledger should hold changes {row.floor + 1} to {row.sequence},"
            f" and {row.held or 0} are there"
        )
    loose = sa.select(held.c.lane).select_from(held.outerjoin(record_lanes, same)).where(record_lanes.c.lane.is_(None))
    for row in await _first(connection, loose):
        yield f"{shown_lane(row.lane)}: there is a ledger, and no counter"
    unknown = (
        sa.select(sa.func.count())
        .select_from(record_lanes)
        .where(record_lanes.c.origin_id.not_in(sa.select(origins.c.origin_id)))
    )
    if count := (await connection.execute(unknown)).scalar_one():
        yield f"{count} lanes of records belong to an unknown outbox"


async def _values(connection: AsyncConnection) -> AsyncIterator[str]:
    length = sa.func.length if connection.dialect.name != "postgresql" else sa.func.octet_length
    parts = (
        sa.select(
            record_parts.c.partition,
            record_parts.c.record_id,
            sa.func.count().label("held"),
            sa.func.sum(length(record_parts.c.body)).label("octets"),
        )
        .group_by(record_parts.c.partition, record_parts.c.record_id)
        .subquery()
    )
    same = sa.and_(parts.c.partition == records.c.partition, parts.c.record_id == records.c.record_id)
    inline = sa.and_(
        records.c.parts == 0,
        sa.or_(records.c.body.is_(None), length(records.c.body) != records.c.size, parts.c.held.is_not(None)),
    )
    apart = sa.and_(
        records.c.parts > 0,
        sa.or_(sa.func.coalesce(parts.c.held, 0) != records.c.parts, parts.c.octets != records.c.size),
    )
    wrong = sa.select(records.c.scope).select_from(records.outerjoin(parts, same)).where(sa.or_(inline, apart))
    for row in await _first(connection, wrong):
        yield f"records of {Scope(row.scope)}: a value is not whole"


async def _first(connection: AsyncConnection, statement: Any) -> list[Any]:
    return list((await connection.execute(statement.limit(_MAX_NAMED))).all())

"""Soundness: whether a history store still holds what was written to it; reads all of it and changes nothing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.codec import decode, digest_of
from letopis.store.schema import conversations, events, lanes, log_heads, metadata, origins, owners
from letopis.store.wal import scan

PAGE: Final = 500
PAUSE: Final = 0.02
"""Seconds between two looks at a WAL that may be growing."""
NAMED: Final = 20
"""Problems of one kind that are named; SQLite's own list is cut there too."""


def wal_problem(database: Path) -> str:
    """Return what is wrong with the WAL beside an SQLite file, ``""`` for nothing; before anybody opens the file.

    Where something is, the file should not be opened: who closes it last moves the WAL into it, as far as SQLite reads
    it, and deletes the rest.
    """
    wal = database.with_name(f"{database.name}-wal")
    for _ in range(3):
        held = _bytes_of(wal)
        found = scan(held)
        if found.certain or not found.problem:
            break
        # Somebody may be writing to it.
        time.sleep(PAUSE)
        if _bytes_of(wal) == held:
            break
    else:
        return ""
    return found.problem


def _bytes_of(wal: Path) -> bytes:
    try:
        return wal.read_bytes()
    except FileNotFoundError:
        return b""


_UNREADABLE: Final = (SQLAlchemyError, ValueError, TypeError, OverflowError)
"""What is raised of rows that cannot be what was written."""


async def problems(engine: AsyncEngine) -> AsyncIterator[str]:
    """Yield what is wrong with the tables of a store that is at this release's revision.

    Every event is compared with its digest, and the log with its own counting: positions, versions, and the sequences
    of each outbox run without a gap. Of an SQLite file the structure is looked at as a whole. Content is never quoted.
    """
    async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
        for check in (_structure, _log, _versions, _sequences, _lanes, _rows, _rest):
            try:
                async for problem in check(connection):
                    yield problem
            except _UNREADABLE as error:
                if connection.dialect.name != "sqlite":
                    raise  # a server that is away says nothing about what it holds
                yield f"{check.__doc__}: it cannot be read [{_code_of(error)}]"


def _code_of(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(cause, "sqlite_errorname", None) or type(cause).__name__)


async def _structure(connection: AsyncConnection) -> AsyncIterator[str]:
    """the structure of the file"""
    if connection.dialect.name != "sqlite":
        return
    for (said,) in (await connection.exec_driver_sql(f"PRAGMA integrity_check({NAMED})")).all():
        if said != "ok":
            yield f"SQLite: {said}"


async def _log(connection: AsyncConnection) -> AsyncIterator[str]:
    """the log"""
    heads = (await connection.execute(sa.select(log_heads.c.partition, log_heads.c.position))).all()
    if not heads:
        yield "the log has no counters"
    for partition, head in heads:
        position = 0
        while True:
            rows = (
                await connection.execute(
                    sa.select(events)
                    .where(events.c.partition == partition, events.c.position > position)
                    .order_by(events.c.position)
                    .limit(PAGE)
                )
            ).all()
            for row in rows:
                if row.position != position + 1:
                    yield f"partition {partition} of the log: {row.position} follows {position}"
                position = row.position
                if not _intact(row):
                    yield f"event {position} of partition {partition} is not what was written"
            if len(rows) < PAGE:
                break
        if position != head:
            yield f"partition {partition} of the log ends at {position}, its counter says {head}"
    strays = sa.select(sa.func.count()).where(events.c.partition.not_in([row.partition for row in heads]))
    if stray := (await connection.execute(strays)).scalar_one():
        yield f"{stray} events lie in a partition that there is not"


def _intact(row: sa.Row[Any]) -> bool:
    try:
        decode(row.data)
        decode(row.metadata)
    except ValueError:
        return False
    if row.digest is None:
        return True  # redacted: nothing that could be compared is left
    found = digest_of(row.conversation_id, row.type, row.schema_version, row.data, row.metadata)
    return found == bytes(row.digest)


async def _versions(connection: AsyncConnection) -> AsyncIterator[str]:
    """the versions of conversations"""
    key = (events.c.partition, events.c.conversation_id)
    wrong = (
        sa.select(events.c.conversation_id, sa.func.count().label("held"), sa.func.max(events.c.version).label("last"))
        .group_by(*key)
        .having(sa.or_(sa.func.count() != sa.func.max(events.c.version), sa.func.min(events.c.version) != 1))
        .limit(NAMED)
    )
    for row in (await connection.execute(wrong)).all():
        yield f"conversation {row.conversation_id!r} is at version {row.last} and holds {row.held} events"


async def _sequences(connection: AsyncConnection) -> AsyncIterator[str]:
    """the order of each outbox's events"""
    before = sa.func.lag(events.c.sequence).over(
        partition_by=(events.c.partition, events.c.conversation_id, events.c.origin_id), order_by=events.c.version
    )
    run = sa.select(events.c.conversation_id, events.c.version, events.c.sequence, before.label("before")).subquery()
    wrong = (
        sa.select(run.c.conversation_id, run.c.version, run.c.sequence, run.c.before)
        .where(run.c.sequence != sa.func.coalesce(run.c.before, 0) + 1)
        .limit(NAMED)
    )
    for row in (await connection.execute(wrong)).all():
        yield (
            f"conversation {row.conversation_id!r}, version {row.version}: sequence {row.sequence} of its outbox"
            f" follows {row.before or 0}"
        )


async def _lanes(connection: AsyncConnection) -> AsyncIterator[str]:
    """how far each outbox has got"""
    last = (
        sa.select(
            events.c.partition,
            events.c.conversation_id,
            events.c.origin_id,
            sa.func.max(events.c.sequence).label("last"),
        )
        .group_by(events.c.partition, events.c.conversation_id, events.c.origin_id)
        .subquery()
    )
    same = sa.and_(
        lanes.c.partition == last.c.partition,
        lanes.c.conversation_id == last.c.conversation_id,
        lanes.c.origin_id == last.c.origin_id,
    )
    for left, right, kind in ((last, lanes, "lane"), (lanes, last, "events")):
        differ = sa.or_(lanes.c.sequence.is_(None), last.c.last.is_(None), lanes.c.sequence != last.c.last)
        wrong = sa.select(left.c.conversation_id).select_from(left.outerjoin(right, same)).where(differ).limit(NAMED)
        for (conversation_id,) in (await connection.execute(wrong)).all():
            yield f"conversation {conversation_id!r}: what is counted of an outbox and its {kind} do not agree"
    known = sa.select(origins.c.origin_id)
    unknown = sa.select(sa.func.count()).select_from(lanes).where(lanes.c.origin_id.not_in(known))
    if count := (await connection.execute(unknown)).scalar_one():
        yield f"{count} lanes belong to no outbox that is known"


async def _rows(connection: AsyncConnection) -> AsyncIterator[str]:
    """the lists of conversations and owners"""
    wrong = (
        sa.select(owners.c.owner_id)
        .join(conversations, conversations.c.owner_id == owners.c.owner_id)
        .where(conversations.c.number >= owners.c.next_number)
        .distinct()
        .limit(NAMED)
    )
    for (owner_id,) in (await connection.execute(wrong)).all():
        yield f"owner {owner_id!r} would be given a number twice"
    twice = (
        sa.select(conversations.c.owner_id)
        .where(conversations.c.number.is_not(None))
        .group_by(conversations.c.owner_id, conversations.c.number)
        .having(sa.func.count() > 1)
        .limit(NAMED)
    )
    for (owner_id,) in (await connection.execute(twice)).all():
        yield f"two conversations of owner {owner_id!r} have one number"
    pairs = sa.and_(conversations.c.conversation_id == owners.c.active_conversation_id)
    lost = (
        sa.select(owners.c.owner_id)
        .select_from(owners.outerjoin(conversations, pairs))
        .where(owners.c.active_conversation_id.is_not(None), conversations.c.conversation_id.is_(None))
        .limit(NAMED)
    )
    for (owner_id,) in (await connection.execute(lost)).all():
        yield f"the active conversation of owner {owner_id!r} is none that there is"


async def _rest(connection: AsyncConnection) -> AsyncIterator[str]:
    """what else is kept"""
    if connection.dialect.name != "sqlite":
        return
    # Text that is none shows when it is read. What is in the log was read before.
    for table in metadata.sorted_tables:
        if table is not events:
            try:
                (await connection.execute(sa.select(table))).all()
            except _UNREADABLE as error:
                yield f"{table.name} cannot be read [{_code_of(error)}]"

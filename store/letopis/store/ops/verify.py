"""Check that a history store still holds what was written to it; read everything and change nothing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.database.dialects import dialect_for, rows_by_key
from letopis.store.database.row_mapping import conflict_of
from letopis.store.database.schema import (
    conversations,
    events,
    lanes,
    metadata,
    origins,
    owners,
    record_ledger,
    record_parts,
    record_tags,
    records,
    same_conversation,
)
from letopis.store.database.store_identity import read_heads
from letopis.store.model.codec import decode, digest_of
from letopis.store.model.event_types import ConversationActivated, ConversationArchived, ConversationDeleted
from letopis.store.model.records import FIRST_CONVERSATION_ID, lane_subject
from letopis.store.ops.erasure_causes import erasure_problems
from letopis.store.ops.record_problems import content_problems, record_problems
from letopis.store.ops.wal_format import scan_wal
from letopis.store.rules.projection import ACTIVATION_ORDER_KEY
from letopis.store.rules.redaction import is_stripped

PAGE_ROWS: Final = 500
WAL_RECHECK_SECONDS: Final = 0.02
"""Pause between two reads of a WAL that may be growing."""
MAX_NAMED_PROBLEMS: Final = 20
"""Problems of one kind that are named; SQLite's own list ends there too."""
STRUCTURE_CHECK: Final = f"PRAGMA integrity_check({MAX_NAMED_PROBLEMS})"
"""SQLite's check of a whole file; see :func:`structure_problems`."""
UNREADABLE_ERRORS: Final = (SQLAlchemyError, ValueError, TypeError, OverflowError)
"""Raised by rows that cannot be what was written."""

_LANE_KEY: Final = ("partition", "conversation_id", "origin_id")

Checked = Callable[[int, int], None]
"""Takes how many events of how many were compared."""


def unheard(done: int, total: int) -> None:
    """Ignore a progress report."""


def wal_problem(database: Path) -> str:
    """Return what is wrong with the WAL beside an SQLite file, or ``""``. Call it before any connection is opened."""
    # Do not open a file with a problem: the last connection that closes moves as much of the WAL into the file as
    # SQLite reads, and deletes the rest.
    wal = database.with_name(f"{database.name}-wal")
    for _ in range(3):
        content = _read_bytes(wal)
        scan = scan_wal(content)
        if scan.certain or not scan.problem:
            break
        # Another process may be writing to it.
        time.sleep(WAL_RECHECK_SECONDS)
        if _read_bytes(wal) == content:
            break
    else:
        return ""
    return scan.problem


def _read_bytes(wal: Path) -> bytes:
    try:
        return wal.read_bytes()
    except FileNotFoundError:
        return b""


async def find_problems(engine: AsyncEngine, *, checked: Checked = unheard) -> AsyncIterator[str]:
    """Yield the problems of a store that is at this release's revision."""
    # All of it from one snapshot, so that deliveries may go on. Content is never quoted.
    async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
        await dialect_for(connection.dialect.name).begin_snapshot(connection)
        for subject, check in _checks(checked):
            try:
                async for problem in check(connection):
                    yield problem
            except UNREADABLE_ERRORS as error:
                if connection.dialect.name != "sqlite":
                    raise  # an unavailable server says nothing about what it holds
                yield f"{subject} cannot be read [{error_code(error)}]"


def error_code(error: BaseException) -> str:
    """Return SQLite's name of an error, or its type, never its text."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(cause, "sqlite_errorname", None) or type(cause or error).__name__)


def structure_problems(rows: Iterable[Any]) -> Iterator[str]:
    """Yield the problems in the rows that :data:`STRUCTURE_CHECK` returned."""
    return (f"SQLite: {row[0]}" for row in rows if row[0] != "ok")


def _is_intact(row: sa.Row[Any]) -> bool:
    """Return True if an event's payload is JSON and matches its digest, or is what an erasure leaves."""
    try:
        decode(row.data)
        decode(row.metadata)
    except ValueError:
        return False
    if row.salt is None:
        return is_stripped(row.type, row.data, row.metadata)
    named = (row.conversation_id, row.type, row.schema_version)
    return digest_of(*named, row.data, row.metadata, bytes(row.salt)) == bytes(row.digest)


async def _structure(connection: AsyncConnection) -> AsyncIterator[str]:
    if connection.dialect.name != "sqlite":
        return
    for problem in structure_problems((await connection.exec_driver_sql(STRUCTURE_CHECK)).all()):
        yield problem


async def _log(connection: AsyncConnection, *, checked: Checked) -> AsyncIterator[str]:
    heads = await read_heads(connection)
    done, total = 0, sum(heads.values())
    if not heads:
        yield "the log has no counters"
    for partition, head in heads.items():
        position, part = 0, sa.select(events).where(events.c.partition == partition)
        async for rows in rows_by_key(connection, part, events.c.position, size=PAGE_ROWS):
            for row in rows:
                if row.position != position + 1:
                    yield f"partition {partition} of the log: {row.position} follows {position}"
                position = row.position
                if not _is_intact(row):
                    yield f"event {position} of partition {partition} is not what was written"
            done += len(rows)
            checked(done, total)
        if position != head:
            yield f"partition {partition} of the log ends at {position}, its counter says {head}"
    strays = sa.select(sa.func.count()).where(events.c.partition.not_in(list(heads)))
    if stray := (await connection.execute(strays)).scalar_one():
        yield f"{stray} events are in a partition that does not exist"


async def _versions(connection: AsyncConnection) -> AsyncIterator[str]:
    key = (events.c.partition, events.c.conversation_id)
    wrong = (
        sa.select(events.c.conversation_id, sa.func.count().label("held"), sa.func.max(events.c.version).label("last"))
        .group_by(*key)
        .having(sa.or_(sa.func.count() != sa.func.max(events.c.version), sa.func.min(events.c.version) != 1))
    )
    for row in await _first_rows(connection, wrong):
        yield f"conversation {row.conversation_id!r} is at version {row.last} and holds {row.held} events"


async def _sequences(connection: AsyncConnection) -> AsyncIterator[str]:
    before = sa.func.lag(events.c.sequence).over(
        partition_by=(events.c.partition, events.c.conversation_id, events.c.origin_id), order_by=events.c.version
    )
    run = sa.select(events, before.label("before")).subquery()
    lane = same_conversation(lanes, run, "origin_id")
    # A gap is where the log had the event already; the lane counts them.
    least = sa.func.coalesce(run.c.before, 0) + 1
    gap = sa.and_(run.c.sequence > least, sa.func.coalesce(lanes.c.duplicates, 0) == 0)
    wrong = (
        sa.select(run.c.conversation_id, run.c.version, run.c.sequence, run.c.before)
        .select_from(run.outerjoin(lanes, lane))
        .where(sa.or_(run.c.sequence < least, gap))
    )
    for row in await _first_rows(connection, wrong):
        yield (
            f"conversation {row.conversation_id!r}, version {row.version}: sequence {row.sequence} of its outbox"
            f" follows {row.before or 0}"
        )


async def _lanes(connection: AsyncConnection) -> AsyncIterator[str]:
    for log in (events, record_ledger):
        last = (
            sa.select(
                *(log.c[name] for name in _LANE_KEY),
                sa.func.min(log.c.sequence).label("first"),
                sa.func.max(log.c.sequence).label("last"),
                sa.func.count().label("held"),
            )
            .group_by(*(log.c[name] for name in _LANE_KEY))
            .subquery()
        )
        own = lanes.c.conversation_id < FIRST_CONVERSATION_ID
        own = own if log is record_ledger else sa.not_(own)
        there = sa.select(lanes).where(own).subquery()
        held = sa.func.coalesce(last.c.held, 0)
        # Without duplicates, the last sequence shows an event that was put in another's place, too.
        moved = sa.and_(there.c.duplicates == 0, there.c.sequence != last.c.last)
        counted = held + there.c.duplicates + there.c.floor
        differ = sa.or_(there.c.sequence.is_(None), there.c.sequence != counted, last.c.first <= there.c.floor, moved)
        for left, right, kind in ((last, there, "lane"), (there, last, "events")):
            same = same_conversation(there, last, "origin_id")
            wrong = sa.select(left.c.conversation_id).select_from(left.outerjoin(right, same)).where(differ)
            for (name,) in await _first_rows(connection, wrong):
                yield f"{lane_subject(name)}: the counter of an outbox does not match its {kind}"
    known = sa.select(origins.c.origin_id)
    unknown = sa.select(sa.func.count()).select_from(lanes).where(lanes.c.origin_id.not_in(known))
    if count := (await connection.execute(unknown)).scalar_one():
        yield f"{count} lanes belong to an unknown outbox"


async def _owners(connection: AsyncConnection) -> AsyncIterator[str]:
    twice = (
        sa.select(conversations.c.owner_id)
        .where(conversations.c.number.is_not(None))
        .group_by(conversations.c.owner_id, conversations.c.number)
        .having(sa.func.count() > 1)
    )
    for (owner_id,) in await _first_rows(connection, twice):
        yield f"two conversations of owner {owner_id!r} have the same number"
    last_number = sa.select(conversations.c.owner_id, sa.func.max(conversations.c.number))
    named = sa.select(conversations.c.partition, conversations.c.conversation_id)
    # Not as a join: an engine that spreads tables has an owner on another host than the conversations.
    async for page in rows_by_key(connection, sa.select(owners), owners.c.partition, owners.c.owner_id, size=PAGE_ROWS):
        of_page = conversations.c.owner_id.in_([owner.owner_id for owner in page])
        numbers = await connection.execute(last_number.where(of_page).group_by(conversations.c.owner_id))
        last = {owner_id: number or 0 for owner_id, number in numbers}
        partitions, names = {owner.active_partition for owner in page}, {owner.active_conversation_id for owner in page}
        active = named.where(
            conversations.c.partition.in_(partitions - {None}), conversations.c.conversation_id.in_(names - {None})
        )
        held = {(None, None), *map(tuple, await connection.execute(active))}
        for owner in page:
            if last.get(owner.owner_id, 0) >= owner.next_number:
                yield f"owner {owner.owner_id!r} would get a conversation number twice"
            if (owner.active_partition, owner.active_conversation_id) not in held:
                yield f"the active conversation of owner {owner.owner_id!r} does not exist"


_ACTIVITY: Final = sa.select(
    events.c.partition, events.c.conversation_id, events.c.version, events.c.origin_id, events.c.metadata
)
_ACTIVATED: Final = _ACTIVITY.where(events.c.type == ConversationActivated.type)
_LEFT: Final = _ACTIVITY.where(events.c.type.in_([ConversationArchived.type, ConversationDeleted.type]))


async def _active_conversations(connection: AsyncConnection) -> AsyncIterator[str]:
    """Yield the owners whose active conversation is not the one that was activated last."""
    # Only if its conversation was archived or deleted since, another one is active; which one is not checked.
    async for page in rows_by_key(connection, sa.select(owners), owners.c.partition, owners.c.owner_id, size=PAGE_ROWS):
        for owner in await _not_activated(connection, page):
            if not await _was_left(connection, owner):
                yield f"the active conversation of owner {owner.owner_id!r} is not the one that was activated last"


async def _not_activated(connection: AsyncConnection, page: Sequence[sa.Row[Any]]) -> list[sa.Row[Any]]:
    """Return the owners whose active conversation does not hold the activation that their rows name."""
    partitions, names = {row.active_partition for row in page}, {row.active_conversation_id for row in page}
    within = _ACTIVATED.where(events.c.partition.in_(partitions - {None}), events.c.conversation_id.in_(names - {None}))
    held = {(row.conversation_id, *_activation(row)) for row in await connection.execute(within)}
    return [
        row
        for row in page
        if (row.active_conversation_id, row.activated_by, row.activated_order) not in held
        and (row.active_conversation_id, row.activated_by) != (None, None)
    ]


async def _was_left(connection: AsyncConnection, owner: sa.Row[Any]) -> bool:
    """Return True if the conversation that was activated last was archived or deleted since."""
    own = sa.and_(same_conversation(conversations, events), conversations.c.owner_id == owner.owner_id)
    activated = _ACTIVATED.join_from(conversations, events, own).where(events.c.origin_id == owner.activated_by)
    for event in (await connection.execute(activated)).all():
        if _activation(event) != (owner.activated_by, owner.activated_order):
            continue
        left = _LEFT.where(
            events.c.partition == event.partition,
            events.c.conversation_id == event.conversation_id,
            events.c.version > event.version,
        )
        if any(conflict_of(row.metadata) is None for row in await connection.execute(left)):
            return True
    return False


def _activation(event: Any) -> tuple[UUID, int | None]:
    """Return the outbox of an activation, and its order there."""
    try:
        order = decode(event.metadata).get(ACTIVATION_ORDER_KEY)
    except ValueError:
        order = None
    return event.origin_id, order if isinstance(order, int) else None


async def _other_tables(connection: AsyncConnection) -> AsyncIterator[str]:
    if connection.dialect.name != "sqlite":
        return
    # Reading every row reveals invalid UTF-8.
    read_before = (events, records, record_parts, record_tags)
    for table in (table for table in metadata.sorted_tables if table not in read_before):
        try:
            async for _ in (await connection.stream(sa.select(table))).partitions(PAGE_ROWS):
                pass
        except UNREADABLE_ERRORS as error:
            yield f"{table.name} cannot be read [{error_code(error)}]"


async def _first_rows(connection: AsyncConnection, statement: Any) -> Sequence[sa.Row[Any]]:
    rows: Sequence[sa.Row[Any]] = (await connection.execute(statement.limit(MAX_NAMED_PROBLEMS))).all()
    return rows


def _checks(checked: Checked) -> tuple[tuple[str, Callable[[AsyncConnection], AsyncIterator[str]]], ...]:
    return (
        ("the structure of the file", _structure),
        ("the log", partial(_log, checked=checked)),
        ("the causes of erasures", erasure_problems),
        ("the versions of conversations", _versions),
        ("the order of each outbox's events", _sequences),
        ("the progress of each outbox", _lanes),
        ("the lists of conversations and owners", _owners),
        ("the active conversations", _active_conversations),
        ("the records", record_problems),
        ("the large content of messages", content_problems),
        ("the other tables", _other_tables),
    )

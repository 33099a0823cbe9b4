"""Soundness: whether an outbox file still holds what was appended to it; reads all of it and changes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.outbox.checks.peek import code_of, peek
from letopis.outbox.file import OUTBOX
from letopis.outbox.schema import metadata
from letopis.store.codec import decode, digest_of
from letopis.store.identifiers import derived_event_id
from letopis.store.migration import State, revision_state
from letopis.store.schema import events as stored_events
from letopis.store.schema import lanes as stored_lanes
from letopis.store.schema import origins as stored_origins
from letopis.store.soundness import NAMED, wal_problem

_EVENTS: Final = (
    "SELECT position, event_id, conversation_id, sequence, type, schema_version, data, metadata, digest, redacted"
    " FROM letopis_outbox_events ORDER BY position"
)
_HOLES: Final = (
    "SELECT l.conversation_id, l.pruned + 1, l.head, count(e.sequence) FROM letopis_outbox_lanes AS l"
    " LEFT JOIN letopis_outbox_events AS e ON e.conversation_id = l.conversation_id"
    " GROUP BY l.conversation_id HAVING count(e.sequence) <> l.head - l.pruned"
    " OR min(e.sequence) <> l.pruned + 1 OR max(e.sequence) <> l.head"
)
_STRAYS: Final = (
    "SELECT count(*) FROM letopis_outbox_events AS e"
    " WHERE NOT EXISTS (SELECT 1 FROM letopis_outbox_lanes AS l WHERE l.conversation_id = e.conversation_id)"
)
_OWED: Final = "SELECT count(*) FROM letopis_outbox_lanes WHERE delivered < head AND owed_since IS NULL"
_COUNTER: Final = (
    "SELECT coalesce((SELECT max(position) FROM letopis_outbox_events), 0)"
    " > coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'letopis_outbox_events'), 0)"
)
_LANES: Final = "SELECT conversation_id, head, delivered FROM letopis_outbox_lanes ORDER BY conversation_id"
_KEPT: Final = (
    "SELECT conversation_id, sequence, event_id, digest, occurred_at, redacted FROM letopis_outbox_events"
    " ORDER BY conversation_id, sequence"
)
_ORIGIN: Final = "SELECT origin_id, epoch FROM letopis_outbox_origin"
UNREADABLE: Final = (SQLAlchemyError, sqlite3.Error, ValueError, TypeError, OverflowError)
"""What comes of reading a damaged file: SQLite's errors, and those of values that are not what they should be."""
_DERIVED: Final = 5  # the UUID version of an id that derives from a message id


@dataclass(frozen=True, slots=True)
class Kept:
    """What the history store may be asked about: the file's identity, lanes and events."""

    origin_id: UUID
    epoch: int
    lanes: Mapping[str, tuple[int, int]]
    events: Mapping[tuple[str, int], tuple[bytes, bytes, int, int]]


def problems(path: Path) -> Iterator[str]:
    """Yield what is wrong with an outbox file: its WAL, its structure, its events and what is counted of them.

    Where the WAL is damaged nothing else is looked at: opening the file would delete what SQLite does not read of it.
    The WAL is read as bytes: not in a process that has the file open. Content is never quoted.
    """
    if problem := wal_problem(path):
        yield problem
        return
    try:
        with peek(path) as connection:
            found = revision_state(connection, OUTBOX)
            if found.state is not State.CURRENT:
                yield found.advice(OUTBOX, command="letopis init")
                return
            for check in (_structure, _events, _lanes, _rest):
                try:
                    yield from check(connection)
                except UNREADABLE as error:
                    yield f"{check.__doc__} cannot be read [{code_of(error)}]"
    except UNREADABLE as error:
        yield f"the file cannot be read [{code_of(error)}]"


def _structure(connection: sa.Connection) -> Iterator[str]:
    """the structure of the file"""
    for (said,) in connection.exec_driver_sql(f"PRAGMA integrity_check({NAMED})").fetchall():
        if said != "ok":
            yield f"SQLite: {said}"


def _events(connection: sa.Connection) -> Iterator[str]:
    """the log"""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(_EVENTS)
        while (row := cursor.fetchone()) is not None:
            if not intact(row[1:]):
                yield f"event {row[3]!r} of conversation {row[2]!r} is not what was appended"
    finally:
        cursor.close()


def intact(row: Sequence[Any]) -> bool:
    """Whether a row of events, from its event id on, without its times, is an event that matches its digest."""
    event_id, conversation_id, sequence, type_name, schema_version, data, metadata, digest, redacted = row
    if not (isinstance(event_id, bytes) and len(event_id) == 16 and isinstance(sequence, int) and sequence > 0):
        return False
    if not (isinstance(conversation_id, str) and isinstance(type_name, str) and isinstance(schema_version, int)):
        return False
    if not (isinstance(data, str) and (metadata is None or isinstance(metadata, str)) and redacted in (0, 1)):
        return False
    if digest_of(conversation_id, type_name, schema_version, data, metadata) != digest:
        return False
    try:
        content = decode(data)
        decode(metadata)
    except ValueError:
        return False
    found = UUID(bytes=event_id)
    message_id = content.get("message_id")
    if type_name != "message.appended" or found.version != _DERIVED or not isinstance(message_id, str):
        return True
    return found == derived_event_id(conversation_id, message_id)


def _lanes(connection: sa.Connection) -> Iterator[str]:
    """what is counted of conversations"""
    for conversation_id, first, last, there in connection.exec_driver_sql(_HOLES).fetchall():
        if there or last >= first:
            yield f"conversation {conversation_id!r} should hold events {first} to {last}, and {there} are there"
    if stray := connection.exec_driver_sql(_STRAYS).scalar_one():
        yield f"{stray} events belong to no conversation that there is"
    if owed := connection.exec_driver_sql(_OWED).scalar_one():
        yield f"{owed} conversations do not know since when they wait"
    if connection.exec_driver_sql(_COUNTER).scalar_one():
        yield "the counter of positions lies behind the log"
    if len(connection.exec_driver_sql(_ORIGIN).fetchall()) != 1:
        yield "the file has lost its identity"


def _rest(connection: sa.Connection) -> Iterator[str]:
    """what else is kept"""
    # Text that is none shows when it is read.
    for table in metadata.sorted_tables:
        connection.execute(sa.select(table)).all()
    yield from ()


def kept_in(path: Path) -> Kept | None:
    """Return what an outbox file can be compared by; ``None`` where it cannot be read."""
    try:
        with peek(path) as connection:
            origin = connection.exec_driver_sql(_ORIGIN).one_or_none()
            lanes = {row[0]: (row[1], row[2]) for row in connection.exec_driver_sql(_LANES).fetchall()}
            events = {
                (row[0], row[1]): (row[2], row[3], row[4], row[5])
                for row in connection.exec_driver_sql(_KEPT).fetchall()
            }
            return None if origin is None else Kept(UUID(bytes=origin[0]), origin[1], lanes, events)
    except UNREADABLE:
        return None


async def differences(kept: Kept, engine: AsyncEngine) -> AsyncIterator[str]:
    """Yield where an outbox and its history store contradict each other.

    The store is the witness for what no digest covers: how far an outbox had got, and when its events happened. What
    it does not hold yet, nobody can vouch for but the file.
    """
    async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
        known = sa.select(stored_origins.c.epoch).where(stored_origins.c.origin_id == kept.origin_id)
        epoch = (await connection.execute(known)).scalar_one_or_none()
        if epoch is None and any(delivered for _, delivered in kept.lanes.values()):
            yield "the history store does not know this outbox, which counts events as delivered"
        elif epoch is not None and epoch > kept.epoch:
            yield f"the history store knows this outbox at epoch {epoch}, the file says {kept.epoch}"
        reached = sa.select(stored_lanes.c.conversation_id, stored_lanes.c.sequence).where(
            stored_lanes.c.origin_id == kept.origin_id
        )
        stored = {row[0]: row[1] for row in (await connection.execute(reached)).all()}
        for conversation_id, (head, delivered) in kept.lanes.items():
            held = stored.get(conversation_id, 0)
            if held > head:
                yield (
                    f"conversation {conversation_id!r}: the history store holds {held} events of this outbox,"
                    f" which ends at {head}"
                )
            if held < delivered:
                yield f"conversation {conversation_id!r}: {delivered} count as delivered, the history store has {held}"
        for conversation_id in stored.keys() - kept.lanes.keys():
            yield f"conversation {conversation_id!r}: the history store has it from this outbox, which does not know it"
        async for problem in _contradicted(kept, connection):
            yield problem


async def _contradicted(kept: Kept, connection: AsyncConnection) -> AsyncIterator[str]:
    one = stored_events
    statement = sa.select(one.c.conversation_id, one.c.sequence, one.c.event_id, one.c.digest, one.c.occurred_at).where(
        one.c.origin_id == kept.origin_id
    )
    async for row in await connection.stream(statement):
        ours = kept.events.get((row.conversation_id, row.sequence))
        if ours is None:
            continue
        changed = row.digest is not None and not ours[3] and bytes(row.digest) != ours[1]
        if changed or ours[0] != row.event_id.bytes or ours[2] != row.occurred_at:
            yield f"event {row.sequence} of conversation {row.conversation_id!r} is another one in the history store"

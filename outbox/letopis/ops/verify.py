"""Check that an outbox file still holds what was appended to it, and compare it with its history store."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.outbox.event_log.bound_store import UNBOUND, StoreBinding, read_binding
from letopis.outbox.event_log.event_ids import UNCOUNTED
from letopis.outbox.event_log.known_erasures import carried_out
from letopis.outbox.event_log.schema import metadata
from letopis.outbox.event_log.statements import iterate
from letopis.outbox.file.inspection import OUTBOX_MIGRATIONS
from letopis.outbox.file.opening import open_read_only
from letopis.outbox.file.sqlite_errors import error_name
from letopis.store.database.dialects import in_batches
from letopis.store.database.migrations import SchemaState, revision_state
from letopis.store.database.schema import events as stored_events
from letopis.store.database.schema import lanes, origins, record_ledger
from letopis.store.database.store_identity import read_identity
from letopis.store.maintenance.continuity import count_log
from letopis.store.model.codec import INTEGER_MAX, decode, digest_of
from letopis.store.model.identifiers import derived_event_id
from letopis.store.model.large_content import LIKE_REFERENCE, content_name, references_in
from letopis.store.model.records import lane_subject, shown_lane
from letopis.store.ops.verify import MAX_NAMED_PROBLEMS, Checked, unheard, wal_problem
from letopis.store.rules.redaction import is_stripped

EVENT_COLUMNS: Final = (
    "e.event_id, l.conversation_id, e.sequence, e.type, e.schema_version, e.data, e.metadata, e.digest, e.salt,"
    " e.redacted"
)
_EVENTS: Final = (
    f"SELECT {EVENT_COLUMNS} FROM letopis_outbox_events AS e JOIN letopis_outbox_lanes AS l ON l.lane = e.lane"  # noqa: S608
    " ORDER BY e.position"
)
_HOLES: Final = (
    "SELECT l.conversation_id, l.pruned + 1, l.head, count(e.sequence) FROM letopis_outbox_lanes AS l"
    " LEFT JOIN letopis_outbox_events AS e ON e.lane = l.lane"
    " GROUP BY l.lane HAVING count(e.sequence) <> l.head - l.pruned"
    " OR min(e.sequence) <> l.pruned + 1 OR max(e.sequence) <> l.head"
)
_COUNT: Final = "SELECT count(*) FROM letopis_outbox_events"
REPORT_EVENTS: Final = 500  # events between two reports of progress
_LOST: Final = f"SELECT {UNCOUNTED} - uncounted FROM letopis_outbox_origin"  # noqa: S608 - ours
_MISCOUNTED: Final = {
    "events belong to no known conversation": "SELECT count(*) FROM letopis_outbox_events AS e"
    " WHERE NOT EXISTS (SELECT 1 FROM letopis_outbox_lanes AS l WHERE l.lane = e.lane)",
    "conversations with pending events lack the time since when": "SELECT count(*) FROM letopis_outbox_lanes"
    " WHERE delivered < head AND pending_since IS NULL",
    "events are not in the index of event ids": "SELECT count(*) FROM letopis_outbox_events AS e,"
    " letopis_outbox_origin AS o WHERE e.position <= o.indexed AND NOT EXISTS (SELECT 1"
    " FROM letopis_outbox_event_ids AS i WHERE i.event_id = e.event_id AND i.position = e.position)",
    "entries of the index of event ids belong to no event": "SELECT count(*) FROM letopis_outbox_event_ids AS i"
    " WHERE i.position > (SELECT indexed FROM letopis_outbox_origin) OR NOT EXISTS (SELECT 1"
    " FROM letopis_outbox_events AS e WHERE e.position = i.position AND e.event_id = i.event_id)",
    "events were appended to conversations that do not count them any more": _LOST,
}
_PUTS: Final = (
    "SELECT l.conversation_id, e.sequence, e.data, b.size, b.body FROM letopis_outbox_events AS e"
    " JOIN letopis_outbox_lanes AS l ON l.lane = e.lane"
    " LEFT JOIN letopis_outbox_record_bodies AS b ON b.position = e.position"
    " WHERE e.type = 'record.put' AND e.redacted = 0"
)
_STRAY_RECORDS: Final = {
    "values of records belong to no event": "SELECT count(*) FROM letopis_outbox_record_bodies AS b"
    " WHERE NOT EXISTS (SELECT 1 FROM letopis_outbox_events AS e WHERE e.position = b.position)",
    "records are not found in the log": "SELECT count(*) FROM letopis_outbox_records AS r WHERE NOT EXISTS (SELECT 1"
    " FROM letopis_outbox_events AS e WHERE e.lane = r.lane AND e.sequence = r.sequence AND e.position = r.position)",
}
_CONTENTS: Final = (
    "SELECT l.conversation_id, c.name, c.size, c.body FROM letopis_outbox_contents AS c"
    " LEFT JOIN letopis_outbox_lanes AS l ON l.lane = c.lane"
)
_STRAY_CONTENTS: Final = {
    "pieces of large content belong to no event": "SELECT count(*) FROM letopis_outbox_contents AS c WHERE NOT EXISTS"
    " (SELECT 1 FROM letopis_outbox_events AS e WHERE e.lane = c.lane AND instr(e.data, c.name)) AND NOT EXISTS"
    " (SELECT 1 FROM letopis_outbox_repairs AS r WHERE instr(r.data, c.name))"
}
_SHOWING: Final = (
    "SELECT conversation_id, sequence, type, data FROM letopis_outbox_log WHERE salt IS NOT NULL AND instr(data, ?)"
)
# Tombstones of lost events come later than those behind them.
_DISORDERED: Final = (
    "SELECT DISTINCT l.conversation_id FROM (SELECT lane, position,"
    " lag(position) OVER (PARTITION BY lane ORDER BY sequence) AS before"
    " FROM letopis_outbox_events WHERE type <> 'event.skipped') AS e"
    " JOIN letopis_outbox_lanes AS l ON l.lane = e.lane WHERE e.position < e.before"
)
_ORIGIN: Final = "SELECT count(*) FROM letopis_outbox_origin"
_DERIVED: Final = 5  # the UUID version of an id that derives from a message id


def find_problems(path: Path, *, checked: Checked = unheard) -> Iterator[str]:
    """Yield the problems of an outbox file, its WAL first; content is never quoted."""
    if problem := wal_problem(path):
        yield problem
        return  # to open the file would delete what SQLite does not read of its WAL
    try:
        with open_read_only(path) as connection:
            revision = revision_state(connection, OUTBOX_MIGRATIONS)
            if revision.state is not SchemaState.CURRENT:
                yield revision.advice(OUTBOX_MIGRATIONS, command="letopis init")
                return
            for check in (_structure, _events, _lanes, record_problems, content_problems, _rest):
                try:
                    yield from _events(connection, checked) if check is _events else check(connection)
                except UNREADABLE as error:
                    yield f"{check.__doc__} cannot be read [{error_name(error)}]"
    except UNREADABLE as error:
        yield f"the file cannot be read [{error_name(error)}]"


def _structure(connection: sa.Connection) -> Iterator[str]:
    """the structure of the file"""
    for (said,) in connection.exec_driver_sql(f"PRAGMA integrity_check({MAX_NAMED_PROBLEMS})").fetchall():
        if said != "ok":
            yield f"SQLite: {said}"


def _events(connection: sa.Connection, checked: Checked = unheard) -> Iterator[str]:
    """the log"""
    total = int(connection.exec_driver_sql(_COUNT).scalar_one())
    for conversation_id, sequence in damaged_events(connection, _EVENTS, lambda done: checked(done, total)):
        yield f"event {sequence!r} of conversation {conversation_id!r} is not what was appended"


def damaged_events(
    connection: sa.Connection, statement: str, checked: Callable[[int], None] = lambda done: None
) -> Iterator[tuple[Any, Any]]:
    """Yield conversation and sequence of the events that do not match their digest."""
    done = 0
    for done, row in enumerate(iterate(connection, statement), 1):
        if not is_intact(row):
            yield row[1], row[2]
        if done % REPORT_EVENTS == 0:
            checked(done)
    checked(done)


def incomplete_lanes(connection: sa.Connection) -> Iterator[str]:
    """Yield the conversations that lack events which they should hold."""
    for conversation_id, first, last, there in connection.exec_driver_sql(_HOLES).fetchall():
        yield f"{lane_subject(conversation_id)} should hold events {first} to {last}, and {there} are there"


def is_intact(row: Sequence[Any]) -> bool:
    """Return True if a row of ``EVENT_COLUMNS`` is an event that matches its digest."""
    event_id, conversation_id, sequence, type_name, schema_version, data, metadata, digest, salt, redacted = row
    if not (isinstance(event_id, bytes) and len(event_id) == 16 and isinstance(sequence, int) and sequence > 0):
        return False
    if not (isinstance(conversation_id, str) and isinstance(type_name, str) and isinstance(schema_version, int)):
        return False
    if not (isinstance(data, str) and (metadata is None or isinstance(metadata, str)) and redacted in (0, 1)):
        return False
    if not (isinstance(digest, bytes) and (isinstance(salt, bytes) or (salt is None and redacted))):
        return False
    try:
        content = decode(data)
        decode(metadata)
    except ValueError:
        return False
    if salt is None:
        if not is_stripped(type_name, data, metadata):
            return False
    elif digest_of(conversation_id, type_name, schema_version, data, metadata, salt) != digest:
        return False
    identifier = UUID(bytes=event_id)
    message_id = content.get("message_id")
    if type_name != "message.appended" or identifier.version != _DERIVED or not isinstance(message_id, str):
        return True
    return identifier == derived_event_id(conversation_id, message_id)


def _lanes(connection: sa.Connection) -> Iterator[str]:
    """the counters of conversations"""
    yield from incomplete_lanes(connection)
    for (conversation_id,) in connection.exec_driver_sql(_DISORDERED).fetchmany(MAX_NAMED_PROBLEMS):
        yield f"the events of conversation {conversation_id!r} are not in the order in which they were appended"
    yield from _counted(connection, _MISCOUNTED)
    if connection.exec_driver_sql(_ORIGIN).scalar_one() != 1:
        yield "the file has lost its identity"


def record_problems(connection: sa.Connection) -> Iterator[str]:
    """the values of records"""
    for lane, sequence, data, size, body in iterate(connection, _PUTS):
        if body is None:
            yield f"{shown_lane(lane)}: the value of event {sequence} is missing"
        elif len(body) != size or sha256(body).hexdigest() != decode(data).get("sha256"):
            yield f"{shown_lane(lane)}: the value of event {sequence} is not what was put"
    yield from _counted(connection, _STRAY_RECORDS)


def content_problems(connection: sa.Connection) -> Iterator[str]:
    """the large content of messages"""
    held = set[tuple[str, str]]()
    for conversation_id, name, size, body in iterate(connection, _CONTENTS):
        held.add((conversation_id, name))
        if len(body) != size or content_name(conversation_id, sha256(body).hexdigest()) != name:
            yield f"conversation {conversation_id!r}: large content of a message is not what was appended"
    for conversation_id, sequence, name, data in iterate(connection, _SHOWING, (LIKE_REFERENCE,)):
        if not all((conversation_id, needed) in held for needed in references_in(name, data)):
            yield f"conversation {conversation_id!r}: the large content of event {sequence} is missing"
    yield from _counted(connection, _STRAY_CONTENTS)


def _counted(connection: sa.Connection, problems: Mapping[str, str]) -> Iterator[str]:
    for said, statement in problems.items():
        if (count := connection.exec_driver_sql(statement).scalar() or 0) > 0:
            yield f"{count} {said}"


def _rest(connection: sa.Connection) -> Iterator[str]:
    """the other tables"""
    # Reading every row reveals invalid UTF-8.
    for table in metadata.sorted_tables:
        connection.execute(sa.select(table)).all()
    yield from ()


async def differences(kept: ReferenceLog, engine: AsyncEngine) -> AsyncIterator[str]:
    """Yield the contradictions between an outbox and its history store."""
    async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
        store_id = (await read_identity(connection)).store_id
        if kept.bound.store_id not in (None, store_id):
            yield f"the file is bound to history store {kept.bound.store_id}, not to {store_id}, which was compared"
            return
        epoch = await stored_epoch(connection, kept.origin_id)
        if epoch is None and any(delivered for _, delivered in kept.lanes.values()):
            yield "the history store does not know this outbox, which counts events as delivered"
        elif epoch is not None and epoch > kept.epoch:
            yield f"the history store knows this outbox at epoch {epoch}, the file says {kept.epoch}"
        stored = await stored_heads(connection, kept.origin_id)
        for conversation_id, (head, delivered) in kept.lanes.items():
            held = stored.get(conversation_id, 0)
            if held > head:
                yield (
                    f"{lane_subject(conversation_id)}: the history store holds {held} events of this outbox,"
                    f" which ends at {head}"
                )
            if held < delivered:
                yield f"{lane_subject(conversation_id)}: {delivered} count as delivered, the history store has {held}"
        for conversation_id in stored.keys() - kept.lanes.keys():
            yield f"{lane_subject(conversation_id)}: the history store has it from this outbox, which lacks it"
        if (log := await count_log(connection, 0, newest=0, length=INTEGER_MAX)).missing:
            yield str(log)
        async for problem in _contradicted(kept, connection, stored):
            yield problem


async def _contradicted(
    kept: ReferenceLog, connection: AsyncConnection, heads: Mapping[str, int]
) -> AsyncIterator[str]:
    seen = set[tuple[str, int]]()
    for log in (stored_events, record_ledger):
        key = (log.c.conversation_id, log.c.sequence, log.c.event_id, log.c.digest)
        occurred = log.c.occurred_at if log is stored_events else sa.null().label("occurred_at")
        async for row in await connection.stream(sa.select(*key, occurred).where(log.c.origin_id == kept.origin_id)):
            ours = kept.events.get((row.conversation_id, row.sequence))
            if ours is None:
                continue
            seen.add((row.conversation_id, row.sequence))
            if bytes(row.digest) != ours[1] or ours[0] != row.event_id.bytes or row.occurred_at not in (None, ours[2]):
                yield f"event {row.sequence} of {lane_subject(row.conversation_id)} differs in the history store"
    trimmed = sa.select(lanes.c.conversation_id, lanes.c.floor).where(lanes.c.origin_id == kept.origin_id)
    floors = {row[0]: row[1] for row in await connection.execute(trimmed.where(lanes.c.floor > 0))}
    # An event that another outbox delivered too is stored under that one, or under an earlier sequence of this one.
    missing = {
        UUID(bytes=event[0]): pair
        for pair, event in kept.events.items()
        if pair not in seen
        and floors.get(pair[0], 0) < pair[1] <= min(kept.lanes.get(pair[0], (0, 0))[1], heads.get(pair[0], 0))
    }
    log = stored_events
    for part in in_batches(missing):
        elsewhere = sa.select(log.c.event_id).where(
            log.c.conversation_id.in_({missing[event_id][0] for event_id in part}), log.c.event_id.in_(part)
        )
        there = set((await connection.execute(elsewhere)).scalars())
        for event_id in part:
            if event_id not in there:
                conversation_id, sequence = missing[event_id]
                yield f"event {sequence} of {lane_subject(conversation_id)} counts as delivered, and no log has it"


_LANES: Final = "SELECT conversation_id, head, delivered FROM letopis_outbox_lanes ORDER BY lane DESC LIMIT ?"
_REFERENCE_EVENTS: Final = (
    "SELECT conversation_id, sequence, event_id, digest, occurred_at, redacted FROM letopis_outbox_log"
    " ORDER BY conversation_id, sequence"
)
_REFERENCE_ORIGIN: Final = "SELECT origin_id, epoch FROM letopis_outbox_origin"
UNREADABLE: Final = (SQLAlchemyError, sqlite3.Error, ValueError, TypeError, OverflowError)
"""Errors of reading a damaged file: SQLite's, and those of values that are not what they should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLog:
    """What the history store can be compared with."""

    origin_id: UUID
    epoch: int
    bound: StoreBinding = UNBOUND
    erasures: Mapping[UUID, int] = field(default_factory=dict)  # that were carried out, and their numbers
    lanes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    events: Mapping[tuple[str, int], tuple[bytes, bytes, int, int]] = field(default_factory=dict)


def read_reference(path: Path, *, newest: int = -1, events: bool = True) -> ReferenceLog | None:
    """Return what an outbox file can be compared by; ``None`` if it cannot be read or was never opened by a bot."""
    try:
        with open_read_only(path) as connection:
            if revision_state(connection, OUTBOX_MIGRATIONS).state is not SchemaState.CURRENT:
                return None
            origin = connection.exec_driver_sql(_REFERENCE_ORIGIN).one_or_none()
            if origin is None:
                return None
            rows = connection.exec_driver_sql(_REFERENCE_EVENTS) if events else ()
            return ReferenceLog(
                origin_id=UUID(bytes=origin[0]),
                epoch=int(origin[1]),
                bound=read_binding(connection),
                erasures=carried_out(connection),
                lanes={row[0]: (row[1], row[2]) for row in connection.exec_driver_sql(_LANES, (newest,))},
                events={(row[0], row[1]): (row[2], row[3], row[4], row[5]) for row in rows},
            )
    except UNREADABLE:
        return None


async def stored_epoch(connection: AsyncConnection, origin_id: UUID) -> int | None:
    """Return the epoch at which the store knows an outbox; ``None`` if it does not."""
    known = sa.select(origins.c.epoch).where(origins.c.origin_id == origin_id)
    return (await connection.execute(known)).scalar_one_or_none()


async def stored_heads(
    connection: AsyncConnection, origin_id: UUID, conversations: Iterable[str] | None = None
) -> dict[str, int]:
    """Return how far the store holds an outbox's conversations; those without an event are missing."""
    known = sa.select(lanes.c.conversation_id, lanes.c.sequence).where(lanes.c.origin_id == origin_id)
    statements = [known]
    if conversations is not None:
        statements = [known.where(lanes.c.conversation_id.in_(part)) for part in in_batches(conversations)]
    heads: dict[str, int] = {}
    for statement in statements:
        heads.update({row[0]: row[1] for row in (await connection.execute(statement)).all()})
    return heads

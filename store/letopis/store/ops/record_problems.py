"""Check that a store's records, and the large content of its messages, are what was put; change nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from itertools import islice
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.schema import events, lanes, record_parts, record_tags, records
from letopis.store.errors import InvalidInput
from letopis.store.model.large_content import CONTENT_TYPES, LIKE_REFERENCE, content_name, references_in
from letopis.store.model.records import CONTENT_SCOPES, Scope, encode_tag, is_record_lane, scope_of
from letopis.store.rules.record_plan import record_digest

_IS_CONTENT: Final = records.c.scope.startswith(CONTENT_SCOPES, autoescape=True)
_CONTENT_SCOPES: Final = sa.select(records.c.partition, records.c.scope).distinct().where(_IS_CONTENT)
_SHOW: Final = (
    events.c.salt.is_not(None),
    events.c.type.in_(CONTENT_TYPES),
    events.c.data.contains(LIKE_REFERENCE),
)
_CONVERSATIONS: Final = sa.select(events.c.partition, events.c.conversation_id).distinct().where(*_SHOW)
_MAX_NAMED_SCOPES: Final = 20
_MAX_BUFFERED_ROWS: Final = 16
"""Rows that the driver reads ahead: each may hold half a MiB."""
_IN_PARTS: Final = sa.and_(
    record_parts.c.partition == records.c.partition,
    record_parts.c.record_id == records.c.record_id,
    records.c.parts > 0,
)
_VALUES: Final = (
    sa.select(records, record_parts.c.body.label("value"))
    .select_from(records.outerjoin(record_parts, _IN_PARTS))
    .order_by(records.c.partition, records.c.record_id, record_parts.c.part)
)
_COVERED: Final = list(records.c)[1:8]
_STRAY_PARTS: Final = (
    sa.select(sa.func.count())
    .select_from(record_parts.outerjoin(records, _IN_PARTS))
    .where(records.c.record_id.is_(None))
)
_SCOPES: Final = (
    sa.select(records.c.scope, sa.func.count().label("held")).where(sa.not_(_IS_CONTENT)).group_by(records.c.scope)
)
_COUNTERS: Final = sa.select(lanes.c.conversation_id, lanes.c.records).where(lanes.c.records != 0)
_TOTALS: Final = sa.select(lanes.c.partition, sa.func.sum(lanes.c.records)).group_by(lanes.c.partition)


async def record_problems(connection: AsyncConnection) -> AsyncIterator[str]:
    """Yield the problems of records: rows that differ from what was put, that are missing, or belong to nothing."""
    held, tags = Counter[int](), 0
    async for row, size, checksum in _records(connection):
        named = True
        if row.scope.startswith(CONTENT_SCOPES):  # which no lane counts
            expected = content_name(row.scope.removeprefix(CONTENT_SCOPES), checksum)
            named = bytes(row.record_key) == expected.encode()
        else:
            held[row.partition] += 1
        if not (named and _is_intact(row, size, checksum)):
            yield f"records of {Scope(row.scope)}: one is not what was put"
        for name, value in _tags_of(row):
            tags ^= hash((row.partition, row.record_id, name, value))
    async for row in await connection.stream(sa.select(record_tags)):
        tags ^= hash((row.partition, row.record_id, bytes(row.name), bytes(row.value)))
    if tags:
        yield f"the rows of {record_tags.name} are not the tags of the records"
    if count := (await connection.execute(_STRAY_PARTS)).scalar_one():
        yield f"{count} rows of {record_parts.name} belong to no record"
    counted = {partition: int(total) for partition, total in await connection.execute(_TOTALS)}
    for partition in sorted(held.keys() | counted.keys()):
        if held[partition] != counted.get(partition, 0):
            async for problem in _miscounted(connection, partition):
                yield problem


async def _records(connection: AsyncConnection) -> AsyncIterator[tuple[sa.Row[Any], int, str]]:
    """Yield the row of each record, with the size and the SHA-256 of its value."""
    record, size, value = None, 0, sha256()
    statement = _VALUES.execution_options(max_row_buffer=_MAX_BUFFERED_ROWS)
    async for row in await connection.stream(statement):
        if record is None or (row.partition, row.record_id) != (record.partition, record.record_id):
            if record is not None:
                yield record, size, value.hexdigest()
            record, size, value = row, 0, sha256()
        part = bytes((row.value if row.parts else row.body) or b"")
        size += len(part)
        value.update(part)
    if record is not None:
        yield record, size, value.hexdigest()


def _is_intact(row: sa.Row[Any], size: int, checksum: str) -> bool:
    try:
        tags = orjson.loads(row.tags) if row.tags else {}
    except ValueError:
        return False
    columns = [row._mapping[column] for column in _COVERED]
    digest = record_digest(row.salt, *columns, tags, checksum, row.updated_at)
    return (size, digest) == (row.size, row.digest)


def _tags_of(row: sa.Row[Any]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the tags of a record as they are in the table by which it is found."""
    try:
        for name, value in (orjson.loads(row.tags) if row.tags else {}).items():
            yield name.encode(), encode_tag(value)
    except (ValueError, AttributeError, InvalidInput):
        return  # not what was put


async def _miscounted(connection: AsyncConnection, partition: int) -> AsyncIterator[str]:
    """Yield the scopes of a partition whose records are more or fewer than their lanes count."""
    counted, held = Counter[str](), Counter[str]()
    for row in await connection.execute(_COUNTERS.where(lanes.c.partition == partition)):
        name = row.conversation_id
        counted[(scope_of(name) if is_record_lane(name) else Scope.conversation(name)).name] += row.records
    for row in await connection.execute(_SCOPES.where(records.c.partition == partition)):
        held[row.scope] = row.held
    wrong = (name for name in sorted(counted.keys() | held.keys()) if counted[name] != held[name])
    for name in islice(wrong, _MAX_NAMED_SCOPES):
        yield f"records of {Scope(name)}: {counted[name]} were put and not removed, {held[name]} are there"


async def content_problems(connection: AsyncConnection) -> AsyncIterator[str]:
    """Yield the conversations with large content that no event shows, or with events whose content is missing."""
    keys = {(row.partition, row.conversation_id) for row in await connection.execute(_CONVERSATIONS)}
    for row in await connection.execute(_CONTENT_SCOPES):
        keys.add((row.partition, row.scope.removeprefix(CONTENT_SCOPES)))
    for partition, conversation_id in sorted(keys):
        shown = set[str]()
        of_conversation = (events.c.partition == partition, events.c.conversation_id == conversation_id)
        statement = sa.select(events.c.type, events.c.data).where(*of_conversation, *_SHOW)
        async for event in await connection.stream(statement):
            shown |= references_in(event.type, event.data)
        own = (records.c.partition == partition, records.c.scope == CONTENT_SCOPES + conversation_id)
        rows = await connection.execute(sa.select(records.c.record_key).where(*own))
        held = {bytes(row.record_key).decode() for row in rows}
        if orphans := held - shown:
            yield f"conversation {conversation_id!r}: {len(orphans)} pieces of large content belong to no event"
        if missing := shown - held:
            yield f"conversation {conversation_id!r}: {len(missing)} pieces of large content are missing"

"""Read records by key and by range, with how far the lanes of an outbox have got."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.schema import record_parts, record_tags, records
from letopis.store.model.records import (
    CONTENT_SCOPES,
    MAX_VALUE_BYTES,
    Media,
    RecordKey,
    RecordRange,
    Scope,
    Tag,
    encode_tag,
    range_end,
)
from letopis.store.rules.record_plan import record_id

ReadLanes = Callable[[AsyncConnection, UUID, Collection[str]], Awaitable[Mapping[str, sa.Row[Any]]]]
_NOT_LISTED: Final = ("partition", "body", "digest", "salt")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecord:
    """A record as the history store holds it."""

    scope: Scope
    place: RecordKey
    revision: UUID
    media: Media
    size: int
    tags: Mapping[str, Tag]
    updated_at: int
    body: bytes | None = None  # None if it was not asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsView:
    """Records of a scope at one moment."""

    records: Sequence[StoredRecord]
    heads: Mapping[str, int] = field(default_factory=dict)  # of the outbox's lanes that were applied by then
    full: bool = False  # more may follow


class RecordReader:
    """Reads records; each method expects a snapshot."""

    def __init__(self, dialect: Dialect, lanes: ReadLanes, *, partitions: int) -> None:
        self._lanes = lanes
        self._partitions = partitions
        self._columns = [column for column in records.c if column.name not in _NOT_LISTED]
        by_id = (records.c.partition == sa.bindparam("at_partition"), dialect.among(records.c.record_id, "ids"))
        self._by_id = sa.select(*self._columns).where(*by_id)
        # A value in the row comes with it.
        self._by_id_whole = self._by_id.add_columns(records.c.body)
        self._inline = sa.select(records.c.record_id, records.c.body).where(*by_id)
        self._parts = (
            sa.select(record_parts.c.body)
            .where(
                record_parts.c.partition == sa.bindparam("at_partition"),
                record_parts.c.record_id == sa.bindparam("record"),
            )
            .order_by(record_parts.c.part)
        )

    async def get(
        self,
        connection: AsyncConnection,
        scope: Scope,
        places: Collection[RecordKey],
        *,
        origin_id: UUID,
        values: bool = True,
    ) -> RecordsView:
        """Return the records under some keys, with their values."""
        partition = scope.partition(self._partitions)
        rows: list[sa.Row[Any]] = []
        statement = self._by_id_whole if values else self._by_id
        for part in in_batches({record_id(scope, key): key for key in places}):
            rows += (await connection.execute(statement, {"at_partition": partition, "ids": part})).all()
        bodies: dict[UUID, bytes] = {}
        if values:
            bodies = {row.record_id: bytes(row.body) for row in rows if not row.parts}
            bodies |= await self._bodies(connection, partition, [row for row in rows if row.parts])
        heads = await self._heads(connection, origin_id, {scope.lane(key[0]) for key in places})
        return RecordsView(records=[_record(row, bodies.get(row.record_id)) for row in rows], heads=heads)

    async def contents(
        self, connection: AsyncConnection, wanted: Mapping[str, Collection[str]]
    ) -> dict[str, dict[str, bytes]]:
        """Return large content of messages by conversation and name, as far as it is there."""
        contents: dict[str, dict[str, bytes]] = {}
        for conversation_id, names in wanted.items():
            scope = Scope.content(conversation_id)
            partition, ids = scope.partition(self._partitions), [record_id(scope, (b"", n.encode())) for n in names]
            rows: list[sa.Row[Any]] = []
            for part in in_batches(ids):
                rows += (await connection.execute(self._by_id, {"at_partition": partition, "ids": part})).all()
            bodies = await self._bodies(connection, partition, rows)
            contents[conversation_id] = {bytes(row.record_key).decode(): bodies[row.record_id] for row in rows}
        return contents

    async def page(
        self,
        connection: AsyncConnection,
        scope: Scope,
        where: RecordRange,
        *,
        limit: int,
        origin_id: UUID,
        values: bool = True,
    ) -> RecordsView:
        """Return the next records of a range; fewer than ``limit`` where their values would take too much memory."""
        partition = scope.partition(self._partitions)
        conditions, parameters = _conditions(where)
        order = (records.c.namespace, records.c.record_key)
        statement = (
            sa.select(*self._columns)
            .where(
                records.c.partition == sa.bindparam("at_partition"),
                records.c.scope == sa.bindparam("at_scope"),
                *conditions,
            )
            .order_by(*(column.desc() for column in order) if where.reverse else order)
            .limit(sa.literal_column(str(limit)))
        )
        parameters |= {"at_partition": partition, "at_scope": scope.name}
        rows: Sequence[sa.Row[Any]] = (await connection.execute(statement, parameters)).all()
        full = len(rows) == limit
        bodies: dict[UUID, bytes] = {}
        if values:
            kept, size = 0, 0
            for row in rows:
                size += row.size
                if kept and size > MAX_VALUE_BYTES:
                    break
                kept += 1
            full = full or kept < len(rows)
            rows = rows[:kept]
            bodies = await self._bodies(connection, partition, rows)
        heads = await self._heads(connection, origin_id, scope.lanes)
        return RecordsView(records=[_record(row, bodies.get(row.record_id)) for row in rows], heads=heads, full=full)

    async def find(
        self,
        connection: AsyncConnection,
        tags: Mapping[str, Tag],
        *,
        limit: int,
        after: tuple[str, RecordKey] | None,
        reverse: bool = False,
        end: bytes | None = None,
    ) -> list[StoredRecord]:
        """Return records without their values, as ``History.records.find`` does."""
        statement = sa.select(*self._columns)
        for name, value in tags.items():
            tag = record_tags.alias()
            same = sa.and_(tag.c.partition == records.c.partition, tag.c.record_id == records.c.record_id)
            held = sa.and_(tag.c.name == name.encode(), tag.c.value == encode_tag(value))
            statement = statement.join(tag, sa.and_(same, held))
        order: list[sa.ColumnElement[Any]] = [records.c.scope, records.c.namespace, records.c.record_key]
        if end is not None:
            statement = statement.where(order[2] < end)
        if after is not None:
            scope, (namespace, key) = after
            beyond = sa.or_(order[0] > scope, sa.and_(order[0] == scope, order[1] > namespace))
            if reverse:
                statement = statement.where(sa.or_(order[2] < key, sa.and_(order[2] == key, beyond)))
            else:
                same = sa.and_(order[0] == scope, order[1] == namespace, order[2] > key)
                statement = statement.where(sa.or_(beyond, same))
        by: list[sa.ColumnElement[Any]] = [order[2].desc(), *order[:2]] if reverse else order
        rows = await connection.execute(statement.order_by(*by).limit(sa.literal_column(str(limit))))
        return [_record(row, None) for row in rows]

    async def scopes(self, connection: AsyncConnection, *, limit: int, after: str = "") -> list[Scope]:
        """Return scopes that hold records, in the order of their names, after one of them."""
        shown = sa.not_(records.c.scope.startswith(CONTENT_SCOPES, autoescape=True))
        statement = sa.select(records.c.scope).distinct().where(records.c.scope > after, shown)
        statement = statement.order_by(records.c.scope)
        rows = await connection.execute(statement.limit(limit))
        return [Scope(row.scope) for row in rows]

    async def _heads(self, connection: AsyncConnection, origin_id: UUID, names: Collection[str]) -> dict[str, int]:
        return {name: row.sequence for name, row in (await self._lanes(connection, origin_id, names)).items()}

    async def _bodies(
        self, connection: AsyncConnection, partition: int, rows: Sequence[sa.Row[Any]]
    ) -> dict[UUID, bytes]:
        bodies: dict[UUID, bytes] = {}
        for part in in_batches(row.record_id for row in rows if not row.parts):
            inline = await connection.execute(self._inline, {"at_partition": partition, "ids": part})
            bodies.update({row.record_id: bytes(row.body) for row in inline})
        for row in rows:
            if row.parts:
                parts = await connection.execute(self._parts, {"at_partition": partition, "record": row.record_id})
                bodies[row.record_id] = b"".join(bytes(body.body) for body in parts)
        return bodies


def _conditions(where: RecordRange) -> tuple[list[sa.ColumnElement[bool]], dict[str, Any]]:
    namespace, key = records.c.namespace, records.c.record_key
    conditions: list[sa.ColumnElement[bool]] = []
    values: dict[str, Any] = {"prefix": where.prefix}
    if where.exact:
        conditions.append(namespace == sa.bindparam("prefix"))
        for name, bound, condition in (
            ("start", where.start, key >= sa.bindparam("start")),
            ("end", where.end, key < sa.bindparam("end")),
        ):
            if bound is not None:
                conditions.append(condition)
                values[name] = bound
    else:
        conditions.append(namespace >= sa.bindparam("prefix"))
        if (end := range_end(where.prefix)) is not None:
            conditions.append(namespace < sa.bindparam("bound"))
            values["bound"] = end
    if where.after is not None:
        at: sa.BindParameter[bytes] = sa.bindparam("at_namespace")
        last: sa.BindParameter[bytes] = sa.bindparam("at_key")
        beyond = (namespace < at, key < last) if where.reverse else (namespace > at, key > last)
        conditions.append(sa.or_(beyond[0], sa.and_(namespace == at, beyond[1])))
        values |= {"at_namespace": where.after[0], "at_key": where.after[1]}
    return conditions, values


def _record(row: sa.Row[Any], body: bytes | None) -> StoredRecord:
    return StoredRecord(
        scope=Scope(row.scope),
        place=(bytes(row.namespace), bytes(row.record_key)),
        revision=row.revision,
        media=Media(row.media),
        size=row.size,
        tags=orjson.loads(row.tags) if row.tags else {},
        updated_at=row.updated_at,
        body=body,
    )

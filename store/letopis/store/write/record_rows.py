"""Write and remove the rows of records, in an open transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.schema import record_ledger, record_parts, record_tags, records
from letopis.store.model.records import MAX_INLINE_BYTES, PART_BYTES, RecordKey, Scope, encode_tag, range_end
from letopis.store.rules.apply_plan import TableRow
from letopis.store.rules.record_plan import RecordChange, record_id
from letopis.store.write.transaction import ApplyTransaction

_MAX_STATEMENT_BYTES: Final = 4 * 1024 * 1024
"""Bytes of values in one statement: MariaDB refuses one of more than ``max_allowed_packet``, 16 MB by default."""
_CLEARED_PER_READ: Final = 500


class RecordRows:
    """Writes and removes records; the statements are compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        at = records.c.partition == sa.bindparam("at_partition")
        self._existing = dialect.locked(
            sa.select(records.c.record_id, records.c.parts, records.c.tags)
            .where(at, dialect.among(records.c.record_id, "ids"))
            .order_by(records.c.record_id)
        )
        self._delete = {
            table.name: sa.delete(table).where(
                table.c.partition == sa.bindparam("at_partition"), dialect.among(table.c.record_id, "ids")
            )
            for table in (records, record_parts, record_tags)
        }
        beyond = sa.and_(records.c.namespace == sa.bindparam("start"), records.c.record_key > sa.bindparam("last"))
        self._under = (
            sa.select(records.c.record_id, records.c.namespace, records.c.record_key)
            .where(
                at,
                records.c.scope == sa.bindparam("at_scope"),
                records.c.namespace >= sa.bindparam("start"),
                sa.or_(records.c.namespace > sa.bindparam("start"), beyond),
            )
            .order_by(records.c.namespace, records.c.record_key)
            .limit(sa.literal_column(str(_CLEARED_PER_READ)))
        )
        self._erase_traces = (
            sa.update(record_ledger)
            .where(
                record_ledger.c.partition == sa.bindparam("at_partition"),
                record_ledger.c.lane == sa.bindparam("at_lane"),
                record_ledger.c.sequence < sa.bindparam("before"),
                record_ledger.c.digest.is_not(None),
            )
            .values(digest=None)
        )

    async def write(
        self, transaction: ApplyTransaction, scope: Scope, final: Mapping[RecordKey, RecordChange | None]
    ) -> None:
        """Bring records to their final values; ``None`` removes one."""
        if not final:
            return
        partition = scope.partition(transaction.partitions)
        wanted = {record_id(scope, place): change for place, change in final.items()}
        existing: dict[UUID, sa.Row[Any]] = {}
        for part in in_batches(sorted(wanted, key=lambda one: one.bytes)):
            rows = await transaction.execute(self._existing, at_partition=partition, ids=part)
            existing.update({row.record_id: row for row in rows})
        await self._remove(transaction, partition, [one for one in existing if wanted[one] is None])
        for table, held in ((record_parts, "parts"), (record_tags, "tags")):
            stale = [one for one, row in existing.items() if wanted[one] is not None and getattr(row, held)]
            for part in in_batches(stale):
                await transaction.execute(self._delete[table.name], at_partition=partition, ids=part)
        new, old = list[TableRow](), list[TableRow]()
        parts, tags = list[TableRow](), list[TableRow]()
        for one in sorted(wanted, key=lambda one: one.bytes):
            if (change := wanted[one]) is None:
                continue
            (old if one in existing else new).append(_row(partition, one, scope, change))
            parts += _parts(partition, one, change)
            tags += [(name.encode(), encode_tag(value), partition, one) for name, value in change.tags.items()]
        await self._in_chunks(transaction, records, new, overwrite=False)
        await self._in_chunks(transaction, records, old, overwrite=True)
        await self._in_chunks(transaction, record_parts, parts, overwrite=False)
        await self._dialect.insert(transaction.connection, record_tags, tags)

    async def clear(self, transaction: ApplyTransaction, scope: str, prefix: bytes, *, lane: str | None = None) -> None:
        """Remove the records of a scope under a prefix, in pages.

        :param lane: those of this lane alone; a space has several.
        """
        owner = Scope(scope)
        partition, end, start = owner.partition(transaction.partitions), range_end(prefix), prefix
        statement = self._under
        if end is not None:
            statement = statement.where(records.c.namespace < sa.bindparam("end"))
        values = {"at_partition": partition, "at_scope": scope, **({} if end is None else {"end": end})}
        last = b""  # before all keys, which are never empty
        while rows := (await transaction.execute(statement, start=start, last=last, **values)).all():
            mine = [
                row.record_id
                for row in rows
                if lane is None or not owner.in_lanes or owner.lane(bytes(row.namespace)) == lane
            ]
            await self._remove(transaction, partition, mine)
            start, last = bytes(rows[-1].namespace), bytes(rows[-1].record_key)

    async def erase_traces(
        self, transaction: ApplyTransaction, scope: str, *, lane: str | None = None, before: int = 2**62
    ) -> None:
        """Take the digests of a scope's changes out of the ledger."""
        partition = Scope(scope).partition(transaction.partitions)
        for name in Scope(scope).lanes if lane is None else (lane,):
            await transaction.execute(self._erase_traces, at_partition=partition, at_lane=name, before=before)

    async def _remove(self, transaction: ApplyTransaction, partition: int, ids: list[UUID]) -> None:
        for part in in_batches(ids):
            for statement in self._delete.values():
                await transaction.execute(statement, at_partition=partition, ids=part)

    async def _in_chunks(
        self, transaction: ApplyTransaction, table: sa.Table, rows: list[TableRow], *, overwrite: bool
    ) -> None:
        """Write rows in statements of a bounded size."""
        run = self._dialect.overwrite if overwrite else self._dialect.insert
        chunk, size = list[TableRow](), 0
        for row in rows:
            octets = sum(len(value) for value in row if isinstance(value, bytes))
            if chunk and size + octets > _MAX_STATEMENT_BYTES:
                await run(transaction.connection, table, chunk)
                chunk, size = [], 0
            chunk.append(row)
            size += octets
        await run(transaction.connection, table, chunk)


def _row(partition: int, one: UUID, scope: Scope, change: RecordChange) -> TableRow:
    body = change.body or b""
    inline = len(body) <= MAX_INLINE_BYTES
    return (
        partition,
        one,
        scope.name,
        change.prefix,
        change.key,
        change.event_id,
        change.media.value,
        len(body),
        0 if inline else -(-len(body) // PART_BYTES),
        body if inline else None,
        orjson.dumps(dict(change.tags)).decode() if change.tags else None,
        change.occurred_at,
    )


def _parts(partition: int, one: UUID, change: RecordChange) -> list[TableRow]:
    body = change.body or b""
    if len(body) <= MAX_INLINE_BYTES:
        return []
    return [
        (partition, one, part, body[start : start + PART_BYTES])
        for part, start in enumerate(range(0, len(body), PART_BYTES))
    ]

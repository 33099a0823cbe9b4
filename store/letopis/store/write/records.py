"""Write what the changes of records come to, in an open transaction: rows, ledger, and what is erased."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.schema import of_conversation, record_ledger, record_parts, record_tags, records
from letopis.store.model.records import (
    MAX_INLINE_BYTES,
    PART_BYTES,
    RecordKey,
    RecordRange,
    Scope,
    encode_tag,
    range_end,
)
from letopis.store.rules.apply_plan import TableRow
from letopis.store.rules.record_plan import SUPERSEDED, RecordChange, plan_changes, record_digest, record_id
from letopis.store.write.lanes import AcceptedLane
from letopis.store.write.transaction import ApplyTransaction

_MAX_STATEMENT_BYTES: Final = 4 * 1024 * 1024
"""Bytes of values in one statement: MariaDB refuses one of more than ``max_allowed_packet``, 16 MB by default."""
_CLEARED_PER_READ: Final = 500


class RecordWriter:
    """Writes and removes records and keeps their ledgers; the statements are compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        at = records.c.partition == sa.bindparam("at_partition")
        self._stored = dialect.locked(
            sa.select(*(records.c[name] for name in ("record_id", "scope", "revision", "parts", "tags")))
            .where(at, dialect.among(records.c.record_id, "ids"))
            .order_by(records.c.record_id)
        )
        self._delete = {
            table: sa.delete(table).where(
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
        self._trim = sa.delete(record_ledger).where(
            *of_conversation(record_ledger),
            record_ledger.c.origin_id == sa.bindparam("origin"),
            record_ledger.c.sequence <= sa.bindparam("floor"),
        )

    async def write(
        self, transaction: ApplyTransaction, accepted: Sequence[AcceptedLane], *, deleted: Collection[str]
    ) -> bool:
        """Write the changes of lanes of records, and trim their ledgers. Return True if content was erased."""
        erased = False
        lanes = [lane for lane in accepted if lane.changes or lane.trims]
        for lane in sorted(lanes, key=lambda lane: transaction.lock_order(lane.conversation_id)):
            if lane.trims:
                await transaction.execute(self._trim, **lane.key, origin=transaction.origin.origin_id, floor=lane.floor)
            if lane.changes:
                lane.gone = lane.gone or lane.scope.conversation_id in deleted
                erased = await self._apply(transaction, lane) or erased
        for lane in accepted:
            if lane.conversation_id in deleted:
                await self._clear(transaction, lane, Scope.conversation(lane.conversation_id), b"")
        return erased

    async def insert(self, transaction: ApplyTransaction, scope: Scope, partition: int, change: RecordChange) -> None:
        """Write a record that is not there yet, and that no lane counts."""
        await self._write_rows(transaction, scope, partition, {change.place: change}, {})

    async def _apply(self, transaction: ApplyTransaction, lane: AcceptedLane) -> bool:
        """Write what the changes of one lane come to. Return True if content was erased."""
        scope, partition, stored = lane.scope, lane.partition, dict[RecordKey, sa.Row[Any]]()
        places = {record_id(scope, change.place): change.place for change in lane.changes if change.key}
        # Sorted as a whole, because all writers lock rows in this order.
        for part in in_batches(_sorted(places)):
            rows = await transaction.execute(self._stored, at_partition=partition, ids=part)
            stored.update({places[row.record_id]: row for row in rows if row.scope == scope.name})
        revisions = {key: row.revision for key, row in stored.items()}
        plan = plan_changes(lane.changes, revisions, gone=lane.gone, held=lane.held)
        lane.conflicts |= dict.fromkeys(sorted(plan.superseded), SUPERSEDED)
        for prefix in plan.cleared:
            await self._clear(transaction, lane, scope, prefix)
            stored = {key: row for key, row in stored.items() if not RecordRange(prefix=prefix).holds(key)}
        await self._write_rows(transaction, scope, partition, plan.final, stored)
        lane.records += sum((change is not None) - (key in stored) for key, change in plan.final.items())
        key = (partition, lane.conversation_id, transaction.origin.origin_id)
        ledger: list[TableRow] = [
            (*key, change.sequence, change.event_id, delivery.event.digest, int(change.sequence in plan.superseded))
            for change, delivery in zip(lane.changes, lane.compared.fresh, strict=True)
        ]
        await self._dialect.insert(transaction.connection, record_ledger, ledger)
        return plan.erases

    async def _write_rows(
        self,
        transaction: ApplyTransaction,
        scope: Scope,
        partition: int,
        final: Mapping[RecordKey, RecordChange | None],
        stored: Mapping[RecordKey, sa.Row[Any]],
    ) -> None:
        """Bring records to their final values; ``None`` removes one."""
        old = {stored[key].record_id: change for key, change in final.items() if key in stored}
        await self.remove(transaction.connection, partition, [key for key, change in old.items() if change is None])
        for table, column in ((record_parts, "parts"), (record_tags, "tags")):
            held = [row.record_id for row in stored.values() if getattr(row, column)]
            await self.remove(
                transaction.connection, partition, [key for key in held if old.get(key) is not None], (table,)
            )
        wanted = {record_id(scope, key): change for key, change in final.items() if change is not None}
        rows = [(key, wanted[key]) for key in _sorted(wanted)]
        new = [_row(partition, key, scope, change) for key, change in rows if key not in old]
        changed = [_row(partition, key, scope, change) for key, change in rows if key in old]
        parts = [part for key, change in rows for part in _parts(partition, key, change)]
        tags = [(name.encode(), encode_tag(tag), partition, key) for key, it in rows for name, tag in it.tags.items()]
        await self._in_chunks(transaction, records, new, overwrite=False)
        await self._in_chunks(transaction, records, changed, overwrite=True)
        await self._in_chunks(transaction, record_parts, parts, overwrite=False)
        await self._dialect.insert(transaction.connection, record_tags, tags)

    async def _clear(self, transaction: ApplyTransaction, lane: AcceptedLane, scope: Scope, prefix: bytes) -> None:
        """Remove the records of a scope under a prefix, in pages; of a space, those of the lane alone."""
        partition, end, start = scope.partition(transaction.partitions), range_end(prefix), prefix
        statement = self._under
        if end is not None:
            statement = statement.where(records.c.namespace < sa.bindparam("end"))
        values = {"at_partition": partition, "at_scope": scope.name, **({} if end is None else {"end": end})}
        last = b""  # before all keys, which are never empty
        while rows := (await transaction.execute(statement, start=start, last=last, **values)).all():
            mine = [
                row.record_id
                for row in rows
                if not scope.in_lanes or scope.lane(bytes(row.namespace)) == lane.conversation_id
            ]
            # Another outbox may have removed some of them since they were read.
            lane.records -= await self.remove(transaction.connection, partition, mine)
            start, last = bytes(rows[-1].namespace), bytes(rows[-1].record_key)

    async def remove(
        self,
        connection: AsyncConnection,
        partition: int,
        ids: Sequence[UUID],
        tables: Iterable[sa.Table] = (records, record_parts, record_tags),
    ) -> int:
        """Remove the rows of records from tables. Return how many were in the table of records."""
        count = 0
        for part in in_batches(ids):
            for table in tables:
                removed = await connection.execute(self._delete[table], {"at_partition": partition, "ids": part})
                count += removed.rowcount if table is records else 0
        return count

    async def _in_chunks(
        self, transaction: ApplyTransaction, table: sa.Table, rows: Sequence[TableRow], *, overwrite: bool
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


def _sorted(ids: Iterable[UUID]) -> list[UUID]:
    return sorted(ids, key=lambda record: record.bytes)


def _row(partition: int, record: UUID, scope: Scope, change: RecordChange) -> TableRow:
    body, salt = change.body or b"", change.salt or b""
    inline = len(body) <= MAX_INLINE_BYTES
    row = (record, scope.name, *change.place, change.event_id, change.media.value, len(body))
    parts = 0 if inline else -(-len(body) // PART_BYTES)
    tags = orjson.dumps(change.tags).decode() if change.tags else None
    digest = record_digest(salt, *row, change.tags, change.checksum, change.occurred_at)
    return (partition, *row, parts, body if inline else None, tags, digest, salt, change.occurred_at)


def _parts(partition: int, record: UUID, change: RecordChange) -> list[TableRow]:
    body = change.body or b""
    if len(body) <= MAX_INLINE_BYTES:
        return []
    return [
        (partition, record, part, body[start : start + PART_BYTES])
        for part, start in enumerate(range(0, len(body), PART_BYTES))
    ]

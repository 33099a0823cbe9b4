"""Copy the rows of one store to another in bounded pages, each read back and compared."""

# One mechanism copies, resumes, repairs and verifies: a page of the source is compared with the target's rows between
# the same keys, and what was written is read back. No progress is stored: the rows tell.

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.schema import (
    checkpoints,
    conversations,
    erasures,
    events,
    holds,
    lanes,
    messages,
    origins,
    owners,
    record_ledger,
    record_parts,
    record_tags,
    records,
    tasks,
)
from letopis.store.errors import MoveFailed
from letopis.store.model.codec import digest_of
from letopis.store.ops.move.endpoint import Endpoint
from letopis.store.search.indexer import CHECKPOINT_NAME as INDEXING

PAGE_ROWS: Final = 1_000
"""Rows in one transaction."""
PAGE_BYTES: Final = 4 * 1024 * 1024
"""Bytes of payloads in one transaction, unless a single row has more."""

RowKey = tuple[Any, ...]
CopiedRow = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class TableSlice:
    """Rows that are copied together, in the order of their key."""

    table: sa.Table
    key: tuple[sa.Column[Any], ...]
    payloads: tuple[sa.Column[Any], ...] = ()
    where: tuple[sa.ColumnElement[bool], ...] = ()

    @cached_property
    def key_of(self) -> Callable[[CopiedRow], RowKey]:
        """A function from a row with the table's columns to its key."""
        indexes = [self.table.columns.keys().index(column.name) for column in self.key]
        return lambda row: tuple(row[index] for index in indexes)


def event_slice(partition: int) -> TableSlice:
    return _partition_slice(events, partition, "position", payloads=("data", "metadata"))


def other_slices(partitions: int) -> tuple[TableSlice, ...]:
    """Return everything else that is copied: what no event says, and what is folded from the events."""
    return (
        TableSlice(table=origins, key=(origins.c.origin_id,)),
        TableSlice(table=erasures, key=(erasures.c.number,)),
        TableSlice(table=holds, key=(holds.c.kind, holds.c.subject)),
        TableSlice(table=owners, key=(owners.c.partition, owners.c.owner_id)),
        TableSlice(
            table=checkpoints,
            key=(checkpoints.c.name, checkpoints.c.version, checkpoints.c.partition),
            where=(checkpoints.c.name != INDEXING,),
        ),
        *(
            _partition_slice(table, number, *key, payloads=payloads)
            for number in range(partitions)
            for table, key, payloads in _IN_PARTITIONS
        ),
    )


_IN_PARTITIONS: Final[tuple[tuple[sa.Table, tuple[str, ...], tuple[str, ...]], ...]] = (
    (conversations, ("conversation_id",), ("title", "metadata")),
    (messages, ("conversation_id", "version"), ()),
    (lanes, ("conversation_id", "origin_id"), ()),
    (tasks, ("conversation_id", "kind", "version"), ()),
    (records, ("record_id",), ("body",)),
    (record_parts, ("record_id", "part"), ("body",)),
    (record_tags, ("name", "value", "record_id"), ()),
    (record_ledger, ("conversation_id", "origin_id", "sequence"), ()),
)


def _partition_slice(table: sa.Table, number: int, *key: str, payloads: tuple[str, ...] = ()) -> TableSlice:
    return TableSlice(
        table=table,
        key=tuple(table.c[name] for name in key),
        payloads=tuple(table.c[name] for name in payloads),
        where=(table.c.partition == number,),
    )


async def copy_rows(
    source: Endpoint, target: Endpoint, part: TableSlice, *, after: RowKey | None = None, until: RowKey | None = None
) -> AsyncIterator[int]:
    """Make the target's rows after a key equal to the source's. Yield the number of rows of each verified page."""
    while True:
        wanted, last = await _page(source, part, after)
        await _reconcile(source, target, part, after, last, wanted)
        yield len(wanted)
        if last is None or (until is not None and last >= until):
            return
        after = last


async def copy_redacted(source: Endpoint, target: Endpoint, part: TableSlice) -> AsyncIterator[int]:
    """Copy the events without a salt again: a redaction, the one change to stored events, removes it."""
    redacted = replace(part, where=(*part.where, events.c.salt.is_(None)))
    after: RowKey | None = None
    while True:
        wanted, last = await _page(source, redacted, after)
        if last is None:
            return
        named = replace(part, where=(*part.where, events.c.position.in_([key[0] for key in wanted])))
        await _reconcile(source, target, named, after, last, wanted)
        yield len(wanted)
        after = last


async def _reconcile(
    source: Endpoint,
    target: Endpoint,
    part: TableSlice,
    after: RowKey | None,
    last: RowKey | None,
    wanted: Mapping[RowKey, CopiedRow],
) -> None:
    """Write what differs, and read it back."""
    stored = await _between(target, part, after, last)
    if stored != wanted:

        async def write(connection: AsyncConnection) -> None:
            dialect, table = target.dialect, part.table
            for key in stored.keys() - wanted.keys():
                same = (column == value for column, value in zip(part.key, key, strict=True))
                await connection.execute(sa.delete(table).where(*part.where, *same))
            changed = [row for key, row in wanted.items() if key in stored and stored[key] != row]
            await dialect.overwrite(connection, table, changed)
            await dialect.insert(connection, table, [row for key, row in wanted.items() if key not in stored])

        await target.write(write)
        stored = await _between(target, part, after, last)
    if part.table is events:
        _check_digests(stored, source.address)
    if stored != wanted:
        raise MoveFailed(
            f"rows of {part.table.name} in {target.address} do not read back as they were written: is there a trigger "
            "or a rule on the table? Drop it and run the move again"
        )


_EVENT_COLUMNS: Final = tuple(events.columns.keys())


def _check_digests(rows: Mapping[RowKey, CopiedRow], source: str) -> None:
    """Compare each event with its digest. A redacted event has no salt and was only compared byte by byte."""
    for row in rows.values():
        event = dict(zip(_EVENT_COLUMNS, row, strict=True))
        named = (event["conversation_id"], event["type"], event["schema_version"])
        content = (event["data"], event["metadata"], event["salt"])
        if event["salt"] is not None and event["digest"] != digest_of(*named, *content):
            raise MoveFailed(
                f"event {event['position']} of partition {event['partition']} is not what was appended:"
                f" run `letopis db verify` on {source}, and restore it from a backup"
            )


async def _page(
    source: Endpoint, part: TableSlice, after: RowKey | None
) -> tuple[dict[RowKey, CopiedRow], RowKey | None]:
    """Return the rows of the page after a key, and the last key, or ``None`` if there is no row."""
    if part.payloads:
        last = await _last_key_of_page(source, part, after)
        return ({} if last is None else await _between(source, part, after, last)), last
    rows = await source.rows(_page_select(source, part, after, part.table))
    return {part.key_of(row): row for row in rows}, part.key_of(rows[-1]) if rows else None


async def _last_key_of_page(source: Endpoint, part: TableSlice, after: RowKey | None) -> RowKey | None:
    """Return the last key of the page after a key, which its payloads bound; ``None`` if there is no row."""
    # Older SQLite has no octet_length; characters are near enough for a bound.
    length = sa.func.length if source.embedded else sa.func.octet_length
    sizes = [sa.func.coalesce(length(column), 0) for column in part.payloads]
    rows = await source.rows(_page_select(source, part, after, *part.key, *sizes))
    total = 0
    for index, row in enumerate(rows):
        total += sum(row[len(part.key) :])
        if total > PAGE_BYTES:
            return rows[max(index - 1, 0)][: len(part.key)]
    return rows[-1][: len(part.key)] if rows else None


def _page_select(source: Endpoint, part: TableSlice, after: RowKey | None, *columns: Any) -> Any:
    return sa.select(*columns).where(*part.where, *_after(source, part.key, after)).order_by(*part.key).limit(PAGE_ROWS)


async def _between(
    end: Endpoint, part: TableSlice, after: RowKey | None, last: RowKey | None
) -> dict[RowKey, CopiedRow]:
    """Return the rows after a key up to the key ``last``, or all if there is none."""
    upto = () if last is None else (_compare(end, part.key, last, "<="),)
    rows = sa.select(part.table).where(*part.where, *_after(end, part.key, after), *upto)
    return {part.key_of(row): row for row in await end.rows(rows)}


def _after(end: Endpoint, key: Sequence[sa.Column[Any]], after: RowKey | None) -> tuple[sa.ColumnElement[bool], ...]:
    return () if after is None else (_compare(end, key, after, ">"),)


def _compare(end: Endpoint, key: Sequence[sa.Column[Any]], values: RowKey, operator: str) -> sa.ColumnElement[bool]:
    """Return the comparison of a key with values, in the order of the index."""
    if not end.row_ranges:
        return _compare_by_column(key, values, operator)
    bound = [sa.bindparam(None, value, type_=column.type) for column, value in zip(key, values, strict=True)]
    if len(key) == 1:
        return key[0].op(operator, is_comparison=True)(bound[0])
    return sa.tuple_(*key).op(operator, is_comparison=True)(sa.tuple_(*bound))


def _compare_by_column(key: Sequence[sa.Column[Any]], values: RowKey, operator: str) -> sa.ColumnElement[bool]:
    column, value = key[0], values[0]
    if len(key) == 1:
        return column.op(operator, is_comparison=True)(value)
    past = column > value if operator == ">" else column < value
    return sa.or_(past, sa.and_(column == value, _compare_by_column(key[1:], values[1:], operator)))

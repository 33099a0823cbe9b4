"""Find out that PostgreSQL spreads the tables over hosts, and name the partition for Citus in each statement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, groupby
from typing import Any, ClassVar, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList
from sqlalchemy.sql.selectable import Subquery

from letopis.store.database.dialects import (
    LOG_IDLE_SECONDS,
    MIN_COPY_ROWS,
    Dialect,
    PostgreSQL,
    check_row_count,
    dialect_for,
    in_batches,
    reading,
)
from letopis.store.database.schema import log_heads
from letopis.store.rules.apply_plan import Origin, TableRow

T = TypeVar("T")

INSTALLED: Final = "SELECT 1 FROM pg_extension WHERE extname = 'citus'"


async def dialect_of(engine: AsyncEngine) -> Dialect:
    """Return the dialect of the database that an engine leads to, once it was asked whether it has Citus."""
    if engine.dialect.name == "postgresql":
        async with reading(engine) as connection:
            if (await connection.exec_driver_sql(INSTALLED)).first() is not None:
                compiler = engine.dialect.statement_compiler
                if not issubclass(compiler, _NamesPartitions):
                    engine.dialect.statement_compiler = type("CitusCompiler", (_NamesPartitions, compiler), {})
                return Citus()
    return dialect_for(engine.dialect.name)


class Citus(PostgreSQL):
    """Statements that one host runs: each locks, inserts or overwrites rows of one partition."""

    # Citus refuses to lock rows of several partitions, and takes WITH and INSERT of a SELECT to every host. A COPY does
    # not pass on the code with which a host refuses a row.
    duplicate_codes: ClassVar[tuple[str, ...]] = ("23", "XX000")
    spreads: ClassVar[bool] = True
    joins_pages: ClassVar[bool] = False

    async def begin_apply(self, connection: AsyncConnection) -> None:
        await super().begin_apply(connection)
        await connection.execute(self.shared(_held))

    async def hold(self, connection: AsyncConnection, partitions: Iterable[int]) -> None:
        statement = self.shared(_held).where(log_heads.c.partition == sa.bindparam("held"))
        for number in sorted(partitions):
            await connection.execute(statement, {"held": number})

    def lockable(self, names: Iterable[T], partition_of: Callable[[T], int]) -> list[list[T]]:
        return [part for _, named in groupby(names, key=partition_of) for part in in_batches(named)]

    async def lock_heads(self, connection: AsyncConnection, partitions: Iterable[int]) -> Sequence[sa.Row[Any]]:
        """Lock one counter a statement. Its host ends a transaction that stands still."""
        statement = self.shared(_locked_head)
        counters = list[sa.Row[Any]]()
        for number in sorted(partitions):
            counters += (await connection.execute(statement, {"partition": number})).all()
        return counters

    async def insert(self, connection: AsyncConnection, table: sa.Table, rows: Sequence[TableRow]) -> None:
        if not rows or len(rows) >= MIN_COPY_ROWS:
            await super().insert(connection, table, rows)
            return
        places = count(1)
        marks = ", ".join(f"({', '.join(f'${next(places)}' for _ in row)})" for row in rows)
        names = ", ".join(table.columns.keys())
        text = f"INSERT INTO {table.name} ({names}) VALUES {marks}"  # noqa: S608
        inserted = await connection.exec_driver_sql(text, tuple(chain.from_iterable(rows)))
        check_row_count(table, inserted.rowcount, len(rows))

    async def overwrite(self, connection: AsyncConnection, table: sa.Table, rows: Sequence[TableRow]) -> None:
        key = list(table.columns.keys()).index("partition") if "partition" in table.columns else None
        for _, part in groupby(rows, key=lambda row: None if key is None else row[key]):
            await super().overwrite(connection, table, list(part))

    async def append_to_log(
        self, connection: AsyncConnection, added: Mapping[int, int], rows: Sequence[TableRow], *, origin: Origin
    ) -> Mapping[int, int]:
        return await Dialect.append_to_log(self, connection, added, rows, origin=origin)


def _held(_: Dialect) -> sa.Update:
    # While a host hands partitions over, a transaction that has locked rows there, and only read, would write to what
    # the host keeps of them, which is deleted. An UPDATE, even of no row, has the other host wait for the transaction.
    return sa.update(log_heads).where(log_heads.c.position < 0).values(position=log_heads.c.position)


def _locked_head(dialect: Dialect) -> sa.Select[Any]:
    limit = round(LOG_IDLE_SECONDS * 1000)
    settings = {"idle_in_transaction_session_timeout": f"{limit}", "synchronous_commit": "on"}
    own = (sa.func.set_config(name, value, True) for name, value in settings.items())
    return dialect.locked(sa.select(log_heads, *own).where(log_heads.c.partition == sa.bindparam("partition")))


class _NamesPartitions(SQLCompiler):
    """Names the bound partition where tables have equal ones: Citus infers none across a LIMIT or a scalar subquery."""

    _bounds: Mapping[Any, Any] | None = None

    def visit_binary(self, binary: BinaryExpression[Any], *arguments: Any, **options: Any) -> str:
        process: Callable[..., str] = super().visit_binary
        text = process(binary, *arguments, **options)
        if _is_pair(binary):
            if self._bounds is None:
                self._bounds = _bound_partitions(self.statement)
            bound = self._bounds.get(_table_of(binary.left))
            if bound is not None:
                sides = (process(side == bound, **options) for side in (binary.left, binary.right))
                return " AND ".join((text, *sides))
        return text


def _bound_partitions(statement: Any) -> Mapping[Any, Any]:
    """Return the partition that a statement binds, by each table whose rows it thereby restricts."""
    bounds, pairs = dict[Any, Any](), list[tuple[Any, Any]]()
    for element in visitors.iterate(statement):
        for condition in chain(*(_conditions(getattr(element, name, None)) for name in ("whereclause", "onclause"))):
            if _is_pair(condition):
                pairs.append((_table_of(condition.left), _table_of(condition.right)))
            elif _is_partition(condition.left) and condition.operator is operators.eq:
                bounds[_table_of(condition.left)] = condition.right
    for _ in pairs:
        for one, other in chain(pairs, [pair[::-1] for pair in pairs]):
            if one in bounds:
                bounds.setdefault(other, bounds[one])
    return bounds


def _conditions(clause: Any) -> Iterator[BinaryExpression[Any]]:
    """Yield the conditions that all hold."""
    if isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
        for part in clause.clauses:
            yield from _conditions(part)
    elif isinstance(clause, BinaryExpression):
        yield clause


def _is_partition(side: Any) -> bool:
    return isinstance(side, sa.ColumnClause) and side.name == "partition"


def _is_pair(condition: BinaryExpression[Any]) -> bool:
    return condition.operator is operators.eq and _is_partition(condition.left) and _is_partition(condition.right)


def _table_of(column: Any) -> Any:
    table = column.table
    while isinstance(table, Subquery):
        table = table.element.selected_columns["partition"].table
    return table

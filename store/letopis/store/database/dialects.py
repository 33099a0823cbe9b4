"""Write, lock and look up many rows at once in the ways of SQLite, PostgreSQL and MariaDB."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Final, TypeVar
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.schema import MediumBlob, Uuid16
from letopis.store.errors import ConfigurationError
from letopis.store.rules.apply_plan import TableRow

_MAX_LOOKUP_VALUES: Final = 1_000
"""Values in one lookup. SQLite takes 32,766 parameters; shorter statements stay in the caches."""
Statement = TypeVar("Statement", bound=sa.GenerativeSelect)
Statements = TypeVar("Statements")

_MIN_COPY_ROWS: Final = 50
"""Rows from which PostgreSQL's COPY is worth its two additional round trips."""


class Dialect(ABC):
    """One kind of database.

    Rows are tuples in the order of the table's columns, ids as :class:`~uuid.UUID`.
    """

    _built: ClassVar[dict[tuple[type[Dialect], Any], Any]] = {}

    def __init__(self) -> None:
        self._inserts: dict[str, str] = {}
        self._overwrites: dict[str, str] = {}

    def shared(self, build: Callable[[Any], Statements]) -> Statements:
        """Return the statements that ``build`` makes for this kind of database, made once a process.

        Building selects takes longer than all else that opens a store does.
        """
        key = (type(self), build)
        if key not in self._built:
            self._built[key] = build(self)
        statements: Statements = self._built[key]
        return statements

    async def begin_apply(self, connection: AsyncConnection) -> None:  # noqa: B027 - not every database needs it
        """Set what the transaction of an apply needs beyond the connection's settings."""

    @asynccontextmanager
    async def transaction(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """Run the transaction of an apply, and commit it unless the block raises."""
        with translated():
            async with engine.connect() as connection:
                await self.begin_apply(connection)
                yield connection
                with translated(committing=True):
                    await connection.commit()

    async def begin_snapshot(self, connection: AsyncConnection) -> None:
        """Begin a transaction whose statements all see one state of the database, on a connection without one."""
        await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")

    def locked(self, statement: Statement) -> Statement:
        """Return the statement that locks the rows it finds until the end of the transaction."""
        return statement.with_for_update()

    def among(self, column: sa.Column[Any], name: str) -> sa.ColumnElement[bool]:
        """Return the condition that ``column`` is one of the values bound as ``name``."""
        return column.in_(sa.bindparam(name, expanding=True))

    async def insert(self, connection: AsyncConnection, table: sa.Table, rows: Sequence[TableRow]) -> None:
        """Insert new rows."""
        if rows:
            if (statement := self._inserts.get(table.name)) is None:
                statement = self._inserts[table.name] = self._insert(table)
            check_row_count(table, await self._run(connection, statement, table, rows), len(rows))

    async def overwrite(self, connection: AsyncConnection, table: sa.Table, rows: Sequence[TableRow]) -> None:
        """Overwrite existing, locked rows, found by primary key."""
        if rows:
            if (statement := self._overwrites.get(table.name)) is None:
                statement = self._overwrites[table.name] = self._overwrite(table)
            taken = await self._run(connection, statement, table, rows)
            check_row_count(table, taken, len(rows), most=self.counts_per_overwrite * len(rows))

    counts_per_overwrite: ClassVar[int] = 1
    """How often the database counts an overwritten row at most; a row that was not is counted 0 times."""

    @abstractmethod
    def _insert(self, table: sa.Table) -> str: ...

    @abstractmethod
    def _overwrite(self, table: sa.Table) -> str: ...

    @abstractmethod
    async def _run(self, connection: AsyncConnection, statement: str, table: sa.Table, rows: Sequence[TableRow]) -> int:
        """Run a statement and return the number of rows that the database reports."""


class _JsonList(sa.types.TypeDecorator[list[Any]]):
    """Values of one parameter, as JSON."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: list[Any] | None, dialect: sa.Dialect) -> str | None:
        """Encode the values for the driver."""
        return None if value is None else orjson.dumps(value).decode()


class SQLite(Dialect):
    """One writer at a time: ``BEGIN IMMEDIATE`` is the lock."""

    async def begin_snapshot(self, connection: AsyncConnection) -> None:
        """Do nothing: a reader's transaction is a snapshot from its first statement on."""

    def locked(self, statement: Statement) -> Statement:
        """Return the statement unchanged: the transaction locks the whole file."""
        return statement

    def among(self, column: sa.Column[Any], name: str) -> sa.ColumnElement[bool]:
        """Return the condition with the values bound as JSON: one statement for any number of values."""
        if isinstance(column.type, Uuid16):  # JSON holds no bytes
            return super().among(column, name)
        values = sa.func.json_each(sa.bindparam(name, type_=_JsonList)).table_valued("value")
        return column.in_(sa.select(values.c.value))

    def _insert(self, table: sa.Table) -> str:
        names = _names(table)
        return f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608

    def _overwrite(self, table: sa.Table) -> str:
        # Numbered, so that keys and values bind from one tuple in the order of the columns.
        place = {column.name: f"?{index}" for index, column in enumerate(table.columns, 1)}
        return (
            f"UPDATE {table.name} SET {', '.join(f'{name} = {place[name]}' for name in _values(table))} "  # noqa: S608
            f"WHERE {' AND '.join(f'{name} = {place[name]}' for name in _keys(table))}"
        )

    async def _run(self, connection: AsyncConnection, statement: str, table: sa.Table, rows: Sequence[TableRow]) -> int:
        return (await connection.exec_driver_sql(statement, _with_bytes(table, rows))).rowcount


class PostgreSQL(Dialect):
    """Unnested arrays: one round trip and one plan for any number of rows; COPY for many."""

    async def begin_apply(self, connection: AsyncConnection) -> None:
        """Wait for the disk at COMMIT, so that a crash of the server loses no acknowledged event."""
        await connection.exec_driver_sql("SET LOCAL synchronous_commit = on")

    def among(self, column: sa.Column[Any], name: str) -> sa.ColumnElement[bool]:
        """Return ``column = ANY(:name)``: one statement for any number of values."""
        return column == sa.any_(sa.bindparam(name, type_=sa.ARRAY(column.type)))

    def _insert(self, table: sa.Table) -> str:
        return f"INSERT INTO {table.name} ({', '.join(_names(table))}) SELECT * FROM {_unnest(table)}"  # noqa: S608

    def _overwrite(self, table: sa.Table) -> str:
        names = _names(table)
        conditions = [f"t.{name} = v.{name}" for name in _keys(table)]
        if "partition" in names:
            # A join alone names no partition: each part of a divided table would be locked and scanned.
            conditions.append(f"t.partition = ANY(${names.index('partition') + 1})")
        return (
            f"UPDATE {table.name} AS t SET {', '.join(f'{name} = v.{name}' for name in _values(table))} "  # noqa: S608
            f"FROM {_unnest(table)} AS v ({', '.join(names)}) WHERE {' AND '.join(conditions)}"
        )

    async def insert(self, connection: AsyncConnection, table: sa.Table, rows: Sequence[TableRow]) -> None:
        """Insert new rows; many of them by COPY, which is faster."""
        if len(rows) < _MIN_COPY_ROWS:
            await super().insert(connection, table, rows)
            return
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        try:
            # By the driver's own method, in the transaction that begin_apply() has begun.
            status = await driver.copy_records_to_table(table.name, records=rows, columns=_names(table))
        except Exception as error:  # raised as SQLAlchemy would; other errors pass unchanged
            if str(getattr(error, "sqlstate", "")).startswith("23"):
                raise IntegrityError(None, None, error) from error
            raise
        check_row_count(table, int(str(status).rpartition(" ")[2]), len(rows))

    async def _run(self, connection: AsyncConnection, statement: str, table: sa.Table, rows: Sequence[TableRow]) -> int:
        columns = tuple(list(column) for column in zip(*rows, strict=True))
        return (await connection.exec_driver_sql(statement, columns)).rowcount


class MariaDB(Dialect):
    """Many rows in one ``VALUES``, which the driver builds."""

    counts_per_overwrite: ClassVar[int] = 2
    """``ON DUPLICATE KEY UPDATE`` counts a row that changed twice, and with FOUND_ROWS one that did not change once."""

    def _insert(self, table: sa.Table) -> str:
        names = _names(table)
        return (
            f"INSERT INTO {table.name} ({', '.join(f'`{name}`' for name in names)}) "  # noqa: S608
            f"VALUES ({', '.join(['%s'] * len(names))})"
        )

    def _overwrite(self, table: sa.Table) -> str:
        # The rows exist and are locked, so this never inserts. One UPDATE per row would be one round trip per row.
        values = ", ".join(f"`{name}` = VALUES(`{name}`)" for name in _values(table))
        return f"{self._insert(table)} ON DUPLICATE KEY UPDATE {values}"

    async def _run(self, connection: AsyncConnection, statement: str, table: sa.Table, rows: Sequence[TableRow]) -> int:
        return (await connection.exec_driver_sql(statement, _with_bytes(table, rows))).rowcount


def dialect_for(name: str) -> Dialect:
    """Return the dialect by SQLAlchemy's name of the database."""
    match name:
        case "sqlite":
            return SQLite()
        case "postgresql":
            return PostgreSQL()
        case "mysql" | "mariadb":
            return MariaDB()
    raise ConfigurationError(f"{name} is not supported: use SQLite, PostgreSQL or MariaDB")


def check_row_count(table: sa.Table, taken: int, planned: int, *, most: int | None = None) -> None:
    """Compare the number of rows that a statement wrote with the planned one."""
    if planned <= taken <= (planned if most is None else most):
        return
    raise StoreFault(
        fault_class=FaultClass.MISCONFIGURED,
        code="rows",
        reason=f"{table.name} took {taken} of {planned} rows: a trigger, rule or policy on it drops them: remove it;"
        " nothing was written",
    )


def in_batches(values: Iterable[Any]) -> Iterable[list[Any]]:
    """Split values into lists that one lookup takes."""
    listed = list(values)
    return (listed[start : start + _MAX_LOOKUP_VALUES] for start in range(0, len(listed), _MAX_LOOKUP_VALUES))


def _names(table: sa.Table) -> list[str]:
    return [column.name for column in table.columns]


def _keys(table: sa.Table) -> list[str]:
    return [column.name for column in table.primary_key.columns]


def _values(table: sa.Table) -> list[str]:
    return [column.name for column in table.columns if not column.primary_key]


def _with_bytes(table: sa.Table, rows: Sequence[TableRow]) -> list[TableRow]:
    """Return the rows with ids as the 16 bytes that the driver takes."""
    places = [index for index, column in enumerate(table.columns) if isinstance(column.type, Uuid16)]
    if not places:
        return list(rows)
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
    for index in places:
        columns[index] = [value.bytes if isinstance(value, UUID) else value for value in columns[index]]
    return list(zip(*columns, strict=True))


def _unnest(table: sa.Table) -> str:
    arrays = ", ".join(f"${index}::{_array(column)}" for index, column in enumerate(table.columns, 1))
    return f"unnest({arrays})"


def _array(column: sa.Column[Any]) -> str:
    match column.type:
        case Uuid16():
            return "uuid[]"
        case sa.LargeBinary() | MediumBlob():
            return "bytea[]"
        case sa.BigInteger():
            return "bigint[]"
        case sa.SmallInteger():
            return "smallint[]"
        case sa.Integer():
            return "integer[]"
        case _:
            return "text[]"

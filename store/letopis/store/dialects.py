"""Dialects: the few differences between SQLite, PostgreSQL and MariaDB, each as set-based statements made once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.errors import ConfigurationError
from letopis.store.plan import Row
from letopis.store.schema import Uuid16

_LOOKUP: Final = 1_000
"""Values in one lookup; SQLite takes 32,766 parameters, and short statements stay in the caches."""
Statement = TypeVar("Statement", bound=sa.GenerativeSelect)

_COPY: Final = 50
"""Rows from which on PostgreSQL's COPY is worth its two more round trips."""


class Dialect(ABC):
    """How one kind of database locks, looks up and writes many rows at once.

    Rows are tuples in the order of the table's columns, ids as :class:`~uuid.UUID`.
    """

    def __init__(self) -> None:
        self._inserts: dict[str, str] = {}
        self._overwrites: dict[str, str] = {}

    async def begin_apply(self, connection: AsyncConnection) -> None:  # noqa: B027 - not every database needs it
        """Set what one transaction of an apply needs beyond the connection's own settings."""

    async def begin_snapshot(self, connection: AsyncConnection) -> None:
        """Begin a transaction of which all statements see one state of the database, on a connection without one."""
        await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")

    def locked(self, statement: Statement) -> Statement:
        """Return ``statement`` so that the rows it finds stay locked until the end of the transaction."""
        return statement.with_for_update()

    def among(self, column: sa.Column[Any], name: str) -> sa.ColumnElement[bool]:
        """Return the condition that ``column`` is one of the values bound as ``name``."""
        return column.in_(sa.bindparam(name, expanding=True))

    async def insert(self, connection: AsyncConnection, table: sa.Table, rows: Sequence[Row]) -> None:
        """Insert rows that are not there yet; an :class:`sqlalchemy.exc.IntegrityError` if one is."""
        if rows:
            if (statement := self._inserts.get(table.name)) is None:
                statement = self._inserts[table.name] = self._insert(table)
            await self._run(connection, statement, table, rows)

    async def overwrite(self, connection: AsyncConnection, table: sa.Table, rows: Sequence[Row]) -> None:
        """Give rows that are there, and locked, the values of ``rows``, found by primary key."""
        if rows:
            if (statement := self._overwrites.get(table.name)) is None:
                statement = self._overwrites[table.name] = self._overwrite(table)
            await self._run(connection, statement, table, rows)

    @abstractmethod
    def _insert(self, table: sa.Table) -> str: ...

    @abstractmethod
    def _overwrite(self, table: sa.Table) -> str: ...

    @abstractmethod
    async def _run(self, connection: AsyncConnection, statement: str, table: sa.Table, rows: Sequence[Row]) -> None: ...


class SQLite(Dialect):
    """One writer at a time: ``BEGIN IMMEDIATE`` is the lock."""

    async def begin_snapshot(self, connection: AsyncConnection) -> None:
        """Do nothing: a reader's transaction is a snapshot from its first statement on."""

    def locked(self, statement: Statement) -> Statement:
        """Return ``statement`` as it is: the transaction holds the whole file."""
        return statement

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

    async def _run(self, connection: AsyncConnection, statement: str, table: sa.Table, rows: Sequence[Row]) -> None:
        await connection.exec_driver_sql(statement, _with_bytes(table, rows))


class PostgreSQL(Dialect):
    """Arrays, unnested: one round trip and one plan for any number of rows; COPY for many."""

    async def begin_apply(self, connection: AsyncConnection) -> None:
        """Wait for the disk at COMMIT; else a crash of the server loses what was acknowledged."""
        await connection.exec_driver_sql("SET LOCAL synchronous_commit = on")

    def among(self, column: sa.Column[Any], name: str) -> sa.ColumnElement[bool]:
        """Return ``column = ANY(:name)``, one statement for any number of values."""
        return column == sa.any_(sa.bindparam(name, type_=sa.ARRAY(column.type)))

    def _insert(self, table: sa.Table) -> str:
        return f"INSERT INTO {table.name} ({', '.join(_names(table))}) SELECT * FROM {_unnest(table)}"  # noqa: S608

    def _overwrite(self, table: sa.Table) -> str:
        names = ", ".join(_names(table))
        return (
            f"UPDATE {table.name} AS t SET {', '.join(f'{name} = v.{name}' for name in _values(table))} "  # noqa: S608
            f"FROM {_unnest(table)} AS v ({names}) "
            f"WHERE {' AND '.join(f't.{name} = v.{name}' for name in _keys(table))}"
        )

    async def insert(self, connection: AsyncConnection, table: sa.Table, rows: Sequence[Row]) -> None:
        """Insert rows that are not there yet; many of them by COPY, which is half as fast again."""
        if len(rows) < _COPY:
            await super().insert(connection, table, rows)
            return
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        try:
            # By the driver's own method, in the transaction that is open: begin_apply() has begun it.
            await driver.copy_records_to_table(table.name, records=rows, columns=_names(table))
        except Exception as error:  # what SQLAlchemy would have made of it; the rest is translated as it is
            if str(getattr(error, "sqlstate", "")).startswith("23"):
                raise IntegrityError(None, None, error) from error
            raise

    async def _run(self, connection: AsyncConnection, statement: str, table: sa.Table, rows: Sequence[Row]) -> None:
        await connection.exec_driver_sql(statement, tuple(list(column) for column in zip(*rows, strict=True)))


class MariaDB(Dialect):
    """Many rows in one ``VALUES``; the driver puts them together."""

    def _insert(self, table: sa.Table) -> str:
        names = _names(table)
        return (
            f"INSERT INTO {table.name} ({', '.join(f'`{name}`' for name in names)}) "  # noqa: S608
            f"VALUES ({', '.join(['%s'] * len(names))})"
        )

    def _overwrite(self, table: sa.Table) -> str:
        # The rows are there and locked, so this never inserts; an UPDATE a row would be a round trip a row.
        values = ", ".join(f"`{name}` = VALUES(`{name}`)" for name in _values(table))
        return f"{self._insert(table)} ON DUPLICATE KEY UPDATE {values}"

    async def _run(self, connection: AsyncConnection, statement: str, table: sa.Table, rows: Sequence[Row]) -> None:
        await connection.exec_driver_sql(statement, _with_bytes(table, rows))


def dialect_for(name: str) -> Dialect:
    """Return the dialect of a database by SQLAlchemy's name of it.

    :raises ConfigurationError: it is none of the three.
    """
    match name:
        case "sqlite":
            return SQLite()
        case "postgresql":
            return PostgreSQL()
        case "mysql" | "mariadb":
            return MariaDB()
    raise ConfigurationError(f"{name} is not supported: use SQLite, PostgreSQL or MariaDB")


def lookups(values: Iterable[Any]) -> Iterable[list[Any]]:
    """Part ``values`` into lists that one lookup takes."""
    listed = list(values)
    return (listed[start : start + _LOOKUP] for start in range(0, len(listed), _LOOKUP))


def _names(table: sa.Table) -> list[str]:
    return [column.name for column in table.columns]


def _keys(table: sa.Table) -> list[str]:
    return [column.name for column in table.primary_key.columns]


def _values(table: sa.Table) -> list[str]:
    return [column.name for column in table.columns if not column.primary_key]


def _with_bytes(table: sa.Table, rows: Sequence[Row]) -> list[Row]:
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
        case sa.LargeBinary():
            return "bytea[]"
        case sa.BigInteger():
            return "bigint[]"
        case sa.SmallInteger():
            return "smallint[]"
        case sa.Integer():
            return "integer[]"
        case _:
            return "text[]"

"""Write, lock and look up many rows at once in the ways of SQLite, PostgreSQL and MariaDB."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Final, NoReturn, TypeVar

import orjson
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.schema import MediumBlob, Uuid16, events, log_heads
from letopis.store.database.store_identity import check_counters
from letopis.store.errors import ConfigurationError, ErasuresPending
from letopis.store.rules.apply_plan import Origin, TableRow

_MAX_LOOKUP_VALUES: Final = 1_000
"""Values in one lookup. SQLite takes 32,766 parameters; shorter statements stay in the caches."""
Statement = TypeVar("Statement", bound=sa.GenerativeSelect)
Statements = TypeVar("Statements")
T = TypeVar("T")

LOG_IDLE_SECONDS: Final = 3.0
"""How long a transaction that holds a counter of the log may wait for its client, for which all others wait."""
MIN_COPY_ROWS: Final = 50
"""Rows from which PostgreSQL's COPY is worth its two additional round trips."""
_IDLE_LIMIT: Final = "letopis_idle_limit"


class Dialect(ABC):
    """One kind of database; rows are tuples in the order of the table's columns, ids as :class:`~uuid.UUID`."""

    _built: ClassVar[dict[tuple[type[Dialect], Any], Any]] = {}
    counts_per_overwrite: ClassVar[int] = 1
    """How often the database counts an overwritten row at most; a row that was not is counted 0 times."""

    spreads: ClassVar[bool] = False
    """Whether the partitions of a store are on several hosts."""
    joins_pages: ClassVar[bool] = True
    """Whether rows of all partitions are cut to a page before they are joined, which is faster."""

    def __init__(self) -> None:
        self._texts: dict[sa.Table, tuple[str, str]] = {}
        self._uuids: dict[sa.Table, list[int]] = {}

    def shared(self, build: Callable[[Any], Statements]) -> Statements:
        """Return the statements that ``build`` makes for this kind of database, made once a process."""
        # Building selects takes longer than all else that opens a store does.
        key = (type(self), build)
        if key not in self._built:
            self._built[key] = build(self)
        statements: Statements = self._built[key]
        return statements

    async def begin_apply(self, connection: AsyncConnection) -> None:  # noqa: B027 - not every database needs it
        """Set what a writing transaction that does not append to the log needs beyond the connection's settings."""

    @asynccontextmanager
    async def transaction(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """Run a writing transaction, and commit it unless the block raises."""
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

    def of_conversations(self, table: sa.Table) -> tuple[sa.ColumnElement[bool], ...]:
        """Return the conditions that select the rows of several: ``:partitions`` and ``:conversations``."""
        return self.among(table.c.partition, "partitions"), self.among(table.c.conversation_id, "conversations")

    async def hold(self, connection: AsyncConnection, partitions: Iterable[int]) -> None:  # noqa: B027 - only where hosts
        """Keep partitions on their hosts until the end of the transaction, before it reads anything of them."""

    def lockable(self, names: Iterable[T], partition_of: Callable[[T], int]) -> list[list[T]]:
        """Split names, which are in the order of their locks, into lists that one statement locks."""
        return in_batches(names)

    async def lock_heads(self, connection: AsyncConnection, partitions: Iterable[int]) -> Sequence[sa.Row[Any]]:
        """Lock counters of the log, and return them in the order of their partitions."""
        found = await connection.execute(self.shared(_locked_heads), {"partitions": sorted(partitions)})
        counters: Sequence[sa.Row[Any]] = found.all()
        return counters

    async def insert(self, connection: AsyncConnection, table: sa.Table, rows: Sequence[TableRow]) -> None:
        if rows:
            insert, _ = self._texts.get(table) or self._write_texts(table)
            result = await connection.exec_driver_sql(insert, self._bound(table, rows))
            if result.rowcount != len(rows):
                check_row_count(table, result.rowcount, len(rows))

    async def overwrite(self, connection: AsyncConnection, table: sa.Table, rows: Sequence[TableRow]) -> None:
        """Overwrite existing, locked rows, found by primary key."""
        if rows:
            _, overwrite = self._texts.get(table) or self._write_texts(table)
            result = await connection.exec_driver_sql(overwrite, self._bound(table, rows))
            if result.rowcount != len(rows):
                check_row_count(table, result.rowcount, len(rows), most=self.counts_per_overwrite * len(rows))

    async def write(
        self, connection: AsyncConnection, table: sa.Table, new: Sequence[TableRow], old: Sequence[TableRow]
    ) -> None:
        if new:
            await self.insert(connection, table, new)
        if old:
            await self.overwrite(connection, table, old)

    async def append_to_log(
        self, connection: AsyncConnection, added: Mapping[int, int], rows: Sequence[TableRow], *, origin: Origin
    ) -> Mapping[int, int]:
        """Lock counters of the log, number events by them and insert these; return the counters as they were before."""
        # All writers share the counter of a partition, so the server ends a transaction that stands still from here on
        # for LOG_IDLE_SECONDS: a process that was stopped must not stop all others.
        counters = await self.lock_heads(connection, added)
        closed = [row.closed for row in counters]
        if len(closed) != len(added) or any(closed) or not _same_erasures(counters[0], origin):
            _refuse(counters, expected=len(added), origin=origin)
        before: dict[int, int] = {row.partition: row.position for row in counters}
        await self.insert(connection, events, numbered(rows, before))
        last = origin.erasures, origin.erasure_id
        heads = [(partition, before[partition] + count, 0, *last) for partition, count in sorted(added.items())]
        await self.overwrite(connection, log_heads, heads)
        return before

    def _write_texts(self, table: sa.Table) -> tuple[str, str]:
        """Return the text of an insert and of an overwrite, made once for each table."""
        texts = self._texts[table] = self._insert(table), self._overwrite(table)
        return texts

    @abstractmethod
    def _insert(self, table: sa.Table) -> str: ...

    @abstractmethod
    def _overwrite(self, table: sa.Table) -> str: ...

    def _bound(self, table: sa.Table, rows: Sequence[TableRow]) -> Any:
        """Return rows as the driver takes them: ids as 16 bytes."""
        if (indexes := self._uuids.get(table)) is None:
            columns_of = enumerate(table.columns)
            indexes = self._uuids[table] = [index for index, column in columns_of if isinstance(column.type, Uuid16)]
        if not indexes:
            return rows
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
        for index in indexes:
            columns[index] = [None if value is None else value.bytes for value in columns[index]]
        return list(zip(*columns, strict=True))


class _JsonList(sa.types.TypeDecorator[list[Any]]):
    """Values of one parameter, as JSON."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: list[Any] | None, dialect: sa.Dialect) -> str | None:
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
        # JSON holds no bytes. Partitions are few, and their number shows the planner that a look-up beats a scan.
        if isinstance(column.type, Uuid16) or column.name == "partition":
            return super().among(column, name)
        values = sa.func.json_each(sa.bindparam(name, type_=_JsonList)).table_valued("value")
        return column.in_(sa.select(values.c.value))

    def _insert(self, table: sa.Table) -> str:
        names = _names(table)
        return f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608

    def _overwrite(self, table: sa.Table) -> str:
        # Numbered, so that keys and values bind from one tuple in the order of the columns.
        marks = {column.name: f"?{index}" for index, column in enumerate(table.columns, 1)}
        return (
            f"UPDATE {table.name} SET {', '.join(f'{name} = {marks[name]}' for name in _values(table))} "  # noqa: S608
            f"WHERE {' AND '.join(f'{name} = {marks[name]}' for name in _keys(table))}"
        )


class PostgreSQL(Dialect):
    """Unnested arrays: one round trip and one plan for any number of rows; COPY for many."""

    duplicate_codes: ClassVar[tuple[str, ...]] = ("23",)
    """How the codes begin with which a COPY is refused for a row that is there."""

    async def begin_apply(self, connection: AsyncConnection) -> None:
        """Wait for the disk at COMMIT, so that a crash of the server loses nothing that was reported as done."""
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
        if len(rows) < MIN_COPY_ROWS:
            await super().insert(connection, table, rows)
            return
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        try:
            # By the driver's own method, in the transaction that an earlier statement has begun.
            status = await driver.copy_records_to_table(table.name, records=rows, columns=_names(table))
        except Exception as error:  # raised as SQLAlchemy would; other errors pass unchanged
            if str(getattr(error, "sqlstate", "")).startswith(self.duplicate_codes):
                raise IntegrityError(None, None, error) from error
            raise
        check_row_count(table, int(str(status).rpartition(" ")[2]), len(rows))

    async def append_to_log(
        self, connection: AsyncConnection, added: Mapping[int, int], rows: Sequence[TableRow], *, origin: Origin
    ) -> Mapping[int, int]:
        """Lock, limit, number and insert in one statement; before a COPY, all but the insert."""
        together = [] if len(rows) >= MIN_COPY_ROWS else rows
        values = self._bound(events, together) if together else ((),) * len(events.columns)
        counters = (await connection.exec_driver_sql(_APPEND, (list(added), list(added.values()), *values))).all()
        closed = [row.closed for row in counters]
        if len(closed) != len(added) or any(closed) or not _same_erasures(counters[0], origin):
            _refuse(counters, expected=len(added), origin=origin)
        check_row_count(events, counters[0].inserted, len(together))
        check_row_count(log_heads, counters[0].moved, len(added))
        before: dict[int, int] = {row.partition: row.position for row in counters}
        if len(together) < len(rows):
            await self.insert(connection, events, numbered(rows, before))
        return before

    def _bound(self, table: sa.Table, rows: Sequence[TableRow]) -> Any:
        """Return the columns of rows as arrays."""
        return tuple(map(list, zip(*rows, strict=True)))


class MariaDB(Dialect):
    """Many rows in one ``VALUES``, which the driver builds."""

    counts_per_overwrite: ClassVar[int] = 2
    """``ON DUPLICATE KEY UPDATE`` counts a row that changed twice, and with FOUND_ROWS one that did not change once."""

    async def begin_apply(self, connection: AsyncConnection) -> None:
        """Lift the limit that an append has left on the connection."""
        await self._limit_idle(connection, 0)

    async def append_to_log(
        self, connection: AsyncConnection, added: Mapping[int, int], rows: Sequence[TableRow], *, origin: Origin
    ) -> Mapping[int, int]:
        """Limit the session first, where it is not: no statement that locks rows can."""
        await self._limit_idle(connection, round(LOG_IDLE_SECONDS))
        return await super().append_to_log(connection, added, rows, origin=origin)

    async def _limit_idle(self, connection: AsyncConnection, seconds: int) -> None:
        """Have the server end a transaction that has written and stands still; 0 for the connection's own limit."""
        if connection.info.get(_IDLE_LIMIT, 0) != seconds:
            await connection.exec_driver_sql("SET SESSION idle_write_transaction_timeout = %s", (seconds,))
            connection.info[_IDLE_LIMIT] = seconds

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


def numbered(rows: Iterable[TableRow], before: Mapping[int, int]) -> list[TableRow]:
    """Return rows of the log with their final positions."""
    return [(row[0], before[row[0]] + row[1], *row[2:]) for row in rows]


def _same_erasures(counter: Any, origin: Origin) -> bool:
    # A store that was restored records fewer, or others under the same numbers.
    return bool(counter.erasures == origin.erasures and counter.erasure_id == origin.erasure_id)


def _refuse(counters: Sequence[Any], *, expected: int, origin: Origin) -> NoReturn:
    """Raise why locked counters do not accept a delivery of an outbox."""
    check_counters([row.closed for row in counters], expected=expected)
    raise ErasuresPending(carried_out=origin.erasures, last=counters[0].erasures)


def _locked_heads(dialect: Dialect) -> sa.Select[Any]:
    wanted = dialect.among(log_heads.c.partition, "partitions")
    return dialect.locked(sa.select(log_heads).where(wanted).order_by(log_heads.c.partition))


def dialect_for(name: str) -> Dialect:
    """Return the dialect by SQLAlchemy's name of the database."""
    if name not in _DIALECTS:
        raise ConfigurationError(f"{name} is not supported: use SQLite, PostgreSQL or MariaDB")
    return _DIALECTS[name]()


_DIALECTS: Final[Mapping[str, Callable[[], Dialect]]] = {
    "sqlite": SQLite,
    "postgresql": PostgreSQL,
    "mysql": MariaDB,
    "mariadb": MariaDB,
}


def check_row_count(table: sa.Table, taken: int, planned: int, *, most: int | None = None) -> None:
    """Compare the number of rows that a statement wrote with the planned one."""
    if planned <= taken <= (planned if most is None else most):
        return
    dropped = f"{table.name} took {taken} of {planned} rows: a trigger, rule or policy on it drops them: remove it"
    raise StoreFault(fault_class=FaultClass.MISCONFIGURED, code="rows", reason=f"{dropped}; nothing was written")


def in_batches(values: Iterable[Any]) -> list[list[Any]]:
    """Split values into lists that one lookup takes."""
    listed = list(values)
    if len(listed) <= _MAX_LOOKUP_VALUES:
        return [listed] if listed else []
    return [listed[start : start + _MAX_LOOKUP_VALUES] for start in range(0, len(listed), _MAX_LOOKUP_VALUES)]


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a connection for reads, whose errors come as faults; on SQLite its transaction takes no lock."""
    with translated():
        async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
            yield connection


async def pages(
    connection: AsyncConnection, statement: sa.Executable, values: Mapping[str, Any], *, size: int, after: int = 0
) -> AsyncIterator[Sequence[sa.Row[Any]]]:
    """Yield the rows of a statement that returns ``size`` of them in the order of versions, ``:after`` one."""
    while True:
        rows = (await connection.execute(statement, {**values, "after": after})).all()
        yield rows
        if len(rows) < size:
            return
        after = rows[-1].version


async def rows_by_key(
    connection: AsyncConnection, statement: sa.Select[Any], *key: sa.ColumnElement[Any], size: int
) -> AsyncIterator[Sequence[sa.Row[Any]]]:
    """Yield the rows of a statement in pages, in the order of a unique key that is among its columns."""
    page = statement.order_by(*key).limit(size)
    rows = (await connection.execute(page)).all()
    while rows:
        yield rows
        if len(rows) < size:
            return
        last = [rows[-1]._mapping[column] for column in key]
        beyond = key[0] > last[0] if len(key) == 1 else sa.tuple_(*key) > sa.tuple_(*map(sa.literal, last))
        rows = (await connection.execute(page.where(beyond))).all()


def _names(table: sa.Table) -> list[str]:
    return [column.name for column in table.columns]


def _keys(table: sa.Table) -> list[str]:
    return [column.name for column in table.primary_key.columns]


def _values(table: sa.Table) -> list[str]:
    return [column.name for column in table.columns if not column.primary_key]


def _unnest(table: sa.Table, first: int = 1) -> str:
    arrays = ", ".join(f"${index}::{_array(column)}" for index, column in enumerate(table.columns, first))
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


def _append_statement() -> str:
    names = _names(events)
    values = ", ".join("head.position + v.position" if name == "position" else f"v.{name}" for name in names)
    limit = f"set_config('idle_in_transaction_session_timeout', '{round(LOG_IDLE_SECONDS * 1000)}', true)"
    # The settings belong to the transaction, and count from here on: before, a slow machine may take longer.
    return (
        f"WITH head AS (SELECT partition, position, closed, erasures, erasure_id, {limit} AS idle,"  # noqa: S608
        " set_config('synchronous_commit', 'on', true) AS durable"
        " FROM letopis_log_heads WHERE partition = ANY($1::integer[]) ORDER BY partition FOR UPDATE),"
        " moved AS (UPDATE letopis_log_heads AS t SET position = head.position + a.added"
        " FROM head JOIN unnest($1::integer[], $2::bigint[]) AS a (partition, added) USING (partition)"
        " WHERE t.partition = head.partition AND t.partition = ANY($1) RETURNING 1),"
        f" inserted AS (INSERT INTO letopis_events ({', '.join(names)}) SELECT {values}"
        f" FROM {_unnest(events, 3)} AS v ({', '.join(names)}) JOIN head ON head.partition = v.partition RETURNING 1)"
        " SELECT head.*, (SELECT count(*) FROM moved) AS moved, (SELECT count(*) FROM inserted) AS inserted FROM head"
    )


_APPEND: Final = _append_statement()

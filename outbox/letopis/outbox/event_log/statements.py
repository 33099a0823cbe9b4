"""Run one statement on a driver's cursor, or on a connection whose cursor is closed, and fetch its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import sqlalchemy as sa

T = TypeVar("T")
Values = Sequence[Any] | Mapping[str, Any]


def on_cursor(connection: sa.Connection, work: Callable[..., T], *values: Any) -> T:
    """Return what ``work(cursor, *values)`` returns, on a cursor of the driver's connection."""
    with closing(connection.connection.cursor()) as cursor:
        return work(cursor, *values)


def query_one(cursor: Any, statement: str, values: Values = ()) -> Any | None:
    """Return the first row of a statement, or ``None``."""
    cursor.execute(statement, values)  # an asynchronous driver's adapter returns something else than the cursor
    return cursor.fetchone()


def query_all(cursor: Any, statement: str, values: Values = ()) -> list[Any]:
    cursor.execute(statement, values)
    rows: list[Any] = cursor.fetchall()
    return rows


def fetch_one(connection: sa.Connection, statement: str, values: Values = ()) -> Any | None:
    """Return the first row of a statement on the driver's connection, or ``None``."""
    with closing(connection.connection.cursor()) as cursor:
        return query_one(cursor, statement, values)


def fetch_all(connection: sa.Connection, statement: str, values: Values = ()) -> list[Any]:
    """Return all rows of a statement on the driver's connection."""
    with closing(connection.connection.cursor()) as cursor:
        return query_all(cursor, statement, values)


def iterate(connection: sa.Connection, statement: str, values: Values = ()) -> Iterator[Any]:
    """Yield the rows of a statement as they are asked for, so that memory stays bounded."""
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute(statement, values)
        while (row := cursor.fetchone()) is not None:
            yield row

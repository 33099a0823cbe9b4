"""Peek: read an SQLite file that may be anybody's, without changing a byte of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

BUSY: Final = 3.0


@contextmanager
def peek(path: Path) -> Iterator[sa.Connection]:
    """Open one snapshot of the file; nothing can be written over it, not even its journal mode.

    A plain connection and not SQLite's ``mode=ro``: that one leaves a -wal and a -shm behind where there were none.

    :raises sqlalchemy.exc.DBAPIError: it cannot be opened, or is no SQLite database.
    """
    engine = sa.create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=sa.NullPool,
        hide_parameters=True,
        connect_args={"isolation_level": None, "timeout": BUSY},
    )
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA query_only = ON")
            connection.exec_driver_sql("BEGIN")
            try:
                yield connection
            finally:
                connection.exec_driver_sql("ROLLBACK")
    finally:
        engine.dispose()


def code_of(error: BaseException) -> str:
    """Return SQLite's name of an error, never its text."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    name = getattr(cause, "sqlite_errorname", None)
    return str(name or type(cause or error).__name__)


SQLITE_ERRORS: Final = (DBAPIError, sqlite3.Error)

"""Read and change the rows of a SQLite file beneath the library."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any


def rows(path: Path | str, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path, timeout=20)) as connection:
        return connection.execute(statement).fetchall()


def count(path: Path | str, statement: str) -> int:
    """Return the number that a statement finds in a file that another process writes; 0 as long as it is not there."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return int(connection.execute(statement).fetchone()[0])
    return 0


def change(path: Path | str, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            done = connection.execute(statement)
            assert done.rowcount or not statement.startswith(("UPDATE", "DELETE")), statement

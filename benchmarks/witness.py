"""Keep every SQLite connection that is opened on a file, so that its settings can be read and set."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import dbapi2
from typing import Any, Final
from weakref import WeakSet

from benchmarks.figures import Durability

_LOOKS: Final = 32
"""Connections of which the last settings are read when they are closed; after that it is known."""


class _Seen(sqlite3.Connection):
    """A connection that reports its settings before it is closed; otherwise SQLite's own, at the same speed."""

    witness: Witness | None = None

    def close(self) -> None:
        if self.witness is not None:
            self.witness._closing(self)
        super().close()


class Witness:
    """Sees the connections of one subject, whichever library opens them.

    :param path: the file, or the folder of the files, that count.
    :param force: the durability that each connection is given when it is opened, and again by :meth:`enforce`.
    """

    def __init__(self, path: Path, *, force: tuple[str, str] | None = None) -> None:
        self._path = path.resolve()
        self._force = force
        self._open: WeakSet[_Seen] = WeakSet()
        self._closed: list[Durability] = []

    def take(self, connection: _Seen) -> None:
        """Keep a connection that was opened just now."""
        connection.witness = self
        self._open.add(connection)
        self._set(connection)

    def enforce(self) -> None:
        """Set the durability again on what is open, for some libraries set their own after they have connected.

        What was closed before counts no more: it wrote nothing that is measured.
        """
        self._closed.clear()
        for connection in list(self._open):
            self._set(connection)

    def durability(self) -> Durability | None:
        """Return what the connections say of themselves, of several the weakest; ``None`` where there was none."""
        return Durability.weakest([*self._closed, *(found for one in list(self._open) if (found := _read(one)))])

    def concerns(self, database: object) -> bool:
        """Return True if a path that is connected to is that of the subject."""
        text = str(database)
        if text.startswith("file:"):
            text = text.removeprefix("file://").removeprefix("file:").partition("?")[0]
        if text in ("", ":memory:"):
            return False
        where = Path(text).resolve()
        return where == self._path or self._path in where.parents

    def _set(self, connection: _Seen) -> None:
        if self._force is None:
            return
        journal, synchronous = self._force
        connection.execute(f"PRAGMA journal_mode={journal}").fetchall()
        connection.execute(f"PRAGMA synchronous={synchronous}").fetchall()

    def _closing(self, connection: _Seen) -> None:
        if len(self._closed) < _LOOKS and (found := _read(connection)) is not None:
            self._closed.append(found)


@contextmanager
def watching() -> Iterator[Callable[[Witness], None]]:
    """Have connections seen by witnesses while the block runs; yields the function that adds one.

    Connections are opened so that another thread may read their settings between two rounds, when they are idle.
    """
    witnesses: list[Witness] = []
    original = sqlite3.connect

    def connect(database: Any, *args: Any, **options: Any) -> sqlite3.Connection:
        witness = next((one for one in witnesses if one.concerns(database)), None)
        if witness is None or args or "factory" in options:
            return original(database, *args, **options)
        options["check_same_thread"] = False
        connection = original(database, factory=_Seen, **options)
        witness.take(connection)
        return connection

    sqlite3.connect = dbapi2.connect = connect  # type: ignore[assignment]
    try:
        yield witnesses.append
    finally:
        sqlite3.connect = dbapi2.connect = original  # type: ignore[assignment]


def _read(connection: sqlite3.Connection) -> Durability | None:
    try:
        factory, connection.row_factory = connection.row_factory, None
        try:
            # Of whatever journal the file has; a connection that never wrote says so too.
            ((journal,),) = connection.execute("PRAGMA main.journal_mode").fetchall()
            ((synchronous,),) = connection.execute("PRAGMA main.synchronous").fetchall()
        finally:
            connection.row_factory = factory
    except sqlite3.Error:
        return None  # closed by other means
    return Durability.of_sqlite(journal, synchronous)

"""Be SQLite's connections in the simulation: wait in virtual time, and fail on demand."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Protocol
from urllib.parse import unquote, urlsplit

from tests.proof.simulation.loop import PROCESS, Process
from tests.proof.simulation.strands import current, running_loop, wait

connect: Final = sqlite3.connect  # the real one
LEAST: Final = 0.05
"""Virtual seconds that a lock is waited for at least; the writer of an outbox asks each 2 ms, which only takes time."""
_BUSY: Final = "PRAGMA busy_timeout"


class Trouble(Protocol):
    """What decides whether a statement fails. Each may raise, or let time pass."""

    def before(self, line: Line, sql: str, params: Any) -> None:
        """Before a statement is run."""

    def after(self, line: Line, sql: str) -> None:
        """After a statement has taken effect."""


@dataclass
class File:
    """A database file of the simulation."""

    path: str
    trouble: Trouble
    committed: Callable[[Process], None]
    lines: set[Line] = field(default_factory=set)


class Disk:
    """The files of the simulation, by path."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}

    def add(self, file: File) -> File:
        self.files[os.path.realpath(file.path)] = file
        return file

    def connect(self, database: Any, *args: Any, **options: Any) -> sqlite3.Connection:
        """Connect as :func:`sqlite3.connect` does, for the process that asks."""
        process = PROCESS.get()
        place = str(database)
        if place.startswith("file:"):
            place = unquote(urlsplit(place).path)
        file = self.files.get(os.path.realpath(place))
        if process is None or file is None:
            return connect(database, *args, **options)
        patience = options.pop("timeout", 5.0)
        factory = _line_of(options.pop("factory", sqlite3.Connection))
        file.trouble.before(_Nobody(process), "CONNECT", ())
        line: Any = connect(database, *args, timeout=0, factory=factory, **options)
        line.begin(file, process, patience)
        return line  # type: ignore[no-any-return]


class Line:
    """One connection of a process to a file; mixed into the connection class that was asked for."""

    process: Process
    file: File
    patience: float
    in_transaction: bool
    _changes: int

    def begin(self, file: File, process: Process, patience: float) -> None:
        """Become a connection of this process."""
        self.file, self.process, self.patience = file, process, patience
        self._changes = self.total_changes  # type: ignore[attr-defined]
        file.lines.add(self)
        process.on_kill.append(self.cut)

    def cut(self) -> None:
        """Close the file under the process; what is open is rolled back."""
        if self in self.file.lines:
            self.file.lines.discard(self)
            connection: Any = self
            if connection.in_transaction:  # otherwise the lock would stay until the last cursor is gone
                sqlite3.Connection.rollback(connection)
            sqlite3.Connection.close(connection)

    def close(self) -> None:
        if self in self.file.lines:
            self.file.lines.discard(self)
            self.process.on_kill.remove(self.cut)
        super().close()  # type: ignore[misc]

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(Cursor)  # type: ignore[misc]

    def execute(self, sql: str, params: Any = ()) -> Any:
        return self.cursor().execute(sql, params)

    def executemany(self, sql: str, params: Iterable[Any]) -> Any:
        return self.cursor().executemany(sql, params)

    def commit(self) -> None:
        if self.in_transaction:  # type: ignore[attr-defined]
            self.run("COMMIT", (), super().commit)  # type: ignore[misc]

    def run(self, sql: str, params: Any, act: Callable[[], Any]) -> Any:
        """Run a statement, with all that can go wrong with it."""
        self._may_die()
        self.file.trouble.before(self, sql, params)
        value = self._patiently(sql, act)
        changed = False
        if sql == "COMMIT":
            total = self.total_changes  # type: ignore[attr-defined]
            changed, self._changes = total != self._changes, total
            if changed:
                self.file.committed(self.process)
        self._may_die()
        self.file.trouble.after(self, sql)
        return value

    def _may_die(self) -> None:
        process, strand = self.process, current()
        if process.statements_left is None or strand is None:
            return
        process.statements_left -= 1
        if process.statements_left <= 0:
            process.statements_left = None
            if process.stops:
                process.stopped = True
                strand.sleep(0)
            else:
                process.kill()
                strand.park()

    def _patiently(self, sql: str, act: Callable[[], Any]) -> Any:
        """Do as SQLite's own busy handler: a lock that another connection holds is polled."""
        if not sql.startswith("BEGIN IMMEDIATE"):
            return act()
        deadline = running_loop().now + self.patience
        while True:
            try:
                return act()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorname != "SQLITE_BUSY" or running_loop().now >= deadline:
                    raise
            wait(0.01)


class Cursor(sqlite3.Cursor):
    """A cursor of a :class:`Line`."""

    connection: Any

    def execute(self, sql: str, params: Any = (), /) -> Any:
        line: Line = self.connection
        if sql.startswith("PRAGMA"):
            sql = _pragma(line, sql)
        return line.run(sql, params, lambda: sqlite3.Cursor.execute(self, sql, params))

    def executemany(self, sql: str, params: Iterable[Any], /) -> Any:
        rows = list(params)
        return self.connection.run(sql, rows, lambda: sqlite3.Cursor.executemany(self, sql, rows))


class _Nobody(Line):
    """Stands for a connection that is not there yet."""

    in_transaction = False

    def __init__(self, process: Process) -> None:
        self.process = process


def _pragma(line: Line, sql: str) -> str:
    """Keep the patience here, and spare the disk: a process that is killed loses nothing that SQLite has written."""
    if sql.startswith(_BUSY):
        _, given, value = sql.partition("=")
        if not given:
            return f"SELECT {round(line.patience * 1000)}"
        line.patience = max(int(value) / 1000, LEAST)
        return f"{_BUSY}=0"
    return "PRAGMA synchronous=OFF" if sql.startswith("PRAGMA synchronous") else sql


@cache
def _line_of(factory: type[sqlite3.Connection]) -> type[sqlite3.Connection]:
    return type(f"Line{factory.__name__}", (Line, factory), {})


def error(kind: type[sqlite3.Error], code: str, text: str) -> sqlite3.Error:
    made = kind(text)
    made.sqlite_errorname = code
    made.sqlite_errorcode = getattr(sqlite3, code, 1)
    return made

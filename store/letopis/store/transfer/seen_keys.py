"""Count how often each key was seen, in bounded memory."""

from __future__ import annotations

import sqlite3
from types import TracebackType
from typing import Self


class SeenKeys:
    """A counter of any size: what does not fit into a cache of a few MB is in a temporary file.

    For one thread at a time. The file has no name and is removed with the object, however the process ends.
    """

    __slots__ = ("_database",)

    def __init__(self) -> None:
        # The empty name is a private temporary database, in memory while it is small.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("CREATE TABLE seen (key BLOB PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("BEGIN")

    def seen(self, key: bytes) -> int:
        """Return how often ``key`` was added."""
        row = self._database.execute("SELECT times FROM seen WHERE key = ?", (key,)).fetchone()
        return 0 if row is None else int(row[0])

    def add(self, key: bytes) -> None:
        """Count ``key`` once more."""
        self._database.execute(
            "INSERT INTO seen VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET times = times + 1", (key,)
        )

    def close(self) -> None:
        """Forget everything."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""Glance: whether anything of a conversation is pending in the outbox file, told from whatever thread asks."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

from letopis.store.errors import OutboxUnavailable

_STANDING: Final = "SELECT head, delivered FROM letopis_outbox_lanes WHERE conversation_id = ?"


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a conversation has got in the file: the last sequence there, 0 for none, and the last that was delivered.

    :ivar known: ``False`` where the file could not be looked at.
    """

    head: int = 0
    delivered: int = 0
    known: bool = True

    @property
    def settled(self) -> bool:
        """Whether all that has come to the file is delivered."""
        return self.known and self.head == self.delivered


NOTHING: Final = Standing()
UNKNOWN: Final = Standing(known=False)


class Glance:
    """A connection of its own to an outbox file, for one statement.

    What reads a history store in a thread asks here, so that a read with nothing pending need not cross into another
    thread for that. It never waits for a lock of the file.

    :param check: raises ``OutboxUnavailable`` where the file that is meant is not at its path any more.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._check = check
        self._lock = Lock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    def __call__(self, conversation_id: str) -> Standing:
        """Return how far a conversation has got; ``UNKNOWN`` where the file cannot be read or was closed."""
        with self._lock:
            if self._closed:
                return UNKNOWN
            try:
                if self._connection is None:
                    self._check()
                    self._connection = self._connect()
                rows = self._connection.execute(_STANDING, (conversation_id,)).fetchall()
            except (sqlite3.Error, OutboxUnavailable):
                # Whoever reads the file for good meets it too, and says what it is.
                self._disconnect()
                return UNKNOWN
        return Standing(*rows[0]) if rows else NOTHING

    def close(self) -> None:
        """Close the connection; again does nothing."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _connect(self) -> sqlite3.Connection:
        # In mode `rw` a file that is gone is not made anew. The lock, not SQLite, keeps threads apart.
        place = f"{self._path.as_uri()}?mode=rw"
        connection = sqlite3.connect(place, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA query_only=ON")
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

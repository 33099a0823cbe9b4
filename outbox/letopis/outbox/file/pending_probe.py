"""Look up from any thread whether events of a conversation are pending in the outbox file, and read a few."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

from letopis.store.errors import OutboxUnavailable

T = TypeVar("T")

_STORE: Final = "SELECT store_id FROM letopis_outbox_origin"
_PROGRESS: Final = "SELECT head, delivered FROM letopis_outbox_lanes WHERE conversation_id = ?"

_CONTENT: Final = (
    "SELECT c.body FROM letopis_outbox_contents AS c JOIN letopis_outbox_lanes AS l ON l.lane = c.lane"
    " WHERE l.conversation_id = ? AND c.name = ?"
)
_SHOWN: Final = (
    "SELECT 1 FROM letopis_outbox_log WHERE conversation_id = ? AND salt IS NOT NULL AND instr(data, ?) LIMIT 1"
)


class LaneProgress(NamedTuple):
    """How far a conversation has got in the file."""

    head: int = 0  # 0 for none
    delivered: int = 0
    known: bool = True  # ``False`` where the file could not be read

    @property
    def settled(self) -> bool:
        """``True`` if every event in the file is delivered."""
        return self.known and self.head == self.delivered


NO_EVENTS: Final = LaneProgress()
UNKNOWN_PROGRESS: Final = LaneProgress(known=False)


class PendingProbe:
    """A connection of its own to an outbox file, by which any thread looks up without waiting for a lock."""

    def __init__(self, path: Path, verify: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._verify = verify
        self._lock = Lock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._store_id: UUID | None = None

    def lookup(self, conversation_id: str) -> LaneProgress:
        """Return how far a conversation has got; ``UNKNOWN_PROGRESS`` where the file cannot be read or was closed."""
        rows = self._rows(_PROGRESS, (conversation_id,))
        if rows is None:
            return UNKNOWN_PROGRESS
        return LaneProgress(*rows[0]) if rows else NO_EVENTS

    def read(self, work: Callable[[Any], T]) -> T | None:
        """Return what ``work(cursor)`` reads in one snapshot, after a lookup; ``None`` where the file is busy."""
        with self._lock:
            if self._connection is None:
                return None
            try:
                cursor = self._connection.execute("BEGIN")
                try:
                    return work(cursor)
                finally:
                    self._connection.execute("ROLLBACK")
            except sqlite3.Error:
                self._disconnect()  # a read through the file's reader waits, or reports the error
                return None

    def store_id(self) -> UUID | None:
        """Return the history store that the outbox was bound to when the file could last be read."""
        if rows := self._rows(_STORE, ()):
            self._store_id = rows[0][0] and UUID(bytes=rows[0][0])
        return self._store_id

    def content(self, conversation_id: str, name: str) -> bytes | None:
        """Return large content of a conversation; ``None`` where it is missing.

        It is empty where no event shows it any more, and where the file cannot be read now: the batch is tried again.
        """
        if rows := self._rows(_CONTENT, (conversation_id, name)):
            return bytes(rows[0][0])
        return b"" if rows is None or not self._rows(_SHOWN, (conversation_id, name)) else None

    def close(self) -> None:
        """Close the connection. Idempotent."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _rows(self, statement: str, values: tuple[str, ...]) -> list[Any] | None:
        with self._lock:
            if self._closed:
                return None
            try:
                if self._connection is None:
                    self._verify()
                    self._connection = self._connect()
                return self._connection.execute(statement, values).fetchall()
            except (sqlite3.Error, OutboxUnavailable):
                # A later read through the file's reader meets the same error, and reports it.
                self._disconnect()
                return None

    def _connect(self) -> sqlite3.Connection:
        # Mode `rw` does not create a missing file. The lock, not SQLite, keeps threads apart.
        address = f"{self._path.as_uri()}?mode=rw"
        connection = sqlite3.connect(address, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA query_only=ON")
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

"""Move the write-ahead log of an outbox file into the file, and truncate it where that is due."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Final

from letopis.outbox.file.limits import ROUTINE_WAL_BYTES
from letopis.outbox.file.wal_readers import LARGE_WAL_BYTES, describe_readers, wal_size

logger = logging.getLogger("letopis.outbox.writer")

_TRUNCATE_TIMEOUT_MS: Final = 50


class WalCheckpoint:
    """The checkpoints of one outbox file, run on the writer's connection.

    :ivar truncation_due: ``True`` while the WAL may hold content that was erased from the file; from the beginning,
        because a process may have died before it truncated the WAL.
    """

    def __init__(self, path: Path) -> None:
        self.truncation_due = True
        self._path = path
        self._reported_bytes = 0

    def run(self, driver: sqlite3.Connection) -> None:
        """Move the WAL into the file. Truncate it only where that is due: to write over a WAL is cheaper."""
        _, frames, moved = driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        size = wal_size(self._path)
        self._report_held(size if frames != moved else 0)
        if frames == moved and (self.truncation_due or size > ROUTINE_WAL_BYTES):
            # A truncation waits for readers, and appends wait behind it.
            ((timeout,),) = driver.execute("PRAGMA busy_timeout").fetchall()
            driver.execute(f"PRAGMA busy_timeout={_TRUNCATE_TIMEOUT_MS}").fetchall()
            try:
                ((busy, _, _),) = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self.truncation_due = self.truncation_due and bool(busy)
            finally:
                driver.execute(f"PRAGMA busy_timeout={timeout}").fetchall()

    def _report_held(self, size: int) -> None:
        """Log that a reader keeps the WAL from being moved into the file; again each time it has doubled."""
        if size < max(LARGE_WAL_BYTES, 2 * self._reported_bytes):
            self._reported_bytes = self._reported_bytes if size >= LARGE_WAL_BYTES else 0
            return
        self._reported_bytes = size
        logger.warning("the outbox's WAL has grown to %d MiB: %s", size // 1024**2, describe_readers(self._path))

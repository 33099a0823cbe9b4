"""Move the write-ahead log of an outbox file into the file, and find who keeps it from being moved."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path
from typing import Final

from letopis.outbox.file.limits import ROUTINE_WAL_BYTES

logger = logging.getLogger("letopis.outbox.writer")

LARGE_WAL_BYTES: Final = 128 * 1024**2  # a WAL above this is reported: something keeps it from being checkpointed

# SQLite's read marks are locks on these bytes of the -shm file (WAL_READ_LOCK in its wal.c).
_READ_MARKS: Final = range(123, 128)
_TRUNCATE_TIMEOUT_MS: Final = 50
_LOCKS: Final = Path("/proc/locks")


class WalCheckpoint:
    """The checkpoints of one outbox file, run on the writer's connection."""

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


def wal_size(path: Path) -> int:
    """Return the size of the WAL beside an SQLite file in bytes, 0 where there is none."""
    try:
        return path.with_name(path.name + "-wal").stat().st_size
    except OSError:
        return 0


def readers_of(path: Path) -> tuple[int, ...]:
    """Return the pids of this namespace with a read transaction open on an SQLite file now, short ones included."""
    try:
        status = path.with_name(path.name + "-shm").stat()
        lines = _LOCKS.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return ()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return tuple(sorted({pid for line in lines if (pid := _reader(line, device)) is not None}))


def describe_readers(path: Path) -> str:
    """Return the end of a sentence that names the readers of a file, or says what to look for if they are unknown."""
    if pids := readers_of(path):
        return f"a read transaction is open in: {'; '.join(map(_describe, pids))}; end it"
    return "look for a program that keeps a read transaction open on it, and end it"


def _describe(pid: int) -> str:
    """Return a process's pid and, if it may be read, the name of its program."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        name = ""
    name = "".join(character if character.isprintable() else "?" for character in name)
    known = f"{name}, pid {pid}" if name else f"pid {pid}"
    return f"{known}, this process" if pid == os.getpid() else known


def _reader(line: str, place: str) -> int | None:
    """Return the pid of a line of ``/proc/locks`` that holds one of the read marks of the file at ``place``."""
    fields = line.split()
    # 1: POSIX ADVISORY READ 4711 fe:01:123456 124 124
    if len(fields) != 8 or fields[1] != "POSIX" or fields[5] != place:
        return None
    last = fields[7]
    reaches = last == "EOF" or int(last) >= _READ_MARKS.start
    return int(fields[4]) if reaches and int(fields[6]) < _READ_MARKS.stop and int(fields[4]) > 0 else None

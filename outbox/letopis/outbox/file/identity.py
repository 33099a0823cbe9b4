"""Tell an outbox file from its copies, and notice when it is no longer in its place."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import sqlalchemy as sa

from letopis.outbox.event_log.statements import fetch_one
from letopis.store.errors import OutboxUnavailable
from letopis.store.rules.apply_plan import Origin

FileId = tuple[int, int]  # device and inode of a file: what tells it from its copy

_TIME_GRANULARITY_NS: Final = 50_000_000  # several times the step of the clock that file systems take times from
_VERIFY_BESIDE_SECONDS: Final = 1.0
"""How often the -wal and the -shm are looked at while their folder does not seem to change."""

_READ: Final = "SELECT origin_id, epoch, device, inode FROM letopis_outbox_origin"
_INSERT: Final = (
    "INSERT INTO letopis_outbox_origin (only, origin_id, epoch, device, inode, created_at) VALUES (1, ?, 1, ?, ?, ?)"
)
_RAISE_EPOCH: Final = "UPDATE letopis_outbox_origin SET epoch = ?, device = ?, inode = ?"
_REPLACE: Final = "UPDATE letopis_outbox_origin SET origin_id = ?, epoch = 1, device = ?, inode = ?, created_at = ?"


def file_id_of(path: Path | str) -> FileId:
    """Return device and inode of a file."""
    # Not opened: closing any descriptor of a live SQLite file drops the process's locks on it.
    state = os.stat(path)  # noqa: PTH116 - on the writer's path; Path.stat() is slower
    return state.st_dev, state.st_ino


# SQLite does not notice when they are not: it goes on writing into a file that was removed, and what it commits there
# is gone with the process. Nor does it notice when the -wal is another file's, and damages that one.
class FileIdentityGuard:
    """Watches over the files of an open outbox, each of which has to stay in its place."""

    def __init__(self, path: Path, file_id: FileId) -> None:
        self.size: int | None = None  # bytes of the file and its WAL, at most a second ago
        self._path = str(path)
        self._folder = str(path.parent)
        self._file_id = file_id
        self._beside: list[tuple[str, FileId]] = []
        self._verified_folder: tuple[int, int, int] | None = None
        self._verify_beside_at = 0.0

    def capture(self) -> None:
        """Remember the -wal and the -shm as they are. An open connection must keep them in place from here on."""
        for suffix in ("-wal", "-shm"):
            beside = f"{self._path}{suffix}"
            with suppress(OSError):  # this system keeps it elsewhere
                self._beside.append((beside, file_id_of(beside)))

    def verify(self) -> None:
        """Do nothing if all files are in their places."""
        try:
            folder = os.stat(self._folder)  # noqa: PTH116 - as in file_id_of
            database = os.stat(self._path)  # noqa: PTH116
        except OSError as gone:
            raise OutboxUnavailable(
                "the outbox file is gone from its place: restore it, then restart the program"
            ) from gone
        if (database.st_dev, database.st_ino) != self._file_id:
            raise OutboxUnavailable("the outbox file was replaced by another while it was open: restart the program")
        if database.st_size == 0:
            raise OutboxUnavailable("the outbox file was emptied while it was open: restore a backup, then restart")
        # Linux (from 6.13) writes an exact time to a file whose times were read: to look at the -wal before each append
        # would slow its commit.
        state = (folder.st_dev, folder.st_ino, folder.st_mtime_ns)
        if state != self._verified_folder or time.monotonic() >= self._verify_beside_at:
            self._verify_beside(database.st_size)
            # The next change of a folder that has just changed may get the same time.
            settled = time.time_ns() - folder.st_mtime_ns > _TIME_GRANULARITY_NS
            self._verified_folder = state if settled else None
            self._verify_beside_at = time.monotonic() + _VERIFY_BESIDE_SECONDS

    def lost_wal(self) -> bool:
        """Return True if the -wal was removed and no other was made."""
        return any(beside.endswith("-wal") and _stat_or_none(beside) is None for beside, _ in self._beside)

    def _verify_beside(self, size: int) -> None:
        for beside, file_id in self._beside:
            state = _stat_or_none(beside)
            if state is None or (state.st_dev, state.st_ino) != file_id:
                raise OutboxUnavailable(
                    f"the {beside[-4:]} file beside the outbox was removed or replaced while it was open, and nothing"
                    " more is written: stop all programs that have the outbox open, then restart them"
                )
            size += state.st_size
        self.size = size if self._beside else None


def _stat_or_none(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - as in file_id_of
    except OSError:
        return None


def load_origin(connection: sa.Connection, path: Path, *, now_us: int) -> Origin:
    """Return the file's identity, created at its first use; in a transaction that holds the write lock.

    A file whose device or inode has changed (a copy, a restored backup) goes on under the next epoch. The history store
    accepts the highest epoch only, so that one of a file and its copy is refused and the two do not mix.
    """
    device, inode = (str(number) for number in file_id_of(path))
    row = fetch_one(connection, _READ)
    if row is None:
        origin_id, epoch = uuid4(), 1
        connection.exec_driver_sql(_INSERT, (origin_id.bytes, device, inode, now_us))
    else:
        origin_id, epoch = UUID(bytes=row[0]), row[1]
        if (row[2], row[3]) != (device, inode):
            epoch += 1
            connection.exec_driver_sql(_RAISE_EPOCH, (epoch, device, inode))
    return Origin(origin_id=origin_id, epoch=epoch, name=_name(path))


def assign_new_identity(connection: sa.Connection, path: Path, *, now_us: int) -> Origin:
    """Give a copy an identity of its own, with no other process on the file; lanes stay as they are."""
    device, inode = (str(number) for number in file_id_of(path))
    origin_id = uuid4()
    connection.exec_driver_sql(_REPLACE, (origin_id.bytes, device, inode, now_us))
    return Origin(origin_id=origin_id, epoch=1, name=_name(path))


def _name(path: Path) -> str:
    """Return the file's base name as text that every history store accepts."""
    return path.name.encode("utf-8", "replace").decode()

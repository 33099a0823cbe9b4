"""Identity: which outbox a file is, whether it is still the same file or a copy of it, and still in its place."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import sqlalchemy as sa

from letopis.store.errors import OutboxUnavailable
from letopis.store.plan import Origin

_TICK_NS: Final = 50_000_000
"""Nanoseconds, several times as long as the clock stands still that file systems take times from."""
_LOOK_EVERY: Final = 1.0
"""Seconds between two looks at what lies beside the file, where nothing in its folder seems to have changed."""

_READ: Final = "SELECT origin_id, epoch, device, inode FROM letopis_outbox_origin"
_MINT: Final = (
    "INSERT INTO letopis_outbox_origin (only, origin_id, epoch, device, inode, created_at) VALUES (1, ?, 1, ?, ?, ?)"
)
_RAISE: Final = "UPDATE letopis_outbox_origin SET epoch = ?, device = ?, inode = ?"
_RENEW: Final = "UPDATE letopis_outbox_origin SET origin_id = ?, epoch = 1, device = ?, inode = ?, created_at = ?"


def place_of(path: Path | str) -> tuple[int, int]:
    """Return device and inode of the file: what tells a file from its copy.

    Looks, and opens nothing: closing any descriptor of a live SQLite file drops the process's locks on it.

    :raises OSError: there is no such file, or it may not be looked at.
    """
    found = os.stat(path)  # noqa: PTH116 - on the writer's path; Path.stat() costs twice as much
    return found.st_dev, found.st_ino


class Whereabouts:
    """The files of an open outbox, so that it is noticed when one of them is not in its place any more.

    SQLite does not notice: it goes on writing into a file that was removed, and what it has committed there is gone
    with the process. Nor does it notice that a file beside it is another's: that one it damages.

    :param place: of the database, when it was opened.
    """

    def __init__(self, path: Path, place: tuple[int, int]) -> None:
        self._path = str(path)
        self._folder = str(path.parent)
        self._place = place
        self._beside: list[tuple[str, tuple[int, int]]] = []
        self._settled: tuple[int, int, int] | None = None
        self._look_again = 0.0
        self.size: int | None = None
        """Bytes of the file and its WAL at most a second ago, so that no page in use is elsewhere; ``None`` where that
        is not known."""

    def settle(self) -> None:
        """Remember the -wal and the -shm as they are. A connection that stays open must keep them from here on."""
        for suffix in ("-wal", "-shm"):
            beside = f"{self._path}{suffix}"
            with suppress(OSError):  # this system keeps it elsewhere
                self._beside.append((beside, place_of(beside)))

    def check(self) -> None:
        """Do nothing where all files are in their places; costs some microseconds.

        The -wal and the -shm are looked at when something has come, gone or got another name in their folder, and once
        a second. To look at the -wal before each append would make its commit slower by a quarter: Linux (from 6.13)
        writes an exact time to each file whose times somebody has seen.

        :raises OutboxUnavailable: one of them is not.
        """
        try:
            folder = os.stat(self._folder)  # noqa: PTH116 - as in place_of
            found = os.stat(self._path)  # noqa: PTH116
        except OSError as gone:
            raise OutboxUnavailable("the outbox file is gone from its place: restore it, then start again") from gone
        if (found.st_dev, found.st_ino) != self._place:
            raise OutboxUnavailable("the outbox file was replaced by another while it was open: start again")
        if found.st_size == 0:
            raise OutboxUnavailable("the outbox file was emptied while it was open: restore a backup, then start again")
        state = (folder.st_dev, folder.st_ino, folder.st_mtime_ns)
        if state != self._settled or time.monotonic() >= self._look_again:
            self._look_beside(found.st_size)
            # Of a folder that changes just now the next change may have the same time.
            self._settled = state if time.time_ns() - folder.st_mtime_ns > _TICK_NS else None
            self._look_again = time.monotonic() + _LOOK_EVERY

    def _look_beside(self, size: int) -> None:
        for beside, place in self._beside:
            there = _stat_or_none(beside)
            if there is None or (there.st_dev, there.st_ino) != place:
                raise OutboxUnavailable(
                    f"the {beside[-4:]} file beside the outbox was removed or replaced while it was open, and nothing"
                    " more is written: end all programs that have the outbox open, then start again"
                )
            size += there.st_size
        self.size = size if self._beside else None

    def lost_wal(self) -> bool:
        """Whether the -wal was removed, and nobody has made another."""
        return any(beside.endswith("-wal") and _stat_or_none(beside) is None for beside, _ in self._beside)


def _stat_or_none(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - as in place_of
    except OSError:
        return None


def settle(connection: sa.Connection, path: Path, *, now_us: int) -> Origin:
    """Return the file's identity, minted at its first use; in a transaction that holds the write lock.

    A file that lies at another place than it last did (a copy, a restored backup) goes on under the next epoch. The
    history store takes the highest epoch only, so of a file and its copy one is refused instead of both mixing.
    """
    device, inode = (str(one) for one in place_of(path))
    row = connection.exec_driver_sql(_READ).one_or_none()
    if row is None:
        made = uuid4()
        connection.exec_driver_sql(_MINT, (made.bytes, device, inode, now_us))
        return Origin(origin_id=made, epoch=1, name=_name(path))
    origin_id, epoch = UUID(bytes=row[0]), row[1]
    if (row[2], row[3]) != (device, inode):
        epoch += 1
        connection.exec_driver_sql(_RAISE, (epoch, device, inode))
    return Origin(origin_id=origin_id, epoch=epoch, name=_name(path))


def renew(connection: sa.Connection, path: Path, *, now_us: int) -> Origin:
    """Give the file a new identity, for a copy that is to live on beside its original.

    In a transaction that holds the write lock, with no other process on the file. What the lanes remember of the old
    identity is not touched here.
    """
    device, inode = (str(one) for one in place_of(path))
    made = uuid4()
    connection.exec_driver_sql(_RENEW, (made.bytes, device, inode, now_us))
    return Origin(origin_id=made, epoch=1, name=_name(path))


def _name(path: Path) -> str:
    """Return the file's base name, which may be bytes that are no text: no history store takes those."""
    return path.name.encode("utf-8", "replace").decode()

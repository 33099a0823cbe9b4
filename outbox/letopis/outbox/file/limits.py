"""Refuse new events when the outbox or its disk is nearly full, and keep space for delivering what is pending."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from letopis.store.errors import InvalidInput, OutboxFull
from letopis.store.model.identifiers import check_number

ROUTINE_WAL_BYTES: Final = 8 * 1024**2
"""Size of a WAL, twice what SQLite lets it grow to, above which an idle moment is used to truncate it."""

_USED: Final = (
    "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
)
_PENDING: Final = (
    "SELECT coalesce(sum(head - delivered), 0) FROM letopis_outbox_lanes"
    " WHERE pending_since IS NOT NULL AND delivered < head"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The limits at which new events are refused; existing events are never dropped, and delivery continues.

    :ivar max_events: pending events; ``None`` for no limit.
    :ivar max_bytes: bytes in use in the file, including delivered events that are retained, and bytes of the WAL beyond
        the 8 MiB that it may hold at any time: a reader that keeps its transaction open makes it grow. ``None`` for no
        limit.
    :ivar min_free_bytes: bytes of the disk kept free for delivering pending events; ``None`` for no limit.
    """

    max_events: int | None = None
    max_bytes: int | None = 8 * 1024**3
    min_free_bytes: int | None = 16 * 1024**2

    def __post_init__(self) -> None:
        for name in ("max_events", "max_bytes", "min_free_bytes"):
            if (value := getattr(self, name)) is None:
                continue
            check_number(value, name, whole=True)
            if value < 1:
                raise InvalidInput(name, "must be at least 1, or None for no limit")

    def check(self, cursor: Any, size: int | None = None, wal: Callable[[], int] = lambda: 0) -> None:
        """Do nothing if there is room; ``size`` is an upper bound of the bytes in use, ``wal()`` those of the WAL."""
        # The pages in use are counted near the limit only: every append would pay for the count.
        if self.max_bytes is not None and (size is None or size >= self.max_bytes // 2):
            cursor.execute(_USED)
            used = cursor.fetchone()[0]
            held = max(0, wal() - ROUTINE_WAL_BYTES)
            if used + held >= self.max_bytes:
                what = f"the outbox holds {used} bytes" + (f" and {held} in its WAL" if held else "")
                advice = (
                    "end the program that keeps a read transaction open on it"
                    if held > used
                    else "let the relay deliver"
                )
                raise OutboxFull(
                    f"{what} and may hold {self.max_bytes}: nothing was dropped; {advice}, or raise max_bytes"
                )
        if self.max_events is not None:
            cursor.execute(_PENDING)
            if (pending := cursor.fetchone()[0]) >= self.max_events:
                raise OutboxFull(
                    f"{pending} events are pending and {self.max_events} may be: nothing was dropped; "
                    "let the relay deliver, or raise max_events"
                )


RESERVE_BYTES: Final = 4 * 1024**2
"""Size of the reserve file: as much as SQLite lets a WAL grow before it moves it into the file. A WAL then always fits,
and acknowledgements, which change pages that are there already, need no more space after it."""
_PLENTY_FACTOR: Final = 64
"""Times the watermark, by default a gigabyte, that no disk loses within :data:`_PLENTY_SECONDS`."""
_PLENTY_SECONDS: Final = 0.1
_ZEROS: Final = bytes(64 * 1024)


def reserve_path(path: Path) -> Path:
    return path.with_name(path.name + ".ballast")


def release_reserve(path: Path) -> bool:
    """Delete the reserve of an outbox file. Return True if there was one, so that there is space now."""
    try:
        reserve_path(path).unlink()
    except OSError:
        return False
    return True


class DiskReserve:
    """What an outbox keeps free on its disk: a watermark for new events, and a reserve for all else."""

    def __init__(self, path: Path, *, watermark: int | None, reserve: int = RESERVE_BYTES) -> None:
        self._path = path
        self._folder = str(path.parent)
        self._watermark = watermark
        self._size = reserve
        self._plenty_until = 0.0

    def check(self) -> None:
        """Do nothing if new events may be written."""
        if self._watermark is None or (now := time.monotonic()) < self._plenty_until or (free := self.free()) is None:
            return
        if free >= self._watermark * _PLENTY_FACTOR:
            self._plenty_until = now + _PLENTY_SECONDS
        if free < self._watermark:
            raise OutboxFull(
                f"the disk of the outbox has {free} bytes free, and {self._watermark} are kept for delivering what is "
                "pending: nothing was dropped; free some space, and appends resume"
            )

    def free(self) -> int | None:
        """Return how many bytes this user may still write to the disk; ``None`` where the system does not say."""
        try:
            if hasattr(os, "statvfs"):
                disk = os.statvfs(self._folder)  # on the writer's path; shutil.disk_usage is slower
                # Some network and virtual file systems report no blocks at all.
                return disk.f_bavail * disk.f_frsize if disk.f_blocks else None
            return shutil.disk_usage(self._folder).free
        except OSError:
            return None

    def release(self) -> bool:
        """Delete the reserve. Return True if there was one."""
        return release_reserve(self._path)

    def restore(self) -> bool:
        """Create the reserve if the disk has room for it above the watermark. Return True if it is there."""
        reserve = reserve_path(self._path)
        if reserve.exists():
            return True
        free = self.free()
        if free is None or free < self._size + max(self._watermark or 0, self._size):
            return False
        try:
            descriptor = os.open(reserve, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            return True  # another process was faster
        except OSError:
            return False  # a folder without rights, or no inode left
        try:
            _allocate(descriptor, self._size)
        except OSError:
            with suppress(OSError):
                reserve.unlink()
            return False
        finally:
            os.close(descriptor)
        return True


def _allocate(descriptor: int, size: int) -> None:
    """Give a file its space on the disk; a sparse file would hold none."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for _ in range(0, size, len(_ZEROS)):
        os.write(descriptor, _ZEROS)

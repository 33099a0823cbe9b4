"""Headroom: keep enough of the disk free that what is pending can still be delivered and written off."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from letopis.store.errors import OutboxFull

BALLAST: Final = 4 * 1024**2
"""Bytes of the ballast file: as much as SQLite lets a WAL grow before it moves it into the file, so that this always
fits, and acknowledgements, which change pages that are there already, need no more space after it."""
_PLENTY: Final = 64
"""Times the watermark, by default a gigabyte, that no disk takes in :data:`_AGAIN` seconds."""
_AGAIN: Final = 0.1
_ZEROS: Final = bytes(64 * 1024)


def ballast_of(path: Path) -> Path:
    """Return where the ballast of an outbox file lies."""
    return path.with_name(path.name + ".ballast")


def release(path: Path) -> bool:
    """Delete the ballast of an outbox file; whether there was one, so that there is space now."""
    try:
        ballast_of(path).unlink()
    except OSError:
        return False
    return True


class Headroom:
    """What an outbox keeps free on its disk: a watermark for new appends, and a ballast file for everything else.

    Below the watermark new events are refused, while delivering goes on. When others fill the disk to the last byte,
    the ballast is deleted, which is space for acknowledgements and for the verbs of a person; it is made again when
    the disk has room for both. Several processes may do either at once.

    Not promised: that the ballast is there. The relay makes it in a quiet moment, some seconds after it began.

    :param path: of the outbox file.
    :param watermark: bytes that new appends leave free; ``None`` for no such limit.
    :param ballast: bytes of the ballast file.
    """

    def __init__(self, path: Path, *, watermark: int | None, ballast: int = BALLAST) -> None:
        self._path = path
        self._folder = str(path.parent)
        self._watermark = watermark
        self._size = ballast
        self._plenty_until = 0.0

    def check(self) -> None:
        """Look whether new events may be written.

        :raises OutboxFull: too little of the disk is free.
        """
        if self._watermark is None or (now := time.monotonic()) < self._plenty_until or (free := self.free()) is None:
            return
        if free >= self._watermark * _PLENTY:
            self._plenty_until = now + _AGAIN
        if free < self._watermark:
            raise OutboxFull(
                f"the disk of the outbox has {free} bytes free, and {self._watermark} are kept for delivering what is "
                "pending: nothing was dropped; free some space, appends go on by themselves then"
            )

    def free(self) -> int | None:
        """Return how many bytes this user may still write to the disk; ``None`` where the system does not say."""
        try:
            if hasattr(os, "statvfs"):
                found = os.statvfs(self._folder)  # on the writer's path; shutil.disk_usage costs three times as much
                return found.f_bavail * found.f_frsize
            return shutil.disk_usage(self._folder).free
        except OSError:
            return None

    def release(self) -> bool:
        """Delete the ballast; whether there was one."""
        return release(self._path)

    def restore(self) -> bool:
        """Make the ballast if it is missing and the disk has room for it above the watermark; whether it is there.

        Blocks for some milliseconds.
        """
        ballast = ballast_of(self._path)
        if ballast.exists():
            return True
        free = self.free()
        if free is None or free < self._size + max(self._watermark or 0, self._size):
            return False
        try:
            descriptor = os.open(ballast, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            return True  # another process was faster
        except OSError:
            return False  # a folder without rights, or no inode left
        try:
            _allocate(descriptor, self._size)
        except OSError:
            with suppress(OSError):
                ballast.unlink()
            return False
        finally:
            os.close(descriptor)
        return True


def _allocate(descriptor: int, size: int) -> None:
    """Give a file its space on the disk; a file with a hole would be none."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for _ in range(0, size, len(_ZEROS)):
        os.write(descriptor, _ZEROS)

"""Tell from the times of an outbox file and its write-ahead log whether anything was committed since."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Final, NamedTuple

from letopis.outbox.file.identity import FileId

SETTLED_NS: Final = 50_000_000
"""Several times the step of the clock that file systems take times from: two changes within one have the same time."""


class FileState(NamedTuple):
    """What shows a commit without opening the file.

    :ivar file_id: device and inode.
    :ivar content: size and time of the last change of the database itself.
    :ivar wal: the same of its write-ahead log; ``None`` if that is missing or empty.
    """

    file_id: FileId
    content: tuple[int, int]
    wal: tuple[int, int] | None

    def holds_more_than(self, before: FileState) -> bool:
        """Return True if something may have been committed since ``before``.

        A missing log proves nothing: the last one to close the file has moved it into the database and removed it. Its
        contents are then in the database.
        """
        return self[:2] != before[:2] or (self.wal is not None and self.wal != before.wal)


def state_of(path: Path) -> FileState | None:
    """Return the state of an outbox file; ``None`` if there is none. Takes a few microseconds, and opens nothing."""
    name = str(path)
    try:
        found = os.stat(name)  # noqa: PTH116 - four times a second for a thousand files; Path.stat() is slower
    except OSError:
        return None
    try:
        beside = os.stat(name + "-wal")  # noqa: PTH116
        wal = (beside.st_size, beside.st_mtime_ns) if beside.st_size else None
    except OSError:
        wal = None
    return FileState((found.st_dev, found.st_ino), (found.st_size, found.st_mtime_ns), wal)


async def settled_state(path: Path) -> FileState | None:
    """Return the state of a file once the next commit is certain to change it: at most a tenth of a second later."""
    state = state_of(path)
    for _ in range(2):
        if state is None:
            return None
        newest = max(state.content[1], 0 if state.wal is None else state.wal[1])
        if not 0 <= time.time_ns() - newest < SETTLED_NS:
            break
        await asyncio.sleep(SETTLED_NS / 1_000_000_000)
        state = state_of(path)
    return state

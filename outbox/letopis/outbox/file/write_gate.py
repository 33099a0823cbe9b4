"""The one gate that every write to an outbox file passes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

from letopis.outbox.concurrency.fair_lock import FairLock
from letopis.outbox.file.identity import FileId, FileIdentityGuard
from letopis.outbox.file.limits import Bounds, DiskReserve
from letopis.outbox.file.wal_checkpoint import wal_size

LOCK_TIMEOUT_SECONDS: Final = 10.0
"""How long a write waits for the file before it is refused."""


class WriteGate(FairLock):
    """Lets one writer of this process at a time to the file, while the file is in its place and has room.

    A writer holds the lock from before its transaction begins until after it has committed. It calls
    :meth:`check_space` before it adds events, and ``verify_file`` as late as it can before it commits.

    :ivar files: the identity of the file, and of what SQLite keeps beside it.
    :ivar reserve: what is kept free on the disk.
    :ivar verify_file: refuses to write where the file is not in its place; ``files.verify``.
    """

    def __init__(self, path: Path, file_id: FileId, *, bounds: Bounds) -> None:
        super().__init__()
        self.files = FileIdentityGuard(path, file_id)
        self.verify_file = self.files.verify
        self.reserve = DiskReserve(path, watermark=bounds.min_free_bytes)
        self._bounds = bounds
        self._wal_size = partial(wal_size, path)

    def check_room(self, cursor: Any) -> None:
        """Do nothing if new events may be written, in the transaction that is open on a DBAPI ``cursor``."""
        self.verify_file()
        self.check_space(cursor)

    def check_space(self, cursor: Any) -> None:
        """Do the part of :meth:`check_room` that is left to a writer that verifies the file before its commit."""
        self.reserve.check()
        self._bounds.check(cursor, self.files.size, self._wal_size)

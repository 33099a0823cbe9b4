"""Show by a lock of the operating system which writers of replies are alive."""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

from filelock import FileLock, Timeout

from letopis.store.errors import Closed, OutboxUnavailable

logger: Final = logging.getLogger("letopis.outbox.history")
INFIX: Final = ".writer-"
_WRITER: Final = re.compile(r"[0-9a-f]{32}")
_MAX_ATTEMPTS: Final = 50


def writer_path(outbox: Path, writer: str) -> Path:
    """Return the side file that a writer locks; the same for every spelling of the outbox path."""
    real = Path(os.path.realpath(outbox))
    return real.with_name(f"{real.name}{INFIX}{writer}")


# A lock goes with its process, however that ends; process ids and clocks play no part. A side file has a new name, and
# is locked before any other process can know that name.
class WriterLock:
    """Locks one writer's side file, for as long as the writer lives, and checks those of other writers."""

    def __init__(self, outbox: Path) -> None:
        self._outbox = outbox
        self._lock: FileLock | None = None
        self._pid = 0
        self._writer = ""

    @property
    def writer(self) -> str | None:
        """The name under which this writer writes; ``None`` before :meth:`acquire`."""
        return None if self._lock is None or self._pid != os.getpid() else self._writer

    def acquire(self) -> str:
        """Lock a new side file and return the name of the writer. Idempotent."""
        if self._lock is not None:
            if self._pid != os.getpid():
                raise Closed("opened before this process was forked off: open again here")
            return self._writer
        for _ in range(_MAX_ATTEMPTS):
            writer = uuid4().hex
            path = writer_path(self._outbox, writer)
            try:
                lock = FileLock(path, mode=0o600, thread_local=False)
                lock.acquire(blocking=False)
            except Timeout:
                continue  # a process that looks for abandoned writers was faster, and deletes it
            except OSError as error:
                raise OutboxUnavailable(f"no file can be created beside the outbox [{error.errno}]") from error
            if path.exists():
                self._lock, self._pid, self._writer = lock, os.getpid(), writer
                return writer
            lock.release()
        raise OutboxUnavailable("files created beside the outbox do not stay there")

    def is_abandoned(self, writer: str) -> bool:
        """Return True if a writer has ended or never existed; False if that cannot be determined."""
        if writer == self.writer:
            return False
        if _WRITER.fullmatch(writer) is None:
            return True
        path = writer_path(self._outbox, writer)
        if not path.exists():
            return True
        try:
            lock = FileLock(path, mode=0o600, thread_local=False)
            lock.acquire(blocking=False)
        except Timeout:
            return False
        except OSError as error:
            logger.debug("cannot see whether a writer is alive [%s]", error.errno)
            return False
        with suppress(OSError):
            _delete(path, lock)
        return True

    def remove_stale(self) -> None:
        """Delete the side files of writers that have ended."""
        real = Path(os.path.realpath(self._outbox))
        start = real.name + INFIX
        with suppress(OSError), os.scandir(real.parent) as entries:
            for name in [entry.name for entry in entries if entry.name.startswith(start)]:
                self.is_abandoned(name.removeprefix(start))

    def release(self) -> None:
        """Release the lock and delete the side file. Idempotent; a forked child does nothing."""
        lock, self._lock = self._lock, None
        if lock is None or self._pid != os.getpid():
            return
        with suppress(OSError):
            _delete(Path(lock.lock_file), lock)


def _delete(path: Path, lock: FileLock) -> None:
    # Under the lock: a process that opens the path later finds no file; one that has opened it finds it unlinked.
    with suppress(OSError):
        path.unlink()
    lock.release()
    # Windows does not delete an open file.
    path.unlink(missing_ok=True)

"""Liveness: who of those that write replies still lives, by locks of the operating system."""

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
_TRIES: Final = 5


def writer_path(outbox: Path, writer: str) -> Path:
    """Return the side file whose lock a writer holds; the same for every way to name the outbox file."""
    real = Path(os.path.realpath(outbox))
    return real.with_name(f"{real.name}{INFIX}{writer}")


class Liveness:
    """One writer's sign of life, and the means to see that of the others.

    A writer holds the lock of a side file of its own for as long as it lives. The lock is gone with the process that
    held it, however that ended; no process id and no clock has a say in it. A side file is made under a name that
    nobody has used, locked before anybody can know that name, and deleted when its writer ends.

    Works between processes, and between several of one process. In a process that was forked off, it is nobody's.

    Not promised: anything when a person deletes the side file of a writer that lives. It is taken for gone then.
    """

    def __init__(self, outbox: Path) -> None:
        self._outbox = outbox
        self._lock: FileLock | None = None
        self._pid = 0
        self._writer = ""

    @property
    def writer(self) -> str | None:
        """The name under which this one writes; ``None`` where it has not begun."""
        return None if self._lock is None or self._pid != os.getpid() else self._writer

    def begin(self) -> str:
        """Return the name under which this one writes, having given its sign of life; again returns the same.

        Not in a thread: one ``open()`` and one lock that does not wait.

        :raises Closed: it was begun before this process was forked off.
        :raises OutboxUnavailable: the side file cannot be made.
        """
        if self._lock is not None:
            if self._pid != os.getpid():
                raise Closed("opened before this process was forked off: open again here")
            return self._writer
        for _ in range(_TRIES):
            writer = uuid4().hex
            path = writer_path(self._outbox, writer)
            try:
                lock = FileLock(path, mode=0o600, thread_local=False)
                lock.acquire(blocking=False)
            except Timeout:
                continue  # somebody who looks for what the dead have left was faster, and deletes it
            except OSError as error:
                raise OutboxUnavailable(f"no file can be made beside the outbox [{error.errno}]") from error
            if path.exists():
                self._lock, self._pid, self._writer = lock, os.getpid(), writer
                return writer
            lock.release()
        raise OutboxUnavailable("the files that are made beside the outbox do not stay there")

    def gone(self, writer: str) -> bool:
        """Whether a writer lives no more, or never did; where that cannot be seen, it lives.

        Two who look at the same instant may keep one of them from seeing it. Then it is seen the next time.
        """
        if writer == self.writer:
            return False
        if _WRITER.fullmatch(writer) is None:
            return True
        path = writer_path(self._outbox, writer)
        if not path.exists():
            return True
        return _removed(path)

    def tidy(self) -> None:
        """Delete the side files of writers that are gone."""
        real = Path(os.path.realpath(self._outbox))
        start = real.name + INFIX
        with suppress(OSError), os.scandir(real.parent) as entries:
            for name in [entry.name for entry in entries if entry.name.startswith(start)]:
                self.gone(name.removeprefix(start))

    def end(self) -> None:
        """Take the sign of life back; again does nothing, and in a process that was forked off neither."""
        lock, self._lock = self._lock, None
        if lock is None or self._pid != os.getpid():
            return
        with suppress(OSError):
            _delete(Path(lock.lock_file), lock)


def _removed(path: Path) -> bool:
    """Delete a side file whose lock is free; whether it was."""
    try:
        lock = FileLock(path, mode=0o600, thread_local=False)
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except OSError as error:
        logger.debug("cannot see whether a writer lives [%s]", error.errno)
        return False
    with suppress(OSError):
        _delete(path, lock)
    return True


def _delete(path: Path, lock: FileLock) -> None:
    # Under the lock: who opens the file afterwards finds none, and who has opened it before finds it without a name.
    with suppress(OSError):
        path.unlink()
    lock.release()
    # Windows deletes no file that is open.
    path.unlink(missing_ok=True)

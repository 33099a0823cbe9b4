"""Notice commits of other processes to the open outbox files of a daemon, without a thread for each."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from letopis.outbox.concurrency.signal import Signal
from letopis.outbox.file.change_watcher import POLL_MAX_SECONDS, POLL_MIN_SECONDS, QUIET_FRACTION
from letopis.outbox.file.file_state import state_of
from letopis.outbox.file.identity import FileId


class PolledWatch:
    """The watch of one open file, as :class:`~letopis.outbox.file.change_watcher.FileWatcher`, polled by another.

    It looks at the times of the file and its write-ahead log, so that commits of this process are noticed too. Two
    commits within one step of the file system's clock may be noticed as one: a waiter needs a timeout of its own.

    :param polled: every watch that is to be polled; this one is in it while it is entered.
    :ivar eager: set it to ``False`` while commits are of no interest.
    :ivar replaced: ``True`` once another file, or none, is at the path.
    """

    def __init__(
        self,
        path: Path,
        signal: Signal,
        *,
        file_id: FileId,
        polled: set[PolledWatch],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.eager = True
        self.replaced = False
        self._path = path
        self._signal = signal
        self._file_id = file_id
        self._polled = polled
        self._monotonic = monotonic
        self._seen = state_of(path)
        self._changed_at = monotonic()

    async def __aenter__(self) -> Self:
        self._polled.add(self)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._polled.discard(self)

    def poll(self) -> float:
        """Look, and notify the signal of a change; return the seconds until the next look."""
        now, found = self._monotonic(), state_of(self._path)
        if found != self._seen:
            self._seen, self._changed_at = found, now
            self.replaced = self.replaced or found is None or found.file_id != self._file_id
            self._signal.notify()
        if not self.eager:
            return POLL_MAX_SECONDS
        return min(POLL_MAX_SECONDS, max(POLL_MIN_SECONDS, (now - self._changed_at) * QUIET_FRACTION))

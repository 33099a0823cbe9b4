"""Decide when the outbox files of a daemon are looked at: the closed ones in turns, the open ones for commits."""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from letopis.outbox.file.change_watcher import POLL_MAX_SECONDS, POLL_MIN_SECONDS, QUIET_FRACTION, Signal
from letopis.outbox.file.identity import FileId
from letopis.outbox.retry.policy import RetryPolicy

SETTLED_NS: Final = 50_000_000  # several steps of file systems' clocks: two changes within one have the same time


class FileState(NamedTuple):
    """What shows a commit without opening the file."""

    file_id: FileId
    content: tuple[int, int]  # size and time of the last change of the database itself
    wal: tuple[int, int] | None  # the same of its write-ahead log; None if that is missing or empty

    def holds_more_than(self, before: FileState) -> bool:
        """Return True if something may have been committed since ``before``."""
        # A missing log proves nothing: the last one to close the file has moved its contents into the database.
        return self[:2] != before[:2] or (self.wal is not None and self.wal != before.wal)


def state_of(path: Path) -> FileState | None:
    """Return the state of an outbox file; ``None`` if there is none. Takes a few microseconds, and opens nothing."""
    name = str(path)
    try:
        status = os.stat(name)  # noqa: PTH116 - four times a second for a thousand files; Path.stat() is slower
    except OSError:
        return None
    try:
        beside = os.stat(name + "-wal")  # noqa: PTH116
        wal = (beside.st_size, beside.st_mtime_ns) if beside.st_size else None
    except OSError:
        wal = None
    return FileState((status.st_dev, status.st_ino), (status.st_size, status.st_mtime_ns), wal)


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


LOOKS: Final = RetryPolicy(base=30.0, factor=2.0, cap=600.0)
"""When a quiet file is compared with the history store, after a delivery and after each look."""
TROUBLED_LOOK_SECONDS: Final = 15.0  # time between two looks at a file with pending events or open incidents
LOCK_INTERVAL_SECONDS: Final = 0.5  # time between two tries to take the lock of a file that another relay works on


@dataclass(slots=True, kw_only=True, eq=False)
class Timetable:
    """The next turn of one file, and its next look: a turn that is due some time, though nothing is known to do."""

    monotonic: Callable[[], float] = time.monotonic
    uniform: Callable[[float, float], float] = random.uniform
    pending: bool = True
    failed: bool = False
    troubled: bool = False
    look_at: float = math.inf
    _due_at: float = math.inf
    _lock_at: float = -math.inf
    _looks: int = 0
    _turns: int = 0

    @property
    def due(self) -> bool:
        """Whether a retry, or what failed, is due now."""
        return self.monotonic() >= self._due_at

    def may_try_lock(self) -> bool:
        """Return True if the lock may be tried again now."""
        now = self.monotonic()
        if now < self._lock_at:
            return False
        self._lock_at = now + LOCK_INTERVAL_SECONDS * self.uniform(0.8, 1.2)
        return True

    def hurry(self) -> None:
        """Have a turn as soon as one is free."""
        self.pending = True

    def look_soon(self) -> None:
        """Have a look as soon as those before it are done."""
        self.look_at = min(self.look_at, self.monotonic())

    def look_later(self) -> None:
        """Have a look within the shortest time between two."""
        pause = LOOKS.base if self._turns else 0.0
        self.look_at = min(self.look_at, self.monotonic() + pause)

    def begin_turn(self) -> None:
        self._turns += 1
        self.pending = self.failed = False
        self._due_at = self.look_at = math.inf

    def fail(self, wait: float) -> None:
        """Note that the turn failed, and is repeated after ``wait`` seconds."""
        self.failed, self.pending = True, False
        self._due_at, self.look_at = self.monotonic() + wait, math.inf

    def end_turn(self, *, more: bool, wait: float | None, troubled: bool, moved: bool) -> None:
        now = self.monotonic()
        self.pending, self.failed, self.troubled = more, False, troubled
        self._due_at = math.inf if wait is None else now + wait
        self._looks = 0 if moved or troubled else self._looks + 1
        pause = TROUBLED_LOOK_SECONDS if troubled else LOOKS.bound(self._looks + 1)
        self.look_at = now + pause * self.uniform(0.9, 1.1)


@dataclass(eq=False)
class PolledWatch:
    """The watch of one open file, polled by another; a commit soon after another may go unnoticed for a time."""

    path: Path
    signal: Signal
    _: KW_ONLY
    file_id: FileId
    polled: set[PolledWatch]
    monotonic: Callable[[], float] = time.monotonic
    eager: bool = True
    replaced: bool = False

    def __post_init__(self) -> None:
        self._seen = state_of(self.path)
        self._changed_at = self.monotonic()

    async def __aenter__(self) -> Self:
        self.polled.add(self)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.polled.discard(self)

    def poll(self) -> float:
        """Look, and notify the signal of a change; return the seconds until the next look."""
        now, state = self.monotonic(), state_of(self.path)
        if state != self._seen:
            self._seen, self._changed_at = state, now
            self.replaced = self.replaced or state is None or state.file_id != self.file_id
            self.signal.notify()
        if not self.eager:
            return POLL_MAX_SECONDS
        return min(POLL_MAX_SECONDS, max(POLL_MIN_SECONDS, (now - self._changed_at) * QUIET_FRACTION))

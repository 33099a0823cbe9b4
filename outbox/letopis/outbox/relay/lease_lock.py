"""Hold the operating system lock of a lease, also while the outbox file itself is closed."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from letopis.outbox.file.sign_of_life import RELEASED, give_sign_of_life, last_sign_of_life, lock_path


class LeaseLock:
    """The lock of one outbox file's lease: one descriptor while it is held, none otherwise.

    It ends with the process, however that ends. A holder that closes the outbox file meanwhile gives signs of life
    through the lock file, so that others see that the file is served.
    """

    def __init__(self, outbox: Path) -> None:
        self._path = lock_path(outbox)
        self._lock = FileLock(self._path, mode=0o600, thread_local=False)

    @property
    def held(self) -> bool:
        """Whether this process holds the lock through this object."""
        return self._lock.is_locked

    def try_acquire(self) -> bool:
        """Take the lock if it is free, without waiting; return True if it is held.

        Not in a thread: one open() and one flock() that does not wait.

        :raises OSError: the lock file cannot be created or opened.
        """
        if not self.held:
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                return False
        return True

    def give_sign_of_life(self, now_us: int) -> bool:
        """Show others that the holder is at work; return False if the lock file is gone, and the lock protects nothing.

        Does nothing while the lock is not held.
        """
        return not self.held or give_sign_of_life(self._path, now_us=now_us)

    def last_sign_of_life(self) -> int | None:
        """Return when a holder last gave a sign of life, UTC microseconds; ``None`` without a lock file."""
        return last_sign_of_life(self._path)

    def release(self) -> None:
        """Release the lock. Idempotent."""
        if self.held:
            give_sign_of_life(self._path, now_us=RELEASED)
            self._lock.release()

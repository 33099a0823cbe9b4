"""Give and read a relay's sign of life: a time on its lock file, which costs no write to the outbox; and its end."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

LOCK_SUFFIX: Final = ".relay.lock"
RELEASED: Final = 0
"""The sign of life of a holder that has released the lock, and may not have been able to write so into the outbox."""


def lock_path(outbox: Path) -> Path:
    """Return the side file whose lock is the lease; the same for every path to the outbox file."""
    real = Path(os.path.realpath(outbox))
    return real.with_name(real.name + LOCK_SUFFIX)


def give_sign_of_life(lock_file: Path, *, now_us: int) -> bool:
    """Write the time into the access time of a lock file; return False if the file is gone.

    Not into the modification time: some versions of the locking library change that when they only try the lock.
    """
    try:
        os.utime(lock_file, ns=(now_us * 1000, lock_file.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    except OSError:
        return True  # a file system that takes no times: the row in the outbox is a sign of life too
    return True


def last_sign_of_life(lock_file: Path) -> int | None:
    """Return when the holder of a lock file last gave a sign of life, UTC microseconds; ``None`` without the file."""
    try:
        return lock_file.stat().st_atime_ns // 1000
    except OSError:
        return None


def lives(heartbeat_us: int, outbox: Path, *, now_us: int, within: float) -> bool:
    """Return True if a lease's holder is at work, by its row or, where its relay closed the file, its lock file."""
    sign = last_sign_of_life(lock_path(outbox))
    return sign != RELEASED and now_us - max(heartbeat_us, sign or 0) <= within * 1_000_000


def ended_without_stopping(pid: int, host: str, boot: str, outbox: Path) -> bool:
    """Return True if a lease's holder is certainly gone, as after ``kill -9``: its lock is free."""
    if pid == 0 or not boot or boot != boot_id():
        return False
    if host == socket.gethostname() and Path(f"/proc/{pid}").exists():
        return False
    return _is_free(lock_path(outbox))


def boot_id() -> str:
    """Return an identifier of this boot of the machine; empty if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _is_free(lock_file: Path) -> bool:
    """Return True if no process holds the lock, as it does while a relay is at work; asks for a shared one, briefly."""
    try:
        import fcntl
    except ImportError:  # Windows, where a relay is judged by its signs of life alone
        return False
    try:
        descriptor = os.open(lock_file, os.O_RDONLY)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        return False
    finally:
        os.close(descriptor)  # which releases it
    return True

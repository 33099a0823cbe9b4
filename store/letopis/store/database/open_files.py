"""Tell whether this process or the machine has run out of file descriptors, which SQLite reports in other words."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Final

MIN_OPEN_FILE_LIMIT: Final = 256
"""The limit that a bot or a relay of one outbox needs; see docs/howto/systemd.md."""
ADVICE: Final = "raise the limit (LimitNOFILE= of a systemd unit, --ulimit nofile of Docker, ulimit -n)"
SPARE_DESCRIPTORS: Final = 16
"""Free descriptors below which a failed open counts as exhaustion: a connection takes several, and frees them again."""
_EXHAUSTED_ERRNOS: Final = (errno.EMFILE, errno.ENFILE)


def is_exhausted(error: BaseException | None = None) -> bool:
    if error is not None:
        return isinstance(error, OSError) and error.errno in _EXHAUSTED_ERRNOS
    descriptors = list[int]()
    try:
        while len(descriptors) < SPARE_DESCRIPTORS:
            descriptors.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as refused:
        return refused.errno in _EXHAUSTED_ERRNOS
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return False


def describe_exhaustion() -> str:
    """Return what is wrong and what to do."""
    limit = open_file_limit()
    detail = "" if limit is None else f" (the limit is {limit})"
    return f"too many files are open in this process{detail}: {ADVICE}"


def raise_limit() -> None:
    """Allow this process as many open files as it may allow itself; does nothing where that is not possible."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # a sandbox forbids it, or "unlimited" is more than the kernel allows
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_file_limit() -> int | None:
    """Return how many files this process may open, or ``None`` if that is unlimited or unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft

"""Count what a process holds, so that a test sees what was not given back."""

import threading
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")


def open_descriptors() -> int:
    """How many files and sockets are open; 0 on systems that do not say."""
    return sum(1 for _ in _DESCRIPTORS.iterdir()) if _DESCRIPTORS.is_dir() else 0


def own_threads() -> int:
    """How many threads run that have to be ended: not those of asyncio's and AnyIO's pools, which keep their own."""
    pools = ("asyncio_", "AnyIO worker thread")
    return sum(not thread.name.startswith(pools) for thread in threading.enumerate())

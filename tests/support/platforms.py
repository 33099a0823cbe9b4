"""Skip a test on a platform that cannot run it, and count what a process holds."""

import os
import sys
import threading
from pathlib import Path

import pytest

DESCRIPTORS = Path("/proc/self/fd")


def posix_only(why: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(os.name == "nt", reason=f"{why}: run it on Linux or macOS")


def linux_only(why: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(sys.platform != "linux", reason=f"{why}: run it on Linux")


def open_descriptors() -> int:
    """How many files and sockets are open; 0 on systems that do not say."""
    return sum(1 for _ in DESCRIPTORS.iterdir()) if DESCRIPTORS.is_dir() else 0


def own_threads() -> int:
    """How many threads run that have to be ended: not those of asyncio's and AnyIO's pools, which keep their own."""
    pools = ("asyncio_", "AnyIO worker thread")
    return sum(not thread.name.startswith(pools) for thread in threading.enumerate())

"""Create private files and flush files to their medium."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Final

from letopis.store.errors import ConfigurationError

if sys.platform == "win32":
    _FULL: Final = None
else:
    import fcntl

    _FULL = getattr(fcntl, "F_FULLFSYNC", None)

_creating = threading.Lock()


def create_private_file(path: str | os.PathLike[str]) -> bool:
    """Create an empty file that only its owner may read and write, under any umask; True if it was missing."""
    # Of a symbolic link to nothing the target is created: SQLite would create it readable by others. A file that exists
    # is not opened: closing it would drop the locks that SQLite holds on it in this process.
    path = Path(os.path.realpath(path))
    # SQLite connections of this process open the file only after this function: the lock keeps our own close() from
    # coming after another thread's SQLite took its locks.
    with _creating:
        if not path.parent.is_dir():
            raise ConfigurationError(f"the folder of {str(path)!r} does not exist: create it, or give another path")
        try:
            # O_EXCL follows no link: a file created in between is found, not opened.
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except FileExistsError:
            return False
        try:
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        _flush_folder(path.parent)
        return True


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # a folder cannot be opened there, and NTFS journals its entries
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def flush_to_disk(descriptor: int) -> None:
    """Block until what was written to ``descriptor`` is on the medium."""
    # On macOS fsync leaves the data in the drive's cache.
    if _FULL is not None:
        fcntl.fcntl(descriptor, _FULL)
    else:
        os.fsync(descriptor)

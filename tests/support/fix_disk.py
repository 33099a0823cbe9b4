"""Mount a small disk that a test can fill up."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.required import missing


class NoSmallDisk(Exception):
    """None can be made here; the message says why."""


class SmallDisk:
    """A tmpfs at a folder, and a file in it that takes all the room that is left."""

    def __init__(self, folder: Path, *, size: str, mode: str = "0700") -> None:
        if os.name == "nt" or os.geteuid() != 0 or shutil.which("mount") is None:
            raise NoSmallDisk("mounting a small tmpfs takes root: run the tests as root")
        self._folder = folder
        words = ["mount", "-t", "tmpfs", "-o", f"size={size},mode={mode}", "tmpfs", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoSmallDisk(f"mount refuses a tmpfs, run the tests where it may: {done.stderr.strip()}")

    def fill(self) -> Path:
        """Leave no room, to the last byte, as another program would; return the file that takes it."""
        return fill(self._folder)

    def free(self) -> None:
        """Give the room back."""
        (self._folder / HOG).unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it; also while something in it is still open."""
        subprocess.run(["umount", "--lazy", str(self._folder)], capture_output=True, check=False)


HOG = "hog"


def fill(folder: Path) -> Path:
    """Take the room of a disk to the last byte; return the file that takes it."""
    hog = folder / HOG
    for piece in (65_536, 4_096, 1):
        try:
            with hog.open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(piece))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return hog


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB that any user may write to."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        disk = SmallDisk(folder, size="24m", mode="0777")
    except NoSmallDisk as reason:
        missing("mount", reason)
    yield folder
    disk.close()

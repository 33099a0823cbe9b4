"""Small disk: a little file system of its own for a server's data, to be filled up."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

SIZE = "160m"


class NoSmallDisk(Exception):
    """None can be made here; the message says why."""


class SmallDisk:
    """A tmpfs at a folder, and a file in it that takes all the room that is left."""

    def __init__(self, folder: Path) -> None:
        """Mount it.

        :raises NoSmallDisk: that takes root and ``mount``.
        """
        if os.name == "nt" or os.geteuid() != 0 or shutil.which("mount") is None:
            raise NoSmallDisk("mounting a small tmpfs takes root")
        self._folder = folder
        words = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "tmpfs", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoSmallDisk(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")

    def fill(self) -> None:
        """Leave no room."""
        with (self._folder / "ballast").open("ab", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(b"\0" * 4096)

    def free(self) -> None:
        """Give the room back."""
        (self._folder / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it; also while something in it is still open."""
        subprocess.run(["umount", "--lazy", str(self._folder)], capture_output=True, check=False)

"""Mount small disks that a test can fill up, break, or make read-only."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.required import PATH, missing


class NotHere(Exception):
    """This machine cannot do it; the message says why."""


def need(*tools: str) -> None:
    """Raise `NotHere` without the right to mount file systems, and without these programs."""
    if os.name == "nt" or os.geteuid() != 0:
        raise NotHere("needs root, to mount file systems")
    for tool in tools:
        if shutil.which(tool, path=PATH) is None:
            raise NotHere(f"needs {tool}")


def strace() -> str | None:
    found = shutil.which("strace")
    if found is None:
        return None
    tried = subprocess.run([found, "-f", "-o", os.devnull, "true"], capture_output=True, check=False, timeout=20)
    return found if tried.returncode == 0 else None


def run(*words: str | Path) -> None:
    environment = {**os.environ, "PATH": PATH}
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=environment)
    if done.returncode:
        raise NotHere(f"{words[0]}: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")


def make_image(image: Path, mebibytes: int, *words: str) -> None:
    with image.open("wb") as file:
        file.truncate(mebibytes * 1024**2)
    run(*words, image)


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    run("mount", "-o", "loop", image, place)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=False, capture_output=True, timeout=60)


class SmallDisk:
    """A tmpfs at a folder, and a file in it that takes all the room that is left."""

    def __init__(self, folder: Path, *, size: str, mode: str = "0700") -> None:
        need("mount")
        self._folder = folder
        run("mount", "-t", "tmpfs", "-o", f"size={size},mode={mode}", "tmpfs", folder)

    def fill(self) -> Path:
        """Leave no room, to the last byte, as another program would; return the file that takes it."""
        return fill(self._folder)

    def free(self) -> None:
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
    except NotHere as reason:
        missing("mount", reason)
    yield folder
    disk.close()

"""Report code of Letopis that opens a live SQLite file by other means than SQLite.

To close any descriptor of such a file drops every lock that the process holds on it: then the next process that comes
and goes takes the WAL away under it, and what was acknowledged is gone without an error anywhere.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final
from urllib.parse import unquote, urlsplit

_OURS: Final = "letopis."
_PATHS: Final = (str, bytes, os.PathLike)
_BESIDE: Final = ("-wal", "-shm", "-journal")
_DESCRIPTORS: Final = Path("/proc/self/fd")


class Tripwire:
    """Hears every ``open()`` of this process; keeps those of ours on a file that SQLite has open at that moment."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.heard = 0
        self._known: set[str] = set()
        self._looking = False

    def install(self) -> None:
        """Listen from now on, until the process ends: a hook cannot be taken away."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: Sequence[Any]) -> None:
        # Called for each of thousands of events: the ones that do not matter leave at once.
        if event == "open":
            path, _, flags = arguments
            # With O_EXCL a file that is there is not opened.
            if self._known and not self._looking and not flags & os.O_EXCL and isinstance(path, _PATHS):
                self._look(path)
        elif event == "sqlite3.connect":
            self._know(arguments[0])

    def _know(self, given: object) -> None:
        if isinstance(given, _PATHS):
            text = os.fsdecode(given)
            if text.startswith("file:"):
                text = unquote(urlsplit(text).path)
            self._known.add(os.path.basename(text))  # noqa: PTH119 - a Path for each open would be slow

    def _look(self, given: str | bytes | os.PathLike[str]) -> None:
        path = os.fsdecode(given)
        name = os.path.basename(path)  # noqa: PTH119 - as above
        for suffix in _BESIDE:
            name = name.removesuffix(suffix)
        if name not in self._known:
            return
        self.heard += 1
        self._looking = True  # what is opened to look is not looked at
        try:
            if _ours(sys._getframe(2)) and _is_open(path):
                self.found.append(f"{path}\n{''.join(traceback.format_stack(sys._getframe(2)))}")
        finally:
            self._looking = False


def _ours(frame: FrameType | None) -> bool:
    names = (str(caller.f_globals.get("__name__", "")) for caller, _ in traceback.walk_stack(frame))
    return any(name.startswith(_OURS) for name in names)


def _is_open(path: str) -> bool:
    """Return True if this process has the file open; where descriptors cannot be listed, if the file exists."""
    try:
        place = Path(path).stat()
    except OSError:
        return False
    if not _DESCRIPTORS.is_dir():
        return True
    for descriptor in _DESCRIPTORS.iterdir():
        with suppress(OSError):  # the one with which the folder was read
            if os.path.samestat(os.fstat(int(descriptor.name)), place):
                return True
    return False


WIRE: Final = Tripwire()  # of the whole test run; ``tests/conftest.py`` installs it

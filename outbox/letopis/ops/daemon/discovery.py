"""Find the outbox files that names and patterns on the command line mean."""

from __future__ import annotations

import glob
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from letopis.outbox.file.inspection import OUTBOX_MIGRATIONS, outbox_path
from letopis.outbox.file.sqlite_errors import code_of

_LOCK_TIMEOUT_SECONDS: Final = 0.5
OUTBOX_SUFFIX: Final = ".outbox.db"
NON_OUTBOX_RECHECK_SECONDS: Final = 30.0  # a file that was no outbox, and is the same, is not examined for this long


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxMatch:
    path: Path
    matched: bool


def is_pattern(name: str) -> bool:
    """Return True if a name holds ``*``, ``?`` or ``[`` and no file has exactly that name."""
    return any(sign in name for sign in "*?[") and not os.path.lexists(Path(name).expanduser())


def find_outboxes(names: Iterable[str]) -> list[OutboxMatch]:
    """Return the files that names and patterns mean, each once; reads folders, but no file."""
    matches: dict[str, OutboxMatch] = {}
    for name in names:
        if is_pattern(name) and "://" not in name:
            paths = sorted(glob.glob(str(Path(name).expanduser()), recursive=True))  # noqa: PTH207 - a whole path
            named = [OutboxMatch(path=Path(path).absolute(), matched=True) for path in paths if Path(path).is_file()]
        else:
            path = outbox_path(name if "://" in name else Path(name).expanduser())
            named = [OutboxMatch(path=path, matched=False)]
        for match in named:
            matches.setdefault(os.path.realpath(match.path), match)
    return list(matches.values())


def may_be_outbox(path: Path) -> bool:
    """Return False if a file is readable and no SQLite database, or a database without an outbox; writes nothing."""
    if path.name.endswith(OUTBOX_SUFFIX):
        return True
    # One that cannot be opened, for its mode or for damage, is not passed over: its events wait for an operator.
    try:
        with closing(
            sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_LOCK_TIMEOUT_SECONDS, isolation_level=None
            )
        ) as connection:
            query = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?"
            return connection.execute(query, (OUTBOX_MIGRATIONS.version_table,)).fetchone() is not None
    except (sqlite3.Error, UnicodeDecodeError) as error:  # SQLite quotes the file in its errors
        return not code_of(error).startswith("SQLITE_NOTADB")


class OutboxScanner:
    """Scans for outbox files repeatedly, without examining every other file each time."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._excluded: dict[Path, tuple[tuple[int, int], float]] = {}

    def scan(self, names: Iterable[str], known: Iterable[Path]) -> list[OutboxMatch]:
        """Return the files to be served that are not known yet; it reads files, so call it in a thread."""
        skipped = frozenset(known)
        return [
            match
            for match in find_outboxes(names)
            if match.path not in skipped and (not match.matched or self._is_outbox(match.path))
        ]

    def exclude(self, path: Path) -> None:
        """Leave a file out while it stays the same, for a time: a write may be in its write-ahead log alone."""
        self._excluded[path] = (_signature(path), self._monotonic() + NON_OUTBOX_RECHECK_SECONDS)

    def _is_outbox(self, path: Path) -> bool:
        signature, until = self._excluded.get(path, ((0, 0), 0.0))
        if signature == _signature(path) and self._monotonic() < until:
            return False
        if may_be_outbox(path):
            self._excluded.pop(path, None)
            return True
        self.exclude(path)
        return False


def _signature(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_ino, stat.st_mtime_ns

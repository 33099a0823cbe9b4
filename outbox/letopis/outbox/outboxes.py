"""Outboxes: which files a name or a pattern on the command line means, and whether a file is one."""

from __future__ import annotations

import glob
import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from letopis.outbox.file import OUTBOX, outbox_path

_PATIENCE: Final = 0.5
"""Seconds that a look at a file waits for its lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A file to be served.

    :ivar matched: by a pattern, so it may come and go; else a person named it, and it has to be there.
    """

    path: Path
    matched: bool


def is_pattern(name: str) -> bool:
    """Whether a name holds ``*``, ``?`` or ``[`` and no file is called exactly that."""
    return any(sign in name for sign in "*?[") and not os.path.lexists(Path(name).expanduser())


def find(names: Iterable[str]) -> list[Named]:
    """Return the files that names and patterns mean, each once whatever it is called by; reads folders, no file.

    :raises ConfigurationError: a name that cannot be a file.
    """
    found: dict[str, Named] = {}
    for name in names:
        if is_pattern(name):
            paths = sorted(glob.glob(str(Path(name).expanduser()), recursive=True))  # noqa: PTH207 - a whole path
            named = [Named(path=Path(path).absolute(), matched=True) for path in paths if Path(path).is_file()]
        else:
            named = [Named(path=outbox_path(Path(name).expanduser() if "://" not in name else name), matched=False)]
        for one in named:
            found.setdefault(os.path.realpath(one.path), one)
    return list(found.values())


def holds_outbox(path: Path) -> bool:
    """Whether a file is an SQLite database with an outbox in it, of whatever revision; writes nothing.

    A pattern may match anything: opening it as an outbox would make it one.
    """
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE, isolation_level=None)
        ) as connection:
            row = connection.execute(
                "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?", (OUTBOX.version_table,)
            ).fetchone()
    except sqlite3.Error:
        return False
    return row is not None

"""Shut and reopen the way to a history store of each kind."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Final

from tests.support.gate import Gate

_PAUSE: Final = 0.05


class FileDoor:
    """The way to an SQLite file: no process can write to it while it is shut."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._path = Path(url.removeprefix("sqlite:///"))
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Let the lock go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def shut(self) -> None:
        """Take the lock of writers, and keep it."""
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=0)
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError:
                await asyncio.sleep(_PAUSE)
        self._connection = connection


def door_to(kind: str, url: str) -> Gate | FileDoor:
    """Return the door of a store."""
    return FileDoor(url) if kind == "sqlite" else Gate(url)

"""Make an outbox and a history store full of conversations, and read one as a plain reader does."""

import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from letopis import History, Message

PAGE: Final = 4096


def flipped(data: bytes, chance: Random) -> bytes:
    at = chance.randrange(len(data) * 8)
    damaged = bytearray(data)
    damaged[at // 8] ^= 1 << (at % 8)
    return bytes(damaged)


def cut(data: bytes, chance: Random) -> bytes:
    """Cut the end off, half of the times at the end of a page."""
    length = chance.randrange(1, len(data))
    return data[: length - length % PAGE if chance.random() < 0.5 and length > PAGE else length]


def zeroed(data: bytes, chance: Random) -> bytes:
    at = chance.randrange(len(data) // PAGE) * PAGE
    return data[:at] + bytes(PAGE) + data[at + PAGE :]


def swapped(data: bytes, chance: Random) -> bytes:
    one, two = (place * PAGE for place in sorted(chance.sample(range(len(data) // PAGE), 2)))
    return data[:one] + data[two : two + PAGE] + data[one + PAGE : two] + data[one : one + PAGE] + data[two + PAGE :]


DAMAGES: Final[dict[str, Callable[[bytes, Random], bytes]]] = {
    "end cut off a closed file": cut,
    "page zeroed of a closed file": zeroed,
    "two pages swapped of a closed file": swapped,
}

CONVERSATIONS: Final = 14
Seen = Mapping[str, list[tuple[Any, ...]]]  # of each table its rows, as they are stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What is damaged: the outbox at rest, the same with everything since in its WAL, and the history store."""

    closed: Path
    living: Path
    store: Path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.store.as_posix()}"


async def make_files(folder: Path) -> Files:
    """Fill an outbox, deliver most of it, and copy it twice: closed, and with a WAL that was not checkpointed."""
    path, store = folder / "bot.outbox.db", folder / "history.db"
    async with History(path, store=f"sqlite:///{store.as_posix()}", watch=False) as history:
        for number in range(CONVERSATIONS):
            name = f"chat-{number}"
            for turn in range(8):
                words = f"{name} {turn} {'снег и лес ' * ((number + turn) % 9)}"
                await history.append(name, Message.user(words), owner=f"owner-{number % 4}")
                await history.append(name, Message.assistant(words * 3, tokens=turn), owner=f"owner-{number % 4}")
        await history.append("chat-1", Message.assistant("long " * 4000))
        assert await history.drained(30)
    async with History(path, store=f"sqlite:///{store.as_posix()}", relay=False, watch=False) as history:
        await _say(history, range(0, CONVERSATIONS, 2), 2)
    closed, living = folder / "closed", folder / "living"
    for one in (closed, living):
        one.mkdir()
    shutil.copy(path, closed / path.name)
    async with History(path, store=f"sqlite:///{store.as_posix()}", relay=False, watch=False) as history:
        await _say(history, range(CONVERSATIONS), 3)
        # By another program: closing a descriptor of a live file would drop this process's locks on it.
        for suffix in ("", "-wal"):
            subprocess.run(["cp", f"{path}{suffix}", f"{living / path.name}{suffix}"], check=True)
    return Files(closed=closed / path.name, living=living / path.name, store=store)


async def _say(history: History, numbers: range, times: int) -> None:
    for turn in range(times):
        for number in numbers:
            await history.append(f"chat-{number}", Message.user(f"pending {turn} {'вода ' * (number * 3)}"))


def seen_in(path: Path) -> Seen:
    """Return all that plain SQLite reads of a file, without the tables of its full-text index."""
    with closing(sqlite3.connect(path)) as connection:
        names = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            if not name.lower().startswith("letopis_search_words")
        ]
        return {
            # As SQLite compares names: a bit can change a letter's case.
            name.lower(): connection.execute(f'SELECT * FROM "{name}" ORDER BY {_order(connection, name)}').fetchall()
            for name in names
        }


def _order(connection: sqlite3.Connection, table: str) -> str:
    """Return what orders the rows of a table: its key, or the row id of one that has no key of its own."""
    found = connection.execute("SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", (table,)).fetchall()
    return ", ".join(f'"{name}"' for (name,) in found) or "rowid"

"""Open and close the outbox in the bot's process by other means than SQLite, which drops all of SQLite's locks."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from letopis.outbox import History
from letopis.outbox.file.identity import FileIdentityGuard
from letopis.store import Message
from letopis.store.errors import OutboxUnavailable
from tests.campaigns.invariants import check
from tests.campaigns.states import Ack
from tests.support.child import command
from tests.support.victim import HISTORY, OUTBOX

NAMES: Final = ("pysqlite3", "apsw", "sqlean")
APPENDS: Final = 30
TIMEOUT_SECONDS: Final = 60.0
_PASSER: Final = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA user_version'); c.close()"


def second() -> str | None:
    """Return the name of a second SQLite library that can be imported here."""
    return next((name for name in NAMES if importlib.util.find_spec(name) is not None), None)


@dataclass(frozen=True, slots=True)
class Met:
    """The result."""

    acknowledged: int
    refused: int
    problems: tuple[str, ...]


def meet(folder: Path, by: str, *, blind: bool = False) -> Met:
    """Have a bot meet it, and kill the bot; return what is lost of what it was promised."""
    folder.mkdir()
    words = command(live, folder, by, blind=blind)
    done = subprocess.run(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=TIMEOUT_SECONDS, check=False)
    if not done.stdout:
        raise RuntimeError(f"the bot ended by itself, with {done.returncode}")
    told = json.loads(done.stdout)
    acks = [Ack("c", UUID(hex=one)) for one in told["acks"]]
    store = f"sqlite:///{(folder / HISTORY).as_posix()}"
    problems = list(asyncio.run(check([folder / OUTBOX], store, acknowledged=acks)).problems)
    return Met(acknowledged=len(acks), refused=told["refused"], problems=tuple(problems))


def _open_and_close(path: Path, by: str) -> None:
    if by == "open":
        path.open("rb").close()
        return
    library: Any = importlib.import_module(by)
    connection = library.Connection(str(path)) if by == "apsw" else library.connect(str(path))
    with closing(connection):
        connection.cursor().execute("SELECT count(*) FROM sqlite_master").fetchall()


async def live(place: str, by: str, *, blind: bool) -> None:
    """Be the bot, which prints its promises and kills itself."""
    if blind:
        FileIdentityGuard.verify = lambda self: None  # type: ignore[method-assign]
    folder, acks, refused = Path(place), [], 0
    async with History.open(folder / OUTBOX, store=folder / HISTORY, min_free_bytes=None) as history:
        await history.append("c", Message.user("first"))
        await history.drained(20)
        for number in range(APPENDS):
            try:
                acks.append((await history.append("c", Message.user(str(number)))).event_ids[-1].hex)
            except OutboxUnavailable:
                refused += 1
            if number == APPENDS // 3:
                # It lets the file go, and with it every lock of this process. The next process that passes by then
                # believes to be the last, and removes the WAL.
                _open_and_close(folder / OUTBOX, by)
                subprocess.run(
                    [sys.executable, "-c", _PASSER, str(folder / OUTBOX)], check=True, timeout=TIMEOUT_SECONDS
                )
        print(json.dumps({"acks": acks, "refused": refused}), flush=True)
        os._exit(9)

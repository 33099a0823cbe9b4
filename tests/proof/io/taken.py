"""Remove, replace or empty the outbox or a file beside it under a bot, and kill the bot."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from letopis.outbox import History
from letopis.outbox.file.identity import FileIdentityGuard
from letopis.store import Message
from letopis.store.errors import LetopisError, OutboxUnavailable
from tests.campaigns.invariants import check
from tests.campaigns.states import Ack
from tests.support.child import command, promising
from tests.support.victim import HISTORY, OUTBOX

BEFORE: Final = 0.5
AFTER: Final = 1.5  # seconds that the bot continues once something was removed
BOUND: Final = 0.5  # seconds within which it has to say so, and all appends from then on have to be refused
TIMEOUT_SECONDS: Final = 60.0


def _removed(path: Path) -> None:
    path.unlink()


def _replaced(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    copy.replace(path)


def _emptied(path: Path) -> None:
    os.truncate(path, 0)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to remove something."""

    name: str
    take: Callable[[Path], None]
    suffix: str = ""
    mended: bool = True


WAYS: Final = (
    Way("removed", _removed),
    Way("replaced by its copy", _replaced),
    Way("emptied", _emptied, mended=False),
    Way("-wal removed", _removed, "-wal"),
    Way("-wal replaced by its copy", _replaced, "-wal"),
    Way("-shm removed", _removed, "-shm"),
)


@dataclass(slots=True)
class Taken:
    """The result."""

    acknowledged: int = 0
    refused: int = 0
    noticed: float = 0.0
    problems: list[str] = field(default_factory=list)


def take(folder: Path, way: Way, *, blind: bool = False) -> Taken:
    """Let a bot run, take something from it, kill it, and compare what is there with what it was promised."""
    folder.mkdir(parents=True)
    outbox, acks, kept = folder / OUTBOX, folder / "acks", folder / "kept"
    with promising(command(talk, folder, blind=blind), acks, size=4_000, patience=TIMEOUT_SECONDS) as bot:
        time.sleep(BEFORE)
        bot.send_signal(signal.SIGSTOP)
        time.sleep(0.05)
        os.link(outbox, kept)
        way.take(outbox.with_name(outbox.name + way.suffix))
        moment = time.monotonic()
        bot.send_signal(signal.SIGCONT)
        time.sleep(AFTER)
    return compared(folder, way, moment=moment)


def compared(folder: Path, way: Way, *, moment: float) -> Taken:
    """Compare what a bot wrote down with when something was taken from it, and with what is there."""
    taken, promised = Taken(), []
    whole, _, _ = (folder / "acks").read_bytes().rpartition(b"\n")
    for line in whole.splitlines():
        begun, ended, name, event_id, refusal = json.loads(line)
        if refusal is not None:
            taken.refused += 1
            taken.noticed = taken.noticed or max(0.0, ended - moment)
            if refusal not in ("OutboxUnavailable", "ConfigurationError"):
                taken.problems.append(f"refused with {refusal}")
            continue
        promised.append(Ack(name, UUID(hex=event_id)))
        if begun > moment:
            taken.problems.append(f"an append begun {begun - moment:.2f} s after it was taken away was acknowledged")
    taken.acknowledged = len(promised)
    if not taken.refused or taken.noticed > BOUND:
        taken.problems.append(f"nothing was refused within {BOUND:g} s")
    if way.mended:
        if not way.suffix:
            (folder / "kept").replace(folder / OUTBOX)
        store = f"sqlite:///{(folder / HISTORY).as_posix()}"
        taken.problems += asyncio.run(check([folder / OUTBOX], store, acknowledged=promised)).problems
    return taken


async def talk(place: str, *, blind: bool) -> None:
    """Be the bot, which writes its promises to ``acks``, with the time of each."""
    if blind:
        FileIdentityGuard.verify = lambda self: None  # type: ignore[method-assign]
    folder = Path(place)
    acks = os.open(folder / "acks", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    async def append_again(name: str, append: Callable[[History, str], object]) -> None:
        while True:
            begun, event_id, refusal = time.monotonic(), "", None
            try:
                event_id = await append(history, name)  # type: ignore[misc]
            except LetopisError as error:
                refusal = type(error).__name__
            except Exception as error:  # anything else is not what the documentation names
                refusal = f"{type(error).__module__}.{type(error).__name__}"
            line = [begun, time.monotonic(), name, event_id, refusal]
            os.write(acks, (json.dumps(line) + "\n").encode())
            await asyncio.sleep(0.005)

    async with (
        History(folder / OUTBOX, store=folder / HISTORY, min_free_bytes=None) as history,
        asyncio.TaskGroup() as group,
    ):
        await history.drained(TIMEOUT_SECONDS)
        group.create_task(append_again("plain", _plain))
        group.create_task(append_again("in a transaction", _in_transaction))


async def _plain(history: History, name: str) -> str:
    return (await history.append(name, Message.user("hello " * 20))).event_ids[-1].hex


async def _in_transaction(history: History, name: str) -> str:
    async with history.transaction() as transaction:
        receipt = await transaction.append(name, Message.user("hello " * 20))
    return receipt.event_ids[-1].hex


NAMES: Final = ("pysqlite3", "apsw", "sqlean")
APPENDS: Final = 30
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
    async with History(folder / OUTBOX, store=folder / HISTORY, min_free_bytes=None) as history:
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

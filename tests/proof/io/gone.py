"""Remove, replace or empty files under a running bot: it says so at once, and what it was promised is there."""

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest.mock import patch
from uuid import UUID

from sqlalchemy.exc import OperationalError

from letopis import History, LetopisError, Message
from letopis.outbox.file.identity import FileIdentityGuard
from tests.campaigns.invariants import read_store
from tests.campaigns.states import Ack
from tests.proof.harness import Setting, Tally, World
from tests.support.child import command, promising
from tests.support.victim import HISTORY

BEFORE: Final = 0.5
AFTER: Final = 1.5  # seconds that the bot continues once something was removed
BOUND: Final = 0.5  # seconds within which it has to say so, and all appends from then on have to be refused
TIMEOUT_SECONDS: Final = 60.0


def _replace(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    copy.replace(path)


@dataclass(frozen=True, slots=True)
class Way:
    name: str
    take: Callable[[Path], None]
    suffix: str = ""
    mended: bool = True


WAL_REMOVED: Final = Way("-wal removed", Path.unlink, "-wal")
WAYS: Final = (
    Way("removed", Path.unlink),
    Way("replaced by its copy", _replace),
    Way("emptied", lambda path: os.truncate(path, 0), mended=False),
    WAL_REMOVED,
    Way("-wal replaced by its copy", _replace, "-wal"),
    Way("-shm removed", Path.unlink, "-shm"),
)


def take(setting: Setting, way: Way) -> Tally:
    """Let a bot run, take something from it, kill it, and compare what is there with what it was promised."""
    world = World(setting.folder)
    words, acks = command(talk, world.folder, blind=setting.control), world.folder / "acks"
    with promising(words, acks, size=4_000, patience=TIMEOUT_SECONDS) as bot:
        time.sleep(BEFORE)
        bot.send_signal(signal.SIGSTOP)
        time.sleep(0.05)
        os.link(world.outbox, world.folder / "kept")
        way.take(world.outbox.with_name(world.outbox.name + way.suffix))
        moment = time.monotonic()
        bot.send_signal(signal.SIGCONT)
        time.sleep(AFTER)
    tally, noticed = world.tally, 0.0
    whole, _, _ = (world.folder / "acks").read_bytes().rpartition(b"\n")
    for line in whole.splitlines():
        begun, ended, name, event_id, refusal = json.loads(line)
        if refusal is not None:
            tally.refused += 1
            noticed = noticed or max(0.0, ended - moment)
            tally.require(refusal in ("OutboxUnavailable", "ConfigurationError"), f"refused with {refusal}")
            continue
        world.acks.append(Ack(name, UUID(hex=event_id)))
        late = f"an append begun {begun - moment:.2f} s after it was taken away was acknowledged"
        tally.require(begun <= moment, late)
    tally.require(bool(tally.refused) and noticed <= BOUND, f"nothing was refused within {BOUND:g} s")
    tally.notes = f"{len(world.acks):,} acknowledged before; noticed after {1000 * noticed:.0f} ms"
    if way.mended:
        if not way.suffix:
            (world.folder / "kept").replace(world.outbox)
        asyncio.run(world.judge(drained=False))
    tally.count = 1 if setting.control else tally.refused
    return tally


async def talk(folder: str, *, blind: bool) -> None:
    """Be the bot, which writes its promises to ``acks``, with the time of each."""
    if blind:
        FileIdentityGuard.verify = lambda self: None  # type: ignore[method-assign]
    world = World(Path(folder))
    acks = os.open(world.folder / "acks", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    async def append_again(name: str, *, own: bool) -> None:
        while True:
            begun, event_id, refusal = time.monotonic(), "", None
            try:
                event_id = (await world.appended(history, name, "hello " * 20, own=own)).event_ids[-1].hex
            except LetopisError as error:
                refusal = type(error).__name__
            except Exception as error:  # anything else is not what the documentation names
                refusal = f"{type(error).__module__}.{type(error).__name__}"
            os.write(acks, (json.dumps([begun, time.monotonic(), name, event_id, refusal]) + "\n").encode())
            await asyncio.sleep(0.005)

    async with world.open(watch=True) as history, asyncio.TaskGroup() as group:
        await history.drained(TIMEOUT_SECONDS)
        group.create_task(append_again("plain", own=False))
        group.create_task(append_again("in a transaction", own=True))


async def take_store(setting: Setting) -> Tally:
    """Remove the history under a bot, or replace it by an older copy: what is reported as saved is in the file."""
    world, folder, ways = World(setting.folder), setting.folder, (_remove, _put_back, _remove, _put_back)
    tally, blind = world.tally, setting.control
    with patch("letopis.store.database.sqlite.evict_connections_to_replaced_file") if blind else nullcontext():
        async with world.open(watch=True) as history:
            await history.append("c", Message.user("the first"))
            await history.drained(15)
            with closing(sqlite3.connect(folder / HISTORY)) as connection:
                connection.execute("VACUUM INTO ?", (str(folder / "backup"),))
            for number, way in enumerate(ways[:1] if blind else ways):
                way(folder)
                tally.count += 1
                await _saved_again(world, history, number, put_back=way is _remove and not blind)
    tally.notes = f"{len(world.acks):,} acknowledged, each saved one in the file there, the older ones after a start"
    if not (folder / HISTORY).exists():
        tally.problems.append("there is no history")
        return tally
    # What was delivered before, and not written to since, is what a relay looks for when it starts.
    await world.go_on(patience=15)
    try:
        return await world.judge()
    except OperationalError as error:  # a file without tables lies there: all of the history is gone
        tally.problems.append(f"the history cannot be read: {error.orig}")
        return tally


async def _saved_again(world: World, history: History, number: int, *, put_back: bool) -> None:
    await history.append("c", Message.user("at once"))
    for one in range(5):
        receipt = await history.append("c" if one % 2 else f"c{number}", Message.user(f"{number} {one}"))
        world.keep(receipt)
    if put_back:
        # Not silently recreated: it is the store that the outbox is bound to. A backup is put in its place.
        well = await receipt.saved(timeout=1.0) or (await history.status()).healthy
        world.tally.require(not well, "is said to be saved, or to be well, where nobody has put a store")
        _put_back(world.folder)
    if not await receipt.saved(timeout=15):
        world.tally.problems.append("is not saved though there is a place for it")
    else:
        held = (world.folder / HISTORY).exists() and any(
            event.event_id == receipt.event_ids[-1] for event in (await read_store(world.url)).events
        )
        world.tally.require(held, f"event {receipt.event_ids[-1]} is said to be saved, and is not in the history")
    await history.drained(15)


def _remove(folder: Path) -> None:
    for one in folder.glob(f"{HISTORY}*"):
        one.unlink()


def _put_back(folder: Path) -> None:
    """Put an older copy in its place, as an operator does who restores a backup."""
    copy = folder / "copy"
    shutil.copyfile(folder / "backup", copy)
    for beside in ("-wal", "-shm"):
        (folder / f"{HISTORY}{beside}").unlink(missing_ok=True)
    copy.replace(folder / HISTORY)

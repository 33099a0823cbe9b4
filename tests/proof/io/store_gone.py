"""Store gone: an SQLite history is removed or replaced under a running bot, again and again; what is saved is there."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final
from unittest.mock import patch

from letopis.outbox import History
from letopis.store import Message
from tests.campaigns.invariants import check, read_store
from tests.campaigns.states import Ack
from tests.proof.io.full import Filled
from tests.proof.power.promises import OUTBOX, STORE

PATIENCE: Final = 15.0


def _remove(folder: Path) -> None:
    for one in folder.glob(f"{STORE}*"):
        one.unlink()


def _put_back(folder: Path) -> None:
    """Put an older copy in its place, as a person does who restores a backup."""
    copy = folder / "copy"
    shutil.copyfile(folder / "backup", copy)
    for beside in ("-wal", "-shm"):
        (folder / f"{STORE}{beside}").unlink(missing_ok=True)
    copy.replace(folder / STORE)


WAYS: Final = (_remove, _put_back, _remove, _put_back)


async def take(folder: Path, *, blind: bool = False) -> Filled:
    """Take the history away under a bot, each way twice: what it is told is saved is in the file that lies there."""
    folder.mkdir()
    if blind:
        with patch("letopis.store.engines.let_go_of_what_was_removed"):
            return await _taken(folder, WAYS[:1])
    return await _taken(folder, WAYS)


async def _taken(folder: Path, ways: Sequence[Callable[[Path], None]]) -> Filled:
    found, acks = Filled(), []
    store = f"sqlite:///{(folder / STORE).as_posix()}"
    async with History.open(folder / OUTBOX, store=store, min_free_bytes=None) as history:
        await history.append("c", Message.user("the first"))
        await history.drained(PATIENCE)
        with closing(sqlite3.connect(folder / STORE)) as connection:
            connection.execute("VACUUM INTO ?", (str(folder / "backup"),))
        for number, way in enumerate(ways):
            way(folder)
            found.refused += 1
            receipt = await history.append("c", Message.user("at once"))
            for one in range(5):
                receipt = await history.append("c" if one % 2 else f"c{number}", Message.user(f"{number} {one}"))
                acks.append(Ack(receipt.conversation_id, receipt.event_ids[-1], receipt.sequence))
            if not await receipt.saved(timeout=PATIENCE):
                found.problems.append("is not saved though there is a place for it")
            elif not await _holds(folder / STORE, store, acks[-1]):
                found.problems.append(f"event {acks[-1].event_id} is said to be saved, and is not in the history")
            await history.drained(PATIENCE)
    found.acknowledged = len(acks)
    if (folder / STORE).exists():
        # What was delivered before, and nobody has written to since, a relay looks for when it starts.
        async with History.open(folder / OUTBOX, store=store, min_free_bytes=None) as history:
            await history.append("c", Message.user("after a start"))
            await history.drained(PATIENCE)
        found.problems += (await check([folder / OUTBOX], store, acknowledged=acks, drained=True)).problems
    else:
        found.problems.append("there is no history")
    return found


async def _holds(path: Path, store: str, ack: Ack) -> bool:
    if not path.exists():
        return False
    return any(event.event_id == ack.event_id for event in (await read_store(store)).events)

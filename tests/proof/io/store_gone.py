"""Remove or replace an SQLite history under a running bot, repeatedly; what is reported as saved is there."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final
from unittest.mock import patch

from sqlalchemy.exc import OperationalError

from letopis.outbox import History
from letopis.store import Message
from tests.campaigns.invariants import check, read_store
from tests.campaigns.states import Ack
from tests.proof.io.full import Filled
from tests.support.victim import HISTORY, OUTBOX

TIMEOUT_SECONDS: Final = 15.0


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


WAYS: Final = (_remove, _put_back, _remove, _put_back)


async def take(folder: Path, *, blind: bool = False) -> Filled:
    """Remove the history under a bot, each way twice: what is reported as saved is in the file at that path."""
    folder.mkdir()
    if blind:
        with patch("letopis.store.database.sqlite.evict_connections_to_replaced_file"):
            return await _taken(folder, WAYS[:1], blind=True)
    return await _taken(folder, WAYS)


async def _taken(folder: Path, ways: Sequence[Callable[[Path], None]], *, blind: bool = False) -> Filled:
    found, acks = Filled(), []
    store = f"sqlite:///{(folder / HISTORY).as_posix()}"
    async with History(folder / OUTBOX, store=store, min_free_bytes=None) as history:
        await history.append("c", Message.user("the first"))
        await history.drained(TIMEOUT_SECONDS)
        with closing(sqlite3.connect(folder / HISTORY)) as connection:
            connection.execute("VACUUM INTO ?", (str(folder / "backup"),))
        for number, way in enumerate(ways):
            way(folder)
            found.refused += 1
            receipt = await history.append("c", Message.user("at once"))
            for one in range(5):
                receipt = await history.append("c" if one % 2 else f"c{number}", Message.user(f"{number} {one}"))
                acks.append(Ack(receipt.conversation_id, receipt.event_ids[-1], receipt.sequence))
            if way is _remove and not blind:
                # Not silently recreated: it is the store that the outbox is bound to. A backup is put in its place.
                if await receipt.saved(timeout=1.0) or (await history.status()).healthy:
                    found.problems.append("is said to be saved, or to be well, where nobody has put a store")
                _put_back(folder)
            if not await receipt.saved(timeout=TIMEOUT_SECONDS):
                found.problems.append("is not saved though there is a place for it")
            elif not await _holds(folder / HISTORY, store, acks[-1]):
                found.problems.append(f"event {acks[-1].event_id} is said to be saved, and is not in the history")
            await history.drained(TIMEOUT_SECONDS)
    found.acknowledged = len(acks)
    if (folder / HISTORY).exists():
        # What was delivered before, and not written to since, is what a relay looks for when it starts.
        async with History(folder / OUTBOX, store=store, min_free_bytes=None) as history:
            await history.append("c", Message.user("after a start"))
            await history.drained(TIMEOUT_SECONDS)
        try:
            found.problems += (await check([folder / OUTBOX], store, acknowledged=acks, drained=True)).problems
        except OperationalError as error:  # a file without tables lies there: all of the history is gone
            found.problems.append(f"the history cannot be read: {error.orig}")
    else:
        found.problems.append("there is no history")
    return found


async def _holds(path: Path, store: str, ack: Ack) -> bool:
    if not path.exists():
        return False
    return any(event.event_id == ack.event_id for event in (await read_store(store)).events)

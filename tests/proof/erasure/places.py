"""Open outboxes, live in a process that is killed, and copy files and stores and put them back."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
import traceback
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NoReturn

from letopis import Bounds, ConversationStore, History, LetopisError, Retention
from letopis.outbox import Relay
from tests.proof.erasure.acts import Hand
from tests.proof.erasure.book import Act, Outcome
from tests.support.store_changes import Copy, copied, put_back

RETENTION: Final = Retention(keep_last=10_000)  # a restored store gets everything again


async def opened(path: Path, store: ConversationStore, **options: Any) -> History:
    history = History(
        path, store=store, relay=False, bounds=Bounds(min_free_bytes=None), retention=RETENTION, **options
    )
    await history.prepare()
    return history


def live(url: str, path: Path, act: Act, pipe: Connection) -> NoReturn:
    """Do an act, and deliver, until killed."""

    async def living() -> None:
        async with ConversationStore.open(url) as store:
            hand = Hand(await opened(path, store))
            pipe.send(())
            try:
                pipe.send((Outcome.DONE, await hand.do(act), ""))
            except LetopisError as error:
                pipe.send((Outcome.REFUSED, None, f"{type(error).__name__}: {error}"))
            if act.verb != "begin":
                await Relay(hand.history.outbox, store).drain()
            await asyncio.sleep(60)

    logging.disable()
    try:
        asyncio.run(living())
    except BaseException:
        traceback.print_exc()
    while True:
        time.sleep(60)


def copy_file(path: Path, target: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{target}{suffix}").unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)


async def saved(url: str) -> Copy | Path:
    if not url.startswith("sqlite"):
        return await copied(url)
    path = Path(url.removeprefix("sqlite:///"))
    copy = path.with_suffix(".backup")
    copy_file(path, copy)
    return copy


async def put_store_back(url: str, copy: Copy | Path) -> None:
    if isinstance(copy, Path):
        copy_file(copy, Path(url.removeprefix("sqlite:///")))
    else:
        await put_back(url, copy)

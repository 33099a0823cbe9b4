"""Cut back: have the write-ahead log of an SQLite store forget what was taken out of the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store.faults import StoreFault, translated
from letopis.store.shield import uninterrupted

logger = logging.getLogger("letopis.store.cutback")

_PATIENCE_MS: Final = 50
"""For readers; appliers wait behind it."""
_PAUSES: Final = (0.1, 0.5, 2.0, 10.0)
"""Seconds between two tries while somebody still reads what was taken out; the last one for as long as it takes."""


class CutBack:
    """Tries in the background, until it is done: a reader that stays in its transaction keeps the log from it.

    :param cut: one try; whether it is done.
    """

    def __init__(self, cut: Callable[[], Awaitable[bool]]) -> None:
        self._cut = cut
        self._again = False
        self._closing = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def due(self) -> None:
        """Say that content was taken out."""
        self._again = True
        if (self._running is None or self._running.done()) and not self._closing.is_set():
            self._running = asyncio.get_running_loop().create_task(self._run(), name="letopis-cut-back")

    async def close(self) -> None:
        """Let the try that is under way end, and make no more."""
        self._closing.set()
        if self._running is not None:
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        tries = 0
        while self._again and not self._closing.is_set():
            self._again = False
            try:
                done = await uninterrupted(self._cut())
            except StoreFault as fault:
                logger.info("the write-ahead log still holds what was erased, it is cut back later: %s", fault)
                done = False
            if done:
                tries = 0
                continue
            self._again = True
            pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
            tries += 1
            try:
                async with asyncio.timeout(pause):
                    await self._closing.wait()
            except TimeoutError:
                continue


async def truncate(engine: AsyncEngine) -> bool:
    """Move the whole write-ahead log of an SQLite file into it and cut it to nothing; whether nobody was in the way.

    :raises StoreFault: the file failed.
    """
    with translated():
        async with engine.execution_options(sqlite_begin="AUTOCOMMIT").connect() as connection:
            patience = (await connection.execute(sa.text("PRAGMA busy_timeout"))).scalar_one()
            await connection.exec_driver_sql(f"PRAGMA busy_timeout={_PATIENCE_MS}")
            try:
                busy = (await connection.execute(sa.text("PRAGMA wal_checkpoint(TRUNCATE)"))).one()[0]
            finally:
                await connection.exec_driver_sql(f"PRAGMA busy_timeout={patience}")
            return not busy

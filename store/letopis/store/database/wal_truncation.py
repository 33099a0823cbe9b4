"""Truncate the write-ahead log of an SQLite store after content was erased from it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store.cancellation import run_to_completion
from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import StoreFault

logger = logging.getLogger("letopis.store.wal")

_BUSY_TIMEOUT_MS: Final = 50
"""Wait for readers, which appliers wait behind."""
_RETRY_SECONDS: Final = (0.1, 0.5, 2.0, 10.0)
"""Pauses while a reader still sees the erased content; the last one repeats."""


class WalTruncator:
    """Truncates a log in the background, and retries while readers keep it from it.

    :param truncate: one attempt, which returns True if it succeeded.
    """

    def __init__(self, truncate: Callable[[], Awaitable[bool]]) -> None:
        self._truncate = truncate
        self._scheduled = False
        self._closing = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def schedule(self) -> None:
        """Truncate the log soon: content was erased."""
        self._scheduled = True
        if (self._running is None or self._running.done()) and not self._closing.is_set():
            self._running = asyncio.get_running_loop().create_task(self._run(), name="letopis-wal-truncation")

    async def close(self) -> None:
        """Wait for an attempt that is running, and start no other."""
        self._closing.set()
        if self._running is not None:
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        attempts = 0
        while self._scheduled and not self._closing.is_set():
            self._scheduled = False
            try:
                done = await run_to_completion(self._truncate())
            except StoreFault as fault:
                logger.info("the write-ahead log still holds erased content and will be truncated later: %s", fault)
                done = False
            if done:
                attempts = 0
                continue
            self._scheduled = True
            pause = _RETRY_SECONDS[min(attempts, len(_RETRY_SECONDS) - 1)]
            attempts += 1
            try:
                async with asyncio.timeout(pause):
                    await self._closing.wait()
            except TimeoutError:
                continue


async def truncate_wal(engine: AsyncEngine) -> bool:
    """Move the whole write-ahead log of a file into it and truncate it. Return False if a reader prevented it."""
    with translated():
        async with engine.execution_options(sqlite_begin="AUTOCOMMIT").connect() as connection:
            busy_timeout = (await connection.execute(sa.text("PRAGMA busy_timeout"))).scalar_one()
            await connection.exec_driver_sql(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
            try:
                busy = (await connection.execute(sa.text("PRAGMA wal_checkpoint(TRUNCATE)"))).one()[0]
            finally:
                if not connection.invalidated:  # as after a cancellation
                    await connection.exec_driver_sql(f"PRAGMA busy_timeout={busy_timeout}")
            return not busy

"""Run the maintenance of the outbox file between deliveries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final

import sqlalchemy as sa

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.effects import erase_delivered
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.outcome import log_context, logger
from letopis.store.errors import LetopisError, OutboxFull, OutboxUnavailable

TIDY_INTERVAL_SECONDS: Final = 5.0
CHORE_INTERVAL_SECONDS: Final = 5.0
CHORE_RETRY_SECONDS: Final = 60.0
"""Wait after a chore that failed."""

Chore = Callable[[sa.Connection], bool]


class Chores:
    """Runs chores, and tidies the outbox file, at intervals. A chore that fails is logged and retried later."""

    def __init__(self, outbox: OutboxFile, chores: Sequence[Chore], *, clock: Clock) -> None:
        self._outbox = outbox
        self._chores = chores
        self._clock = clock
        self._due = clock.after(0)
        self._tidy_due = clock.after(TIDY_INTERVAL_SECONDS)
        self._erasing = True  # an earlier relay may have left something

    def erase_soon(self) -> None:
        """Have the rest of what an acknowledgement began to erase erased in steps."""
        self._erasing = True
        self._due = self._clock.after(0)

    async def run(self, *, store_available: bool) -> bool:
        """Run what is due; return True if a chore has more to do at once."""
        if self._tidy_due.remaining(self._clock) == 0:
            await self._tidy()
        if not store_available or self._due.remaining(self._clock) > 0:
            return False
        return await self._run_chores()

    async def _run_chores(self) -> bool:
        more = False
        wait = CHORE_INTERVAL_SECONDS
        for chore in (*((_erase,) if self._erasing else ()), *self._chores):
            try:
                unfinished = await self._outbox.write(chore)
                more = unfinished or more
                if chore is _erase:
                    self._erasing = unfinished
                    if unfinished:
                        self._outbox.truncate_wal()
            except Exception as error:  # a chore that fails must not keep the relay from delivering
                wait = CHORE_RETRY_SECONDS
                logger.warning(
                    "a chore of the relay failed, next try in %.0f s: %s",
                    wait,
                    error if isinstance(error, LetopisError) else type(error).__name__,
                    extra=log_context(),
                )
        self._due = self._clock.after(0.0 if more else wait)
        return more

    async def _tidy(self) -> None:
        wait = TIDY_INTERVAL_SECONDS
        try:
            await self._outbox.maintain()
        except (OutboxFull, OutboxUnavailable) as error:
            wait = CHORE_RETRY_SECONDS
            logger.warning(
                "the outbox file could not be tidied, next try in %.0f s: %s", wait, error, extra=log_context()
            )
        self._tidy_due = self._clock.after(wait)


def _erase(connection: sa.Connection) -> bool:
    with closing(connection.connection.cursor()) as cursor:
        return erase_delivered(cursor)

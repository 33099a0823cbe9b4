"""Count the history store's messages in the background, and follow its log from then on."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final

from letopis.outbox.history.insight import Insight
from letopis.store.errors import LetopisError
from letopis.store.rules.message_figures import MessageFigures

logger = logging.getLogger("letopis.console")

PAGE: Final = 250
"""Log positions read at a time: a few milliseconds of work between two requests."""
MAX_PAUSE_SECONDS: Final = 0.05
"""After a batch, the count pauses for as long as that took, at most this long, so that requests get their turn."""
STEP_SECONDS: Final = 0.15
"""Time that a page waits for the count before it shows the progress."""
IDLE_SECONDS: Final = 600.0
"""The log is no longer followed when the figures have not been viewed for this long; the next view continues."""
POLL_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CountProgress:
    """How far the count has got.

    :ivar counted: log positions counted so far.
    :ivar total: log positions in all; 0 before the store was first read.
    :ivar available: whether the history store answers.
    """

    counted: int
    total: int
    available: bool

    @property
    def done(self) -> bool:
        """True if everything has been counted."""
        return self.available and self.counted >= self.total

    @property
    def percent(self) -> int:
        """The share that has been counted."""
        return 100 if not self.total else self.counted * 100 // self.total


class LogFigures:
    """Reads the whole log once, when the figures are first requested, and then everything added to it.

    Nothing is stored: a new process counts again. The count runs between requests, a few milliseconds at a time.
    """

    def __init__(self, insight: Insight) -> None:
        self._insight = insight
        self.figures = MessageFigures()
        self._positions: list[int] = []
        self._heads: tuple[int, ...] = ()
        self._available = True
        self._task: asyncio.Task[None] | None = None
        self._stepped = asyncio.Event()
        self._asked_at = time.monotonic()

    @property
    def progress(self) -> CountProgress:
        """How far the count has got."""
        return CountProgress(counted=sum(self._positions), total=sum(self._heads), available=self._available)

    async def look(self) -> CountProgress:
        """Start or continue the count, wait briefly for it, and return the progress."""
        self._asked_at = time.monotonic()
        if self._task is None or self._task.done():
            self._stepped = asyncio.Event()
            self._task = asyncio.create_task(self._follow(), name="letopis-console-figures")
        try:
            async with asyncio.timeout(STEP_SECONDS):
                await self._stepped.wait()
        except TimeoutError:
            logger.debug("the figures are not complete yet")
        return self.progress

    async def close(self) -> None:
        """Stop counting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        while time.monotonic() - self._asked_at < IDLE_SECONDS:
            try:
                await self._count()
            except LetopisError as error:
                self._available = False
                logger.warning("the messages of the history store cannot be counted: %s", error)
            self._stepped.set()
            await asyncio.sleep(POLL_SECONDS)

    async def _count(self) -> None:
        """Count up to the current end of the log."""
        found = await self._insight.heads()
        self._available = found is not None
        if found is None:
            return
        if len(found.heads) != len(self._positions) or any(
            head < position for head, position in zip(found.heads, self._positions, strict=False)
        ):  # the first count, or a store that was restored from a backup
            self.figures, self._positions = MessageFigures(), [0] * len(found.heads)
        self._heads = found.heads
        for partition, head in enumerate(found.heads):
            while (position := self._positions[partition]) < head:
                began, limit = time.monotonic(), min(PAGE, head - position)
                rows = await self._insight.log_in_brief(partition=partition, after=position, limit=limit)
                if rows is None:
                    self._available = False
                    return
                self.figures.take(rows)
                self._positions[partition] = position + limit
                await asyncio.sleep(min(time.monotonic() - began, MAX_PAUSE_SECONDS))

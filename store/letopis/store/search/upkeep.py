"""Upkeep: keep the full-text index up to date in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from letopis.store.errors import Closed
from letopis.store.faults import StoreFault

logger = logging.getLogger("letopis.store.search")

AT_ONCE: Final = 1_000
"""Events that are asked for at a time."""
BREATH: Final = 0.05
"""Seconds between two stretches that are indexed behind a search."""
SLOWEST: Final = 60.0
"""Seconds between two tries while the store fails."""


class Nearly:
    """Has the index caught up before a search, and does not let the search wait for it for long.

    What is not done in time goes on behind the search until the index has all, and the search looks through the rest
    itself, as far as that goes. So is a store searched that may only be read.

    :param catch_up: takes in some events; returns how many, 0 where there are none.
    """

    def __init__(self, catch_up: Callable[[], Awaitable[int]], *, patience: float = 1.0) -> None:
        self._catch_up = catch_up
        self._patience = patience
        self._running: asyncio.Task[None] | None = None

    async def caught_up(self) -> None:
        """Wait until the index has caught up, or for as long as the patience lasts."""
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._run(), name="letopis-search-index")
        # Not cancelled with whoever waits: others may wait too.
        await asyncio.wait((self._running,), timeout=self._patience)

    async def close(self) -> None:
        """Stop what is under way."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while await self._catch_up():  # noqa: ASYNC110 - waits for nothing: whoever writes has its turn
                await asyncio.sleep(BREATH)
        except (StoreFault, Closed) as error:
            logger.debug("the search index was not brought up to date: %s", error)


class Indexer:
    """Has what is new in the log taken into the index, until cancelled.

    :param catch_up: a store's :meth:`~letopis.store.history.ConversationStore.catch_up_search`.
    :param poll: seconds between two looks while there is nothing new.
    """

    def __init__(self, catch_up: Callable[[int], Awaitable[int]], *, poll: float = 1.0) -> None:
        self._catch_up = catch_up
        self._poll = poll

    async def run(self) -> None:
        """Take in what is there and what comes. A store that fails is waited for: searching makes up for it."""
        pause = self._poll
        while True:
            try:
                read = await self._catch_up(AT_ONCE)
            except Closed:
                return
            except StoreFault as fault:
                pause = min(max(pause, self._poll) * 2, SLOWEST)
                logger.info("the search index is not kept for %g s: %s", pause, fault)
            else:
                pause = 0.0 if read >= AT_ONCE else self._poll
            await asyncio.sleep(pause)

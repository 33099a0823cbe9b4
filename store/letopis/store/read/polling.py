"""Poll the log of a history store for new events, and wait where the store fails."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from typing import Final, NoReturn

import anyio

from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.model.events import RecordedEvent

logger = logging.getLogger("letopis.store")

MAX_BACKOFF_SECONDS: Final = 60.0
"""Seconds between two attempts while the store keeps failing."""

Fetch = Callable[[int], Awaitable[Sequence[RecordedEvent]]]
"""Returns the events after a position, at most one batch, in order."""


async def repeat(
    step: Callable[[], Awaitable[bool]], *, interval: float, waits_for: Collection[FaultClass], what: str
) -> NoReturn:
    """Run a step until cancelled: at once again while there is more, and after a failure when the store may be back.

    :param step: returns whether more is expected at once.
    :param interval: seconds between two steps while there is nothing new; after each failure in a row twice as many as
        before, up to a minute.
    :param waits_for: the faults that pass by themselves.
    :param what: is named in the log.
    :raises StoreFault: another one.
    """
    seconds = interval
    while True:
        try:
            seconds = 0.0 if await step() else interval
        except StoreFault as fault:
            if fault.fault_class not in waits_for:
                raise
            seconds = min(max(seconds, interval) * 2, MAX_BACKOFF_SECONDS)
            logger.info("%s waits for %g s: %s", what, seconds, fault)
        await anyio.sleep(seconds)


async def follow(fetch: Fetch, *, after: int, batch: int, poll: float) -> AsyncGenerator[RecordedEvent, None]:
    """Yield the events after a position, then wait for more, without end.

    Nothing is missed, because positions are assigned under a lock that is held until the commit: when one can be read,
    all before it can.

    :param poll: seconds between two polls while there is nothing new.
    """
    while True:
        found = await fetch(after)
        for event in found:
            if event.position is not None:
                after = event.position
            yield event
        if len(found) < batch:
            await anyio.sleep(poll)

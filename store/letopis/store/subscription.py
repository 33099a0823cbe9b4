"""Subscription: follow a log partition from a position on, without missing an event."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import anyio

from letopis.store.events import RecordedEvent

Fetch = Callable[[int], Awaitable[Sequence[RecordedEvent]]]
"""From a position to the events after it, at most a batch, in order."""


async def follow(fetch: Fetch, *, after: int, batch: int, poll: float) -> AsyncGenerator[RecordedEvent, None]:
    """Yield the events after a position, then wait for more, for ever.

    Nothing is missed, because positions are given out under a lock that is held until the commit: when one can be
    read, all before it can.

    :param poll: seconds between two looks while there is nothing new.
    """
    while True:
        found = await fetch(after)
        for event in found:
            if event.position is not None:
                after = event.position
            yield event
        if len(found) < batch:
            await anyio.sleep(poll)

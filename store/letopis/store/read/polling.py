"""Poll the log of a history store for new events, and wait where the store fails."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from typing import Any, Final, NoReturn

import anyio

from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.errors import InvalidInput
from letopis.store.model.events import RecordedEvent
from letopis.store.model.identifiers import check_whole
from letopis.store.read.paging import check_place

logger = logging.getLogger("letopis.store")

MAX_BACKOFF_SECONDS: Final = 60.0
"""Seconds between two attempts while the store keeps failing."""


async def repeat(
    step: Callable[[], Awaitable[bool]], *, interval: float, waits_for: Collection[FaultClass], what: str
) -> NoReturn:
    """Run a step until cancelled: at once again while there is more, and after a failure when the store may be back."""
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


async def follow(
    read: Callable[..., Awaitable[Any]], after: Mapping[int, int], *, batch: int, poll: float
) -> AsyncGenerator[RecordedEvent, None]:
    """Yield the events of partitions after a position of each, then wait for more, without end."""
    # Nothing is missed, because positions are assigned under a lock that is held until the commit: when one can be
    # read, all before it can.
    from letopis.store.read.reader import Reader  # with the first store, not with its class

    positions = dict(after)
    while True:
        idle = True
        # One statement however many partitions there are: most of them have nothing new.
        heads: dict[int, int] = await read(Reader.heads, positions)
        for partition, head in heads.items():
            start = positions[partition]
            if head <= start:
                continue
            events: list[RecordedEvent] = await read(Reader.log, partition=partition, after=start, limit=batch)
            for event in events:
                idle = False
                positions[partition] = event.position or 0
                yield event
        if idle:
            await anyio.sleep(poll)


def check_partition(partition: object, count: int) -> int:
    """Return ``partition`` if a log of ``count`` partitions has it."""
    return check_whole(partition, "partition", 0, count - 1)


def check_start(from_position: object, partition: int | None, count: int) -> dict[int, int]:
    """Return the position after which each partition is followed, by partition."""
    followed = range(count) if partition is None else (check_partition(partition, count),)
    if isinstance(from_position, Mapping):
        given = dict(from_position)
    elif from_position == 0 or len(followed) == 1:
        given = dict.fromkeys(followed, from_position)
    else:
        raise InvalidInput("from_position", f"must be given by partition, as the log has {count}")
    for number in given:
        if number not in followed:
            raise InvalidInput("from_position", f"names partition {number!r}, which is not followed")
    return {number: check_place(given.get(number, 0), "from_position") or 0 for number in followed}

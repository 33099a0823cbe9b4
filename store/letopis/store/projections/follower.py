"""Read the whole log for another system, and remember in the store how far it has got."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

import anyio

from letopis.store.database.fault_classification import repeat_on_conflict, translated
from letopis.store.errors import InvalidInput
from letopis.store.model.events import RecordedEvent
from letopis.store.projections.base import Checkpoint, Checkpoints
from letopis.store.projections.projector import ProjectorContext
from letopis.store.read.paging import check_count

PREFIX: Final = "follower."
"""Begins the names of followers' checkpoints, so that none is a projection's."""
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")


class Follower:
    """Reads each event of the log at least once, and goes on there after a crash.

    Returned by :meth:`ConversationStore.follower`. Each partition comes in the order of its positions, and so does each
    conversation; there is no order between partitions. One process at a time may follow under a name.

    :param context: returns what it needs, once the store is prepared.
    :param shielded: runs one transaction so that a cancellation cannot tear it.
    """

    def __init__(
        self,
        name: str,
        *,
        context: Callable[[], Awaitable[ProjectorContext]],
        shielded: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]],
        batch: int = 500,
        poll: float = 0.25,
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidInput("name", "must be 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or digit at both ends")
        self._name = f"{PREFIX}{name}"
        self._context = context
        self._shielded = shielded
        self._batch = check_count(batch, "batch")
        self._poll = poll

    async def batches(self) -> AsyncGenerator[Sequence[RecordedEvent], None]:
        """Yield what follows in each partition, without end; waits while there is nothing new.

        A batch is done when the next one is asked for: only then is its place written. What was yielded before a crash
        and not written comes again. No transaction is open and no lock is held while the caller has a batch.

        :raises StoreFault: the database failed: call this again.
        :raises InvalidInput: another process follows under the same name.
        """
        context = await self._context()
        while True:
            idle = True
            for partition, (position, head) in (await self._places(context)).items():
                if head <= position:
                    continue
                with translated():
                    async with context.readers.connect() as connection:
                        events = await context.reader.log(
                            connection, partition=partition, after=position, limit=self._batch
                        )
                if events:
                    idle = False
                    yield events
                    move = self._moved(context, partition, position, events[-1].position or 0)
                    await self._shielded(repeat_on_conflict(move))
            if idle:
                await anyio.sleep(self._poll)

    async def behind(self) -> int:
        """Return how many events it has not read yet.

        :raises StoreFault: the database failed.
        """
        places = await self._places(await self._context())
        return sum(head - position for position, head in places.values())

    async def _places(self, context: ProjectorContext) -> dict[int, tuple[int, int]]:
        """Return the position that is written and the head of each partition."""
        partitions = range(context.partitions)
        with translated():
            async with context.readers.connect() as connection:
                heads = await context.reader.heads(connection, partitions)
                written = await Checkpoints(context.dialect).read(connection, [self._name], partitions)
        positions = {checkpoint.partition: checkpoint.position for checkpoint in written}
        return {partition: (positions.get(partition, 0), head) for partition, head in heads.items()}

    def _moved(self, context: ProjectorContext, partition: int, start: int, end: int) -> Callable[[], Awaitable[None]]:
        async def move() -> None:
            checkpoints, key = Checkpoints(context.dialect), (self._name, 1, partition)
            async with context.dialect.transaction(context.engine) as connection:
                own, _ = await checkpoints.find(connection, key)
                own = own or Checkpoint.first(key, replay_to=0)
                if own.position != start:
                    raise InvalidInput("name", "another process follows the log under it: choose another name")
                own.position = end
                await checkpoints.move(connection, [own], now=context.now())

        return move

"""Read the log from a checkpoint on: run catch-up projections, and feed other systems."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import anyio
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store.database.dialects import Dialect, reading
from letopis.store.database.fault_classification import repeat_on_conflict
from letopis.store.errors import InvalidInput
from letopis.store.model.events import RecordedEvent
from letopis.store.projections.base import (
    EVENTS_PER_BATCH,
    TRANSIENT_CLASSES,
    Checkpoint,
    CheckpointKey,
    Checkpoints,
    Projection,
    attributed_to,
    check_projection,
    has_effects,
)
from letopis.store.read.paging import check_count
from letopis.store.read.polling import repeat
from letopis.store.read.reader import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorContext:
    """What a projector needs of a prepared store."""

    engine: AsyncEngine
    dialect: Dialect
    checkpoints: Checkpoints
    reader: Reader
    partitions: int
    now: Callable[[], int]

    async def places(self, name: str, version: int) -> dict[int, tuple[int | None, int]]:
        """Return the position that is written and the head of each partition, read without a lock."""
        async with reading(self.engine) as connection:
            heads = await self.reader.heads(connection)
            written = await self.checkpoints.read(connection, [name], range(self.partitions))
        positions = {
            checkpoint.partition: checkpoint.position for checkpoint in written if checkpoint.version == version
        }
        return {partition: (positions.get(partition), head) for partition, head in heads.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one version of a projection has read one partition of the log.

    :ivar replay_to: the position up to which it repeats what was done before.
    :ivar head: the last position of the partition.
    """

    partition: int
    position: int
    replay_to: int
    head: int

    @property
    def behind(self) -> int:
        """How many events it has not read."""
        return self.head - self.position

    @property
    def live(self) -> bool:
        """Whether it has read all that was done before it."""
        return self.position >= self.replay_to


class Projector:
    """Runs one projection: :meth:`step` by step, or :meth:`run` until cancelled.

    Returned by :meth:`ConversationStore.projector`. Any number of processes may run the same projection: they take
    turns, batch by batch, and every event is applied once. Each partition of the log is read on its own.

    External effects, by :meth:`Projection.effects` or by an ``apply`` that was not ``replaying``, happen once for each
    event across all *versions* of a projection: in the version that reads the event first. The very first version
    leaves out what was in the log before it.
    """

    def __init__(
        self,
        projection: Projection,
        *,
        context: Callable[[], Awaitable[ProjectorContext]],
        shielded: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]],
        batch: int = EVENTS_PER_BATCH,
        poll: float = 0.25,
    ) -> None:
        self._projection = check_projection(projection)
        self._context = context
        self._shielded = shielded
        self._batch = check_count(batch, "batch")
        self._poll = poll

    async def step(self) -> int:
        """Apply one batch of each partition; return how many events, 0 where there is nothing new.

        :raises StoreFault: the database failed; or the projection did (code ``projection``): nothing of the batch was
            written, and the next step repeats it.
        """
        context, done = await self._context(), 0
        places = await self._shielded(context.places(self._projection.name, self._projection.version))
        for partition, (position, head) in places.items():
            if position is not None and position >= head:
                continue
            step = repeat_on_conflict(partial(self._transaction, context, partition))
            applied, fresh = await self._shielded(step)
            done += applied
            if fresh and has_effects(self._projection):
                await self._projection.effects(fresh)
        return done

    async def catch_up(self) -> int:
        """Step until there is nothing new; return how many events were applied.

        :raises StoreFault: as :meth:`step`.
        """
        done = 0
        while applied := await self.step():
            done += applied
        return done

    async def run(self) -> None:
        """Step until cancelled. While the store is unavailable, wait; an error of the projection itself ends this.

        :raises StoreFault: the projection failed, or the store needs an operator.
        """
        await repeat(self._has_more, interval=self._poll, waits_for=TRANSIENT_CLASSES, what=self._projection.name)

    async def _has_more(self) -> bool:
        return await self.step() > 0

    async def progress(self) -> tuple[Progress, ...]:
        """Return how far it has read each partition.

        :raises StoreFault: the database failed.
        """
        context = await self._context()

        async def read() -> tuple[Progress, ...]:
            partitions = []
            async with reading(context.engine) as connection:
                heads = await context.reader.heads(connection)
                for partition, head in heads.items():
                    own, others = await context.checkpoints.find(connection, self._key(partition), lock=False)
                    first = max(others) if others else head
                    position, replay_to = (0, first) if own is None else (own.position, own.replay_to)
                    upto = max(replay_to, *others, 0)
                    partitions.append(Progress(partition=partition, position=position, replay_to=upto, head=head))
            return tuple(partitions)

        progress: tuple[Progress, ...] = await self._shielded(read())
        return progress

    async def live(self) -> bool:
        """Return True if it has read, in every partition, what was done before it: its tables may be used."""
        return all(partition.live for partition in await self.progress())

    async def retire(self) -> None:
        """Delete this version's checkpoints, once no process runs it; its tables are the caller's to drop.

        Another version that is behind goes on without repeating the external effects of this one.

        :raises StoreFault: the database failed.
        """
        context = await self._context()
        name, version = self._projection.name, self._projection.version

        async def retire() -> None:
            async with context.dialect.transaction(context.engine) as connection:
                locked = await context.checkpoints.read(connection, [name], range(context.partitions), lock=True)
                done = {own.partition: own.position for own in locked if own.version == version}
                others = [checkpoint for checkpoint in locked if checkpoint.version != version]
                for checkpoint in others:
                    checkpoint.replay_to = max(checkpoint.replay_to, done.get(checkpoint.partition, 0))
                await context.checkpoints.move(connection, others, now=context.now())
                await context.checkpoints.drop(connection, name, version)

        await self._shielded(retire())

    async def _transaction(self, context: ProjectorContext, partition: int) -> tuple[int, list[RecordedEvent]]:
        """Return how many events one transaction applied, and those of them that were not replayed."""
        async with context.dialect.transaction(context.engine) as connection:
            own, others = await context.checkpoints.find(connection, self._key(partition))
            if own is None:
                head = (await context.reader.heads(connection, (partition,)))[partition]
                own = Checkpoint.first(self._key(partition), replay_to=max(others) if others else head)
            own.replay_to = max([own.replay_to, *others])
            events = await context.reader.log(connection, partition=partition, after=own.position, limit=self._batch)
            replayed = [event for event in events if (event.position or 0) <= own.replay_to]
            fresh = events[len(replayed) :]
            with attributed_to(self._projection):
                if replayed:
                    await self._projection.apply(connection, replayed, replaying=True)
                if fresh:
                    await self._projection.apply(connection, fresh, replaying=False)
            if events:
                own.position = events[-1].position or 0
            if events or own.new:
                await context.checkpoints.move(connection, [own], now=context.now())
        return len(events), fresh

    def _key(self, partition: int) -> CheckpointKey:
        return self._projection.name, self._projection.version, partition


PREFIX: Final = "follower."
"""Begins the names of followers' checkpoints, so that none is a projection's."""
_FOLLOWER_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")


class Follower:
    """Reads each event of the log at least once, and goes on there after a crash.

    Returned by :meth:`ConversationStore.follower`. Each partition comes in the order of its positions, and so does each
    conversation; there is no order between partitions. One process at a time may follow under a name.
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
        if not isinstance(name, str) or not _FOLLOWER_NAME.fullmatch(name):
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
            for partition, (position, head) in (await context.places(self._name, 1)).items():
                after = position or 0
                if head <= after:
                    continue
                async with reading(context.engine) as connection:
                    events = await context.reader.log(connection, partition=partition, after=after, limit=self._batch)
                if events:
                    idle = False
                    yield events
                    move = self._moved(context, partition, after, events[-1].position or 0)
                    await self._shielded(repeat_on_conflict(move))
            if idle:
                await anyio.sleep(self._poll)

    async def behind(self) -> int:
        """Return how many events it has not read yet.

        :raises StoreFault: the database failed.
        """
        places = await (await self._context()).places(self._name, 1)
        return sum(head - (position or 0) for position, head in places.values())

    def _moved(self, context: ProjectorContext, partition: int, start: int, end: int) -> Callable[[], Awaitable[None]]:
        async def move() -> None:
            key = (self._name, 1, partition)
            async with context.dialect.transaction(context.engine) as connection:
                own, _ = await context.checkpoints.find(connection, key)
                own = own or Checkpoint.first(key, replay_to=0)
                if own.position != start:
                    raise InvalidInput("name", "another process follows the log under it: choose another name")
                own.position = end
                await context.checkpoints.move(connection, [own], now=context.now())

        return move

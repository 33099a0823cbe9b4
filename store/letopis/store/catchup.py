"""Catch-up projections: read the log from a checkpoint on, in transactions of their own."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import anyio
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.asking import check_count
from letopis.store.checkpoints import Checkpoint, Checkpoints
from letopis.store.dialects import Dialect
from letopis.store.events import RecordedEvent
from letopis.store.faults import FaultClass, StoreFault, translated
from letopis.store.projections import Projection, blamed, checked, has_effects
from letopis.store.reads import Reader

T = TypeVar("T")

logger = logging.getLogger("letopis.store.projections")

BATCH: Final = 250
"""Events in one transaction, unless it is said otherwise."""
SLOWEST: Final = 60.0
"""Seconds between two tries while the store fails."""
_ATTEMPTS: Final = 3
_WAITED_FOR: Final = frozenset({FaultClass.UNAVAILABLE, FaultClass.CONFLICT, FaultClass.UNKNOWN_OUTCOME})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a projector needs of a store that is ready.

    :ivar now: microseconds.
    """

    engine: AsyncEngine
    readers: AsyncEngine
    dialect: Dialect
    reader: Reader
    partitions: int
    now: Callable[[], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one version of a projection has read one partition of the log.

    :ivar replay_to: up to where it only repeats what was done before.
    :ivar head: the position given out last.
    """

    partition: int
    position: int
    replay_to: int
    head: int

    @property
    def behind(self) -> int:
        """Events that it has not read."""
        return self.head - self.position

    @property
    def live(self) -> bool:
        """Whether it has read all that was done before it."""
        return self.position >= self.replay_to


class Projector:
    """Runs one projection: :meth:`step` by step, or :meth:`run` for ever.

    Made by :meth:`ConversationStore.projector`. Any number of processes may run the same one: they take turns, batch by
    batch, and every event is applied once. Where the log has several partitions, each is read on its own.

    What several *versions* of a projection do outside, by :meth:`Projection.effects` or because an ``apply`` was not
    ``replaying``, is done for each event once: by the version that comes to it first. The first version of all leaves
    out what was in the log before it.

    :param access: gives the store's, once that is ready.
    :param whole: runs one transaction so that a cancellation cannot tear it.
    """

    def __init__(
        self,
        projection: Projection,
        *,
        access: Callable[[], Awaitable[Access]],
        whole: Callable[[Awaitable[Any]], Awaitable[Any]],
        batch: int = BATCH,
        poll: float = 0.25,
    ) -> None:
        self._projection = checked(projection)
        self._access = access
        self._whole = whole
        self._batch = check_count(batch, "batch")
        self._poll = poll

    async def step(self) -> int:
        """Apply one batch of each partition; return how many events, 0 where there is nothing new.

        :raises StoreFault: the database failed; or the projection did (code ``projection``): nothing of the batch was
            written, and the next step tries it again.
        """
        access, done = await self._access(), 0
        for partition in range(access.partitions):
            taken, owed = await self._whole(self._step(access, partition))
            done += taken
            if owed and has_effects(self._projection):
                await self._projection.effects(owed)
        return done

    async def catch_up(self) -> int:
        """Step until there is nothing new; return how many events that were.

        :raises StoreFault: as :meth:`step`.
        """
        done = 0
        while taken := await self.step():
            done += taken
        return done

    async def run(self) -> None:
        """Step until cancelled. A store that is away is waited for; what the projection itself raises ends it.

        :raises StoreFault: the projection failed, or a person has to mend the store.
        """
        pause = self._poll
        while True:
            try:
                pause = 0.0 if await self.step() else self._poll
            except StoreFault as fault:
                if fault.fault_class not in _WAITED_FOR:
                    raise
                pause = min(max(pause, self._poll) * 2, SLOWEST)
                logger.info("the projection %s waits for %g s: %s", self._projection.name, pause, fault)
            await anyio.sleep(pause)

    async def progress(self) -> tuple[Progress, ...]:
        """Return how far it is, by partition.

        :raises StoreFault: the database failed.
        """
        access = await self._access()

        async def read() -> tuple[Progress, ...]:
            found = []
            with translated():
                async with access.readers.connect() as connection:
                    for partition in range(access.partitions):
                        own, others = await self._find(Checkpoints(access.dialect).read, connection, partition)
                        head = await access.reader.head(connection, partition)
                        first = max(others) if others else head
                        found.append(
                            Progress(
                                partition=partition,
                                position=0 if own is None else own.position,
                                replay_to=max([first if own is None else own.replay_to, *others]),
                                head=head,
                            )
                        )
            return tuple(found)

        progress: tuple[Progress, ...] = await self._whole(read())
        return progress

    async def live(self) -> bool:
        """Whether it has caught up with what was done before it, in every partition: it may now be read from."""
        return all(one.live for one in await self.progress())

    async def retire(self) -> None:
        """Forget this version's checkpoints, once no process runs it any more; its tables are the caller's to drop.

        Another version that is behind goes on without repeating what this one did outside.

        :raises StoreFault: the database failed.
        """
        access = await self._access()
        name, version = self._projection.name, self._projection.version

        async def retire() -> None:
            checkpoints = Checkpoints(access.dialect)
            with translated():
                async with access.engine.connect() as connection:
                    await access.dialect.begin_apply(connection)
                    there = await checkpoints.lock(connection, [name], range(access.partitions))
                    done = {one.partition: one.position for one in there if one.version == version}
                    others = [one for one in there if one.version != version]
                    for one in others:
                        one.replay_to = max(one.replay_to, done.get(one.partition, 0))
                    await checkpoints.move(connection, others, now=access.now())
                    await checkpoints.drop(connection, name, version)
                    await connection.commit()

        await self._whole(retire())

    async def _step(self, access: Access, partition: int) -> tuple[int, list[RecordedEvent]]:
        """Return how many events one transaction took in, and those of which effects are owed."""
        checkpoints = Checkpoints(access.dialect)
        with translated():
            # Looked at without a lock first: on SQLite a lock is the whole file.
            async with access.readers.connect() as connection:
                own, _ = await self._find(checkpoints.read, connection, partition)
                if own is not None and own.position >= await access.reader.head(connection, partition):
                    return 0, []
        for attempt in range(_ATTEMPTS):
            try:
                return await self._transaction(access, checkpoints, partition)
            except StoreFault as fault:
                # Another process made the checkpoint since we looked.
                if attempt == _ATTEMPTS - 1 or not isinstance(fault.__cause__, IntegrityError):
                    raise
        return 0, []  # never comes here

    async def _transaction(
        self, access: Access, checkpoints: Checkpoints, partition: int
    ) -> tuple[int, list[RecordedEvent]]:
        with translated():
            async with access.engine.connect() as connection:
                await access.dialect.begin_apply(connection)
                own, others = await self._find(checkpoints.lock, connection, partition)
                if own is None:
                    head = await access.reader.head(connection, partition)
                    key = (self._projection.name, self._projection.version, partition)
                    own = Checkpoint.first(key, replay_to=max(others) if others else head)
                own.replay_to = max([own.replay_to, *others])
                found = await access.reader.log(connection, partition=partition, after=own.position, limit=self._batch)
                before = [event for event in found if (event.position or 0) <= own.replay_to]
                fresh = found[len(before) :]
                with blamed(self._projection):
                    if before:
                        await self._projection.apply(connection, before, replaying=True)
                    if fresh:
                        await self._projection.apply(connection, fresh, replaying=False)
                if found:
                    own.position = found[-1].position or 0
                if found or own.new:
                    await checkpoints.move(connection, [own], now=access.now())
                with translated(committing=True):
                    await connection.commit()
                return len(found), fresh

    async def _find(
        self, look: Callable[..., Awaitable[list[Checkpoint]]], connection: AsyncConnection, partition: int
    ) -> tuple[Checkpoint | None, list[int]]:
        """Return this version's checkpoint, and the positions of the others."""
        there = await look(connection, [self._projection.name], [partition])
        own = next((one for one in there if one.version == self._projection.version), None)
        return own, [one.position for one in there if one.version != self._projection.version]

"""Keep the full-text index up to date with the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.cancellation import off_the_loop
from letopis.store.database.dialects import Dialect, reading
from letopis.store.database.engines import run_whole
from letopis.store.database.fault_classification import repeat_on_conflict
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.schema import checkpoints, log_heads
from letopis.store.errors import Closed
from letopis.store.model.events import Upcasters
from letopis.store.projections.base import Checkpoint, CheckpointKey, Checkpoints
from letopis.store.read.polling import repeat
from letopis.store.read.task_marks import FORGET, Task, write_marks
from letopis.store.search.analysis import GENERATION
from letopis.store.search.documents import LogRange, LogRanges
from letopis.store.search.index import Document, Index, IndexRow

T = TypeVar("T")
logger = logging.getLogger("letopis.store.search")

CHECKPOINT_NAME: Final = "search"
MAX_EVENTS_PER_TRANSACTION: Final = 250
"""Events indexed in one transaction, during which an SQLite file has no other writer."""
MAX_EVENTS_PER_BATCH: Final = 1_000
"""Events that the background indexer asks for at a time."""
PAUSE_BETWEEN_BATCHES_SECONDS: Final = 0.05
"""Seconds between two batches that are indexed behind a search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexProgress:
    """How far the index of one log partition has got."""

    partition: int
    indexed: int
    head: int

    @property
    def behind(self) -> int:
        return self.head - self.indexed


async def index_progress(connection: AsyncConnection) -> list[IndexProgress]:
    rows = await connection.execute(_PROGRESS)
    return [IndexProgress(partition=row.partition, indexed=row.indexed or 0, head=row.head) for row in rows]


class Indexer:
    """Reads events of the log into the index, some in each transaction."""

    # Any number of processes may do so at once: one works on a partition at a time. Rows and checkpoint are written
    # together, so that nothing is left out. An SQLite file has one writer: words are stemmed before the transaction,
    # which reads the messages again and takes the rows of those that are the same.
    def __init__(
        self, engine: AsyncEngine, dialect: Dialect, index: Index, *, upcasters: Upcasters, now: Callable[[], int]
    ) -> None:
        self._engine = engine
        self._embedded = engine.dialect.name == "sqlite"
        self._dialect = dialect
        self._index = index
        self._now = now
        self._log = LogRanges(dialect, upcasters)
        self._checkpoints = Checkpoints(dialect)
        self._turn = asyncio.Lock()

    async def catch_up(self, limit: int, *, wait: bool = True) -> int:
        """Index at most ``limit`` events, and return how many; without ``wait``, none that another process works on."""
        done = 0
        for progress in await run_whole(self._engine, self._progress(), write=False):
            while progress.behind and done < limit:
                # One by one: a cancellation waits for one transaction, not for all.
                indexed = await self._index_some(
                    progress.partition, min(MAX_EVENTS_PER_TRANSACTION, limit - done), wait
                )
                done += indexed or 0
                if indexed == 0:
                    break
        return done

    async def _index_some(self, partition: int, limit: int, wait: bool) -> int | None:
        """Index the next events of a partition; return how many, ``None`` if another process did meanwhile."""
        if not self._embedded:
            return await run_whole(
                self._engine, repeat_on_conflict(partial(self._transaction, partition, limit, wait=wait))
            )
        async with self._turn:  # two tasks of one process would stem the same words
            after, log = await run_whole(self._engine, self._next(partition, limit), write=False)
            rows = await asyncio.to_thread(self._rows, log.documents)
            write = partial(self._transaction, partition, log.events, wait=wait, after=after, stemmed=rows)
            return await run_whole(self._engine, repeat_on_conflict(write)) if log.events else 0

    async def _next(self, partition: int, limit: int) -> tuple[int, LogRange]:
        async with reading(self._engine) as connection:
            checkpoint, _ = await self._checkpoints.find(connection, _key(partition), lock=False)
            after = 0 if checkpoint is None else checkpoint.position
            head = (await connection.execute(_HEAD, {"partition": partition})).scalar_one()
            return after, await self._log.read(connection, partition=partition, after=after, upto=head, limit=limit)

    def _rows(
        self, documents: Iterable[Document], known: Mapping[Document, Sequence[IndexRow]] = MappingProxyType({})
    ) -> dict[Document, Sequence[IndexRow]]:
        return {document: known.get(document) or self._index.rows((document,)) for document in documents}

    async def keep_up(self, limit: int) -> int | None:
        """Index some events of a searched SQLite file; return how many are left, ``None`` for any other store."""
        progress = await run_whole(self._engine, self._progress(), write=False) if self._embedded else []
        if not any(part.indexed for part in progress):
            return None
        behind = sum(part.behind for part in progress)
        return behind - (await self.catch_up(limit) if behind else 0)

    async def _progress(self) -> list[IndexProgress]:
        async with reading(self._engine) as connection:
            return await index_progress(connection)

    async def _transaction(
        self,
        partition: int,
        limit: int,
        *,
        wait: bool,
        after: int | None = None,
        stemmed: Mapping[Document, Sequence[IndexRow]] = MappingProxyType({}),
    ) -> int | None:
        async with self._dialect.transaction(self._engine) as connection:
            checkpoint, _ = await self._checkpoints.find(connection, _key(partition), wait=wait)
            if checkpoint is None:
                if not wait and (await self._checkpoints.find(connection, _key(partition), lock=False))[0] is not None:
                    return 0  # another process works on it
                checkpoint = Checkpoint.first(_key(partition), replay_to=0)
            if after not in (None, checkpoint.position):
                return None
            start, head = checkpoint.position, (await connection.execute(_HEAD, {"partition": partition})).scalar_one()
            log = await self._log.read(connection, partition=partition, after=start, upto=head, limit=limit)
            if log.events:
                await self._write(connection, partition, log, stemmed)
                checkpoint.position = log.last
            if log.events or checkpoint.new:
                await self._checkpoints.move(connection, [checkpoint], now=self._now())
            return log.events

    async def _write(
        self, connection: AsyncConnection, partition: int, log: LogRange, stemmed: Mapping[Document, Sequence[IndexRow]]
    ) -> None:
        # In a thread: stemming and hashing words is work for the processor.
        rows = list(chain.from_iterable((await off_the_loop(self._rows, log.documents, stemmed)).values()))
        for name, versions in sorted(log.gone.items()):
            if versions is None and (last := log.long.get(name)) is not None:
                # A message may have been read before the deletion, and indexed after the steps that carry it out.
                task = Task(partition, name, FORGET, version=last, after=0, upto=last, created_at=self._now())
                await write_marks(connection, self._dialect, [task])
            else:
                await self._index.forget(connection, partition, name, versions)
        indexed = {(row[2], row[3]) for row in rows}
        for document in log.documents:
            # An edit may have left a message without a word.
            if (
                document.content_version != document.version
                and (document.conversation_id, document.version) not in indexed
            ):
                await self._index.forget(connection, partition, document.conversation_id, (document.version,))
        await self._index.write(connection, rows)


class BoundedCatchUp:
    """Catches the index up before a search, without delaying the search for long."""

    # What is not done in time goes on in the background, and the search reads it from the log, as far as that goes. A
    # store that may only be read is searched in the same way.
    def __init__(self, catch_up: Callable[[], Awaitable[int]], *, timeout: float = 1.0) -> None:
        self._catch_up = catch_up
        self._timeout = timeout
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Wait until the index is up to date, for the timeout at most."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="letopis-search-index")
        # Not cancelled with the caller: other searches may wait for it too.
        await asyncio.wait((self._task,), timeout=self._timeout)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while await self._catch_up():  # noqa: ASYNC110 - a pause for other writers, not a wait for a condition
                await asyncio.sleep(PAUSE_BETWEEN_BATCHES_SECONDS)
        except (StoreFault, Closed) as error:
            logger.debug("the search index was not brought up to date: %s", error)


class BackgroundIndexer:
    """Keeps the index up to date until cancelled.

    :param catch_up: a store's :meth:`~letopis.store.ConversationStore.catch_up_search`.
    :param poll: seconds between two polls while there is nothing new.
    """

    def __init__(self, catch_up: Callable[[int], Awaitable[int]], *, poll: float = 1.0) -> None:
        self._catch_up = catch_up
        self._poll = poll

    async def run(self) -> None:
        """Index what is in the log and what comes. While the store fails, wait: a search makes up for it."""
        with suppress(Closed):
            await repeat(self._step, interval=self._poll, waits_for=frozenset(FaultClass), what="the search index")

    async def _step(self) -> bool:
        return await self._catch_up(MAX_EVENTS_PER_BATCH) >= MAX_EVENTS_PER_BATCH


def _key(partition: int) -> CheckpointKey:
    return CHECKPOINT_NAME, GENERATION, partition


_MINE: Final = (checkpoints.c.name == CHECKPOINT_NAME, checkpoints.c.version == GENERATION)
_HEAD: Final = sa.select(log_heads.c.position).where(log_heads.c.partition == sa.bindparam("partition"))
_PROGRESS: Final = (
    sa.select(log_heads.c.partition, log_heads.c.position.label("head"), checkpoints.c.position.label("indexed"))
    .select_from(log_heads.outerjoin(checkpoints, sa.and_(*_MINE, checkpoints.c.partition == log_heads.c.partition)))
    .order_by(log_heads.c.partition)
)

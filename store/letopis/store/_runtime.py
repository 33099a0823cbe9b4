"""Connect to one history store, prepare it, and run transactions that no cancellation tears."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import cached_property, partial
from importlib import import_module
from typing import TYPE_CHECKING, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.cancellation import InFlight, cancel_after_grace, run_to_completion
from letopis.store.database.dialects import dialect_for
from letopis.store.database.engines import for_single_statements
from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.store_identity import check_connection
from letopis.store.database.wal_truncation import WalTruncator, truncate_wal
from letopis.store.errors import Closed, ConfigurationError
from letopis.store.model.conversations import Page, RecordedMessage
from letopis.store.model.events import to_microseconds
from letopis.store.model.upcasters import Upcasters
from letopis.store.projections.base import Projection
from letopis.store.read.lineage import Lineage
from letopis.store.read.reader import Reader
from letopis.store.read.sqlite_fast_path import SQLiteFastReader

if TYPE_CHECKING:
    from letopis.store._components import StoreComponents
    from letopis.store.read.paging import AsOf, Window
    from letopis.store.search.indexer import BoundedCatchUp

T = TypeVar("T")

CLOSE_TIMEOUT_SECONDS: Final = 1.0
"""Seconds that closing waits for work in flight. A server may not answer for long, and with the 8 seconds of a daemon's
batch this is less than the 10 after which Docker kills."""


class StoreRuntime:
    """The connections of one history store, and the components that work over them.

    :param migrate: whether to create and migrate the tables; ``None`` for an SQLite file only.
    :param lock_timeout: seconds that a fast read of an SQLite file waits for a lock.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        partitions: int,
        migrate: bool | None,
        upcasters: Upcasters,
        projections: Sequence[Projection],
        lock_timeout: float,
        now: Callable[[], datetime],
    ) -> None:
        self.engine = engine
        self.embedded = engine.dialect.name == "sqlite"
        # A reader's transaction is one snapshot and takes no lock.
        self.readers: AsyncEngine = engine.execution_options(sqlite_begin="DEFERRED")
        self.dialect = dialect_for(engine.dialect.name)
        self._by_statement = for_single_statements(self.readers)
        self._partitions = partitions
        self._migrate = self.embedded if migrate is None else migrate
        self._upcasters = upcasters
        self._projections = projections
        self._now = now
        self._preparing = asyncio.Lock()
        self._setup_began: float | None = None
        self._past_setup_seconds = 0.0
        self._components: StoreComponents | None = None
        self._in_flight = InFlight()
        self._closed = False
        self._wal_truncator = WalTruncator(partial(truncate_wal, engine))
        # One reading connection beside the pool: a small read of a file costs less than checking one out.
        path = str(engine.url.database)
        self.fast_reader = SQLiteFastReader(path, lock_timeout=lock_timeout) if self.embedded else None

    @property
    def is_ready(self) -> bool:
        """Whether the store was prepared, and is not closed."""
        return self._components is not None

    @property
    def known_partitions(self) -> int:
        """How many partitions the log has; 1 until the store was prepared."""
        return 1 if self._components is None else self._components.partitions

    @property
    def setup_seconds(self) -> float:
        """Seconds spent so far on loading code and on creating or migrating an embedded store."""
        began = self._setup_began
        return self._past_setup_seconds + (0.0 if began is None else time.monotonic() - began)

    @cached_property
    def search_catch_up(self) -> BoundedCatchUp:
        """Catches the search index up before a search."""
        from letopis.store.search.indexer import BoundedCatchUp

        return BoundedCatchUp(self._index_some_events)

    def now(self) -> int:
        """Return the time of the store's clock, in microseconds."""
        return to_microseconds(self._now())

    async def prepared(self) -> StoreComponents:
        """Return the components; connect, check and migrate first where that was not done yet.

        :raises StoreFault: the database cannot be reached, or its tables are not those of this release.
        """
        if self._closed:
            raise Closed("the history store is closed")
        if (components := self._components) is not None:
            return components
        async with self._preparing:
            if self._components is None:
                return await self.shielded(self._prepare())
            return self._components

    async def read(self, read: Callable[[Reader, AsyncConnection], Awaitable[T]]) -> T:
        """Return what ``read`` returns; on PostgreSQL each of its statements sees its own moment."""
        components = await self.prepared()
        return await self.connected(lambda connection: read(components.reader, connection), by_statement=True)

    async def snapshot(self, read: Callable[[Lineage, AsyncConnection], Awaitable[T]]) -> T:
        """Return what ``read`` returns, all of it read in one snapshot."""
        components = await self.prepared()

        async def in_snapshot(connection: AsyncConnection) -> T:
            await self.dialect.begin_snapshot(connection)
            return await read(components.lineage, connection)

        return await self.connected(in_snapshot)

    async def messages(self, conversation_id: str, window: Window, as_of: AsOf | None) -> Page[RecordedMessage]:
        """Return the messages of a window, as they are or were, with those that the conversation inherits."""
        if as_of is not None:
            return await self.snapshot(
                lambda lineage, connection: lineage.as_of(connection, conversation_id, as_of, window)
            )
        components = await self.prepared()
        if self.fast_reader is not None and window.at(0) == window and self.fast_reader.supports(window):
            with self.schema_checked_again():
                page, inherits = await self.fast_reader.own(conversation_id, window)
        else:
            page, inherits = await self.connected(
                lambda connection: components.lineage.own(connection, conversation_id, window), by_statement=True
            )
        if not inherits:
            return page
        return await self.snapshot(lambda lineage, connection: lineage.messages(connection, conversation_id, window))

    async def connected(self, read: Callable[[AsyncConnection], Awaitable[T]], *, by_statement: bool = False) -> T:
        """Return what ``read`` returns over a reading connection that belongs to the expected store."""
        if self._closed:
            raise Closed("the history store is closed")
        engine = self._by_statement if by_statement else self.readers

        async def transaction() -> T:
            with translated():
                async with engine.connect() as connection:
                    await check_connection(connection)
                    return await read(connection)

        return await self.shielded(transaction())

    async def shielded(self, work: Awaitable[T]) -> T:
        """Run one transaction so that a cancellation cannot tear it, and check the schema again after a wrong one."""
        in_flight = self._in_flight.begin(work)
        with self.schema_checked_again():
            # A file answers soon, and a torn aiosqlite call leaks its thread; a server may not answer for long, and
            # its drivers bear one cancellation well.
            return await (run_to_completion(in_flight) if self.embedded else cancel_after_grace(in_flight))

    @contextmanager
    def schema_checked_again(self) -> Iterator[None]:
        """Have the schema checked again at the next use after a fault that says that it is not as it was."""
        try:
            yield
        except StoreFault as fault:
            if fault.fault_class is FaultClass.MISCONFIGURED:
                self._components = None
            raise

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        if not self._closed:
            self._closed = True
            self._components = None
            try:
                if "search_catch_up" in vars(self):
                    await self.search_catch_up.close()
                await self._wal_truncator.close()
                # A connection in use would be returned to a pool that is never closed again.
                await self._in_flight.wait(timeout_seconds=CLOSE_TIMEOUT_SECONDS)
            finally:  # also for a cancelled caller: there is no second close
                if self.fast_reader is not None:
                    await run_to_completion(self.fast_reader.close())
                await run_to_completion(self.engine.dispose())

    async def _prepare(self) -> StoreComponents:
        """Check the revision, migrate where this store may, and build the components."""
        # Imported when a store is used, as it takes as long as everything else here; in a thread, so the loop runs on.
        with self._setup(), translated():  # a process without a free descriptor cannot import either
            await asyncio.to_thread(import_module, "letopis.store._components")
        from letopis.store._components import build_components, prepare_schema

        partitions = await prepare_schema(
            self.engine,
            self.readers,
            migrate=self._migrate,
            partitions=self._partitions,
            setup=self._setup if self.embedded else nullcontext,
        )
        if self.fast_reader is not None:
            self.fast_reader.use(partitions=partitions, upcasters=self._upcasters)
        # Kept here, because the caller may have been cancelled.
        self._components = components = build_components(
            self.engine,
            self.readers,
            self.dialect,
            partitions=partitions,
            upcasters=self._upcasters,
            projections=self._projections,
            now=self.now,
            whole=self.shielded,
            erased=self._wal_truncator.schedule,
        )
        return components

    @contextmanager
    def _setup(self) -> Iterator[None]:
        """Count the time of a block as setup, which :attr:`_preparing` serialises."""
        self._setup_began = time.monotonic()
        try:
            yield
        finally:
            self._past_setup_seconds, self._setup_began = self.setup_seconds, None

    async def _index_some_events(self) -> int:
        from letopis.store.search.finder import MAX_UNINDEXED_EVENTS

        return await (await self.prepared()).indexer.catch_up(MAX_UNINDEXED_EVENTS, wait=False)


def check_options(*, partitions: object, upcasters: object, now: object) -> None:
    """Check the options of a store.

    :raises ConfigurationError: one of them is wrong.
    """
    if not isinstance(partitions, int) or not 1 <= partitions <= 1024:
        raise ConfigurationError("partitions must be between 1 and 1024")
    if not isinstance(upcasters, Upcasters):
        raise ConfigurationError(f"upcasters must be Upcasters(...), not {type(upcasters).__name__}")
    if not callable(now):
        raise ConfigurationError(f"now must be a function that returns the time, not {type(now).__name__}")

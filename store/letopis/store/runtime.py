"""Connect to one history store, prepare it, and run transactions that no cancellation tears."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import cached_property, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar, cast

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.cancellation import InFlight, cancel_after_grace, run_to_completion
from letopis.store.database.citus import dialect_of
from letopis.store.database.dialects import dialect_for
from letopis.store.database.engines import create_store_engine, for_single_statements, open_database, run_whole
from letopis.store.database.fault_classification import fault_of, translated
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.sqlite import WalTruncator, truncate_wal
from letopis.store.database.sqlite_file import SQLiteFile
from letopis.store.database.store_identity import check_connection, check_identity, expected_store_id, read_identity
from letopis.store.database.timeouts import Timeouts
from letopis.store.errors import Closed, ConfigurationError
from letopis.store.maintenance.continuity import Continuity
from letopis.store.model.conversations import Page, RecordedMessage
from letopis.store.model.events import Upcasters, to_microseconds
from letopis.store.model.identifiers import check_identifier
from letopis.store.projections.base import Checkpoints, Projection
from letopis.store.read.contents import Contents, Wanted, wanted_of, with_contents
from letopis.store.read.lineage import Lineage
from letopis.store.read.reader import Reader, StoreView, ViewQuery

if TYPE_CHECKING:
    from letopis.store.components import StoreComponents
    from letopis.store.projections.projector import ProjectorContext
    from letopis.store.read.paging import AsOf, Window
    from letopis.store.search.finder import Finder
    from letopis.store.search.indexer import BoundedCatchUp

P = ParamSpec("P")
T = TypeVar("T")

CLOSE_TIMEOUT_SECONDS: Final = 1.0
"""Seconds that closing waits for work in flight. A server may not answer for long, and with the 8 seconds of a daemon's
batch this is less than the 10 after which Docker kills."""


class StoreRuntime:
    """The connections of one history store, and the components that work over them."""

    def __init__(
        self,
        url: str | URL | os.PathLike[str],
        *,
        timeouts: Timeouts,
        pool_size: int,
        partitions: int,
        migrate: bool | None,
        upcasters: Upcasters,
        projections: Sequence[Projection],
        now: Callable[[], datetime],
    ) -> None:
        self.engine = open_database(url, timeouts=timeouts, pool_size=pool_size)
        self._file = file if isinstance(file := cast("object", self.engine), SQLiteFile) else None
        self.embedded = self._file is not None
        # A reader's transaction is one snapshot and takes no lock.
        self.readers: AsyncEngine = self.engine.execution_options(sqlite_begin="DEFERRED")
        self.dialect = dialect_for(self.engine.dialect.name)
        self._by_statement = for_single_statements(self.readers)
        self._partitions = partitions
        self._migrate = self.embedded if migrate is None else migrate
        self.upcasters = upcasters
        self._projections = projections
        self._now = now
        self._preparing = asyncio.Lock()
        self._setup_began: float | None = None
        self._past_setup_seconds = 0.0
        self._components: StoreComponents | None = None
        self._in_flight = InFlight()
        self._closed = False
        self._wal_truncator = WalTruncator(lambda: run_whole(self.engine, truncate_wal(self.engine)))
        self._timeouts = timeouts
        self.continuity = Continuity(self._on_connection_change, self.read)

    @cached_property
    def callers_engine(self) -> AsyncEngine:
        """The engine for the code of projections, which may await anything: of an SQLite file, another one."""
        if not self.embedded:
            return self.engine
        return create_store_engine(self.engine.url, timeouts=self._timeouts, pool_size=2)

    @property
    def known_partitions(self) -> int:
        """How many partitions the log has; 1 until the store was prepared."""
        return 1 if self._components is None else self._components.partitions

    @property
    def setup_seconds(self) -> float:
        """Seconds spent so far on loading code and on creating or migrating an embedded store: it is not down then."""
        began = self._setup_began
        return self._past_setup_seconds + (0.0 if began is None else time.monotonic() - began)

    @property
    def heeds_cancellation(self) -> bool:
        """Whether a cancelled read ends at once, as one in a thread does, so that a plain timeout limits it."""
        return self.embedded and self._components is not None

    @cached_property
    def search_catch_up(self) -> BoundedCatchUp:
        """Catches the search index up before a search."""
        from letopis.store.search.indexer import BoundedCatchUp

        return BoundedCatchUp(self._index_some_events)

    def _on_connection_change(self, listener: Callable[..., None]) -> None:
        """Have ``listener`` called whenever a connection to the database is opened or lost."""
        if self._file is not None:
            self._file.on_change(listener)
        else:
            event.listen(self.engine.sync_engine, "connect", listener)
            event.listen(self.engine.sync_engine, "invalidate", listener)

    @property
    def apply_whole(self) -> Callable[[Coroutine[Any, Any, T]], Awaitable[T]]:
        """What runs the transaction of an apply."""
        return self.in_loop if self._projections else self.whole

    def now(self) -> int:
        return to_microseconds(self._now())

    async def prepared(self) -> StoreComponents:
        """Return the components; connect, check and migrate first where that was not done yet."""
        if self._closed:
            raise Closed("the history store is closed")
        if (components := self._components) is not None:
            return components
        async with self._preparing:
            if self._components is None:
                return await self.in_loop(self._prepare())
            return self._components

    async def projector_context(self) -> ProjectorContext:
        """Return what a projector needs of the prepared store."""
        from letopis.store.projections.projector import ProjectorContext

        components = await self.prepared()
        return ProjectorContext(
            engine=self.callers_engine,
            dialect=self.dialect,
            checkpoints=Checkpoints(self.dialect),
            reader=components.reader,
            partitions=components.partitions,
            now=self.now,
        )

    async def read(
        self, read: Callable[Concatenate[Reader, AsyncConnection, P], Awaitable[T]], *args: P.args, **named: P.kwargs
    ) -> T:
        """Return what ``read`` returns; on PostgreSQL each of its statements sees its own moment."""
        reader = (self._components or await self.prepared()).reader
        return await self.connected(lambda connection: read(reader, connection, *args, **named), by_statement=True)

    async def write(self, write: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Return what ``write`` returns, run in one transaction."""
        await self.prepared()

        async def in_transaction() -> T:
            async with self.dialect.transaction(self.engine) as connection:
                check_identity((await read_identity(connection)).store_id, expected_store_id())
                return await write(connection)

        return await self.whole(in_transaction())

    async def snapshot(self, read: Callable[[Lineage, AsyncConnection], Awaitable[T]]) -> T:
        """Return what ``read`` returns, all of it read in one snapshot."""
        components = await self.prepared()

        async def in_snapshot(connection: AsyncConnection) -> T:
            await self.dialect.begin_snapshot(connection)
            return await read(components.lineage, connection)

        return await self.connected(in_snapshot)

    async def view(self, query: ViewQuery) -> StoreView:
        """Return a conversation and messages of it, with how far an outbox's lane had got, all at one moment."""
        if self.embedded:
            reader = (self._components or await self.prepared()).reader
            return await self.connected(partial(reader.view_of, query=query))
        if query.window is None and not query.bounded:
            return await self.read(Reader.head_view, query)
        if not query.bounded and not query.whole:
            view = await self.read(Reader.view_in_one, query)
            if view is not None:
                return view

        async def read(lineage: Lineage, connection: AsyncConnection) -> StoreView:
            return await lineage.reader.view(connection, query)

        return await self.snapshot(read)

    async def messages(self, conversation_id: str, window: Window, as_of: AsOf | None = None) -> Page[RecordedMessage]:
        """Return the messages of a window, as they are or were, with those inherited; large content as references."""
        if as_of is not None:
            return await self.snapshot(
                lambda lineage, connection: lineage.as_of(connection, conversation_id, as_of, window)
            )
        check_identifier(conversation_id, "conversation_id")
        components = await self.prepared()
        page, inherits = await self.connected(
            lambda connection: components.lineage.own(connection, conversation_id, window), by_statement=True
        )
        if not inherits:
            return page
        return await self.snapshot(lambda lineage, connection: lineage.messages(connection, conversation_id, window))

    async def with_contents(self, page: Page[RecordedMessage]) -> Page[RecordedMessage]:
        """Return a page of messages with their large content in place."""
        if (wanted := wanted_of(page)) is None:
            return page
        return with_contents(page, wanted, await self.contents(wanted))

    async def finder(self) -> Finder:
        """Return what searches, once the index has caught up for a bounded time."""
        finder = (await self.prepared()).finder
        await self.search_catch_up.run()
        return finder

    async def contents(self, wanted: Wanted) -> Contents:
        """Return large content of messages, by conversation and name."""
        if not any(wanted.values()):
            return {}
        return await self.snapshot(lambda lineage, connection: lineage.reader.records.contents(connection, wanted))

    async def try_out(self, conversation_id: str) -> None:
        """Apply an ordinary event in the partition of a conversation, and roll it back."""
        await self.apply_whole((await self.prepared()).applier.try_out(conversation_id))

    async def connected(self, read: Callable[[AsyncConnection], Awaitable[T]], *, by_statement: bool = False) -> T:
        """Return what ``read`` returns over a reading connection that belongs to the expected store."""
        if self._closed:
            raise Closed("the history store is closed")
        engine = self._by_statement if by_statement else self.readers
        return await self.whole(_reading(engine, read), write=False)

    async def whole(self, work: Coroutine[Any, Any, T], *, write: bool = True) -> T:
        """Run one transaction so that a cancellation cannot tear it, and check the schema again after a wrong one."""
        if self._file is None:
            return await self.in_loop(work)
        try:
            return await self._file.run(work, write=write)
        except Exception as error:
            fault = fault_of(error)  # of connecting
            self._check_schema_after(fault)
            if fault is error:
                raise
            raise fault from error

    async def in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Run what no cancellation may tear in the event loop: it may await anything."""
        started = self._in_flight.start(work)
        try:
            # A torn aiosqlite call leaks its thread; a server may not answer for long, and its drivers bear one
            # cancellation well.
            return await (run_to_completion(started) if self.embedded else cancel_after_grace(started))
        except StoreFault as fault:
            self._check_schema_after(fault)
            raise

    def _check_schema_after(self, error: Exception) -> None:
        """Have the schema checked again at the next use if it is not as it was."""
        if isinstance(error, StoreFault) and error.fault_class is FaultClass.MISCONFIGURED:
            self._components = None

    async def close(self) -> None:
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
                if "callers_engine" in vars(self):
                    await run_to_completion(self.callers_engine.dispose())
                await run_to_completion(self.engine.dispose())

    async def _prepare(self) -> StoreComponents:
        """Check the revision, migrate where this store may, and build the components."""
        # Imported when a store is used, as it takes as long as everything else here; in a thread, so the loop runs on.
        with self._setup(), translated():  # a process without a free descriptor cannot import either
            await asyncio.to_thread(import_module, "letopis.store.components")
        from letopis.store.components import build_components, prepare_schema

        partitions = await prepare_schema(
            self.engine,
            migrate=self._migrate,
            partitions=self._partitions,
            setup=self._setup if self.embedded else nullcontext,
        )
        if not self.embedded:
            self.dialect = await dialect_of(self.engine)
        loop = asyncio.get_running_loop()
        # Kept here, because the caller may have been cancelled.
        self._components = components = build_components(
            self.engine,
            self.callers_engine if self._projections else self.engine,
            self.dialect,
            partitions=partitions,
            upcasters=self.upcasters,
            projections=self._projections,
            now=self.now,
            # From the thread of a transaction, or from the loop.
            erased=lambda: loop.call_soon_threadsafe(self._wal_truncator.schedule),
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


async def _reading(engine: AsyncEngine, read: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Return what ``read`` returns over a connection to the expected store."""
    try:
        async with engine.connect() as connection:
            await check_connection(connection)
            return await read(connection)
    except Exception as error:
        if (fault := fault_of(error)) is error:
            raise
        raise fault from error


def check_options(*, partitions: object, upcasters: object, now: object) -> None:
    """Check the options of a store."""
    if isinstance(partitions, bool) or not isinstance(partitions, int) or not 1 <= partitions <= 1024:
        raise ConfigurationError("partitions must be a whole number from 1 to 1024")
    if not isinstance(upcasters, Upcasters):
        raise ConfigurationError(f"upcasters must be Upcasters(...), not {type(upcasters).__name__}")
    if not callable(now):
        raise ConfigurationError(f"now must be a function that returns the time, not {type(now).__name__}")

"""Check and migrate the database of a history store, and build the components that work over it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Final, cast

from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store.database.citus import Citus
from letopis.store.database.dialects import Dialect, dialect_for, reading
from letopis.store.database.engines import run_whole
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.migrations import (
    ALEMBIC_LOCK,
    STORE,
    Revision,
    SchemaState,
    hold_alembic_lock,
    revision_state,
    upgrade,
)
from letopis.store.database.sqlite_file import SQLiteFile
from letopis.store.database.store_identity import count_partitions, expected_store_id
from letopis.store.maintenance.retention import ContentFinder
from letopis.store.maintenance.task_steps import TaskSteps
from letopis.store.model.events import Upcasters
from letopis.store.projections.base import InlineProjections, Projection
from letopis.store.read.file_reader import FileReader
from letopis.store.read.lineage import Lineage
from letopis.store.read.point_in_time import PointInTimeReader
from letopis.store.read.reader import Reader
from letopis.store.read.statistics import StatisticsReader
from letopis.store.search.finder import Finder
from letopis.store.search.index import index_for
from letopis.store.search.indexer import Indexer
from letopis.store.write.applier import Applier
from letopis.store.write.erasing import Eraser
from letopis.store.write.loading import ConflictLookup

UPGRADE_COMMAND: Final = "letopis db upgrade"
LOST_HISTORY_REASON: Final = (
    f"there is no history here, and the outbox is bound to one: restore its backup; only if it is gone for good, run"
    f" `{UPGRADE_COMMAND}`, then `letopis outbox rebind`"
)
"""What a fault says of a store that an outbox has delivered to, and that is not there any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreComponents:
    """The components of a history store over one prepared database."""

    applier: Applier
    conflicts: ConflictLookup
    reader: Reader
    lineage: Lineage
    statistics: StatisticsReader
    finder: Finder
    indexer: Indexer
    eraser: Eraser
    erased: Callable[[], object]  # to be called once content was erased
    steps: TaskSteps
    retention: ContentFinder
    partitions: int  # how many the log has


def check_schema(found: Revision, partitions: int) -> None:
    """Check that the database has the tables of this release and the counters of the log."""
    if found.state is not SchemaState.CURRENT:
        lost = found.state is SchemaState.MISSING and expected_store_id() is not None
        reason = LOST_HISTORY_REASON if lost else found.advice(STORE, command=UPGRADE_COMMAND)
        raise StoreFault(fault_class=FaultClass.MISCONFIGURED, code=f"schema-{found.state}", reason=reason)
    if partitions == 0:
        reason = "the counters of the log are gone (letopis_log_heads is empty): restore the database"
        raise StoreFault(fault_class=FaultClass.MISCONFIGURED, code="partitions", reason=reason)


async def prepare_schema(
    engine: AsyncEngine,
    *,
    migrate: bool,
    partitions: int,
    setup: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> int:
    """Check the tables, create or migrate them where that is allowed, and return how many partitions the log has."""
    # A store that an outbox has delivered to is restored by an operator, never recreated in silence.
    create = migrate and expected_store_id() is None
    if engine.dialect.name == "sqlite" and not create and not os.path.exists(str(engine.url.database)):  # noqa: ASYNC240, PTH110
        revision, count = Revision(state=SchemaState.MISSING, revision=None), 0  # connecting would create the file
    else:
        revision, count = await run_whole(engine, _inspect(engine), write=False)
    if (revision.state is SchemaState.MISSING and create) or (revision.state is SchemaState.OLDER and migrate):
        with setup():
            # In a thread: this import takes as long as all others together.
            await asyncio.to_thread(import_module, "alembic.command")
            if isinstance(cast("object", engine), SQLiteFile):
                # In its thread: an event loop that stands still meanwhile must not keep the lock from all others.
                await run_whole(engine, _upgrade(engine, partitions, ALEMBIC_LOCK))
            else:
                async with hold_alembic_lock():
                    await run_whole(engine, _upgrade(engine, partitions))
        revision, count = await run_whole(engine, _inspect(engine), write=False)
    check_schema(revision, count)
    return count


async def _upgrade(engine: AsyncEngine, partitions: int, lock: AbstractContextManager[object] | None = None) -> None:
    async with dialect_for(engine.dialect.name).transaction(engine) as connection:
        with lock or nullcontext():
            await connection.run_sync(upgrade, STORE, attributes={"partitions": partitions})


async def _inspect(engine: AsyncEngine) -> tuple[Revision, int]:
    async with reading(engine) as connection:
        revision = await connection.run_sync(revision_state, STORE)
        return revision, await count_partitions(connection) if revision.state is SchemaState.CURRENT else 0


def build_components(
    engine: AsyncEngine,
    applying: AsyncEngine,
    dialect: Dialect,
    *,
    partitions: int,
    upcasters: Upcasters,
    projections: Sequence[Projection],
    now: Callable[[], int],
    erased: Callable[[], object],
) -> StoreComponents:
    """Return the components of a history store; does no I/O."""
    embedded = engine.dialect.name == "sqlite"
    index = index_for("citus" if isinstance(dialect, Citus) else engine.dialect.name)
    eraser = Eraser(dialect, index, upcasters=upcasters)
    truncate_wal = erased if embedded else lambda: None
    steps = TaskSteps(engine, dialect, eraser=eraser, erased=truncate_wal)
    reader = (FileReader if embedded else Reader)(dialect, partitions=partitions, upcasters=upcasters)
    applier = Applier(
        applying,
        dialect,
        partitions=partitions,
        upcasters=upcasters,
        inline=InlineProjections(projections, dialect) if projections else None,
        eraser=eraser,
        now=now,
        serial=embedded and applying is not engine,
        erased=truncate_wal,
    )
    return StoreComponents(
        applier=applier,
        conflicts=dialect.shared(ConflictLookup),
        reader=reader,
        lineage=Lineage(reader, PointInTimeReader(dialect, reader=reader, upcasters=upcasters)),
        finder=Finder(dialect, index, reader, partitions=partitions, upcasters=upcasters),
        indexer=Indexer(engine, dialect, index, upcasters=upcasters, now=now),
        retention=ContentFinder(dialect, partitions=partitions, now=now),
        statistics=StatisticsReader(dialect, partitions=partitions, upcasters=upcasters, reader=reader),
        eraser=eraser,
        erased=truncate_wal,
        steps=steps,
        partitions=partitions,
    )

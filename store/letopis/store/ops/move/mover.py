"""Move a whole history to another store while bots keep running, verify it, and leave the old store closed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import URL

from letopis.store.database.engines import run_whole
from letopis.store.database.migrations import STORE, Revision, SchemaState, hold_alembic_lock, revision_state, upgrade
from letopis.store.database.schema import checkpoints, conversations, events, lanes, messages, origins, owners
from letopis.store.database.sqlite import truncate_wal
from letopis.store.database.store_identity import LogState, refusal
from letopis.store.database.urls import normalise_url
from letopis.store.errors import ConfigurationError, MoveFailed
from letopis.store.model.events import NO_UPCASTERS, now_microseconds
from letopis.store.ops.move.copier import copy_redacted, copy_rows, event_slice, other_slices
from letopis.store.ops.move.endpoint import Endpoint
from letopis.store.ops.move.handover import (
    StoreRecord,
    claim_target,
    close_source,
    commit_handover,
    open_target,
    read_store_record,
    reopen_source,
)
from letopis.store.search.index import index_for
from letopis.store.search.indexer import CHECKPOINT_NAME as INDEXING
from letopis.store.write.erasing import Eraser

_COUNTED_TABLES: Final = (events, conversations, messages, lanes, origins, owners)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveProgress:
    """The progress of a move.

    :ivar stage: ``copying`` while the source takes deliveries, ``closed`` while neither store does.
    :ivar events: events copied and verified so far.
    :ivar total: events of the source, which grows while it takes deliveries.
    """

    stage: str
    events: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """The result of a move.

    :ivar source: where the history was, without user and password.
    :ivar target: where the history is, without user and password.
    :ivar store_id: the identity of the history store, which moved along.
    :ivar projections: names of the catch-up projections whose checkpoints were copied. Their own tables were not.
    :ivar already: True if it was moved before; nothing was copied, and the counts are the source's.
    :ivar seconds: duration of this run.
    :ivar paused: how many of these seconds no store took deliveries.
    """

    source: str
    target: str
    store_id: UUID
    events: int
    conversations: int
    messages: int
    lanes: int
    origins: int
    owners: int
    projections: tuple[str, ...] = ()
    already: bool = False
    seconds: float = 0.0
    paused: float = 0.0


async def move(
    source: str | URL | os.PathLike[str],
    target: str | URL | os.PathLike[str],
    *,
    progress: Callable[[MoveProgress], None] | None = None,
) -> Moved:
    """Move a whole history from one store to another, of any kind, while bots keep running.

    The log is copied while the source takes deliveries. Then the source is closed, the events since are copied, and the
    target is opened under the source's identity. Deliveries wait in the outboxes in between. Every row is read back
    from the target and compared, every event with its digest as well. At most one of the two stores takes deliveries at
    any time. The source stays readable, and says where the history went.

    An interrupted move is resumed by the same call. If two run at a time, the later one continues and the other stops.
    The target is an empty database, whose tables are created, or the target of an interrupted move.

    The log, conversations, messages, lanes, origins, owners with their numbers, the checkpoints of catch-up projections
    and pending tasks are copied. Tables of your own are not, nor is the search index: the target rebuilds it when it is
    searched, or at once by ``letopis db index``.

    :param progress: called after each page that was copied and verified.
    :raises ConfigurationError: the source or the target cannot be used as such; the message says why.
    :raises MoveFailed: the move cannot continue.
    :raises StoreFault: a database failed.
    """
    began = time.monotonic()
    source_url, target_url = normalise_url(source), normalise_url(target)
    _check_apart(source_url, target_url)
    async with Endpoint(source_url, "source") as old, Endpoint(target_url, "target") as new:
        record = await _read_current(old)
        _check_source(record, old, new)
        await _create_tables(new, partitions=len(record.heads))
        if not await claim_target(new, record, source_address=old.address):
            return replace(await _result(old, new, record), already=True)
        paused = await _Move(old, new, record, progress or (lambda _: None)).run()
        return replace(await _result(old, new, record), seconds=time.monotonic() - began, paused=paused)


async def cancel_move(source: str | URL | os.PathLike[str]) -> str | None:
    """Reopen the source of an unfinished move. Return where it was being moved, or ``None`` if it was open.

    Copied rows stay in the target, which takes no deliveries; a later move to it continues from there.

    :raises ConfigurationError: the move can only be finished, or there is no store.
    :raises StoreFault: the database failed.
    """
    async with Endpoint(normalise_url(source), "source") as end:
        await _read_current(end)
        return await reopen_source(end)


@dataclass(slots=True)
class _Move:
    """One run of a move."""

    source: Endpoint
    target: Endpoint
    record: StoreRecord
    progress: Callable[[MoveProgress], None]
    _copied: dict[int, int] = field(default_factory=dict)
    _paused_at: float | None = None

    async def run(self) -> float:
        """Copy, close, copy the rest and open. Return for how many seconds no store took deliveries."""
        began = time.monotonic()
        if self.record.state is not LogState.OPEN:
            self._paused_at = began
        await self._copy_log()
        await self._copy_other_slices()
        await self._copy_log()
        if self.record.state is LogState.OPEN:
            self.record = await close_source(self.source, self.target.address)
            self._paused_at = began = time.monotonic()
        # What an apply leaves for later is done in the closed source, so that nothing changes after the copy.
        index = index_for(self.source.engine.dialect.name)
        eraser = Eraser(self.source.dialect, index, upcasters=NO_UPCASTERS)
        if await self.source.write(partial(eraser.erase_released, now=now_microseconds())) and self.source.embedded:
            await run_whole(self.source.engine, truncate_wal(self.source.engine))
        await self._copy_log()
        for partition in self.record.heads:
            async for _ in copy_redacted(self.source, self.target, event_slice(partition)):
                self._report()
        await self._copy_other_slices()
        await self._check_log()
        await commit_handover(self.source, self.record)
        await open_target(self.target, self.record)
        return time.monotonic() - began

    async def _copy_log(self) -> None:
        """Copy the events since the last call, up to the current end of the log."""
        if self.record.state is LogState.OPEN:
            self.record = await self.source.read(read_store_record)
        for partition, head in self.record.heads.items():
            done = self._copied.get(partition, 0)
            if done >= head:
                continue
            async for count in copy_rows(
                self.source, self.target, event_slice(partition), after=(done,), until=(head,)
            ):
                self._copied[partition] = self._copied.get(partition, 0) + count
                self._report()

    async def _copy_other_slices(self) -> None:
        for part in other_slices(len(self.record.heads)):
            async for _ in copy_rows(self.source, self.target, part):
                self._report()

    async def _check_log(self) -> None:
        """Check that both ends have an event for each position of the log."""
        held = sa.select(events.c.partition, sa.func.count(), sa.func.max(events.c.position)).group_by(
            events.c.partition
        )
        wanted = {(partition, head, head) for partition, head in self.record.heads.items() if head}
        for end in (self.source, self.target):
            if set(await end.rows(held)) != wanted:
                raise MoveFailed(
                    f"the log in {end.address} does not have an event for each position: run `letopis db verify` on "
                    f"{self.source.address}, and restore it from a backup"
                )

    def _report(self) -> None:
        self.progress(
            MoveProgress(
                stage="copying" if self._paused_at is None else "closed",
                events=sum(self._copied.values()),
                total=sum(self.record.heads.values()),
            )
        )


def _check_apart(source: URL, target: URL) -> None:
    same = source == target
    if not same and source.get_backend_name() == target.get_backend_name() == "sqlite":
        same = os.path.realpath(str(source.database)) == os.path.realpath(str(target.database))
    if same:
        raise ConfigurationError("the source and the target are the same store: name an empty database as the target")


def _check_source(record: StoreRecord, source: Endpoint, target: Endpoint) -> None:
    if record.state is LogState.ARRIVING:
        raise refusal(record.state)
    if record.state is not LogState.OPEN and record.moved_to != target.address:
        what = "was moved" if record.state is LogState.MOVED else "is being moved"
        advice = (
            "name that store as the source"
            if record.state is LogState.MOVED
            else "finish that with the same --to, or cancel it with `letopis move --cancel`"
        )
        raise ConfigurationError(f"the history of {source.address} {what} to {record.moved_to}: {advice}")


async def _read_current(end: Endpoint) -> StoreRecord:
    """Return the record of a store at this release's revision."""
    if end.embedded and not await asyncio.to_thread(Path(str(end.url.database)).is_file):
        raise ConfigurationError(f"{end.address}: there is no such file: name the history store with --store")
    revision = await _revision(end)
    if revision.state is not SchemaState.CURRENT:
        raise ConfigurationError(f"{end.address}: {revision.advice(STORE, command='letopis db upgrade')}")
    return await end.read(read_store_record)


async def _revision(end: Endpoint) -> Revision:
    return await end.read(lambda connection: connection.run_sync(revision_state, STORE))


async def _create_tables(target: Endpoint, *, partitions: int) -> None:
    """Create the tables of the target if it has none; those of another release hold another history."""
    revision = await _revision(target)
    if revision.state is SchemaState.MISSING:
        await asyncio.to_thread(import_module, "alembic.command")
        options = {"partitions": partitions}
        async with hold_alembic_lock():
            await target.write(lambda connection: connection.run_sync(upgrade, STORE, attributes=options))
    elif revision.state is not SchemaState.CURRENT:
        raise ConfigurationError(f"{target.address}: {revision.advice(STORE, command='letopis db upgrade')}")


async def _result(source: Endpoint, target: Endpoint, record: StoreRecord) -> Moved:
    """Return the result with the counts of the source, which no longer changes."""
    counts = {
        table.name.removeprefix("letopis_"): (await source.rows(sa.select(sa.func.count()).select_from(table)))[0][0]
        for table in _COUNTED_TABLES
    }
    named = sa.select(checkpoints.c.name).where(checkpoints.c.name != INDEXING).distinct()
    return Moved(
        source=source.address,
        target=target.address,
        store_id=record.store_id,
        projections=tuple(sorted(name for (name,) in await source.rows(named))),
        **counts,
    )

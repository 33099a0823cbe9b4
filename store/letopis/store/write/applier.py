"""Apply batches of lanes, each in one transaction, exactly once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.database.dialects import Dialect
from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.errors import InvalidInput
from letopis.store.model.identifiers import check_identifier
from letopis.store.model.records import Scope, is_record_lane, scope_of
from letopis.store.model.upcasters import Upcasters
from letopis.store.projections.inline import InlineProjections
from letopis.store.rules.apply_plan import ApplyResult, LaneApplied, LaneBatch, Origin, SequencedEvent, TableRow
from letopis.store.rules.decoding import DecodedEvent, decode_events
from letopis.store.rules.projection import conflicts_of_shown, project_events
from letopis.store.rules.record_plan import conversations_of
from letopis.store.write.lanes import Comparison, Lanes
from letopis.store.write.loading import LoadedLane, Loader
from letopis.store.write.log import LogWriter
from letopis.store.write.record_lanes import AppliedRecords, RecordLanes
from letopis.store.write.redaction import Eraser
from letopis.store.write.registration import Registration
from letopis.store.write.row_writer import Erasure, ProjectedLane, RowWriter
from letopis.store.write.transaction import ApplyTransaction

logger = logging.getLogger("letopis.store.apply")

MAX_ATTEMPTS: Final = 4
"""The first is optimistic; two outboxes that begin one conversation at the same time need the second."""
_DECODED_BETWEEN_YIELDS: Final = 50
"""Events that are decoded before the event loop gets its turn: about half a millisecond."""
_PROJECTED_BETWEEN_YIELDS: Final = 100
"""Events that are projected before the event loop gets its turn: less than a millisecond."""


class DecodedBatch:
    """The decoded events of a batch.

    Decoding is half of an apply's work in Python and needs no lock: it is done before the transaction begins, while
    another apply waits for the database.
    """

    def __init__(self, upcasters: Upcasters) -> None:
        self._upcasters = upcasters
        self._decoded: dict[int, DecodedEvent] = {}

    async def decode(self, batch: Sequence[LaneBatch]) -> None:
        """Decode a batch in small parts. Events that cannot be decoded are left out: they may not be needed."""
        count = 0
        for lane in batch:
            for start in range(0, len(lane.deliveries), _DECODED_BETWEEN_YIELDS):
                part = lane.deliveries[start : start + _DECODED_BETWEEN_YIELDS]
                try:
                    decoded = decode_events(part, self._upcasters)
                except InvalidInput:
                    continue
                self._decoded.update(zip(map(id, part), decoded, strict=True))
                count += len(part)
                if count >= _DECODED_BETWEEN_YIELDS:
                    count = 0
                    await asyncio.sleep(0)

    def of(self, deliveries: Sequence[SequencedEvent]) -> tuple[DecodedEvent, ...]:
        """Return decoded events of the batch.

        :raises StoreFault: ``POISON``: one of them cannot be applied.
        """
        found = tuple(decoded for one in deliveries if (decoded := self._decoded.get(id(one))) is not None)
        if len(found) == len(deliveries):
            return found
        try:
            return decode_events(deliveries, self._upcasters)  # raises the error of the one that was left out
        except InvalidInput as error:
            raise StoreFault(fault_class=FaultClass.POISON, code="invalid", reason=str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A batch that is applied and not committed.

    :ivar recorded: the rows that were added to the log.
    """

    result: ApplyResult
    recorded: list[TableRow]
    erasure: Erasure


class Applier:
    """Applies batches to one history store; the statements are compiled once.

    :ivar write_lock: held while a transaction writes to SQLite, which has one writer: waiting for it here is cheaper
        than asking the file repeatedly.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        dialect: Dialect,
        *,
        partitions: int,
        upcasters: Upcasters,
        inline: InlineProjections,
        eraser: Eraser,
        now: Callable[[], int],
        serial: bool = False,
        erased: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._dialect = dialect
        self._partitions = partitions
        self._upcasters = upcasters
        self._inline = inline
        self._eraser = eraser
        self._now = now
        self._erased = erased
        self._erasures_recovered = False  # True once erasures of a process that died have been completed
        self.write_lock: AbstractAsyncContextManager[Any] = asyncio.Lock() if serial else nullcontext()
        self._registration = Registration(dialect)
        self._lanes = Lanes(dialect)
        self._loader = Loader(dialect, eraser)
        self._rows = RowWriter(dialect, eraser)
        self._log = LogWriter(dialect)
        self._records = RecordLanes(dialect)

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        """Apply a batch; see :meth:`letopis.store.conversation_store.ConversationStore.apply`."""
        names = [lane.conversation_id for lane in batch]
        if len(set(names)) != len(names):
            raise InvalidInput("batch", "has two deliveries of one lane: put them together")
        for name in names:
            if not is_record_lane(name):
                check_identifier(name, "conversation_id")
        decoded = DecodedBatch(self._upcasters)
        await decoded.decode([lane for lane in batch if not is_record_lane(lane.conversation_id)])
        async with self.write_lock:
            applied = await self._apply_with_retries(origin, batch, decoded)
        erasure = applied.erasure
        if erasure.released:
            await self._erase_released()
        if erasure.content or erasure.released or not self._erasures_recovered:
            self._erasures_recovered = True
            self._erased()
        return applied.result

    async def trim_records(self, origin: Origin, pruned: Mapping[str, int]) -> None:
        """Trim the ledgers of record lanes to what their outbox has pruned, in one transaction.

        :raises StoreFault: the database failed, or is not the origin's.
        """
        async with self.write_lock:
            with translated():
                async with self._engine.connect() as connection:
                    await self._dialect.begin_apply(connection)
                    transaction = self._transaction(connection, origin)
                    await self._registration.register(transaction)
                    await self._records.trim(transaction, pruned)
                    # A log that was closed for a move changes no more.
                    partitions = {scope_of(name).partition(self._partitions) for name in pruned}
                    await self._log.append(transaction, (), (), more=partitions)
                    with translated(committing=True):
                        await connection.commit()

    async def _apply_with_retries(self, origin: Origin, batch: Sequence[LaneBatch], decoded: DecodedBatch) -> Applied:
        for attempt in range(1, MAX_ATTEMPTS):
            try:
                return await self._apply_once(origin, batch, decoded, optimistic=attempt == 1)
            except StoreFault as fault:
                # Another transaction began the same conversation, or delivered one of these events, after the lookups
                # of this one. It has ended, so that the next attempt sees what it wrote.
                if not isinstance(fault.__cause__, IntegrityError):
                    raise
        return await self._apply_once(origin, batch, decoded, optimistic=False)

    async def _apply_once(
        self, origin: Origin, batch: Sequence[LaneBatch], decoded: DecodedBatch, *, optimistic: bool
    ) -> Applied:
        with translated():
            async with self._engine.connect() as connection:
                await self._dialect.begin_apply(connection)
                applied = await self.run_phases(connection, origin, batch, decoded, optimistic=optimistic)
                await self._inline.apply(connection, applied.recorded)
                with translated(committing=True):
                    await connection.commit()
        return applied

    async def run_phases(
        self,
        connection: AsyncConnection,
        origin: Origin,
        batch: Sequence[LaneBatch],
        decoded: DecodedBatch,
        *,
        optimistic: bool = True,
    ) -> Applied:
        """Apply a batch in an open transaction, which the caller commits or rolls back.

        All writers take their locks in the order of these phases, and sorted inside each, so that none deadlocks.

        :param optimistic: see :meth:`Lanes.compare`.
        """
        transaction = self._transaction(connection, origin)
        await self._registration.register(transaction)
        of_records = [lane for lane in batch if is_record_lane(lane.conversation_id)]
        events = [lane for lane in batch if not is_record_lane(lane.conversation_id)] if of_records else batch
        compared = await self._lanes.compare(transaction, events, decoded.of, optimistic=optimistic)
        beside = conversations_of(lane.conversation_id for lane in of_records)
        projected = await _project(await self._loader.load(transaction, compared.accepted, also=beside))
        erasure = await self._rows.write(transaction, projected)
        records = await self._records.apply(transaction, of_records) if of_records else None
        if deleted := [one.lane.conversation_id for one in projected if one.result.deleted]:
            await self._records.erase(transaction, [Scope.conversation(name).name for name in deleted])
        await self._lanes.advance(transaction, compared.accepted)
        more = frozenset[int]() if records is None else records.advanced
        recorded = await self._log.append(transaction, compared.accepted, projected, more=more)
        if records is not None and records.erased:
            erasure = replace(erasure, content=True)
        return Applied(result=_result(compared, projected, records), recorded=recorded, erasure=erasure)

    def _transaction(self, connection: AsyncConnection, origin: Origin) -> ApplyTransaction:
        return ApplyTransaction(
            connection=connection,
            dialect=self._dialect,
            origin=origin,
            partitions=self._partitions,
            now=self._now(),
        )

    async def _erase_released(self) -> None:
        """Erase what deleted conversations retained for forks that have ceased to read it; the next apply retries."""
        try:
            with translated():
                async with self._engine.connect() as connection:
                    await self._dialect.begin_apply(connection)
                    await self._eraser.erase_released(connection, now=self._now())
                    await connection.commit()
        except StoreFault as fault:
            logger.info("content that deleted conversations retained for their forks is erased later: %s", fault)


async def _project(loaded: Sequence[LoadedLane]) -> list[ProjectedLane]:
    """Assign versions to the fresh events and project them."""
    projected = []
    count = 0
    for one in loaded:
        count += len(one.lane.fresh)
        if count >= _PROJECTED_BETWEEN_YIELDS:
            count = 0
            await asyncio.sleep(0)
        result = project_events(
            one.row,
            one.lane.fresh,
            one.targets,
            verdicts=one.conflicts,
            retain=one.retained,
            unloaded=one.unloaded,
        )
        projected.append(ProjectedLane(lane=one.lane, result=result))
    return projected


def _result(compared: Comparison, projected: Sequence[ProjectedLane], records: AppliedRecords | None) -> ApplyResult:
    superseded = {
        one.lane.conversation_id: {
            **conflicts_of_shown(one.result, one.lane.fresh, one.lane.shown),
            **one.result.superseded,
        }
        for one in projected
    }
    applied = [] if records is None else records.applied
    refused = [] if records is None else records.refused
    return ApplyResult(
        applied=(
            *applied,
            *(
                LaneApplied(
                    conversation_id=lane.conversation_id,
                    head=max(lane.compared.head, lane.compared.lane.deliveries[-1].sequence),
                    inserted=len(lane.fresh),
                    duplicates=len(lane.compared.lane.deliveries) - len(lane.fresh),
                    superseded={**lane.conflicts, **superseded.get(lane.conversation_id, {})},
                )
                for lane in compared.accepted
            ),
        ),
        refused=(*compared.refused, *refused),
    )

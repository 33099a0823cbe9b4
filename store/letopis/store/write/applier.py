"""Apply batches of lanes, each in one transaction, exactly once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import Any, Final

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.database.dialects import Dialect
from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.errors import InvalidInput
from letopis.store.model.identifiers import check_identifier
from letopis.store.model.records import is_record_lane
from letopis.store.model.upcasters import Upcasters
from letopis.store.projections.inline import InlineProjections
from letopis.store.rules.apply_plan import ApplyResult, LaneApplied, LaneBatch, Origin, SequencedEvent, TableRow
from letopis.store.rules.decoding import DecodedEvent, decode_events
from letopis.store.rules.projection import conflicts_of_shown, project_events
from letopis.store.rules.record_plan import RecordChange, decode_change
from letopis.store.write.lanes import AcceptedLane, Lanes
from letopis.store.write.loading import Loader
from letopis.store.write.log import LogWriter
from letopis.store.write.records import RecordWriter
from letopis.store.write.redaction import Eraser
from letopis.store.write.registration import Registration
from letopis.store.write.row_writer import Erasure, RowWriter
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
        self._decoded: dict[int, DecodedEvent | RecordChange] = {}

    async def decode(self, batch: Sequence[LaneBatch]) -> None:
        """Decode a batch in small parts. Events that cannot be decoded are left out: they may not be needed."""
        count = 0
        for lane in batch:
            for start in range(0, len(lane.deliveries), _DECODED_BETWEEN_YIELDS):
                part = lane.deliveries[start : start + _DECODED_BETWEEN_YIELDS]
                try:
                    decoded = self._decode(part)
                except InvalidInput:
                    continue
                self._decoded.update(zip(map(id, part), decoded, strict=True))
                count += len(part)
                if count >= _DECODED_BETWEEN_YIELDS:
                    count = 0
                    await asyncio.sleep(0)

    def of(self, deliveries: Sequence[SequencedEvent]) -> tuple[Any, ...]:
        """Return decoded events of one lane of the batch.

        :raises StoreFault: ``POISON``: one of them cannot be applied.
        """
        found = tuple(decoded for one in deliveries if (decoded := self._decoded.get(id(one))) is not None)
        if len(found) == len(deliveries):
            return found
        try:
            return self._decode(deliveries)  # raises the error of the one that was left out
        except InvalidInput as error:
            raise StoreFault(fault_class=FaultClass.POISON, code="invalid", reason=str(error)) from error

    def _decode(self, deliveries: Sequence[SequencedEvent]) -> tuple[DecodedEvent | RecordChange, ...]:
        if is_record_lane(deliveries[0].event.conversation_id):
            return tuple(decode_change(delivery) for delivery in deliveries)
        return decode_events(deliveries, self._upcasters)


Applied = tuple[ApplyResult, list[TableRow], Erasure]
"""The result of a batch that is not committed yet, the rows that it added to the log, and what it erased."""


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
        erased: Callable[[], object] = lambda: None,
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
        self._registration = dialect.shared(Registration)
        self._lanes = dialect.shared(Lanes)
        self._loader = Loader(dialect, eraser)
        self._rows = RowWriter(dialect, eraser)
        self._log = dialect.shared(LogWriter)
        self._records = dialect.shared(RecordWriter)

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        """Apply a batch; see :meth:`letopis.store.conversation_store.ConversationStore.apply`."""
        names = [lane.conversation_id for lane in batch]
        if len(set(names)) != len(names):
            raise InvalidInput("batch", "has two deliveries of one lane: put them together")
        for name in names:
            if not is_record_lane(name):
                check_identifier(name, "conversation_id")
        decoded = DecodedBatch(self._upcasters)
        await decoded.decode(batch)
        async with self.write_lock:
            result, _, erasure = await self._apply_with_retries(origin, batch, decoded)
        if erasure.released:
            await self._erase_released()
        if erasure.content or erasure.released or not self._erasures_recovered:
            self._erasures_recovered = True
            self._erased()
        return result

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
                await self._inline.apply(connection, applied[1])
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
        transaction = ApplyTransaction(
            connection=connection,
            dialect=self._dialect,
            origin=origin,
            partitions=self._partitions,
            now=self._now(),
        )
        await self._registration.register(transaction)
        accepted, refused = await self._lanes.compare(transaction, batch, decoded.of, optimistic=optimistic)
        fresh = await self._loader.load(transaction, accepted)
        await _project(fresh)
        erasure = await self._rows.write(transaction, fresh)
        deleted = {lane.conversation_id for lane in fresh if lane.result.deleted}
        if await self._records.write(transaction, accepted, deleted=deleted):
            erasure = replace(erasure, content=True)
        await self._lanes.advance(transaction, accepted)
        recorded = await self._log.append(transaction, accepted, fresh)
        return ApplyResult(applied=tuple(map(_applied, accepted)), refused=tuple(refused)), recorded, erasure

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


async def _project(lanes: Sequence[AcceptedLane]) -> None:
    """Assign versions to the fresh events and project them."""
    count = 0
    for lane in lanes:
        count += len(lane.fresh)
        if count >= _PROJECTED_BETWEEN_YIELDS:
            count = 0
            await asyncio.sleep(0)
        lane.result = project_events(
            lane.row,
            lane.fresh,
            lane.targets,
            verdicts=lane.verdicts,
            retain=lane.retained,
            unloaded=lane.unloaded,
        )


def _applied(lane: AcceptedLane) -> LaneApplied:
    superseded = lane.conflicts
    if lane.fresh:
        superseded |= conflicts_of_shown(lane.result, lane.fresh, lane.shown) | lane.result.superseded
    return LaneApplied(
        conversation_id=lane.conversation_id,
        head=lane.compared.end,
        inserted=lane.inserted,
        duplicates=len(lane.compared.lane.deliveries) - lane.inserted,
        superseded=superseded,
    )

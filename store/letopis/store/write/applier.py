"""Apply batches of lanes, each in one transaction, exactly once; test whether a store accepts any."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from itertools import count
from typing import Any, Final
from uuid import uuid4

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.database.dialects import Dialect, numbered
from letopis.store.database.fault_classification import translated
from letopis.store.database.fault_rules import HUNG_UP, LOST, rule_of_code
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.store_identity import read_identity
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import encode, encode_message
from letopis.store.model.event_types import ConversationStarted
from letopis.store.model.events import NO_UPCASTERS, Event, Upcasters
from letopis.store.model.identifiers import check_identifier, partition_of
from letopis.store.model.large_content import MARK_IN_JSON
from letopis.store.model.messages import Message
from letopis.store.model.records import is_record_lane
from letopis.store.projections.base import InlineProjections
from letopis.store.read.task_marks import Task
from letopis.store.rules.apply_plan import ApplyResult, LaneApplied, LaneBatch, Origin, SequencedEvent
from letopis.store.rules.decoding import DecodedEvent, decode_events
from letopis.store.rules.projection import conflicts_of_shown, project_events
from letopis.store.rules.record_plan import RecordChange, decode_change
from letopis.store.write.contents import ContentWriter
from letopis.store.write.erasing import Eraser
from letopis.store.write.lanes import AcceptedLane, Lanes
from letopis.store.write.loading import Loader
from letopis.store.write.records import RecordWriter
from letopis.store.write.row_writer import RowWriter, append_to_log
from letopis.store.write.transaction import ApplyTransaction, Registration

logger = logging.getLogger("letopis.store.apply")

MAX_ATTEMPTS: Final = 4
"""The first is optimistic; two outboxes that begin one conversation at the same time need the second."""
_DECODED_BETWEEN_YIELDS: Final = 50
"""Events that are decoded before the event loop gets its turn: about half a millisecond."""
_PROJECTED_BETWEEN_YIELDS: Final = 100
"""Events that are projected before the event loop gets its turn: less than a millisecond."""


class DecodedBatch:
    """The decoded events of a batch."""

    # Decoding is half of an apply's work in Python and needs no lock: it is done before the transaction begins, while
    # another apply waits for the database.
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
        """Return decoded events of one lane of the batch."""
        decoded = tuple(map(self._decoded.get, map(id, deliveries)))
        if None not in decoded:
            return decoded
        try:
            return self._decode(deliveries)  # raises the error of the one that was left out
        except InvalidInput as error:
            raise StoreFault(fault_class=FaultClass.POISON, code="invalid", reason=str(error)) from error

    def _decode(self, deliveries: Sequence[SequencedEvent]) -> tuple[DecodedEvent | RecordChange, ...]:
        if is_record_lane(deliveries[0].event.conversation_id):
            return tuple(decode_change(delivery) for delivery in deliveries)
        return decode_events(deliveries, self._upcasters)


class Applier:
    """Applies batches to one history store; the statements are compiled once."""

    def __init__(
        self,
        engine: AsyncEngine,
        dialect: Dialect,
        *,
        partitions: int,
        upcasters: Upcasters,
        inline: InlineProjections | None,
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
        # Waiting for SQLite's one writer here is cheaper than asking the file repeatedly.
        self.write_lock: AbstractAsyncContextManager[Any] = asyncio.Lock() if serial else nullcontext()
        self._registration = dialect.shared(Registration)
        self._lanes = dialect.shared(Lanes)
        self._loader = Loader(dialect, eraser)
        self._rows = RowWriter(dialect, eraser)
        self._records = dialect.shared(RecordWriter)
        self._contents = dialect.shared(ContentWriter)

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        names = set[str]()
        for lane in batch:
            if not is_record_lane(name := lane.conversation_id):
                check_identifier(name, "conversation_id")
            names.add(name)
        if len(names) != len(batch):
            raise InvalidInput("batch", "has two deliveries of one lane: put them together")
        decoded = DecodedBatch(self._upcasters)
        await decoded.decode(batch)
        async with self.write_lock:
            attempt = 1
            while True:
                try:
                    result, transaction = await self._apply_once(origin, batch, decoded, optimistic=attempt == 1)
                    break
                except StoreFault as fault:
                    # Another transaction began the same conversation, or delivered one of these events, after the
                    # lookups of this one. It has ended, so that the next attempt sees what it wrote.
                    if attempt == MAX_ATTEMPTS or not isinstance(fault.__cause__, IntegrityError):
                        raise
                    attempt += 1
        if transaction.released:
            await self._erase_released(transaction.released)
        if transaction.erased or transaction.released or not self._erasures_recovered:
            self._erasures_recovered = True
            self._erased()
        return result

    async def _apply_once(
        self, origin: Origin, batch: Sequence[LaneBatch], decoded: DecodedBatch, *, optimistic: bool
    ) -> tuple[ApplyResult, ApplyTransaction]:
        transaction: ApplyTransaction | None = None
        try:
            with translated():
                async with self._engine.connect() as connection:
                    transaction = self.begin(connection, origin)
                    result = await self.run_phases(transaction, batch, decoded, optimistic=optimistic)
                    if self._inline is not None:
                        await self._inline.apply(connection, numbered(transaction.appended, transaction.counters))
                    with translated(committing=True):
                        await connection.commit()
                    return result, transaction
        except StoreFault as fault:
            if transaction is None or not transaction.stood_still or rule_of_code(fault.code) not in (LOST, HUNG_UP):
                raise
            stopped = "this process was stopped while it held the log"
            reason = f"{stopped}, so that the history store rolled its transaction back: run it again"
            raise StoreFault(fault_class=FaultClass.CONFLICT, code="stood-still", reason=reason) from fault

    def begin(self, connection: AsyncConnection, origin: Origin) -> ApplyTransaction:
        """Return what the phases of an apply share, for a connection without a transaction."""
        return ApplyTransaction(
            connection=connection, dialect=self._dialect, origin=origin, partitions=self._partitions, now=self._now()
        )

    async def run_phases(
        self,
        transaction: ApplyTransaction,
        batch: Sequence[LaneBatch],
        decoded: DecodedBatch,
        *,
        optimistic: bool = True,
    ) -> ApplyResult:
        """Apply a batch in a transaction, which the caller commits or rolls back."""
        # All writers take their locks in the order of these phases, and sorted inside each, so that none deadlocks.
        await self._registration.register(transaction)
        accepted, refused = await self._lanes.compare(transaction, batch, decoded.of, optimistic=optimistic)
        in_order = accepted
        if len(accepted) > 1:
            in_order = sorted(accepted, key=lambda lane: transaction.lock_order(lane.conversation_id))
        if fresh := await self._loader.load(transaction, in_order):
            await _project(fresh)
            await self._rows.write(transaction, fresh, delivered=[lane for lane in accepted if lane.fresh])
            for lane in fresh:
                for event in lane.result.events:
                    if MARK_IN_JSON in event.data:
                        await self._contents.write(transaction, lane)
                        break
        deleted = {lane.conversation_id for lane in fresh if not lane.plain and lane.result.deleted}
        if deleted or len(fresh) < len(accepted):
            transaction.erased |= await self._records.write(transaction, accepted, deleted=deleted)
        await self._lanes.advance(transaction, in_order)
        await append_to_log(transaction, accepted)
        if transaction.erasing:
            await self._loader.check_holds(transaction)
        return ApplyResult(applied=tuple(map(_applied, accepted)), refused=tuple(refused))

    async def try_out(self, conversation_id: str) -> None:
        """Begin and continue a conversation in the log partition of another one, and roll it back."""
        # No projection sees it. Faults that only a commit shows, such as a full disk, are not found.
        partition = partition_of(conversation_id, self._partitions)
        async with self.write_lock:
            with translated():
                async with self._engine.connect() as connection:
                    last = await read_identity(connection)
                    origin = Origin(
                        origin_id=uuid4(),
                        epoch=1,
                        name="letopis trial",
                        erasures=last.erasures,
                        erasure_id=last.erasure_id,
                    )
                    transaction = self.begin(connection, origin)
                    for part in trial_batches(partition=partition, partitions=self._partitions):
                        decoded = DecodedBatch(NO_UPCASTERS)
                        await decoded.decode([part])
                        await self.run_phases(transaction, [part], decoded)
                    await connection.rollback()

    async def _erase_released(self, marks: Sequence[Task]) -> None:
        """Erase what deleted conversations retained for forks that have ceased to read it, or leave it to the tasks."""
        try:
            async with self._dialect.transaction(self._engine) as connection:
                await self._eraser.erase_released(connection, now=self._now(), marks=marks)
        except StoreFault as fault:  # the batch is committed
            logger.warning("content that deleted conversations retained for their forks is not erased yet: %s", fault)


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
            plain=lane.plain,
            held=lane.held,
            held_messages=lane.held_messages,
        )


def _applied(lane: AcceptedLane) -> LaneApplied:
    superseded = lane.conflicts
    if lane.fresh:
        if lane.shown:
            superseded |= conflicts_of_shown(lane.result, lane.fresh, lane.shown)
        superseded |= lane.result.superseded
    return LaneApplied(
        conversation_id=lane.conversation_id,
        head=lane.compared.end,
        inserted=lane.inserted,
        duplicates=len(lane.compared.lane.deliveries) - lane.inserted,
        superseded=superseded,
    )


_TRIAL_TEXT: Final = (
    "Letopis tests whether this history store accepts an ordinary message of an ordinary length, in a transaction that"
    " is rolled back. If this text can be read, the rollback has failed."
)


def trial_batches(*, partition: int, partitions: int) -> tuple[LaneBatch, LaneBatch]:
    """Return batches that begin and continue a new conversation: they need different privileges on the tables."""
    key = uuid4().hex
    names = (f"letopis-trial-{key}-{number}" for number in count())
    name = next(name for name in names if partition_of(name, partitions) == partition)
    started = Event.of(ConversationStarted(owner_id=f"letopis-trial-{key}", title="A trial"), conversation_id=name)
    first = Message.user(_TRIAL_TEXT)
    second = Message.assistant(_TRIAL_TEXT, tokens=7)
    return (
        LaneBatch(
            conversation_id=name,
            deliveries=(
                SequencedEvent(sequence=1, event=encode(started, conversation_id=name)),
                SequencedEvent(sequence=2, event=encode_message(first, conversation_id=name, metadata={"trial": True})),
            ),
        ),
        LaneBatch(
            conversation_id=name,
            deliveries=(SequencedEvent(sequence=3, event=encode_message(second, conversation_id=name)),),
        ),
    )

"""Apply the lanes of records: each change once, in the order of its lane."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.schema import conversations, record_lanes, record_ledger, records
from letopis.store.errors import BatchRefused, InvalidInput
from letopis.store.model.records import scope_of
from letopis.store.rules.apply_plan import ComparedLane, LaneApplied, LaneBatch, TableRow, compare_with_head
from letopis.store.rules.preconditions import Conflict
from letopis.store.rules.record_plan import (
    LedgerEntry,
    RecordChange,
    RecordPlan,
    check_known_changes,
    conversations_of,
    decode_change,
    plan_changes,
    record_id,
)
from letopis.store.write.record_rows import RecordRows
from letopis.store.write.transaction import ApplyTransaction, of_conversations


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedRecords:
    """What an apply made of its record lanes.

    :ivar advanced: the partitions of lanes whose head moved.
    :ivar erased: True if content was taken out of what is stored.
    """

    applied: list[LaneApplied]
    refused: list[BatchRefused]
    advanced: frozenset[int]
    erased: bool


@dataclass(slots=True, kw_only=True)
class _Lane:
    """A lane whose delivery does not contradict the ledger."""

    compared: ComparedLane
    partition: int
    floor: int
    changes: list[RecordChange]
    known_superseded: set[int]

    @property
    def name(self) -> str:
        return self.compared.lane.conversation_id


class RecordLanes:
    """Compares, plans and writes the record lanes of a batch; the statements are compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        self._rows = RecordRows(dialect)
        self._heads = dialect.locked(
            sa.select(record_lanes)
            .where(
                dialect.among(record_lanes.c.partition, "partitions"),
                dialect.among(record_lanes.c.lane, "lanes"),
                record_lanes.c.origin_id == sa.bindparam("origin"),
            )
            .order_by(record_lanes.c.partition, record_lanes.c.lane)
        )
        of_lane = (
            record_ledger.c.partition == sa.bindparam("at_partition"),
            record_ledger.c.lane == sa.bindparam("at_lane"),
            record_ledger.c.origin_id == sa.bindparam("at_origin"),
        )
        self._ledger = sa.select(record_ledger).where(
            *of_lane,
            record_ledger.c.sequence >= sa.bindparam("first"),
            record_ledger.c.sequence <= sa.bindparam("last"),
        )
        self._trim = sa.delete(record_ledger).where(*of_lane, record_ledger.c.sequence <= sa.bindparam("floor"))
        # The rows of these conversations are already locked, so they are not deleted meanwhile.
        self._deleted = sa.select(conversations.c.conversation_id).where(
            *of_conversations(dialect, conversations), conversations.c.state == "deleted"
        )
        self._stored = dialect.locked(
            sa.select(records.c.namespace, records.c.record_key, records.c.scope, records.c.revision)
            .where(dialect.among(records.c.partition, "partitions"), dialect.among(records.c.record_id, "ids"))
            .order_by(records.c.partition, records.c.record_id)
        )

    async def apply(self, transaction: ApplyTransaction, batch: Sequence[LaneBatch]) -> AppliedRecords:
        """Apply record lanes; each is applied or refused as a whole.

        :raises StoreFault: ``POISON``: a change cannot be applied.
        """
        compared, refused = await self._compare(transaction, batch)
        gone = await self._find_deleted(transaction, compared)
        applied, erased = list[LaneApplied](), False
        for lane in compared:
            plan = await self._plan(transaction, lane, gone)
            await self._write(transaction, lane, plan)
            erased = erased or plan.erased_to > 0
            superseded = plan.superseded | lane.known_superseded
            applied.append(
                LaneApplied(
                    conversation_id=lane.name,
                    head=max(lane.compared.head, lane.compared.lane.deliveries[-1].sequence),
                    inserted=len(lane.changes),
                    duplicates=len(lane.compared.known),
                    superseded={sequence: Conflict(expected=0, actual=0) for sequence in sorted(superseded)},
                )
            )
        return AppliedRecords(
            applied=applied,
            refused=refused,
            advanced=frozenset(lane.partition for lane in compared if lane.changes),
            erased=erased,
        )

    async def trim(self, transaction: ApplyTransaction, pruned: Mapping[str, int]) -> None:
        """Trim the ledgers of lanes to what their outbox has pruned, where that is more than with their last delivery.

        :param pruned: by lane.
        """
        found = await self._lock_heads(transaction, sorted(pruned, key=lambda name: _order(transaction, name)))
        for name, head in found.items():
            floor = min(pruned[name], head.sequence)
            if floor > head.floor:
                partition, origin = _partition(transaction, name), transaction.origin.origin_id
                await self._trim_ledger(transaction, name, floor)
                row: TableRow = (partition, name, origin, head.sequence, floor)
                await transaction.dialect.overwrite(transaction.connection, record_lanes, [row])

    async def erase(self, transaction: ApplyTransaction, scopes: Iterable[str]) -> None:
        """Erase all records of scopes, and what the ledger tells of them."""
        for scope in scopes:
            await self._rows.clear(transaction, scope, b"")
            await self._rows.erase_traces(transaction, scope)

    async def _compare(
        self, transaction: ApplyTransaction, batch: Sequence[LaneBatch]
    ) -> tuple[list[_Lane], list[BatchRefused]]:
        """Lock the lanes in the order of their keys, and find out which changes of each are new."""
        ordered = sorted(batch, key=lambda lane: _order(transaction, lane.conversation_id))
        heads = await self._lock_heads(transaction, [lane.conversation_id for lane in ordered])
        accepted, refused = list[_Lane](), list[BatchRefused]()
        for lane in ordered:
            head = heads.get(lane.conversation_id)
            sequence, floor = (0, 0) if head is None else (head.sequence, head.floor)
            try:
                compared = compare_with_head(lane, sequence)
                known = check_known_changes(compared, await self._known(transaction, compared), floor=floor)
            except BatchRefused as refusal:
                refused.append(refusal)
                continue
            accepted.append(
                _Lane(
                    compared=compared,
                    partition=_partition(transaction, lane.conversation_id),
                    floor=floor,
                    changes=_decoded(compared),
                    known_superseded=known,
                )
            )
        return accepted, refused

    async def _lock_heads(self, transaction: ApplyTransaction, names: Sequence[str]) -> dict[str, sa.Row[Any]]:
        heads: dict[str, sa.Row[Any]] = {}
        for part in in_batches(names):
            rows = await transaction.execute(
                self._heads,
                partitions=sorted({_partition(transaction, name) for name in part}),
                lanes=part,
                origin=transaction.origin.origin_id,
            )
            heads.update({row.lane: row for row in rows})
        return heads

    async def _known(self, transaction: ApplyTransaction, compared: ComparedLane) -> dict[int, LedgerEntry]:
        if not compared.known:
            return {}
        name = compared.lane.conversation_id
        rows = await transaction.execute(
            self._ledger,
            at_partition=_partition(transaction, name),
            at_lane=name,
            at_origin=transaction.origin.origin_id,
            first=compared.known[0].sequence,
            last=compared.known[-1].sequence,
        )
        return {
            row.sequence: LedgerEntry(
                event_id=row.event_id,
                digest=None if row.digest is None else bytes(row.digest),
                superseded=bool(row.superseded),
            )
            for row in rows
        }

    async def _find_deleted(self, transaction: ApplyTransaction, lanes: Sequence[_Lane]) -> frozenset[str]:
        found = set[str]()
        for part in in_batches(conversations_of(lane.name for lane in lanes if lane.changes)):
            rows = await transaction.execute(
                self._deleted, partitions=transaction.partitions_of(part), conversations=part
            )
            found.update(row.conversation_id for row in rows)
        return frozenset(found)

    async def _plan(self, transaction: ApplyTransaction, lane: _Lane, gone: frozenset[str]) -> RecordPlan:
        scope = scope_of(lane.name)
        places = {change.place: record_id(scope, change.place) for change in lane.changes if change.key}
        stored = {}
        # Sorted as a whole, because all writers lock rows in this order.
        for part in in_batches(sorted(places.values(), key=lambda one: one.bytes)):
            rows = await transaction.execute(self._stored, partitions=[lane.partition], ids=part)
            stored.update(
                {(bytes(row.namespace), bytes(row.record_key)): row.revision for row in rows if row.scope == scope.name}
            )
        return plan_changes(lane.changes, stored, gone=scope.conversation_id in gone)

    async def _write(self, transaction: ApplyTransaction, lane: _Lane, plan: RecordPlan) -> None:
        scope = scope_of(lane.name)
        for prefix in plan.cleared:
            await self._rows.clear(transaction, scope.name, prefix, lane=lane.name)
        await self._rows.write(transaction, scope, plan.final)
        origin, dialect, connection = transaction.origin.origin_id, transaction.dialect, transaction.connection
        deliveries = {delivery.sequence: delivery.event for delivery in lane.compared.fresh}
        await dialect.insert(
            connection,
            record_ledger,
            [
                (
                    lane.partition,
                    lane.name,
                    origin,
                    change.sequence,
                    change.event_id,
                    None if change.sequence < plan.erased_to else deliveries[change.sequence].digest,
                    int(change.sequence in plan.superseded),
                )
                for change in lane.changes
            ],
        )
        if plan.erased_to:
            await self._rows.erase_traces(transaction, scope.name, lane=lane.name, before=plan.erased_to)
        await self._advance(transaction, lane)

    async def _advance(self, transaction: ApplyTransaction, lane: _Lane) -> None:
        """Move the head of a lane, and trim its ledger by what the outbox has pruned."""
        compared, origin = lane.compared, transaction.origin.origin_id
        head = lane.changes[-1].sequence if lane.changes else compared.head
        # Never beyond what is applied here: a restored store is sent again what it lacks.
        floor = max(lane.floor, min(compared.lane.pruned, compared.head))
        if floor > lane.floor:
            await self._trim_ledger(transaction, lane.name, floor)
        row: TableRow = (lane.partition, lane.name, origin, head, floor)
        dialect, connection = transaction.dialect, transaction.connection
        if not compared.head:
            await dialect.insert(connection, record_lanes, [row])
        elif (head, floor) != (compared.head, lane.floor):
            await dialect.overwrite(connection, record_lanes, [row])

    async def _trim_ledger(self, transaction: ApplyTransaction, name: str, floor: int) -> None:
        await transaction.execute(
            self._trim,
            at_partition=_partition(transaction, name),
            at_lane=name,
            at_origin=transaction.origin.origin_id,
            floor=floor,
        )


def _partition(transaction: ApplyTransaction, lane: str) -> int:
    return scope_of(lane).partition(transaction.partitions)


def _order(transaction: ApplyTransaction, lane: str) -> tuple[int, bytes]:
    return _partition(transaction, lane), lane.encode()


def _decoded(compared: ComparedLane) -> list[RecordChange]:
    try:
        return [decode_change(delivery) for delivery in compared.fresh]
    except InvalidInput as error:
        raise StoreFault(fault_class=FaultClass.POISON, code="invalid", reason=str(error)) from error

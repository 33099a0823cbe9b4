"""Lock the lanes of a batch, compare them with what is stored, and advance them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.row_mapping import conflict_of
from letopis.store.database.schema import conversations, events, lanes, messages
from letopis.store.errors import BatchRefused
from letopis.store.model.event_types import MessageAppended
from letopis.store.read.task_marks import erased, is_on_path, left_at
from letopis.store.rules.apply_plan import (
    ComparedLane,
    LaneBatch,
    SequencedEvent,
    StoredEvent,
    TableRow,
    check_known,
    check_places,
    compare_with_head,
    select_new,
)
from letopis.store.rules.decoding import DecodedEvent
from letopis.store.rules.preconditions import Conflict
from letopis.store.write.transaction import ApplyTransaction, of_conversation, of_conversations

Decode = Callable[[Sequence[SequencedEvent]], tuple[DecodedEvent, ...]]
_NO_HEAD: Final = (0, 0)


@dataclass(slots=True, kw_only=True)
class AcceptedLane:
    """A lane whose delivery does not contradict what is stored.

    :ivar fresh: the events to write; may be empty.
    :ivar conflicts: those of the delivered events that are stored already, by sequence.
    :ivar shown: the versions of messages that other outboxes have delivered and that are on the path before this
        delivery, by the sequence under which this one appends them too.
    :ivar duplicates: how many sequences of the lane have no event of their own, as the same one was there already.
    """

    compared: ComparedLane
    partition: int
    fresh: tuple[DecodedEvent, ...]
    conflicts: dict[int, Conflict]
    shown: dict[int, int]
    duplicates: int

    @property
    def conversation_id(self) -> str:
        """The lane's conversation."""
        return self.compared.lane.conversation_id

    @property
    def key(self) -> dict[str, Any]:
        """The parameters of :func:`of_conversation`."""
        return {"partition": self.partition, "conversation": self.conversation_id}


@dataclass(slots=True, kw_only=True)
class Comparison:
    """The lanes of a batch after the comparison: each is accepted or refused."""

    accepted: list[AcceptedLane]
    refused: list[BatchRefused]


class Lanes:
    """Compares and advances lanes; the statements are compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        self._heads = dialect.locked(
            sa.select(lanes.c.conversation_id, lanes.c.sequence, lanes.c.duplicates)
            .where(
                *of_conversations(dialect, lanes),
                lanes.c.origin_id == sa.bindparam("origin"),
            )
            .order_by(lanes.c.partition, lanes.c.conversation_id)
        )
        self._places = sa.select(events.c.sequence, events.c.event_id).where(
            *of_conversation(events),
            events.c.origin_id == sa.bindparam("origin"),
            dialect.among(events.c.sequence, "sequences"),
        )
        in_place = [messages.c[name] == events.c[name] for name in ("partition", "conversation_id", "version")]
        again = messages.alias("again")
        same = [again.c[name] == messages.c[name] for name in ("partition", "conversation_id", "message_id")]
        shown = sa.select(sa.func.max(again.c.version)).where(*same, is_on_path(again))
        of_it = [conversations.c[name] == events.c[name] for name in ("partition", "conversation_id")]
        self._stored = (
            sa.select(
                events.c.conversation_id,
                events.c.event_id,
                events.c.origin_id,
                events.c.sequence,
                sa.case((erased(events).is_(None), events.c.digest)).label("digest"),
                events.c.metadata,
                events.c.version,
                left_at(messages).label("left_at"),
                shown.scalar_subquery().label("shown"),
                conversations.c.state,
            )
            .outerjoin_from(events, messages, sa.and_(*in_place))
            .outerjoin(conversations, sa.and_(*of_it))
            .where(
                *of_conversations(dialect, events),
                dialect.among(events.c.event_id, "ids"),
            )
        )

    async def compare(
        self, transaction: ApplyTransaction, batch: Sequence[LaneBatch], decode: Decode, *, optimistic: bool
    ) -> Comparison:
        """Lock the lanes and find out which events of each are new.

        :param optimistic: do not look up the ids of events beyond the lane's head. If another outbox has delivered one
            of them, an insert will fail, and the batch is applied again without this.
        """
        heads = await self._lock_heads(transaction, batch)
        compared, refused = [], list[BatchRefused]()
        for lane in batch:
            try:
                compared.append(compare_with_head(lane, heads.get(lane.conversation_id, _NO_HEAD)[0]))
            except BatchRefused as refusal:
                refused.append(refusal)
        stored = await self._find_stored(
            transaction,
            [
                (one.lane.conversation_id, delivery.event.event_id)
                for one in compared
                for delivery in (one.known if optimistic else (*one.known, *one.fresh))
            ],
        )
        accepted = []
        for one in compared:
            known = stored.get(one.lane.conversation_id, {})
            try:
                found = await self._accept(transaction, one, known, decode, optimistic=optimistic)
            except BatchRefused as refusal:
                refused.append(refusal)
            else:
                found.duplicates += heads.get(found.conversation_id, _NO_HEAD)[1]
                accepted.append(found)
        return Comparison(accepted=accepted, refused=refused)

    async def _lock_heads(
        self, transaction: ApplyTransaction, batch: Sequence[LaneBatch]
    ) -> dict[str, tuple[int, int]]:
        """Return the head of each lane that is there, and its duplicates."""
        heads: dict[str, tuple[int, int]] = {}
        # Sorted as a whole, because the lookups of one batch are several statements.
        names = sorted((lane.conversation_id for lane in batch), key=transaction.lock_order)
        for part in in_batches(names):
            rows = await transaction.execute(
                self._heads,
                partitions=transaction.partitions_of(part),
                conversations=part,
                origin=transaction.origin.origin_id,
            )
            heads.update({row.conversation_id: (row.sequence, row.duplicates) for row in rows})
        return heads

    async def _find_stored(
        self, transaction: ApplyTransaction, pairs: Sequence[tuple[str, UUID]]
    ) -> dict[str, dict[UUID, StoredEvent]]:
        """Return what conversations hold under event ids, by conversation and id."""
        stored: dict[str, dict[UUID, StoredEvent]] = {}
        for part in in_batches(pairs):
            names = list(dict.fromkeys(name for name, _ in part))
            rows = await transaction.execute(
                self._stored,
                partitions=transaction.partitions_of(names),
                conversations=names,
                ids=[event_id for _, event_id in part],
            )
            for row in rows:
                stored.setdefault(row.conversation_id, {})[row.event_id] = _stored_event(row)
        return stored

    async def _accept(
        self,
        transaction: ApplyTransaction,
        compared: ComparedLane,
        stored: dict[UUID, StoredEvent],
        decode: Decode,
        *,
        optimistic: bool,
    ) -> AcceptedLane:
        lane, origin_id = compared.lane, transaction.origin.origin_id
        if doubtful := check_known(compared, origin_id, stored):
            check_places(lane, doubtful, await self._find_places(transaction, lane.conversation_id, doubtful))
        fresh = compared.fresh if optimistic else select_new(compared, stored)
        conflicts, shown = dict[int, Conflict](), dict[int, int]()
        for delivery in lane.deliveries if stored else ():
            found = stored.get(delivery.event.event_id)
            if found is None:
                continue
            if (conflict := found.conflict_with(delivery, origin_id)) is not None:
                conflicts[delivery.sequence] = conflict
            elif delivery.sequence > compared.head and delivery.event.type == MessageAppended.type:
                shown[delivery.sequence] = found.version
        return AcceptedLane(
            compared=compared,
            partition=transaction.partition(lane.conversation_id),
            fresh=decode(fresh),
            conflicts=conflicts,
            shown=shown,
            duplicates=len(compared.fresh) - len(fresh),
        )

    async def _find_places(
        self, transaction: ApplyTransaction, conversation_id: str, doubtful: Sequence[SequencedEvent]
    ) -> dict[int, UUID]:
        """Return the event ids that this outbox has stored under the sequences of events."""
        found: dict[int, UUID] = {}
        for part in in_batches([delivery.sequence for delivery in doubtful]):
            rows = await transaction.execute(
                self._places,
                partition=transaction.partition(conversation_id),
                conversation=conversation_id,
                origin=transaction.origin.origin_id,
                sequences=part,
            )
            found.update({row.sequence: row.event_id for row in rows})
        return found

    async def advance(self, transaction: ApplyTransaction, accepted: Sequence[AcceptedLane]) -> None:
        """Write the new heads of the lanes."""
        new, old = list[TableRow](), list[TableRow]()
        for lane in sorted(accepted, key=lambda lane: transaction.lock_order(lane.conversation_id)):
            if lane.compared.fresh:
                head = lane.compared.fresh[-1].sequence
                row = (lane.partition, lane.conversation_id, transaction.origin.origin_id, head, lane.duplicates)
                (old if lane.compared.head else new).append(row)
        await transaction.dialect.insert(transaction.connection, lanes, new)
        await transaction.dialect.overwrite(transaction.connection, lanes, old)


def _stored_event(row: sa.Row[Any]) -> StoredEvent:
    return StoredEvent(
        event_id=row.event_id,
        origin_id=row.origin_id,
        sequence=row.sequence,
        digest=row.digest,
        conflict=conflict_of(row.metadata),
        version=row.version if row.shown is None else row.shown,
        left_at=row.left_at if row.shown is None else None,
        deleted=row.state == "deleted",
    )

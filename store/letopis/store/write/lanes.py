"""Lock the lanes of a batch, compare them with what is stored, and advance them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.row_mapping import conflict_of
from letopis.store.database.schema import (
    conversations,
    events,
    lanes,
    messages,
    of_conversation,
    record_ledger,
    same_conversation,
)
from letopis.store.errors import BatchRefused
from letopis.store.model.event_types import MessageAppended
from letopis.store.model.records import Scope, is_record_lane, scope_of
from letopis.store.read.task_marks import erased, left_at
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
from letopis.store.rules.decoding import DecodedEvent, are_plain
from letopis.store.rules.preconditions import Conflict
from letopis.store.rules.projection import NO_HELD_MESSAGES, HeldMessages, Projected, Unloaded
from letopis.store.rules.record_plan import SUPERSEDED, LedgerEntry, RecordChange, check_known_changes
from letopis.store.rules.rows import ConversationRow, MessageRow
from letopis.store.write.transaction import ApplyTransaction

Decode = Callable[[Sequence[SequencedEvent]], tuple[Any, ...]]
"""Decodes events of one lane: to :class:`RecordChange` where it is one of records, otherwise :class:`DecodedEvent`."""
_NO_HEAD: Final = (0, 0, 0, 0)


@dataclass(slots=True, kw_only=True)
class AcceptedLane:
    """A lane whose delivery does not contradict what is stored; each phase of an apply adds what it finds."""

    compared: ComparedLane
    conversation_id: str
    partition: int
    conflicts: dict[int, Conflict]  # of delivered events that are stored already, by sequence
    fresh: tuple[DecodedEvent, ...] = ()
    plain: bool = False  # each of the fresh events only appends a message, on no condition
    changes: tuple[RecordChange, ...] = ()  # the fresh events of a lane of records
    # Versions of messages from other outboxes that were on the path before this delivery, by the sequence under which
    # it appends them too.
    shown: dict[int, int] = field(default_factory=dict)
    duplicates: int = 0  # sequences without an event of their own, as the same one was there already
    floor: int = 0  # up to here the ledger of a lane of records is trimmed
    trims: bool = False  # further than before
    records: int = 0  # how many the lane has added, less those it has removed
    gone: bool = False  # the conversation of a lane of records was deleted
    owner_id: str | None = None  # of the conversation of a lane of records
    erasing: bool = False  # some of its events erase what came before
    held: bool = False  # a hold forbids that
    held_messages: HeldMessages = NO_HELD_MESSAGES
    # From here on loaded if there are fresh events.
    row: ConversationRow = field(init=False)
    targets: Sequence[MessageRow] = ()  # stored messages that the events may change, but for ``unloaded`` ones
    unloaded: Unloaded | None = None
    verdicts: Mapping[int, Conflict] = field(default_factory=dict)  # of events that came too late
    retained: int = 0  # forks read the conversation up to this version
    result: Projected = field(init=False)

    @property
    def key(self) -> dict[str, Any]:
        """The parameters of :func:`of_conversation`."""
        return {"partition": self.partition, "conversation": self.conversation_id}

    @property
    def inserted(self) -> int:
        return len(self.fresh) + len(self.changes)

    @property
    def moves(self) -> bool:
        """Whether its row changes."""
        return self.trims or bool(self.compared.fresh)

    @property
    def scope(self) -> Scope:
        """What the records of a lane of records belong to."""
        return scope_of(self.conversation_id)


class Lanes:
    """Compares and advances lanes; the statements are compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        self._heads = dialect.locked(
            sa.select(lanes.c.conversation_id, lanes.c.sequence, lanes.c.duplicates, lanes.c.floor, lanes.c.records)
            .where(*dialect.of_conversations(lanes), lanes.c.origin_id == sa.bindparam("origin"))
            .order_by(lanes.c.partition, lanes.c.conversation_id)
        )
        self._places = sa.select(events.c.sequence, events.c.event_id).where(
            *of_conversation(events),
            events.c.origin_id == sa.bindparam("origin"),
            dialect.among(events.c.sequence, "sequences"),
        )
        self._stored = (
            sa.select(
                *(events.c[name] for name in ("conversation_id", "event_id", "origin_id", "sequence", "digest")),
                sa.case((erased(events).is_(None), events.c.salt)).label("salt"),
                events.c.metadata,
                events.c.version,
                left_at(messages).label("left_at"),
                conversations.c.state,
            )
            .outerjoin_from(events, messages, same_conversation(messages, events, "version"))
            .outerjoin(conversations, same_conversation(conversations, events))
            .where(*dialect.of_conversations(events), dialect.among(events.c.event_id, "ids"))
        )
        self._ledger = sa.select(record_ledger).where(
            *of_conversation(record_ledger),
            record_ledger.c.origin_id == sa.bindparam("origin"),
            record_ledger.c.sequence.between(sa.bindparam("first"), sa.bindparam("last")),
        )

    async def compare(
        self, transaction: ApplyTransaction, batch: Sequence[LaneBatch], decode: Decode, *, optimistic: bool
    ) -> tuple[list[AcceptedLane], list[BatchRefused]]:
        """Lock the lanes and find out which events of each are new; return those accepted and those refused."""
        heads: dict[str, tuple[int, ...]] = {}
        for part in await transaction.in_lock_order(lane.conversation_id for lane in batch):
            key = {"partitions": transaction.partitions_of(part), "conversations": part}
            rows = await transaction.connection.execute(self._heads, {**key, "origin": transaction.origin.origin_id})
            for name, *head in rows:
                heads[name] = tuple(head)
        compared, looked_up, refused = list[ComparedLane](), list[tuple[str, UUID]](), list[BatchRefused]()
        for delivered in batch:
            name = delivered.conversation_id
            try:
                lane = compare_with_head(delivered, heads.get(name, _NO_HEAD)[0])
            except BatchRefused as refusal:
                refused.append(refusal)
                continue
            compared.append(lane)
            if (lane.known or not optimistic) and not is_record_lane(name):
                events_of = lane.known if optimistic else delivered.deliveries
                looked_up += [(name, delivery.event.event_id) for delivery in events_of]
        stored = await self._find_stored(transaction, looked_up) if looked_up else {}
        accepted = []
        for lane in compared:
            name = lane.lane.conversation_id
            _, duplicates, floor, count = heads.get(name, _NO_HEAD)
            try:
                if is_record_lane(name):
                    accepted_lane = await self._accept_changes(transaction, lane, floor, decode)
                else:
                    known = stored.get(name, {})
                    accepted_lane = await self._accept(transaction, lane, known, decode, optimistic=optimistic)
            except BatchRefused as refusal:
                refused.append(refusal)
            else:
                accepted_lane.duplicates += duplicates
                accepted_lane.records = count
                accepted.append(accepted_lane)
        return accepted, refused

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
                stored.setdefault(row.conversation_id, {})[row.event_id] = StoredEvent(
                    event_id=row.event_id,
                    origin_id=row.origin_id,
                    sequence=row.sequence,
                    digest=row.digest,
                    salt=row.salt,
                    conflict=conflict_of(row.metadata),
                    version=row.version,
                    left_at=row.left_at,
                    deleted=row.state == "deleted",
                )
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
        if compared.known and (doubtful := check_known(compared, origin_id, stored)):
            check_places(lane, doubtful, await self._find_places(transaction, lane.conversation_id, doubtful))
        fresh = compared.fresh if optimistic else select_new(compared, stored)
        decoded = decode(fresh)
        conflicts, shown = dict[int, Conflict](), dict[int, int]()
        for delivery in lane.deliveries if stored else ():
            known = stored.get(delivery.event.event_id)
            if known is None:
                continue
            if (conflict := known.conflict_with(delivery, origin_id)) is not None:
                conflicts[delivery.sequence] = conflict
            elif delivery.sequence > compared.head and delivery.event.type == MessageAppended.type:
                shown[delivery.sequence] = known.version
        return AcceptedLane(
            compared=compared,
            conversation_id=lane.conversation_id,
            partition=transaction.lock_order(lane.conversation_id)[0],
            fresh=decoded,
            plain=are_plain(decoded),
            conflicts=conflicts,
            shown=shown,
            duplicates=len(compared.fresh) - len(fresh),
        )

    async def _accept_changes(
        self, transaction: ApplyTransaction, compared: ComparedLane, floor: int, decode: Decode
    ) -> AcceptedLane:
        """Compare a lane of records with its ledger."""
        name, known = compared.lane.conversation_id, dict[int, LedgerEntry]()
        partition = transaction.lock_order(name)[0]
        if compared.known:
            key = {"partition": partition, "conversation": name, "origin": transaction.origin.origin_id}
            first, last = compared.known[0].sequence, compared.known[-1].sequence
            rows = await transaction.execute(self._ledger, **key, first=first, last=last)
            known = {row.sequence: LedgerEntry.of(row) for row in rows}
        superseded = check_known_changes(compared, known, floor=floor)
        # Never beyond what is applied here: a restored store is sent again what it lacks.
        trimmed = max(floor, min(compared.lane.pruned, compared.head))
        return AcceptedLane(
            compared=compared,
            conversation_id=name,
            partition=partition,
            conflicts=dict.fromkeys(sorted(superseded), SUPERSEDED),
            changes=decode(compared.fresh),
            floor=trimmed,
            trims=trimmed > floor,
        )

    async def _find_places(
        self, transaction: ApplyTransaction, conversation_id: str, doubtful: Sequence[SequencedEvent]
    ) -> dict[int, UUID]:
        """Return the event ids that this outbox has stored under the sequences of events."""
        event_ids: dict[int, UUID] = {}
        for part in in_batches([delivery.sequence for delivery in doubtful]):
            rows = await transaction.execute(
                self._places,
                partition=transaction.lock_order(conversation_id)[0],
                conversation=conversation_id,
                origin=transaction.origin.origin_id,
                sequences=part,
            )
            event_ids.update({row.sequence: row.event_id for row in rows})
        return event_ids

    async def advance(self, transaction: ApplyTransaction, accepted: Sequence[AcceptedLane]) -> None:
        """Write the new heads of the lanes."""
        new, old = list[TableRow](), list[TableRow]()
        for lane in accepted:
            if lane.moves:
                key = (lane.partition, lane.conversation_id, transaction.origin.origin_id)
                row = (*key, lane.compared.end, lane.duplicates, lane.floor, lane.records)
                (old if lane.compared.head else new).append(row)
        await transaction.dialect.write(transaction.connection, lanes, new, old)

"""Decide which rows a run of appends writes, given the lanes and ids found in the file; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

import orjson

from letopis.outbox.event_log.append_encoding import Prepared, PreparedChange
from letopis.outbox.event_log.contents import ContentRow, content_rows
from letopis.outbox.event_log.drafts import UnconfirmedDraft
from letopis.outbox.event_log.effects import EFFECT_VERSIONS, Effect
from letopis.outbox.event_log.records.changes import prepare_clear, together
from letopis.outbox.event_log.records.log import KnownRecords
from letopis.outbox.event_log.reused_ids import UsedIds
from letopis.store.errors import ConversationGone, InvalidInput, VersionConflict
from letopis.store.model.codec import EncodedEvent, decode, encode
from letopis.store.model.event_types import (
    ConversationActivated,
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
)
from letopis.store.model.events import Event
from letopis.store.model.records import ANY, RECORD_PUT, Scope, conversation_of
from letopis.store.rules.preconditions import Precondition
from letopis.store.rules.projection import ACTIVATION_ORDER_KEY

ERASES_RECORDS: Final = frozenset({ConversationDeleted.type, ConversationRewound.type})
"""Events that may erase the records of their conversation."""
type_of: Final = attrgetter("type")
_id_of: Final = attrgetter("event_id")


@dataclass(slots=True)
class Appended:
    """The result of one append."""

    conversation_id: str
    event_ids: tuple[UUID, ...]
    sequences: tuple[int, ...]  # one an event; of an event that was there already, its first
    message_ids: tuple[str, ...]  # of the messages that were appended, there before or not
    owner_id: str | None  # as far as this outbox knows
    written: int  # events that were not there before
    erased: bool = False  # content was taken out of the file, so the WAL has to be truncated
    revisions: tuple[UUID | None, ...] = ()  # of each changed record; where the sequence is 0, nothing was written


@dataclass(slots=True)
class LaneEnd:
    """Where a lane ends once the planned appends are written."""

    conversation_id: str
    key: int  # of the lane in the rows of its events
    stored: bool = False
    head: int = 0
    owner_id: str | None = None
    pruned: int = 0
    deleted: int = 0  # the sequence of the event that deleted the conversation; 0 while it lives
    pending_since: int | None = None
    delivered: int = 0
    touched: bool = False


def event_row(event: EncodedEvent, position: int, lane: int, sequence: int, now_us: int) -> tuple[Any, ...]:
    """Return the row of an event, in the order of ``INSERT_EVENTS``."""
    # As bytearrays: for bytes, the driver looks for an adapter each time.
    return (
        position,
        bytearray(event.event_id.bytes),
        lane,
        sequence,
        event.type,
        event.schema_version,
        event.data,
        event.metadata,
        bytearray(event.digest),
        event.salt and bytearray(event.salt),
        event.occurred_at,
        now_us,
    )


@dataclass(slots=True)
class AppendPlan:
    """The rows and effects of a run of appends."""

    lanes: dict[str, LaneEnd]
    used: UsedIds | None
    now_us: int
    indexed: int
    position: int
    last_lane: int
    since: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    records: KnownRecords | None = None
    event_rows: list[tuple[Any, ...]] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    contents: list[ContentRow] = field(default_factory=list)

    def add(self, prepared: Prepared) -> Appended:
        """Plan one append; all of it or, when it raises, nothing of it."""
        if prepared.changes:
            return self._add_changes(prepared)
        conversation_id, used = prepared.conversation_id, self.used
        lane = self.lanes.get(conversation_id) or LaneEnd(conversation_id, self.last_lane + 1)
        ids: Sequence[UUID] = ()
        if used is None:
            new = list(prepared.events)
        else:
            new, ids = used.sort(prepared, deleted=lane.deleted > 0)
        # A retry must succeed although the conversation has moved on, so ids are looked at before conditions.
        if new:
            if lane.deleted > 0:
                raise ConversationGone(conversation_id=conversation_id)
            if prepared.expects is not None:
                self._check_condition(lane, prepared.expects)
            if used is not None:
                used.check_edits(new)
        owner_id, started = lane.owner_id, None
        if lane.head == 0 or prepared.owner_id not in (None, owner_id) or ConversationStarted.type in map(type_of, new):
            owner_id, started = _settle_owner(lane, prepared, new)
        since = self.since.get(conversation_id)
        sequences: list[int] = []
        effective: list[EncodedEvent] = []
        for event in new:
            sequence = lane.head = lane.head + 1
            self.position += 1
            if event is not started:
                sequences.append(sequence)
            if EFFECT_VERSIONS.get(event.type) == event.schema_version:
                event = self._add_effect(lane, owner_id, event)
                effective.append(event)
            if prepared.to_confirm is not None and (message_id := prepared.to_confirm.get(event.event_id)) is not None:
                self._add_unconfirmed(lane, owner_id, event, message_id, prepared.writer)
            if since is not None:
                since.append((sequence, event.type))
            if used is not None:
                used.add(event, sequence)
            self.event_rows.append(event_row(event, self.position, lane.key, sequence, self.now_us))
            if event.contents is not None:
                self.contents += content_rows(event.contents, lane.key, self.position)
        if new:
            lane.owner_id = owner_id
            if not lane.touched:
                self._touch(lane)
            for event in effective:
                self._erase_records(event)
        if used is None:
            ids = tuple(map(_id_of, prepared.events))
        else:
            sequences = [used.ids[event_id.int].sequence for event_id in ids]
        message_ids = tuple(filter(None, prepared.message_ids))
        return Appended(conversation_id, tuple(ids), tuple(sequences), message_ids, owner_id, len(new))

    def _touch(self, lane: LaneEnd) -> None:
        lane.touched = True
        if lane.conversation_id not in self.lanes:
            self.lanes[lane.conversation_id] = lane
            self.last_lane = lane.key

    def _add_changes(self, prepared: Prepared) -> Appended:
        """Plan changes of records, in their order; they may be of several lanes."""
        known = None if self.records is None else self.records.copy()
        heads: dict[str, int] = {}
        outcomes: list[tuple[int, UUID | None]] = []
        new: list[tuple[PreparedChange, int]] = []
        for item in prepared.changes:
            change, name = item.change, item.event.conversation_id
            revision = change.event_id if change.type == RECORD_PUT else None
            use = None if self.used is None else self.used.ids.get(change.event_id.int)
            if use is not None:  # the writer runs its work again when a commit ended in an error that told nothing
                outcomes.append((use.sequence, revision))
                continue
            conversation = self.lanes.get(conversation_of(name) or "")
            if conversation is not None and conversation.deleted > 0 and not (change.erases and prepared.trusting):
                raise ConversationGone(conversation_id=conversation.conversation_id)
            lane = self.lanes.get(name) or LaneEnd(name, 0)
            if known is not None and change.expected is not ANY:
                kept = known.kept(name, change, prepared, delivered=lane.delivered)
                if kept is not None:
                    outcomes.append((0, kept[0]))
                    continue
            sequence = heads[name] = heads.get(name, lane.head) + 1
            if known is not None:
                known.add(name, change, sequence)
            outcomes.append((sequence, revision))
            new.append((item, sequence))
        self.records = known
        for item, sequence in new:
            self._add_change(item, sequence)
        return Appended(
            conversation_id=prepared.conversation_id,
            event_ids=tuple([item.event.event_id for item in prepared.changes]),
            sequences=tuple([sequence for sequence, _ in outcomes]),
            message_ids=(),
            owner_id=None,
            written=len(new),
            revisions=tuple([revision for _, revision in outcomes]),
        )

    def _add_change(self, item: PreparedChange, sequence: int) -> None:
        event, name = item.event, item.event.conversation_id
        lane = self.lanes.get(name) or LaneEnd(name, self.last_lane + 1)
        self._touch(lane)
        lane.head = sequence
        self.position += 1
        if self.used is not None:
            self.used.add(event, sequence)
        self.event_rows.append(event_row(event, self.position, lane.key, sequence, self.now_us))
        self.effects.append(
            Effect(
                conversation_id=name,
                owner_id=None,
                sequence=sequence,
                event=event,
                change=item.change,
                lane=lane.key,
                position=self.position,
            )
        )

    def _erase_records(self, event: EncodedEvent) -> None:
        """Plan what erases the records of a conversation that is deleted or reset."""
        if event.type not in ERASES_RECORDS:
            return
        # A reset erases in the records' own lane, and always: another outbox may have put some. What a deletion leaves
        # in the history store, the deletion erases there.
        scope = Scope.conversation(event.conversation_id)
        deleted = event.type == ConversationDeleted.type and scope.name in self.lanes
        if deleted or decode(event.data).get("erase") is True:
            self._add_changes(together(scope, prepare_clear(scope, erase=True), trusting=True))

    def lane_rows(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Return the values of the lanes appended to: where events are pending, where none were, and of new ones."""
        pending: list[tuple[Any, ...]] = []
        settled: list[tuple[Any, ...]] = []
        new: list[tuple[Any, ...]] = []
        for lane in self.lanes.values():
            if not lane.touched:
                continue
            if not lane.stored:
                new.append((lane.key, lane.conversation_id, lane.owner_id, lane.head, self.now_us))
            elif lane.pending_since is not None:
                pending.append((lane.owner_id, lane.head, lane.key))
            else:
                settled.append((lane.owner_id, lane.head, self.now_us, lane.key))
        return pending, settled, new

    def _check_condition(self, lane: LaneEnd, expects: Precondition) -> None:
        """Raise VersionConflict if an event that the condition forbids came after what the writer had seen."""
        if lane.head == expects.sequence:
            return
        # Events that were pruned may have been of any type.
        if lane.head < expects.sequence or expects.types is None or lane.pruned > expects.sequence:
            actual = lane.head
        else:
            forbidden = [
                sequence
                for sequence, name in self.since.get(lane.conversation_id, ())
                if sequence > expects.sequence and expects.conflicts_with(name)
            ]
            if not forbidden:
                return
            actual = min(forbidden)
        raise VersionConflict(conversation_id=lane.conversation_id, expected=expects.sequence, actual=actual)

    def _add_unconfirmed(
        self, lane: LaneEnd, owner_id: str | None, event: EncodedEvent, message_id: str, writer: str
    ) -> None:
        name = lane.conversation_id
        draft = UnconfirmedDraft(name, message_id, event.event_id, owner_id, writer, self.now_us)
        self.effects.append(
            Effect(conversation_id=name, owner_id=owner_id, sequence=lane.head, event=event, unconfirmed=draft)
        )

    def _add_effect(self, lane: LaneEnd, owner_id: str | None, event: EncodedEvent) -> EncodedEvent:
        """Plan the effect of an event, and return the event to write."""
        order = 0
        if event.type == ConversationActivated.type:
            order = self.position
            metadata = {**decode(event.metadata), ACTIVATION_ORDER_KEY: order}
            event = replace(event, metadata=orjson.dumps(metadata).decode())
        elif event.type == ConversationDeleted.type:
            lane.deleted = lane.head
        self.effects.append(
            Effect(
                conversation_id=lane.conversation_id, owner_id=owner_id, sequence=lane.head, event=event, order=order
            )
        )
        return event


def _settle_owner(lane: LaneEnd, prepared: Prepared, new: list[EncodedEvent]) -> tuple[str | None, EncodedEvent | None]:
    """Return the owner after an append, and the event that begins the conversation, inserted into ``new`` where due."""
    beginnings = [decode(event.data) for event in new if event.type == ConversationStarted.type]
    in_events = [data["owner_id"] for data in beginnings if data.get("owner_id") is not None]
    owner_id = lane.owner_id
    for named in (prepared.owner_id, *in_events):
        if owner_id is not None and named is not None and owner_id != named:
            raise InvalidInput("owner", "the conversation already belongs to another owner")
        owner_id = owner_id if named is None else named
    begins = bool(new) and new[0].type == ConversationStarted.type
    known = owner_id == lane.owner_id or bool(in_events)
    if not known or (lane.head == 0 and new and not begins):
        # The history store learns from an event that the conversation begins, or who its owner is.
        started = _started(prepared.conversation_id, prepared.owner_id, prepared.events[0].occurred_at)
        new.insert(1 if begins else 0, started)
        return owner_id, started
    return owner_id, None


def _started(conversation_id: str, owner_id: str | None, occurred_at: int) -> EncodedEvent:
    """Return the event that begins a conversation, or names its owner later."""
    event = Event.of(ConversationStarted(owner_id=owner_id), conversation_id=conversation_id)
    # A conversation does not begin after its first message.
    return replace(encode(event, conversation_id=conversation_id), metadata=None, occurred_at=occurred_at)

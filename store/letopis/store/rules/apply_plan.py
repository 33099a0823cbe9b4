"""Decide which delivered events an apply writes, given what is stored, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from letopis.store.errors import BatchRefused, HistoryDiverged, InvalidInput, SequenceGap
from letopis.store.model.codec import EncodedEvent
from letopis.store.rules.preconditions import Conflict

TableRow = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The outbox file that delivers.

    :ivar epoch: rises when a copy of the file continues under the same identity; only the highest one may deliver.
    :ivar name: the file's base name, for display.
    :ivar store_id: the only history store that may accept the delivery; ``None`` for any store.
    :ivar erasures: the number of the last erasure that was carried out in the file before the events were read from it.
    :ivar erasure_id: its id; ``None`` if there was none.
    :ivar read_content: returns large content of a conversation, by its name, from the file: ``None`` if it is missing,
        nothing if it was erased since the batch was read; called in any thread.
    """

    origin_id: UUID
    epoch: int
    name: str
    store_id: UUID | None = None
    erasures: int = 0
    erasure_id: UUID | None = None
    read_content: Callable[[str, str], bytes | None] | None = field(default=None, compare=False, repr=False)


@dataclass(slots=True)
class SequencedEvent:
    """One event of a lane, with its sequence there."""

    sequence: int
    event: EncodedEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneBatch:
    """The events that one lane delivers, with consecutive sequences; none if it only reports ``pruned``.

    :ivar pruned: up to here the outbox has pruned the lane, and can send nothing again; what is kept for a comparison
        may go.
    :raises InvalidInput: it is empty, a sequence is missing, or an event belongs to another conversation.
    """

    conversation_id: str
    deliveries: tuple[SequencedEvent, ...]
    pruned: int = 0

    def __post_init__(self) -> None:
        if not (self.deliveries or self.pruned):
            raise InvalidInput("deliveries", "must not be empty")
        for sequence, delivery in enumerate(self.deliveries, self.deliveries[0].sequence if self.deliveries else 0):
            if delivery.sequence != sequence or sequence < 1:
                raise InvalidInput("deliveries", f"must have consecutive sequences from 1, {sequence} is missing")
            if delivery.event.conversation_id != self.conversation_id:
                raise InvalidInput("deliveries", "must all belong to the lane's conversation")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneApplied:
    """The result of one lane's delivery.

    :ivar head: the sequence up to which the history store holds this lane: everything up to it may be acknowledged.
    :ivar inserted: events that are new in the history.
    :ivar duplicates: events that it held already, with the same content.
    :ivar superseded: the conflicts of events that came too late, by sequence; such events are kept, and put aside.
    """

    conversation_id: str
    head: int
    inserted: int
    duplicates: int
    superseded: Mapping[int, Conflict] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyResult:
    """The result of a batch: each lane is in ``applied`` and committed, or in ``refused`` and unchanged."""

    applied: tuple[LaneApplied, ...]
    refused: tuple[BatchRefused, ...]


@dataclass(slots=True, kw_only=True)
class StoredEvent:
    """What the history store holds under an event id."""

    event_id: UUID
    origin_id: UUID
    sequence: int
    digest: bytes
    salt: bytes | None  # None if the content was redacted
    conflict: Conflict | None = None
    version: int = 0
    left_at: int | None = None  # the version at which the message that it appended left the path
    deleted: bool = False

    def conflict_with(self, delivery: SequencedEvent, origin_id: UUID) -> Conflict | None:
        """Return the conflict of a delivery of this event; ``None`` if there is none."""
        # What its own lane delivers again has the conflict that it was recorded with. The same id elsewhere was
        # appended a second time: if the first one is not shown any more, neither is the second.
        if self.conflict is not None or (self.origin_id, self.sequence) == (origin_id, delivery.sequence):
            return self.conflict
        if self.deleted:
            return Conflict(expected=0, actual=self.version, erased="conversation")
        return None if self.left_at is None else Conflict(expected=self.version, actual=self.left_at)


@dataclass(slots=True, kw_only=True)
class ComparedLane:
    """One lane's delivery, split at the lane's head: :func:`check_known` checks that the known events are stored."""

    lane: LaneBatch
    head: int
    known: tuple[SequencedEvent, ...]
    fresh: tuple[SequencedEvent, ...]

    @property
    def end(self) -> int:
        """The head of the lane once the delivery is applied."""
        return self.fresh[-1].sequence if self.fresh else self.head


def compare_with_head(lane: LaneBatch, head: int) -> ComparedLane:
    """Split a delivery at the lane's head."""
    first = lane.deliveries[0].sequence if lane.deliveries else head + 1
    if first > head + 1:
        raise SequenceGap(conversation_id=lane.conversation_id, head=head, first=first)
    known = max(0, head + 1 - first)
    return ComparedLane(lane=lane, head=head, known=lane.deliveries[:known], fresh=lane.deliveries[known:])


def check_known(
    compared: ComparedLane, origin_id: UUID, stored: Mapping[UUID, StoredEvent]
) -> tuple[SequencedEvent, ...]:
    """Check that each known event is stored with the same content; return those whose *place* is still in doubt."""
    # Another outbox may have delivered it first, or this one under an earlier sequence: check_places() then has to
    # check that no other event has the place.
    doubtful = []
    for delivery in compared.known:
        known = stored.get(delivery.event.event_id)
        if known is None or not _has_same_content(delivery, known):
            raise _diverged(compared.lane, delivery)
        if known.origin_id != origin_id or known.sequence < delivery.sequence:
            doubtful.append(delivery)
        elif known.sequence > delivery.sequence:
            raise _diverged(compared.lane, delivery)
    return tuple(doubtful)


def check_places(lane: LaneBatch, doubtful: Iterable[SequencedEvent], taken: Mapping[int, UUID]) -> None:
    """Check that no other event has the sequence of a doubtful one."""
    for delivery in doubtful:
        if taken.get(delivery.sequence, delivery.event.event_id) != delivery.event.event_id:
            raise _diverged(lane, delivery)


def select_new(compared: ComparedLane, stored: Mapping[UUID, StoredEvent]) -> tuple[SequencedEvent, ...]:
    """Return the fresh events whose ids the conversation does not hold yet."""
    seen: dict[UUID, EncodedEvent] = {}
    remaining = []
    for delivery in compared.fresh:
        event = delivery.event
        known = stored.get(event.event_id)
        if known is not None:
            if not _has_same_content(delivery, known):
                raise _diverged(compared.lane, delivery)
            if known.salt is None and not (known.deleted or delivery.event.redacted):
                raise _diverged(compared.lane, delivery, erased=True)
        elif (before := seen.get(event.event_id)) is not None:
            if not _has_same_content(delivery, before):
                raise _diverged(compared.lane, delivery)
        else:
            seen[event.event_id] = event
            remaining.append(delivery)
    return tuple(remaining)


def _has_same_content(delivery: SequencedEvent, found: StoredEvent | EncodedEvent) -> bool:
    event = delivery.event
    if event.digest == found.digest:
        return True  # the same event, erased or not
    # Erased content, here or there, cannot be compared under another salt: the id has to do.
    return event.salt is None or found.salt is None or event.has_content_of(found.digest, found.salt)


def _diverged(lane: LaneBatch, delivery: SequencedEvent, *, erased: bool = False) -> HistoryDiverged:
    return HistoryDiverged(
        conversation_id=lane.conversation_id,
        sequence=delivery.sequence,
        event_id=delivery.event.event_id,
        erased=erased,
    )

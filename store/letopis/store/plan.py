"""Plan: decide what an apply will write, given what it found; no database is touched here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from letopis.store.codec import EncodedEvent
from letopis.store.errors import BatchRefused, HistoryDiverged, InvalidInput, SequenceGap
from letopis.store.turns import Conflict

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The outbox file that delivers.

    :ivar epoch: rises when a copy of the file goes on under the same identity; the highest one may deliver.
    :ivar name: the file's base name, for people.
    """

    origin_id: UUID
    epoch: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event of a lane, with its place there."""

    sequence: int
    event: EncodedEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneBatch:
    """What one lane delivers: at least one event, with consecutive sequences.

    :raises InvalidInput: nothing in it, a sequence is missing, or an event belongs to another conversation.
    """

    conversation_id: str
    deliveries: tuple[Delivery, ...]

    def __post_init__(self) -> None:
        if not self.deliveries:
            raise InvalidInput("deliveries", "must not be empty")
        for sequence, delivery in enumerate(self.deliveries, self.deliveries[0].sequence):
            if delivery.sequence != sequence or sequence < 1:
                raise InvalidInput("deliveries", f"must have consecutive sequences from 1, {sequence} is missing")
            if delivery.event.conversation_id != self.conversation_id:
                raise InvalidInput("deliveries", "must all belong to the lane's conversation")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneApplied:
    """What became of one lane's delivery.

    :ivar head: how far the history store holds this lane now: everything up to here may be acknowledged.
    :ivar inserted: events that are new in the history.
    :ivar duplicates: events that it held already, with the same content.
    :ivar superseded: events of the delivery that came too late, by sequence: kept, and put aside.
    """

    conversation_id: str
    head: int
    inserted: int
    duplicates: int
    superseded: Mapping[int, Conflict] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyResult:
    """What became of a batch: each lane is in ``applied`` and committed, or in ``refused`` and unchanged."""

    applied: tuple[LaneApplied, ...]
    refused: tuple[BatchRefused, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the history store holds under an event id; ``digest`` is ``None`` where the content was redacted."""

    event_id: UUID
    origin_id: UUID
    sequence: int
    digest: bytes | None
    conflict: Conflict | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One lane's delivery, parted at the lane's head.

    :ivar known: the history store says that it holds these; whether it does is checked by :func:`check_known`.
    :ivar fresh: these come next.
    """

    lane: LaneBatch
    head: int
    known: tuple[Delivery, ...]
    fresh: tuple[Delivery, ...]


def compare(lane: LaneBatch, head: int) -> Compared:
    """Part a delivery at the lane's head.

    :raises SequenceGap: events between the head and the first delivered one are missing.
    """
    first = lane.deliveries[0].sequence
    if first > head + 1:
        raise SequenceGap(conversation_id=lane.conversation_id, head=head, first=first)
    known = max(0, head + 1 - first)
    return Compared(lane=lane, head=head, known=lane.deliveries[:known], fresh=lane.deliveries[known:])


def check_known(compared: Compared, origin_id: UUID, stored: Mapping[UUID, Stored]) -> tuple[Delivery, ...]:
    """Check that each known event is stored with the same content; return those whose *place* is still in doubt.

    An event may be stored under another place than the delivered one: another outbox delivered it first, or this one
    did, under an earlier sequence. Then :func:`check_places` has to look whether something else lies at the place.

    :param stored: what the conversation holds under the ids of the known events.
    :raises HistoryDiverged: an id is not stored, or with other content, or later than delivered.
    """
    doubtful = []
    for delivery in compared.known:
        found = stored.get(delivery.event.event_id)
        if found is None or not _same(delivery, found):
            raise _diverged(compared.lane, delivery)
        if found.origin_id != origin_id or found.sequence < delivery.sequence:
            doubtful.append(delivery)
        elif found.sequence > delivery.sequence:
            raise _diverged(compared.lane, delivery)
    return tuple(doubtful)


def check_places(lane: LaneBatch, doubtful: Iterable[Delivery], taken: Mapping[int, UUID]) -> None:
    """Check that no other event lies where a doubtful one was delivered.

    :param taken: sequence to event id, of what this origin has stored in the conversation.
    :raises HistoryDiverged: there is another one.
    """
    for delivery in doubtful:
        if taken.get(delivery.sequence, delivery.event.event_id) != delivery.event.event_id:
            raise _diverged(lane, delivery)


def absorb(compared: Compared, stored: Mapping[UUID, Stored]) -> tuple[Delivery, ...]:
    """Return the fresh events that the conversation does not hold yet under their id.

    :param stored: what the conversation holds under the ids of the fresh events.
    :raises HistoryDiverged: an id is stored, or delivered twice, with other content.
    """
    seen: dict[UUID, bytes] = {}
    remaining = []
    for delivery in compared.fresh:
        event = delivery.event
        found = stored.get(event.event_id)
        if found is not None:
            if not _same(delivery, found):
                raise _diverged(compared.lane, delivery)
        elif (before := seen.get(event.event_id)) is not None:
            if before != event.digest:
                raise _diverged(compared.lane, delivery)
        else:
            seen[event.event_id] = event.digest
            remaining.append(delivery)
    return tuple(remaining)


def _same(delivery: Delivery, found: Stored) -> bool:
    # What was redacted, here or there, cannot be compared any more; its id has to do.
    return found.digest is None or delivery.event.redacted or found.digest == delivery.event.digest


def _diverged(lane: LaneBatch, delivery: Delivery) -> HistoryDiverged:
    return HistoryDiverged(
        conversation_id=lane.conversation_id, sequence=delivery.sequence, event_id=delivery.event.event_id
    )

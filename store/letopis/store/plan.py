"""Plan: decide what an apply will write, given what it found; no database is touched here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from letopis.store.codec import EncodedEvent, decode, digest_of
from letopis.store.conversation import Delivery as State
from letopis.store.errors import BatchRefused, HistoryDiverged, InvalidInput, SequenceGap
from letopis.store.fold import Tally
from letopis.store.identifiers import check_identifier
from letopis.store.upcasters import Upcasters
from letopis.store.vocabulary import (
    Body,
    ConversationStarted,
    MessageAppended,
    MessageEdited,
    MessageFailed,
    MessageSent,
    read,
)

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
    """

    conversation_id: str
    head: int
    inserted: int
    duplicates: int


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
    # What was redacted cannot be compared any more; its id has to do.
    return found.digest is None or found.digest == delivery.event.digest


def _diverged(lane: LaneBatch, delivery: Delivery) -> HistoryDiverged:
    return HistoryDiverged(
        conversation_id=lane.conversation_id, sequence=delivery.sequence, event_id=delivery.event.event_id
    )


@dataclass(slots=True, kw_only=True)
class ConversationRow:
    """A row of the conversations while a batch is applied to it; mutable for the time of one transaction."""

    partition: int
    conversation_id: str
    tally: Tally[int]
    number: int | None = None
    forked_from_id: str | None = None
    forked_from_version: int | None = None
    new: bool = False

    def as_row(self) -> Row:
        """Return the values in the order of the table's columns."""
        tally = self.tally
        return (
            self.partition,
            self.conversation_id,
            tally.owner_id,
            self.number,
            tally.title,
            tally.state,
            tally.version,
            tally.message_count,
            tally.tokens,
            tally.created_at,
            tally.updated_at,
            self.forked_from_id,
            self.forked_from_version,
        )


@dataclass(slots=True, kw_only=True)
class MessageRow:
    """A row of the messages while a batch is applied to it; mutable for the time of one transaction."""

    version: int
    message_id: str
    content_version: int
    delivery_version: int | None
    role: str
    state: str
    new: bool = False
    changed: bool = False

    def as_row(self, partition: int, conversation_id: str) -> Row:
        """Return the values in the order of the table's columns."""
        return (
            partition,
            conversation_id,
            self.version,
            self.message_id,
            self.content_version,
            self.delivery_version,
            self.role,
            self.state,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreted:
    """A fresh event and what it says."""

    delivery: Delivery
    body: Body


TARGETING: Final = (MessageEdited, MessageSent, MessageFailed)
"""What changes a message that was appended before."""


def interpret(fresh: Iterable[Delivery], upcasters: Upcasters) -> tuple[Interpreted, ...]:
    """Read what fresh events say, as every reader will.

    :raises InvalidInput: the content does not match its digest, so the outbox was damaged; or a key that the store
        keeps in a column of its own is none that it can keep. Both mean that this event cannot be applied as it is.
    """
    interpreted = []
    for delivery in fresh:
        event = delivery.event
        content = digest_of(event.conversation_id, event.type, event.schema_version, event.data, event.metadata)
        if content != event.digest:
            raise InvalidInput("digest", "does not match the content: the event was damaged after it was appended")
        try:
            recorded = decode(event.data)
        except ValueError as error:
            raise InvalidInput("data", "is no JSON object") from error
        body = read(event.type, *upcasters.upcast(event.type, event.schema_version, recorded))
        # A message's own id was checked by reading it.
        if isinstance(body, ConversationStarted) and body.owner_id is not None:
            check_identifier(body.owner_id, "data.owner_id")
        interpreted.append(Interpreted(delivery=delivery, body=body))
    return tuple(interpreted)


def targets_of(interpreted: Iterable[Interpreted]) -> frozenset[str]:
    """Return the ids of the messages that the events change, whether or not they exist."""
    return frozenset(item.body.message_id for item in interpreted if isinstance(item.body, TARGETING))


@dataclass(frozen=True, slots=True, kw_only=True)
class Projected:
    """What a conversation's fresh events come to.

    :ivar versions: of the events, in the order of the events.
    :ivar messages: rows that are new or have changed.
    """

    row: ConversationRow
    versions: range
    messages: tuple[MessageRow, ...]


def project(row: ConversationRow, interpreted: Sequence[Interpreted], targets: Iterable[MessageRow] = ()) -> Projected:
    """Take fresh events into a conversation's row and its messages; by the rules of ``fold``.

    :param row: the conversation as it stands; changed in place.
    :param targets: the stored messages that the events may change; changed in place.
    """
    known: dict[str, list[MessageRow]] = {}
    rows = list(targets)
    for message in rows:
        known.setdefault(message.message_id, []).append(message)
    first = row.tally.version + 1
    for version, item in enumerate(interpreted, first):
        body = item.body
        row.tally.take(body, version=version, occurred_at=item.delivery.event.occurred_at)
        match body:
            case MessageAppended():
                message = MessageRow(
                    version=version,
                    message_id=body.message.id,
                    content_version=version,
                    delivery_version=None,
                    role=body.message.role,
                    state=State.APPENDED.value,
                    new=True,
                )
                known.setdefault(message.message_id, []).append(message)
                rows.append(message)
            case MessageEdited():
                for message in known.get(body.message_id, ()):
                    message.content_version = version
                    message.changed = True
            case MessageSent() | MessageFailed():
                for message in known.get(body.message_id, ()):
                    message.delivery_version = version
                    message.state = (State.SENT if isinstance(body, MessageSent) else State.FAILED).value
                    message.changed = True
            case _:
                pass  # no message hangs on it
    return Projected(
        row=row,
        versions=range(first, first + len(interpreted)),
        messages=tuple(message for message in rows if message.new or message.changed),
    )

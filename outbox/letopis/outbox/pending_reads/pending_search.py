"""Read what a search looks through in the outbox: pending events, or all retained ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import orjson
import sqlalchemy as sa

from letopis.outbox.event_log.lanes import SELECT_LANE, Lane
from letopis.outbox.event_log.retention import rows_after
from letopis.outbox.event_log.statements import fetch_all
from letopis.store.errors import OutboxUnavailable
from letopis.store.model.codec import decode
from letopis.store.model.conversations import Conversation, RecordedMessage, Saved
from letopis.store.model.event_types import (
    ConversationDeleted,
    ConversationRewound,
    MessageAppended,
    MessageEdited,
    MessageRedacted,
)
from letopis.store.model.events import RecordedEvent, Upcasters
from letopis.store.model.large_content import without_references
from letopis.store.model.parts import content_text
from letopis.store.rules.fold import Fold, PathPosition
from letopis.store.rules.preconditions import SUPERSEDED_KEY
from letopis.store.search.query import Query, match

MAX_SEARCHED_EVENTS: Final = 10_000  # the newest events of the outbox that one search looks through

# The conversation with the newest event comes first.
_LANES: Final = (
    f"{SELECT_LANE.replace('SELECT ', 'SELECT l.').replace(', ', ', l.')} AS l"
    " LEFT JOIN letopis_outbox_events AS e ON e.lane = l.lane AND e.sequence = l.head"
    " WHERE {conditions} ORDER BY e.position DESC"
)
_POSITIONS: Final = (
    "SELECT sequence, position FROM letopis_outbox_log WHERE conversation_id = ? AND sequence > ? AND type IN (?, ?)"
)
_QUEUED: Final = (
    "SELECT position, conversation_id, data FROM letopis_outbox_log WHERE position IN (SELECT value FROM json_each(?))"
)
_SUPERSEDED: Final = "SELECT sequence FROM letopis_outbox_superseded WHERE conversation_id = ? AND sequence > ?"


@dataclass(frozen=True, slots=True)
class MessageKey:
    """A message by its id."""

    conversation_id: str
    message_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingConversation:
    """What the outbox holds of one conversation beyond the history store."""

    lane: Lane
    events: tuple[RecordedEvent, ...]  # in order, all after a sequence; superseded ones are marked
    positions: Mapping[int, int]  # in the outbox, of the events that hold a message's content, by sequence
    whole: bool = True  # ``False`` if a damaged event was left out

    def saved(self, sequence: int) -> Saved:
        """Return how far an event has got."""
        if sequence <= self.lane.delivered:
            return Saved.SAVED
        return Saved.BLOCKED if self.lane.state == "blocked" else Saved.PENDING

    def appended(self) -> frozenset[str]:
        """Return the ids of the messages that are appended here."""
        return frozenset(_message_id(event) for event in self.events if event.type == MessageAppended.type)

    def targets(self) -> frozenset[str]:
        """Return the ids of the messages to which a rewind leads."""
        named = (event.data.get("to_message_id") for event in self.events if event.type == ConversationRewound.type)
        return frozenset(name for name in named if isinstance(name, str))

    def candidates(self, query: Query, upcasters: Upcasters) -> list[tuple[int, MessageKey]]:
        """Return the messages whose newest content here matches, each with the position of the event that holds it."""
        newest: dict[str, int] = {}
        for event in self.events:
            message_id = _message_id(event)
            if event.type in (MessageAppended.type, MessageEdited.type) and event.digest is not None:
                newest.pop(message_id, None)
                if match(query, _text(event, upcasters)) is not None:
                    newest[message_id] = self.positions.get(event.sequence, 0)
            elif event.type == MessageRedacted.type:
                newest.pop(message_id, None)
            elif event.type == ConversationDeleted.type:
                newest.clear()
        name = self.lane.conversation_id
        return [(position, MessageKey(name, message_id)) for message_id, position in newest.items()]

    def merge(
        self,
        stored: Iterable[RecordedMessage],
        *,
        conversation: Conversation | None,
        elsewhere: Mapping[str, PathPosition] | None,
        upcasters: Upcasters,
        after: int = 0,
    ) -> tuple[RecordedMessage, ...]:
        """Return messages of the history store, and those here, in their state after all events here.

        :param after: the sequence of this lane that the store had applied when it was read.
        """
        base = sorted(stored, key=lambda message: message.version or 0)
        if elsewhere is None:
            # The messages that rewinds name and the outbox has pruned are assumed to be older ones.
            older = self.targets() - self.appended() if self.lane.pruned else frozenset[str]()
            elsewhere = {name: PathPosition(version=0, on_path=True, count=0) for name in older}
        folding = Fold(conversation, base, elsewhere=elsewhere, upcasters=upcasters)
        there = {message.event_id for message in base}
        for event in self.events:
            if event.sequence > after and event.event_id not in there:
                folding.apply(event, saved=self.saved(event.sequence))
        return folding.result().messages


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingSearch:
    """What the outbox held at one moment."""

    lanes: Mapping[str, Lane]
    conversations: Mapping[str, PendingConversation]  # what was read of the lanes, up to ``MAX_SEARCHED_EVENTS``
    queued: Mapping[int, MessageKey]  # the messages that were requested by position, as far as they are still there
    complete: bool  # ``False`` if there was more, or a damaged event

    def candidates(self, query: Query, *, owner: str | None, upcasters: Upcasters) -> list[tuple[int, MessageKey]]:
        """Return the messages that match, the newest content first, without those known to be other owners'."""
        hits = [
            candidate
            for conversation in self.conversations.values()
            if owner is None or conversation.lane.owner_id in (owner, None)
            for candidate in conversation.candidates(query, upcasters)
        ]
        return sorted(hits, key=lambda pair: pair[0], reverse=True)


def snapshot(
    connection: sa.Connection,
    *,
    origin_id: UUID,
    conversation: str | None,
    retained: bool = False,
    queued: Sequence[int] = (),
) -> PendingSearch:
    """Return what is pending, of one conversation or of all."""
    conditions, values = ["true" if retained else "l.pending_since IS NOT NULL AND l.delivered < l.head"], list[str]()
    if conversation is not None:
        conditions.append("l.conversation_id = ?")
        values.append(conversation)
    keys: dict[int, MessageKey] = {}
    positions = (orjson.dumps(list(queued)).decode(),)
    for position, conversation_id, data in fetch_all(connection, _QUEUED, positions) if queued else ():
        with suppress(ValueError):  # damaged since
            keys[position] = MessageKey(conversation_id, str(decode(data).get("message_id")))
    rows = fetch_all(connection, _LANES.format(conditions=" AND ".join(conditions)), values)
    lanes = {lane.conversation_id: lane for lane in (Lane(*row) for row in rows)}
    conversations, complete, left = dict[str, PendingConversation](), True, MAX_SEARCHED_EVENTS
    for name, lane in lanes.items():
        start = lane.pruned if retained else lane.delivered
        if lane.head - start > left:
            complete = False
            continue
        conversations[name] = pending = _read_lane(connection, lane, start, origin_id)
        complete = complete and pending.whole
        left -= len(pending.events)
    return PendingSearch(lanes=lanes, conversations=conversations, queued=keys, complete=complete)


def pending_of(connection: sa.Connection, lanes: Iterable[Lane], *, origin_id: UUID) -> dict[str, PendingConversation]:
    """Return what was pending in lanes when a snapshot was taken of them, and what came since."""
    return {lane.conversation_id: _read_lane(connection, lane, lane.delivered, origin_id) for lane in lanes}


def _read_lane(connection: sa.Connection, lane: Lane, start: int, origin_id: UUID) -> PendingConversation:
    start_of_lane = (lane.conversation_id, start)
    superseded = {row[0] for row in fetch_all(connection, _SUPERSEDED, start_of_lane)}
    events = list[RecordedEvent]()
    whole = True
    with closing(connection.connection.cursor()) as cursor:
        for row in rows_after(cursor, lane.conversation_id, start):
            try:
                event = row.event(lane.conversation_id, origin_id)
            except OutboxUnavailable:  # damaged: reading the conversation reports it, and the search goes on
                whole = False
                continue
            if row.sequence in superseded:
                event = replace(event, metadata={**event.metadata, SUPERSEDED_KEY: {}})
            events.append(event)
    positions = dict(fetch_all(connection, _POSITIONS, (*start_of_lane, MessageAppended.type, MessageEdited.type)))
    return PendingConversation(lane=lane, events=tuple(events), positions=positions, whole=whole)


def _message_id(event: RecordedEvent) -> str:
    return str(event.data.get("message_id"))


def _text(event: RecordedEvent, upcasters: Upcasters) -> str:
    body = event.body(upcasters)
    match body:
        case MessageAppended():
            return without_references(body.message.text)
        case MessageEdited():
            return without_references(content_text(body.content))
        case _:
            return ""

"""Unsaved: what of the outbox a search looks through: what is pending, or all that is retained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa

from letopis.outbox.lanes import LANE, Lane, lane_of
from letopis.outbox.tail import rows_after
from letopis.store.codec import decode
from letopis.store.conversation import Conversation, RecordedMessage, Saved
from letopis.store.errors import OutboxUnavailable
from letopis.store.events import RecordedEvent
from letopis.store.fold import SUPERSEDED, Elsewhere, Fold
from letopis.store.messages import content_text
from letopis.store.search.query import Query, match
from letopis.store.upcasters import Upcasters
from letopis.store.vocabulary import (
    ConversationDeleted,
    ConversationRewound,
    MessageAppended,
    MessageEdited,
    MessageRedacted,
)

EVENTS_MAX: Final = 10_000
"""Events of the outbox that one search looks through, the newest; about a second's work."""

# The conversations in which something was said last come first.
_LANES: Final = (
    f"{LANE.replace('SELECT ', 'SELECT l.').replace(', ', ', l.')} AS l"
    " LEFT JOIN letopis_outbox_events AS e ON e.conversation_id = l.conversation_id AND e.sequence = l.head"
    " WHERE {conditions} ORDER BY e.position DESC"
)
_POSITIONS: Final = (
    "SELECT sequence, position FROM letopis_outbox_events WHERE conversation_id = ? AND sequence > ? AND type IN (?, ?)"
)
_QUEUED: Final = (
    "SELECT position, conversation_id, data FROM letopis_outbox_events"
    " WHERE position IN (SELECT value FROM json_each(?))"
)
_SUPERSEDED: Final = "SELECT sequence FROM letopis_outbox_superseded WHERE conversation_id = ? AND sequence > ?"


@dataclass(frozen=True, slots=True)
class Key:
    """A message by its id."""

    conversation_id: str
    message_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What the outbox holds of one conversation beyond the history store.

    :ivar events: in order; all from a place on, with the history store's verdict on those that came too late.
    :ivar positions: in the outbox, of the events that hold a message's content, by sequence.
    :ivar whole: ``False`` where a damaged event was left out.
    """

    lane: Lane
    events: tuple[RecordedEvent, ...]
    positions: Mapping[int, int]
    whole: bool = True

    def saved(self, sequence: int) -> Saved:
        """How far an event has got."""
        if sequence <= self.lane.delivered:
            return Saved.SAVED
        return Saved.BLOCKED if self.lane.state == "blocked" else Saved.PENDING

    def appended(self) -> frozenset[str]:
        """The ids of the messages that are appended here."""
        return frozenset(_message_id(event) for event in self.events if event.type == MessageAppended.type)

    def targets(self) -> frozenset[str]:
        """The ids of the messages to which a rewind leads."""
        named = (event.data.get("to_message_id") for event in self.events if event.type == ConversationRewound.type)
        return frozenset(one for one in named if isinstance(one, str))

    def candidates(self, query: Query, upcasters: Upcasters) -> list[tuple[int, Key]]:
        """Return the messages whose last content here fits, each with the position of the event that holds it."""
        found: dict[str, int] = {}
        for event in self.events:
            message_id = _message_id(event)
            if event.type in (MessageAppended.type, MessageEdited.type) and event.digest is not None:
                found.pop(message_id, None)
                if match(query, _text(event, upcasters)) is not None:
                    found[message_id] = self.positions.get(event.sequence, 0)
            elif event.type == MessageRedacted.type:
                found.pop(message_id, None)
            elif event.type == ConversationDeleted.type:
                found.clear()
        return [(position, Key(self.lane.conversation_id, message_id)) for message_id, position in found.items()]

    def over(
        self,
        stored: Iterable[RecordedMessage],
        *,
        conversation: Conversation | None,
        elsewhere: Mapping[str, Elsewhere] | None,
        upcasters: Upcasters,
    ) -> tuple[RecordedMessage, ...]:
        """Return messages of the history store, and those here, as they stand after all that is here.

        :param elsewhere: where the messages stand to which rewinds lead; ``None`` where the store cannot be asked.
        """
        base = sorted(stored, key=lambda message: message.version or 0)
        if elsewhere is None:
            elsewhere = self._older()
        folding = Fold(conversation, base, elsewhere=elsewhere, upcasters=upcasters)
        there = {message.event_id for message in base}
        for event in self.events:
            if event.event_id not in there:
                folding.apply(event, saved=self.saved(event.sequence))
        return folding.result().messages

    def _older(self) -> dict[str, Elsewhere]:
        """Take the messages that rewinds name and the outbox does not hold for older ones, where those were let go."""
        if not self.lane.pruned:
            return {}
        return {name: Elsewhere(version=0, on_path=True, count=0) for name in self.targets() - self.appended()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the outbox held at one moment.

    :ivar lanes: all that there are. ``waiting`` has what was read of them, not more than one search may look through.
    :ivar queued: the messages that were asked for by position, as far as they are still there.
    :ivar complete: ``False`` where there was more, or a damaged event.
    """

    lanes: Mapping[str, Lane]
    waiting: Mapping[str, Waiting]
    queued: Mapping[int, Key]
    complete: bool

    def candidates(self, query: Query, *, owner: str | None, upcasters: Upcasters) -> list[tuple[int, Key]]:
        """Return the messages that fit, the newest content first; those of others are left out as far as is known."""
        found = [
            candidate
            for one in self.waiting.values()
            if owner is None or one.lane.owner_id in (owner, None)
            for candidate in one.candidates(query, upcasters)
        ]
        return sorted(found, key=lambda pair: pair[0], reverse=True)


def snapshot(
    connection: sa.Connection,
    *,
    origin_id: UUID,
    conversation: str | None,
    retained: bool = False,
    queued: Sequence[int] = (),
    most: int = EVENTS_MAX,
) -> Snapshot:
    """Return what is pending, of one conversation or of all.

    :param retained: all that is there, delivered too.
    :param queued: positions of events whose messages are wanted besides.
    """
    conditions, values = ["true" if retained else "l.delivered < l.head"], list[str]()
    if conversation is not None:
        conditions.append("l.conversation_id = ?")
        values.append(conversation)
    cursor = connection.connection.cursor()
    try:
        keys = _queued(cursor, queued)
        cursor.execute(_LANES.format(conditions=" AND ".join(conditions)), values)
        lanes = {lane.conversation_id: lane for lane in map(lane_of, cursor.fetchall())}
        waiting, complete, left = dict[str, Waiting](), True, most
        for name, lane in lanes.items():
            start = lane.pruned if retained else lane.delivered
            if lane.head - start > left:
                complete = False
                continue
            waiting[name] = one = _waiting(connection, cursor, lane, start, origin_id)
            complete = complete and one.whole
            left -= len(one.events)
        return Snapshot(lanes=lanes, waiting=waiting, queued=keys, complete=complete)
    finally:
        cursor.close()


def waiting_of(connection: sa.Connection, lanes: Iterable[Lane], *, origin_id: UUID) -> dict[str, Waiting]:
    """Return what was pending in lanes when a snapshot was taken of them, and what came since."""
    cursor = connection.connection.cursor()
    try:
        return {lane.conversation_id: _waiting(connection, cursor, lane, lane.delivered, origin_id) for lane in lanes}
    finally:
        cursor.close()


def _queued(cursor: Any, positions: Sequence[int]) -> dict[int, Key]:
    found: dict[int, Key] = {}
    if positions:
        cursor.execute(_QUEUED, (orjson.dumps(list(positions)).decode(),))
        for position, conversation_id, data in cursor.fetchall():
            with suppress(ValueError):  # damaged since
                found[position] = Key(conversation_id, str(decode(data).get("message_id")))
    return found


def _waiting(connection: sa.Connection, cursor: Any, lane: Lane, start: int, origin_id: UUID) -> Waiting:
    place = (lane.conversation_id, start)
    superseded = {row[0] for row in cursor.execute(_SUPERSEDED, place).fetchall()}
    events = list[RecordedEvent]()
    whole = True
    for row in rows_after(connection, lane.conversation_id, start):
        try:
            event = row.event(lane.conversation_id, origin_id)
        except OutboxUnavailable:  # damaged: who reads the conversation is told, and to search the others goes on
            whole = False
            continue
        if row.sequence in superseded:
            event = replace(event, metadata={**event.metadata, SUPERSEDED: {}})
        events.append(event)
    cursor.execute(_POSITIONS, (*place, MessageAppended.type, MessageEdited.type))
    return Waiting(lane=lane, events=tuple(events), positions=dict(cursor.fetchall()), whole=whole)


def _message_id(event: RecordedEvent) -> str:
    return str(event.data.get("message_id"))


def _text(event: RecordedEvent, upcasters: Upcasters) -> str:
    body = event.body(upcasters)
    match body:
        case MessageAppended():
            return body.message.text
        case MessageEdited():
            return content_text(body.content)
        case _:
            return ""

"""Append: turn what a caller says into rows of the outbox file, inside a transaction that is already open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from letopis.outbox.tracing import current_traceparent
from letopis.store.codec import DEFAULT_LIMITS, TRACEPARENT, EncodedEvent, Limits, decode, encode
from letopis.store.errors import EventIdReused, InvalidInput, LetopisError
from letopis.store.events import Event
from letopis.store.identifiers import check_identifier
from letopis.store.messages import EMPTY, Message
from letopis.store.vocabulary import Body, ConversationStarted, MessageAppended

_ONE_LANE: Final = "SELECT conversation_id, owner_id, head FROM letopis_outbox_lanes WHERE conversation_id = ?"
_LANES: Final = (
    "SELECT conversation_id, owner_id, head FROM letopis_outbox_lanes"
    " WHERE conversation_id IN (SELECT value FROM json_each(?))"
)
_KNOWN: Final = (
    "SELECT event_id, conversation_id, sequence, digest FROM letopis_outbox_events WHERE event_id IN ({places})"
)
_INSERT_EVENTS: Final = (
    "INSERT INTO letopis_outbox_events (event_id, conversation_id, sequence, type, schema_version, data, metadata,"
    " digest, occurred_at, appended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
# owed_since stays where something is owed already: it is the age of the oldest.
_UPSERT_LANES: Final = (
    "INSERT INTO letopis_outbox_lanes (conversation_id, owner_id, head, delivered, pruned, state, attempts, due_at,"
    " owed_since) VALUES (?, ?, ?, 0, 0, 'ready', 0, 0, ?) ON CONFLICT (conversation_id) DO UPDATE SET"
    " head = excluded.head, owner_id = coalesce(owner_id, excluded.owner_id),"
    " owed_since = coalesce(owed_since, excluded.owed_since)"
)
_DERIVED: Final = 5  # the UUID version of an id that derives from a message id
_CHUNK: Final = 400
"""Ids looked up in one statement, well below the number of parameters that any SQLite takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What one append will write, checked and encoded, with nothing decided that the file has to know.

    :ivar events: in order, not empty.
    :ivar message_ids: one an event; ``None`` where the event appends no message.
    :ivar owner_id: whose conversation it is, if said.
    """

    conversation_id: str
    events: tuple[EncodedEvent, ...]
    message_ids: tuple[str | None, ...]
    owner_id: str | None = None

    @property
    def last_message_id(self) -> str | None:
        """The id of the last message among the events."""
        for message_id in reversed(self.message_ids):
            if message_id is not None:
                return message_id
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """What one append came to.

    :ivar sequences: one an event of the append; where the same event was there already, the place it has had since.
    :ivar owner_id: the conversation's owner as far as this outbox knows.
    :ivar written: events that were not there before.
    """

    conversation_id: str
    event_ids: tuple[UUID, ...]
    sequences: tuple[int, ...]
    message_id: str | None
    owner_id: str | None
    written: int


def prepare(
    conversation_id: str,
    what: Sequence[Message | Body | Event],
    *,
    owner: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    occurred_at: datetime | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Prepared:
    """Check and encode what is to be appended, without touching the file.

    :raises InvalidInput: something in it would be refused, or changed, by one of the stores; nothing was written.
    """
    check_identifier(conversation_id, "conversation_id")
    if owner is not None:
        check_identifier(owner, "owner")
    if not what:
        raise InvalidInput("event", "there is nothing to append")
    trace = current_traceparent()
    encoded, message_ids = [], []
    for one in what:
        event = Event.of(
            one,
            conversation_id=conversation_id,
            metadata=EMPTY if metadata is None else metadata,
            occurred_at=occurred_at,
        )
        if trace is not None and isinstance(event.metadata, Mapping) and TRACEPARENT not in event.metadata:
            event = replace(event, metadata={**event.metadata, TRACEPARENT: trace})
        encoded.append(encode(event, conversation_id=conversation_id, limits=limits))
        message_ids.append(event.data["message_id"] if event.type == MessageAppended.type else None)
    return Prepared(
        conversation_id=conversation_id, events=tuple(encoded), message_ids=tuple(message_ids), owner_id=owner
    )


@dataclass(slots=True)
class _Lane:
    """A lane as it will be once what has been planned is written."""

    conversation_id: str
    head: int = 0
    owner_id: str | None = None
    touched: bool = False


_Known = tuple[str, int, bytes]
"""Where an event id is in use already: conversation, sequence, digest."""


@dataclass(slots=True)
class Plan:
    """The rows that a run of appends will write; pure, given the lanes and ids that were found."""

    lanes: dict[str, _Lane]
    known: dict[bytes, _Known]
    now_us: int
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def add(self, prepared: Prepared) -> Appended:
        """Plan one append; all of it or, when it raises, nothing of it.

        :raises EventIdReused: an id of it holds other content.
        :raises InvalidInput: another owner than the conversation has.
        """
        conversation_id = prepared.conversation_id
        lane = self.lanes.get(conversation_id) or _Lane(conversation_id)
        fresh: list[EncodedEvent] = []
        ids: list[bytes] = []
        # What this append brings itself; known to the plan only once all of it is in order.
        taken: dict[bytes, bytes] = {}
        begins = False
        for event, message_id in zip(prepared.events, prepared.message_ids, strict=True):
            event_id = event.event_id.bytes
            ids.append(event_id)
            there = self.known.get(event_id)
            if there is None:
                twin = taken.get(event_id)
                if twin is None:
                    taken[event_id] = event.digest
                    fresh.append(event)
                    begins = begins or event.type == ConversationStarted.type
                    continue
                same = twin == event.digest
            else:
                same = there[0] == conversation_id and there[2] == event.digest
            if not same:
                raise EventIdReused(conversation_id=conversation_id, event_id=event.event_id, message_id=message_id)
        owner_id = lane.owner_id
        if begins or lane.head == 0 or prepared.owner_id not in (None, owner_id):
            owner_id = _begin(lane, prepared, fresh)
        for event in fresh:
            lane.head += 1
            event_id = event.event_id.bytes
            self.known[event_id] = (conversation_id, lane.head, event.digest)
            self.rows.append(
                (
                    event_id,
                    conversation_id,
                    lane.head,
                    event.type,
                    event.schema_version,
                    event.data,
                    event.metadata,
                    event.digest,
                    event.occurred_at,
                    self.now_us,
                )
            )
        if fresh:
            lane.owner_id = owner_id
            lane.touched = True
            self.lanes[conversation_id] = lane
        return Appended(
            conversation_id=conversation_id,
            event_ids=tuple([event.event_id for event in prepared.events]),
            sequences=tuple([self.known[event_id][1] for event_id in ids]),
            message_id=prepared.last_message_id,
            owner_id=owner_id,
            written=len(fresh),
        )

    def lane_rows(self) -> list[tuple[Any, ...]]:
        """Return the rows of the lanes that the plan moves."""
        return [
            (lane.conversation_id, lane.owner_id, lane.head, self.now_us)
            for lane in self.lanes.values()
            if lane.touched
        ]


def _begin(lane: _Lane, prepared: Prepared, fresh: list[EncodedEvent]) -> str | None:
    """Return the owner after an append, having put the event in front of it that begins a conversation, if it does.

    :raises InvalidInput: a second owner: a conversation does not change hands.
    """
    said = [owner_id for event in fresh if (owner_id := _owner_in(event)) is not None]
    owner_id = lane.owner_id
    for one in (prepared.owner_id, *said):
        if owner_id is not None and one is not None and owner_id != one:
            raise InvalidInput("owner", "the conversation belongs to another owner already")
        owner_id = owner_id if one is None else one
    begun = bool(fresh) and fresh[0].type == ConversationStarted.type
    told = owner_id == lane.owner_id or bool(said)
    if not told or (lane.head == 0 and fresh and not begun):
        # The conversation begins, or its owner becomes known: the history store learns it from an event.
        started = _started(prepared.conversation_id, prepared.owner_id, prepared.events[0].occurred_at)
        fresh.insert(1 if begun else 0, started)
    return owner_id


def _owner_in(event: EncodedEvent) -> str | None:
    if event.type != ConversationStarted.type:
        return None
    owner_id: str | None = decode(event.data).get("owner_id")
    return owner_id


def _started(conversation_id: str, owner_id: str | None, occurred_at: int) -> EncodedEvent:
    """Return the event that begins a conversation, or tells its owner later."""
    event = Event.of(ConversationStarted(owner_id=owner_id), conversation_id=conversation_id)
    encoded = encode(event, conversation_id=conversation_id)
    return EncodedEvent(
        conversation_id=conversation_id,
        event_id=encoded.event_id,
        type=encoded.type,
        schema_version=encoded.schema_version,
        data=encoded.data,
        metadata=None,
        digest=encoded.digest,
        occurred_at=occurred_at,  # a conversation does not begin after its first message
    )


def append_events(
    cursor: Any, appends: Sequence[Prepared], *, now_us: int, careful: bool
) -> list[Appended | LetopisError]:
    """Write ``appends`` in order, in a transaction that is open and holds the write lock.

    One SELECT of the lanes, one INSERT of all events, one UPSERT of all lanes. Nothing is committed here. An append
    that cannot be is answered by its error in the list, writes nothing, and leaves the others alone.

    :param cursor: a DBAPI cursor, which a synchronous connection has and, through ``run_sync``, an asynchronous one.
    :param careful: look every event id up first. Otherwise only those that may well be there, because they derive from
        a message id of the caller's; an id that is there all the same fails on the unique index.
    :raises sqlite3.Error: the file did not take it. The whole must then be rolled back.
    """
    plan = Plan(
        lanes=_find_lanes(cursor, {one.conversation_id for one in appends}),
        known=_find_ids(
            cursor,
            [
                event.event_id
                for one in appends
                for event in one.events
                if careful or event.event_id.version == _DERIVED
            ],
        ),
        now_us=now_us,
    )
    outcomes: list[Appended | LetopisError] = []
    for one in appends:
        try:
            outcomes.append(plan.add(one))
        except LetopisError as refused:
            outcomes.append(refused)
    if plan.rows:
        cursor.executemany(_INSERT_EVENTS, plan.rows)
        cursor.executemany(_UPSERT_LANES, plan.lane_rows())
    return outcomes


def _find_lanes(cursor: Any, conversation_ids: set[str]) -> dict[str, _Lane]:
    if len(conversation_ids) == 1:
        cursor.execute(_ONE_LANE, tuple(conversation_ids))
    else:
        cursor.execute(_LANES, (orjson.dumps(list(conversation_ids)).decode(),))
    return {row[0]: _Lane(row[0], head=row[2], owner_id=row[1]) for row in cursor.fetchall()}


def _find_ids(cursor: Any, event_ids: list[UUID]) -> dict[bytes, _Known]:
    found: dict[bytes, _Known] = {}
    for start in range(0, len(event_ids), _CHUNK):
        chunk = [event_id.bytes for event_id in event_ids[start : start + _CHUNK]]
        cursor.execute(_KNOWN.format(places=", ".join("?" * len(chunk))), chunk)
        for event_id, conversation_id, sequence, digest in cursor.fetchall():
            found[event_id] = (conversation_id, sequence, digest)
    return found

"""Append: turn what a caller says into rows of the outbox file, inside a transaction that is already open."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Protocol
from uuid import UUID

import orjson

from letopis.outbox.effects import EFFECTIVE, Effect, take_effect
from letopis.outbox.tracing import current_traceparent
from letopis.store.codec import (
    DEFAULT_LIMITS,
    INTEGER_MAX,
    RESERVED,
    TRACEPARENT,
    EncodedEvent,
    Limits,
    decode,
    encode,
    encode_message,
)
from letopis.store.conversation import Seen
from letopis.store.errors import ConversationGone, EventIdReused, InvalidInput, LetopisError, VersionConflict
from letopis.store.events import Event, check_type
from letopis.store.identifiers import check_identifier
from letopis.store.making import quick
from letopis.store.messages import EMPTY, Message
from letopis.store.projection import ORDER
from letopis.store.turns import EXPECTS, TURN_TYPES, Expects
from letopis.store.vocabulary import (
    Body,
    ConversationActivated,
    ConversationDeleted,
    ConversationStarted,
    MessageAppended,
)

_LANE: Final = "SELECT conversation_id, owner_id, head, pruned, deleted FROM letopis_outbox_lanes"
_ONE_LANE: Final = _LANE + " WHERE conversation_id = ?"
_LANES: Final = _LANE + " WHERE conversation_id IN (SELECT value FROM json_each(?))"  # noqa: S608 - ours
_SINCE: Final = "SELECT sequence, type FROM letopis_outbox_events WHERE conversation_id = ? AND sequence > ?"
# What the next event will be after: positions rise with each append, whichever conversation it is in.
_POSITION: Final = "SELECT seq FROM sqlite_sequence WHERE name = 'letopis_outbox_events'"
_KNOWN: Final = (
    "SELECT event_id, conversation_id, sequence, iif(redacted, NULL, digest) FROM letopis_outbox_events"
    " WHERE event_id IN ({places})"
)
_INSERT_EVENTS: Final = (
    "INSERT INTO letopis_outbox_events (event_id, conversation_id, sequence, type, schema_version, data, metadata,"
    " digest, occurred_at, appended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_BEGIN_LANES: Final = (
    "INSERT INTO letopis_outbox_lanes (conversation_id, owner_id, head, delivered, pruned, state, attempts, due_at,"
    " owed_since) VALUES (?, ?, ?, 0, 0, 'ready', 0, 0, ?)"
)
# owed_since stays where something is owed already: it is the age of the oldest. An UPSERT would take twice as long.
_MOVE_LANES: Final = (
    "UPDATE letopis_outbox_lanes SET owner_id = ?, head = ?, owed_since = coalesce(owed_since, ?)"
    " WHERE conversation_id = ?"
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
    :ivar expects: under which condition it is written.
    """

    conversation_id: str
    events: tuple[EncodedEvent, ...]
    message_ids: tuple[str | None, ...]
    owner_id: str | None = None
    expects: Expects | None = None

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
    :ivar erased: whether content was taken out of the file: the WAL is to be cut back.
    """

    conversation_id: str
    event_ids: tuple[UUID, ...]
    sequences: tuple[int, ...]
    message_id: str | None
    owner_id: str | None
    written: int
    erased: bool = False


_prepared: Final = quick(Prepared)
_appended: Final = quick(Appended)


class HasSeen(Protocol):
    """What knows how much of a conversation was seen: a page, a conversation, a receipt."""

    @property
    def seen(self) -> Seen | None:
        """How much."""


After = int | Seen | HasSeen
"""What to append after: the sequence of a receipt, or what was read."""


def condition(*, expected: After | None, after: After | None, fail_if_types: Collection[str] | None) -> Expects | None:
    """Return the condition that a caller names; ``None`` for none.

    :raises InvalidInput: it makes no sense.
    """
    if expected is not None and after is not None:
        raise InvalidInput("after", "cannot be given together with expected: that one stands against every event")
    if expected is not None:
        if fail_if_types is not None:
            raise InvalidInput("fail_if_types", "goes with after: expected stands against every event")
        seen = _seen(expected, "expected")
        return Expects(sequence=seen.sequence, version=seen.version)
    if after is None:
        if fail_if_types is not None:
            raise InvalidInput("fail_if_types", "needs after: what was seen")
        return None
    types = TURN_TYPES if fail_if_types is None else _types(fail_if_types)
    seen = _seen(after, "after")
    return Expects(sequence=seen.sequence, version=seen.version, types=types)


def _types(given: Collection[str]) -> frozenset[str]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidInput("fail_if_types", "must be several types, for example a set of them")
    try:
        return frozenset(check_type(one) for one in given)
    except InvalidInput as error:
        raise InvalidInput("fail_if_types", error.reason) from error


def _seen(given: After, field_: str) -> Seen:
    seen = given if isinstance(given, Seen | int) else getattr(given, "seen", None)
    if isinstance(seen, int) and not isinstance(seen, bool):
        seen = Seen(sequence=seen)
    if not isinstance(seen, Seen):
        raise InvalidInput(field_, "must be what a history read, a receipt, or the sequence of one")
    for value in (seen.sequence, seen.version or 0):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= INTEGER_MAX:
            raise InvalidInput(field_, "must be a whole number from 0")
    return seen


def prepare(
    conversation_id: str,
    what: Sequence[Message | Body | Event],
    *,
    owner: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    occurred_at: datetime | None = None,
    limits: Limits = DEFAULT_LIMITS,
    expects: Expects | None = None,
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
    encoded: list[EncodedEvent] = []
    message_ids: list[str | None] = []
    for one in what:
        message = one.message if isinstance(one, MessageAppended) else one
        if isinstance(message, Message):
            added = _added(metadata, trace, expects)
            event = encode_message(
                message,
                conversation_id=conversation_id,
                metadata=added,
                occurred_at=occurred_at,
                limits=limits,
            )
            encoded.append(event)
            message_ids.append(message.id)
            if expects is not None and expects.turn is None:
                expects = replace(expects, turn=event.event_id)  # the first one decides for all
            continue
        said = Event.of(
            one,
            conversation_id=conversation_id,
            metadata=EMPTY if metadata is None else metadata,
            occurred_at=occurred_at,
        )
        if isinstance(said.metadata, Mapping):
            said = replace(said, metadata=_added(said.metadata, trace, expects))
        encoded.append(encode(said, conversation_id=conversation_id, limits=limits))
        message_ids.append(said.data["message_id"] if said.type == MessageAppended.type else None)
        if expects is not None and expects.turn is None:
            expects = replace(expects, turn=said.event_id)
    return _prepared(
        conversation_id=conversation_id,
        events=tuple(encoded),
        message_ids=tuple(message_ids),
        owner_id=owner,
        expects=expects,
    )


def _added(given: Mapping[str, Any] | None, trace: str | None, expects: Expects | None) -> Mapping[str, Any]:
    """Return the metadata of an event: the caller's, with the trace and the condition.

    :raises InvalidInput: a key of the caller's is one of Letopis' own.
    """
    if given is None:
        given = EMPTY
    elif isinstance(given, Mapping):
        for key in given:
            if isinstance(key, str) and key.startswith(RESERVED):
                raise InvalidInput("metadata", f"has a key that begins with {RESERVED!r}: those are Letopis' own")
    if trace is None and expects is None:
        return given
    added: dict[str, Any] = {}
    if trace is not None:
        added[TRACEPARENT] = trace
    if expects is not None:
        added[EXPECTS] = expects.to_data()
    return {**added, **given}


@dataclass(slots=True)
class _Lane:
    """A lane as it will be once what has been planned is written.

    :ivar found: whether it is in the file already.
    """

    conversation_id: str
    found: bool = False
    head: int = 0
    owner_id: str | None = None
    pruned: int = 0
    deleted: int = 0
    touched: bool = False


_Known = tuple[str, int, bytes | None]
"""Where an event id is in use already: conversation, sequence, digest; no digest where the content was taken away."""


@dataclass(slots=True)
class Plan:
    """The rows that a run of appends will write; pure, given the lanes and ids that were found."""

    lanes: dict[str, _Lane]
    known: dict[int, _Known]
    now_us: int
    since: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    position: int = 0
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)

    def add(self, prepared: Prepared) -> Appended:
        """Plan one append; all of it or, when it raises, nothing of it.

        :raises EventIdReused: an id of it holds other content.
        :raises InvalidInput: another owner than the conversation has.
        :raises ConversationGone: the conversation was deleted.
        :raises VersionConflict: something is there that the writer had not seen.
        """
        conversation_id = prepared.conversation_id
        lane = self.lanes.get(conversation_id) or _Lane(conversation_id)
        fresh = self._fresh(prepared)
        # A retry must succeed although the conversation has moved on, so this comes after the ids.
        if fresh:
            if lane.deleted:
                raise ConversationGone(conversation_id=conversation_id)
            if prepared.expects is not None:
                self._check(lane, prepared.expects)
        owner_id = lane.owner_id
        if (
            lane.head == 0
            or prepared.owner_id not in (None, owner_id)
            or ConversationStarted.type in [event.type for event in fresh]
        ):
            owner_id = _begin(lane, prepared, fresh)
        since = self.since.get(conversation_id)
        known = self.known
        for event in fresh:
            sequence = lane.head = lane.head + 1
            if EFFECTIVE.get(event.type) == event.schema_version:
                event = self._effect(lane, owner_id, event)
            if since is not None:
                since.append((sequence, event.type))
            known[event.event_id.int] = (conversation_id, sequence, event.digest)
            self.rows.append(
                (
                    event.event_id.bytes,
                    conversation_id,
                    sequence,
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
        ids = [event.event_id for event in prepared.events]
        return _appended(
            conversation_id=conversation_id,
            event_ids=tuple(ids),
            sequences=tuple([known[event_id.int][1] for event_id in ids]),
            message_id=prepared.last_message_id,
            owner_id=owner_id,
            written=len(fresh),
        )

    def _fresh(self, prepared: Prepared) -> list[EncodedEvent]:
        """Return the events of an append that are not there yet, each once.

        :raises EventIdReused: an id of it holds other content.
        """
        events, known = prepared.events, self.known
        if len(events) == 1 and events[0].event_id.int not in known:
            return [events[0]]
        fresh: list[EncodedEvent] = []
        # What this append brings itself; known to the plan only once all of it is in order.
        taken: dict[int, bytes] = {}
        for event, message_id in zip(events, prepared.message_ids, strict=True):
            event_id = event.event_id.int
            there = known.get(event_id)
            if there is None:
                twin = taken.get(event_id)
                if twin is None:
                    taken[event_id] = event.digest
                    fresh.append(event)
                    continue
                same = twin == event.digest
            else:
                # What was taken away cannot be compared any more; its id has to do.
                same = there[0] == prepared.conversation_id and there[2] in (None, event.digest)
            if not same:
                raise EventIdReused(
                    conversation_id=prepared.conversation_id, event_id=event.event_id, message_id=message_id
                )
        return fresh

    def _check(self, lane: _Lane, expects: Expects) -> None:
        """Compare what the writer had seen with what is here."""
        if lane.head == expects.sequence:
            return
        # What is not in the file any more may have been anything.
        late = lane.head < expects.sequence or expects.types is None or lane.pruned > expects.sequence
        actual = lane.head
        if not late:
            types = [
                (sequence, name)
                for sequence, name in self.since.get(lane.conversation_id, ())
                if sequence > expects.sequence and expects.stands_against(name)
            ]
            late = bool(types)
            actual = min((sequence for sequence, _ in types), default=actual)
        if late:
            raise VersionConflict(conversation_id=lane.conversation_id, expected=expects.sequence, actual=actual)

    def _effect(self, lane: _Lane, owner_id: str | None, event: EncodedEvent) -> EncodedEvent:
        """Note an event that does something to the file; return it as it is to be written."""
        order = 0
        if event.type == ConversationActivated.type:
            order = self.position + len(self.rows) + 1
            metadata = {**decode(event.metadata), ORDER: order}
            event = replace(event, metadata=orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS).decode())
        elif event.type == ConversationDeleted.type:
            lane.deleted = lane.head
        self.effects.append(
            Effect(
                conversation_id=lane.conversation_id,
                owner_id=owner_id,
                sequence=lane.head,
                event=event,
                order=order,
            )
        )
        return event

    def begun(self) -> list[tuple[Any, ...]]:
        """Return the rows of the lanes that the plan begins, for ``_BEGIN_LANES``."""
        return [
            (lane.conversation_id, lane.owner_id, lane.head, self.now_us)
            for lane in self.lanes.values()
            if lane.touched and not lane.found
        ]

    def moved(self) -> list[tuple[Any, ...]]:
        """Return the new values of the lanes that the plan moves, for ``_MOVE_LANES``."""
        return [
            (lane.owner_id, lane.head, self.now_us, lane.conversation_id)
            for lane in self.lanes.values()
            if lane.touched and lane.found
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

    One SELECT of the lanes, one INSERT of all events, one UPDATE of the lanes that are there. Nothing is committed
    here. An append that cannot be is answered by its error in the list, writes nothing, and leaves the others alone.

    :param cursor: a DBAPI cursor, which a synchronous connection has and, through ``run_sync``, an asynchronous one.
    :param careful: look every event id up first. Otherwise only those that may well be there, because they derive from
        a message id of the caller's; an id that is there all the same fails on the unique index.
    :raises sqlite3.Error: the file did not take it. The whole must then be rolled back.
    """
    events = [event for one in appends for event in one.events]
    conditional = [one for one in appends if one.expects is not None]
    doubted = [event.event_id for event in events if careful or event.event_id.int >> 76 & 0xF == _DERIVED]
    # With a condition too: a retry is to be told from a conflict.
    doubted += [event.event_id for one in conditional for event in one.events]
    plan = Plan(
        lanes=_find_lanes(cursor, {one.conversation_id for one in appends}),
        known=_find_ids(cursor, doubted) if doubted else {},
        now_us=now_us,
        since=_find_since(cursor, conditional) if conditional else {},
        position=_find_position(cursor, events),
    )
    outcomes: list[Appended | LetopisError] = []
    for one in appends:
        try:
            outcomes.append(plan.add(one))
        except LetopisError as refused:
            outcomes.append(refused)
    if plan.rows:
        cursor.executemany(_INSERT_EVENTS, plan.rows)
        if moved := plan.moved():
            cursor.executemany(_MOVE_LANES, moved)
        if begun := plan.begun():
            cursor.executemany(_BEGIN_LANES, begun)
    if plan.effects and take_effect(cursor, plan.effects):
        outcomes = [replace(one, erased=True) if isinstance(one, Appended) else one for one in outcomes]
    return outcomes


def _find_since(cursor: Any, conditional: Sequence[Prepared]) -> dict[str, list[tuple[int, str]]]:
    """Return what came since the writers of conditional appends had looked, by conversation."""
    earliest: dict[str, int] = {}
    for one in conditional:
        if one.expects is not None:
            sequence = one.expects.sequence
            earliest[one.conversation_id] = min(sequence, earliest.get(one.conversation_id, sequence))
    found = {}
    for conversation_id, sequence in earliest.items():
        cursor.execute(_SINCE, (conversation_id, sequence))
        found[conversation_id] = list(cursor.fetchall())
    return found


def _find_position(cursor: Any, events: Sequence[EncodedEvent]) -> int:
    """Return the last position that was given out, where an activation is to be ordered by it; else 0."""
    if ConversationActivated.type not in [event.type for event in events]:
        return 0
    cursor.execute(_POSITION)
    row = cursor.fetchone()
    return 0 if row is None else int(row[0])


def _find_lanes(cursor: Any, conversation_ids: set[str]) -> dict[str, _Lane]:
    if len(conversation_ids) == 1:
        cursor.execute(_ONE_LANE, tuple(conversation_ids))
    else:
        cursor.execute(_LANES, (orjson.dumps(list(conversation_ids)).decode(),))
    return {
        conversation_id: _Lane(conversation_id, True, head, owner_id, pruned, deleted)
        for conversation_id, owner_id, head, pruned, deleted in cursor.fetchall()
    }


def _find_ids(cursor: Any, event_ids: list[UUID]) -> dict[int, _Known]:
    found: dict[int, _Known] = {}
    for start in range(0, len(event_ids), _CHUNK):
        chunk = [event_id.bytes for event_id in event_ids[start : start + _CHUNK]]
        cursor.execute(_KNOWN.format(places=", ".join("?" * len(chunk))), chunk)
        for event_id, conversation_id, sequence, digest in cursor.fetchall():
            found[int.from_bytes(event_id)] = (conversation_id, sequence, digest)
    return found

"""Overlay: lay what the outbox holds beyond the history store over what was read from there, so that nothing is missed.

The store is read first, with how far this outbox's lane had got there; what lies beyond that is in the file. An event
that is delivered in between is beyond what was read and so still found here, once: ``(event_id)`` tells.

A *place* is the version that an event has in the history store or, while it is pending, the one that it will have
unless another outbox says something in the same conversation first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa

from letopis.outbox.glance import Standing
from letopis.outbox.lanes import Lane, find_lane
from letopis.outbox.tail import Row, rows_after
from letopis.store.asking import Window, conversations_cursor
from letopis.store.conversation import Conversation, Page, RecordedMessage, Saved, Seen
from letopis.store.events import RecordedEvent, to_microseconds
from letopis.store.fold import SUPERSEDED, Elsewhere, Fold
from letopis.store.reads import PlainPage, StoreView
from letopis.store.turns import Conflict
from letopis.store.upcasters import Upcasters
from letopis.store.vocabulary import ConversationDeleted, ConversationRewound, ConversationStarted, EventSkipped

NOWHERE: Final = StoreView(conversation=None, messages=(), sequence=0)
"""What a history store holds of a conversation that it does not know."""

_RECENT: Final = (
    "SELECT l.conversation_id, e.occurred_at FROM letopis_outbox_lanes AS l"
    " JOIN letopis_outbox_events AS e ON e.conversation_id = l.conversation_id AND e.sequence = l.head"
    " WHERE {conditions} ORDER BY e.occurred_at DESC, l.conversation_id DESC LIMIT ?"
)
_OWED: Final = (
    "SELECT conversation_id FROM letopis_outbox_lanes WHERE delivered < head"
    " AND conversation_id IN (SELECT value FROM json_each(?))"
)
_CUTTING: Final = (
    "SELECT 1 FROM letopis_outbox_events WHERE conversation_id = ? AND sequence > ? AND type IN (?, ?) LIMIT 1"
)
_FORKING: Final = (
    "SELECT 1 FROM letopis_outbox_events WHERE conversation_id = ? AND sequence > ? AND type = ?"
    " AND instr(data, '\"forked_from\"') > 0 LIMIT 1"
)
_SUPERSEDED: Final = (
    "SELECT sequence, expected, actual FROM letopis_outbox_superseded WHERE conversation_id = ? AND sequence > ?"
)
_REPAIRED: Final = (
    "SELECT 1 FROM letopis_outbox_events AS e JOIN letopis_outbox_repairs AS r ON r.event_id = e.event_id"
    " WHERE e.conversation_id = ? AND e.sequence = ?"
    " UNION ALL SELECT 1 FROM letopis_outbox_events AS e"
    " WHERE e.conversation_id = ? AND e.sequence = ? AND e.type = ?"
)


CUTTING: Final = frozenset({ConversationRewound.type, ConversationDeleted.type})
"""What takes messages off the path that may be in the store alone."""


class Unplaced(Exception):
    """What is pending takes messages off the path: ask the store where the named ones stand, then read again."""

    def __init__(self, message_ids: frozenset[str]) -> None:
        super().__init__("where the path is cut has to be asked of the store")
        self.message_ids = message_ids


class Overtaken(Exception):
    """Events between what the store held and what the file holds were delivered and let go meanwhile: read again."""


class Arrived(Exception):
    """The event up to which the file was to be read is in the history store by now: read again, from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beyond:
    """How the file's sequences stand to the places of a conversation.

    :ivar base: the place up to which the store was read; ``start``: the sequence of this outbox there.
    :ivar upto: the sequence up to which the file is read, as it was then; ``None`` for all of it.
    """

    lane: Lane
    start: int
    base: int
    away: bool
    superseded: Mapping[int, Conflict]
    upto: int | None = None

    def rows(self, connection: sa.Connection, *, backward: bool = False) -> Iterator[Row]:
        """Yield the events that the file holds beyond the store, up to where it is read."""
        for row in rows_after(connection, self.lane.conversation_id, self.start, backward=backward):
            if self.upto is None or row.sequence <= self.upto:
                yield row

    def place(self, sequence: int) -> int:
        return self.base + sequence - self.start

    def judged(self, event: RecordedEvent) -> RecordedEvent:
        """Return an event with the verdict on it, if the history store has given one."""
        conflict = self.superseded.get(event.sequence)
        if conflict is None:
            return event
        return replace(event, metadata={**event.metadata, SUPERSEDED: conflict.to_data()})

    def saved(self, sequence: int) -> Saved:
        if self.away and sequence <= self.lane.delivered:
            return Saved.SAVED
        return Saved.BLOCKED if self.lane.state == "blocked" else Saved.PENDING


def _beyond(
    connection: sa.Connection, conversation_id: str, view: StoreView | None, upto: int | None = None
) -> _Beyond | None:
    """Return where the file goes on after ``view``, or from where its tail begins without one.

    :raises Overtaken: the file does not go on there.
    :raises Arrived: ``view`` goes on beyond ``upto``.
    """
    lane = find_lane(connection, conversation_id)
    if lane is None:
        return None
    if view is not None and lane.pruned > view.sequence:
        raise Overtaken
    base = lane.pruned if view is None else 0 if view.conversation is None else view.conversation.version
    start = lane.pruned if view is None else lane.delivered if _apart(connection, lane, view) else view.sequence
    if upto is not None and view is not None and start >= upto:
        raise Arrived
    verdicts = _all(connection, _SUPERSEDED, (conversation_id, start))
    return _Beyond(
        lane=lane,
        start=start,
        base=base,
        away=view is None,
        superseded={row[0]: Conflict(expected=row[1], actual=row[2]) for row in verdicts},
        upto=upto,
    )


def _apart(connection: sa.Connection, lane: Lane, view: StoreView) -> bool:
    """Whether the store holds other events where those that are pending lie: the file is a restored backup, or a copy.

    An event that a person has repaired differs too, but is there as it was, and those behind it may be as they are.
    """
    place = (lane.conversation_id, lane.delivered + 1)
    return (
        lane.delivered < view.sequence
        and lane.state == "blocked"
        and lane.fault_class == "diverged"
        and not _all(connection, _REPAIRED, (*place, *place, EventSkipped.type))
    )


def messages_over(
    connection: sa.Connection,
    conversation_id: str,
    view: StoreView | None,
    window: Window,
    *,
    origin_id: UUID,
    upcasters: Upcasters,
    places: Mapping[str, Elsewhere] | None = None,
    upto: int | None = None,
) -> Page[RecordedMessage]:
    """Return the messages of a window: those of ``view`` with what the file holds beyond it.

    ``view`` was read with the same window, up to where what is pending cuts the path; ``None`` where the store could
    not be read: then the page comes from the retained tail alone and is not complete.

    :param places: of the messages in the store that pending rewinds name.
    :param upto: as it was after this sequence of the outbox, which is beyond ``view``.
    :raises Overtaken: read the store again.
    :raises Unplaced: ask for the places first.
    :raises Arrived: ``upto`` is in ``view``.
    """
    beyond = _beyond(connection, conversation_id, view, upto)
    away = view is None
    seen = _seen(beyond, view)
    view = NOWHERE if view is None else view
    if beyond is None:
        return Page(view.messages, next=view.next, complete=not away, seen=seen)
    there = {message.event_id for message in view.messages}
    cuts = _cuts(connection, conversation_id, beyond)
    if cuts and places is None and not away:
        raise Unplaced(_named(cuts))
    whole = bool(cuts or beyond.superseded)
    rows, cut = _rows_of(connection, conversation_id, beyond, view, window, whole=whole)
    folding = Fold(
        view.conversation,
        messages=view.messages,
        elsewhere=_older(cuts, beyond) if away else places,
        upcasters=upcasters,
    )
    for row in rows:
        event = row.event(conversation_id, origin_id)
        if event.event_id not in there:
            folding.apply(beyond.judged(event), saved=beyond.saved(row.sequence))
    folded = folding.result()
    found = folded.messages if window.every else folded.path
    if whole:
        found = _inside(found, beyond, window)
    older = view.next is not None or (away and beyond.lane.pruned > 0 and window.first is None)
    limit = window.limit
    if window.last is not None:
        cut = cut or (limit is not None and len(found) > limit)
        found = found[-window.last :]
        place = _place(found[0], beyond) if found and (cut or older) else None
    else:
        cut = cut or (limit is not None and len(found) > limit)
        found = found[:limit]
        place = _place(found[-1], beyond) if found and (cut or view.next is not None) and limit is not None else None
    return Page(found, next=None if place is None else str(place), complete=not away, seen=seen)


def nothing_over(read: StoreView | PlainPage, standing: Standing) -> Seen | None:
    """Return how much was seen with what was ``read``, if the file holds nothing beyond it; ``None`` where it may.

    Whatever the order in which the two were read: all that the file held is in what was read.
    """
    if not standing.known or standing.head != standing.delivered or standing.head > read.sequence:
        return None
    if isinstance(read, PlainPage):
        return Seen(sequence=standing.head, version=read.version)
    return Seen(sequence=standing.head, version=0 if read.conversation is None else read.conversation.version)


def may_inherit(connection: sa.Connection, conversation_id: str, view: StoreView | None) -> bool:
    """Whether a conversation may be a fork that reads its parent; a look that costs little."""
    if view is not None and view.conversation is not None and view.conversation.forked_from is not None:
        return view.conversation.inherits
    values = (conversation_id, 0 if view is None else view.sequence, ConversationStarted.type)
    return bool(_all(connection, _FORKING, values))


def happened(connection: sa.Connection, conversation_id: str, view: StoreView | None, moment: datetime) -> UUID | None:
    """Return the last event beyond ``view``, in order, that had happened by a moment; ``None`` where none had.

    :raises Overtaken: read the store again.
    """
    beyond = _beyond(connection, conversation_id, view)
    if beyond is not None:
        for row in beyond.rows(connection, backward=True):
            if row.occurred_at <= moment:
                return row.event_id
    return None


def place_over(connection: sa.Connection, message: RecordedMessage, view: StoreView | None) -> int:
    """Return the place of a message that was read over ``view``.

    :raises Overtaken: read the store again.
    """
    beyond = _beyond(connection, message.conversation_id, view)
    return message.version or 0 if beyond is None else _place(message, beyond)


def bound_of(
    connection: sa.Connection,
    conversation_id: str,
    view: StoreView,
    places: Mapping[str, Elsewhere],
    *,
    upto: int | None = None,
) -> int | None:
    """Return the version beyond which what is pending takes stored messages off the path; ``None`` for none.

    :raises Overtaken: read the store again.
    :raises Arrived: ``upto`` is in ``view``.
    """
    beyond = _beyond(connection, conversation_id, view, upto)
    if beyond is None:
        return None
    bound: int | None = None
    for target, pending in _cuts(connection, conversation_id, beyond):
        there = None if target is None else places.get(target)
        if target is None or (there is None and not pending and view.conversation and view.conversation.inherits):
            bound = 0
        elif not pending and there is not None and there.on_path and (bound is None or there.version <= bound):
            bound = there.version
    return bound


def _cuts(connection: sa.Connection, conversation_id: str, beyond: _Beyond) -> list[tuple[str | None, bool]]:
    """Return what the path is cut after, in order, and whether that message is in the file itself."""
    cuts: list[tuple[str | None, bool]] = []
    if not _all(connection, _CUTTING, (conversation_id, beyond.start, *sorted(CUTTING))):
        return cuts
    appended: set[str] = set()
    for row in beyond.rows(connection):
        if row.sequence in beyond.superseded:
            continue
        if row.appends:
            appended.add(str(row.data.get("message_id")))
        elif row.type in CUTTING:
            target = row.data.get("to_message_id")
            cuts.append((target, target in appended))
    return cuts


def _named(cuts: Iterable[tuple[str | None, bool]]) -> frozenset[str]:
    return frozenset(target for target, pending in cuts if target is not None and not pending)


def _older(cuts: Iterable[tuple[str | None, bool]], beyond: _Beyond) -> dict[str, Elsewhere]:
    """Take the messages that rewinds name and the tail does not hold for older ones, where the tail has been let go."""
    if beyond.lane.pruned == 0:
        return {}
    return {name: Elsewhere(version=0, on_path=True, count=0) for name in _named(cuts)}


def _inside(found: tuple[RecordedMessage, ...], beyond: _Beyond, window: Window) -> tuple[RecordedMessage, ...]:
    return tuple(
        message
        for message in found
        if (window.before is None or _place(message, beyond) < window.before)
        and (window.after is None or _place(message, beyond) > window.after)
    )


def _seen(beyond: _Beyond | None, view: StoreView | None) -> Seen:
    version = None if view is None else 0 if view.conversation is None else view.conversation.version
    return Seen(sequence=0 if beyond is None else beyond.lane.head, version=version)


def _rows_of(
    connection: sa.Connection,
    conversation_id: str,
    beyond: _Beyond,
    view: StoreView,
    window: Window,
    *,
    whole: bool = False,
) -> tuple[list[Row], bool]:
    """Return the events to fold, in order, and whether messages of the window were left out.

    Only messages inside the window, and not more than it holds; but all that may change them.

    :param whole: all of them, since some are not on the path, or may take others off it.
    """
    if whole:
        return list(beyond.rows(connection)), False
    room = window.limit
    if window.first is not None:
        # What the store still has comes first.
        room = 0 if view.next is not None else window.first - len(view.messages)
    backward = window.last is not None
    kept: list[Row] = []
    cut = False
    for row in beyond.rows(connection, backward=backward):
        if row.appends:
            place = beyond.place(row.sequence)
            if (window.before is not None and place >= window.before) or (
                window.after is not None and place <= window.after
            ):
                continue
            if room is not None and room <= 0:
                cut = True
                if backward:
                    break  # whatever lies before changes nothing that is shown
                continue
            room = None if room is None else room - 1
        kept.append(row)
    if backward:
        kept.reverse()
    return kept, cut


def _place(message: RecordedMessage, beyond: _Beyond) -> int:
    return beyond.place(message.sequence) if message.version is None else message.version


def conversation_over(
    connection: sa.Connection,
    conversation_id: str,
    view: StoreView | None,
    *,
    origin_id: UUID,
    upcasters: Upcasters,
    places: Mapping[str, Elsewhere] | None = None,
    upto: int | None = None,
) -> Conversation | None:
    """Return the conversation of ``view`` with what the file holds beyond it; from the retained tail without one.

    Whether it is the active one is not looked at here.

    :param places: of the messages in the store that pending rewinds name.
    :param upto: as it was after this sequence of the outbox, which is beyond ``view``.
    :raises Overtaken: read the store again.
    :raises Unplaced: ask for the places first.
    :raises Arrived: ``upto`` is in ``view``.
    """
    beyond = _beyond(connection, conversation_id, view, upto)
    held = None if view is None else view.conversation
    seen = _seen(beyond, view)
    if beyond is None:
        return None if held is None else replace(held, seen=seen)
    cuts = _cuts(connection, conversation_id, beyond)
    if cuts and places is None and view is not None:
        raise Unplaced(_named(cuts))
    folding = Fold(held, elsewhere=_older(cuts, beyond) if view is None else places, upcasters=upcasters)
    for row in beyond.rows(connection):
        folding.apply(beyond.judged(row.event(conversation_id, origin_id)))
    found = folding.result().conversation
    if found is None:
        return None
    found = replace(found, seen=seen)
    if view is None:
        return replace(
            found,
            owner_id=found.owner_id if found.owner_id is not None else beyond.lane.owner_id,
            version=beyond.lane.delivered,
            pending=beyond.lane.pending,
        )
    return found


def events_over(
    connection: sa.Connection,
    conversation_id: str,
    view: StoreView | None,
    page: Page[RecordedEvent],
    *,
    after: int,
    limit: int,
    origin_id: UUID,
) -> Page[RecordedEvent]:
    """Return ``page`` of the store's events, filled up with those that only the file holds.

    :raises Overtaken: read the store again.
    """
    beyond = _beyond(connection, conversation_id, view)
    if beyond is None or page.next is not None:
        return Page(page.items, next=page.next, complete=view is not None)
    there = {event.event_id for event in page}
    found = list(page)
    place = None
    for row in rows_after(connection, conversation_id, beyond.start):
        if beyond.place(row.sequence) <= after:
            continue
        event = beyond.judged(row.event(conversation_id, origin_id))
        if event.event_id in there:
            continue
        if len(found) >= limit:
            place = str(beyond.place(row.sequence) - 1)
            break
        found.append(event)
    return Page(tuple(found), next=place, complete=view is not None)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Key:
    """A conversation's place in the list: the newest activity first, so the greatest key first."""

    updated_at: int
    conversation_id: str

    @property
    def cursor(self) -> str:
        """The place after it."""
        return conversations_cursor(self.updated_at, self.conversation_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One page of the list, before the conversations on it are read.

    :ivar items: in order; with the store's conversation where nothing is pending of it.
    """

    items: tuple[tuple[str, Conversation | None], ...]
    next: str | None


def list_over(
    connection: sa.Connection, page: Page[Conversation] | None, *, owner: str | None, after: Key | None, limit: int
) -> Listed:
    """Return the page of the list of conversations that comes after a key, owed ones at the place that is due to them.

    :param page: the store's own page after the same key; ``None`` where it could not be read.
    """
    recent = _recent(connection, owner=owner, after=after, most=limit + 1, owed=page is not None)
    stored = () if page is None else page.items
    names = {one.conversation_id for one in recent}
    owed = _owed(connection, (one.conversation_id for one in stored))
    found: dict[Key, Conversation | None] = dict.fromkeys(recent)
    keys = [Key(updated_at=to_microseconds(one.updated_at), conversation_id=one.conversation_id) for one in stored]
    for key, one in zip(keys, stored, strict=True):
        if key.conversation_id not in owed:
            found[key] = one
        elif owner is not None and key.conversation_id not in names and not _knows(connection, key.conversation_id):
            found[key] = None  # ours to complete, but the outbox does not know whose it is
    order = sorted(found, reverse=True)
    going_on = page is not None and page.next is not None
    if going_on:
        # What the store has not shown yet may come before what lies behind its last one.
        order = [key for key in order if key >= keys[-1]]
    cursor = None
    if len(order) > limit:
        order = order[:limit]
        cursor = order[-1].cursor
    elif going_on:
        cursor = keys[-1].cursor
    return Listed(items=tuple((key.conversation_id, found[key]) for key in order), next=cursor)


def _recent(connection: sa.Connection, *, owner: str | None, after: Key | None, most: int, owed: bool) -> list[Key]:
    conditions = ["l.delivered < l.head"] if owed else ["true"]
    values: list[str | int] = []
    if owner is not None:
        conditions.append("l.owner_id = ?")
        values.append(owner)
    if after is not None:
        conditions.append("(e.occurred_at, l.conversation_id) < (?, ?)")
        values.extend((after.updated_at, after.conversation_id))
    return [
        Key(updated_at=row[1], conversation_id=row[0])
        for row in _all(connection, _RECENT.format(conditions=" AND ".join(conditions)), (*values, most))
    ]


def _owed(connection: sa.Connection, conversation_ids: Iterable[str]) -> set[str]:
    names = orjson.dumps(list(conversation_ids)).decode()
    return {row[0] for row in _all(connection, _OWED, (names,))}


def _knows(connection: sa.Connection, conversation_id: str) -> bool:
    lane = find_lane(connection, conversation_id)
    return lane is not None and lane.owner_id is not None


def _all(connection: sa.Connection, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statement, values)
        return list(cursor.fetchall())
    finally:
        cursor.close()

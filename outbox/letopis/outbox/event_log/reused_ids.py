"""Tell which events of an append are new, and refuse an id that is in use for other content."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

from letopis.outbox.event_log.append_encoding import Prepared
from letopis.outbox.event_log.known_path import PUT_BACK_PATH, KnownPath, read_path
from letopis.outbox.event_log.statements import query_all, query_one
from letopis.store.errors import ConversationGone, EventIdReused, InvalidInput, LetopisError, Reuse
from letopis.store.model.codec import EncodedEvent, decode
from letopis.store.model.event_types import ConversationRewound, MessageEdited, MessageRedacted
from letopis.store.model.identifiers import uuid7
from letopis.store.rules.decoding import PUT_BACK_KEY, put_back, puts_back
from letopis.store.rules.preconditions import with_one_leader

_KNOWN: Final = (
    "SELECT e.event_id, l.conversation_id, e.sequence, e.digest, e.salt, e.metadata,"
    " e.type = 'message.appended' AND e.sequence <= l.delivered AND NOT EXISTS ("
    "SELECT 1 FROM letopis_outbox_superseded AS s WHERE s.event_id = e.event_id)"
    " FROM letopis_outbox_events AS e JOIN letopis_outbox_lanes AS l ON l.lane = e.lane WHERE {condition}"
)
_AT: Final = _KNOWN.format(condition="e.position = ?")
_NEWEST_PUT_BACK: Final = _KNOWN.format(
    condition="l.conversation_id = ? AND e.sequence > ? AND e.type = 'message.appended'"
    " AND iif(json_valid(e.metadata), json_extract(e.metadata, ?), NULL) = ? AND NOT EXISTS ("
    "SELECT 1 FROM letopis_outbox_superseded AS s WHERE s.event_id = e.event_id) ORDER BY e.sequence DESC LIMIT 1"
)
_REWOUND: Final = "SELECT 1 FROM letopis_outbox_log WHERE conversation_id = ? AND type = 'conversation.rewound' LIMIT 1"
# A message is erased by its redaction or, in a conversation that was reset, with all others.
_ERASED: Final = (
    "SELECT 1 FROM letopis_outbox_log WHERE conversation_id = ?"
    " AND (type = 'message.redacted' OR (type = 'message.appended' AND redacted = 1))"
    " AND iif(json_valid(data), json_extract(data, '$.message_id'), NULL) = ? LIMIT 1"
)


class PathUnknown(LetopisError):
    """Delivered messages are appended again, and only the history store knows whether it still shows them."""

    def __init__(self, messages: dict[UUID, str], targets: set[str]) -> None:
        super().__init__("only the history store knows whether these messages are on the path")
        self.messages = messages
        self.targets = targets


class IdUse(NamedTuple):
    """Where an event id is in use."""

    conversation_id: str
    sequence: int
    digest: bytes
    salt: bytes | None  # ``None`` where the content was erased
    first: int  # the event that appended the message first, as an integer; another one if this puts it back
    delivered: bool = False  # it appends a message and the history store has it, and did not set it aside


@dataclass(slots=True)
class UsedIds:
    """The event ids in use among those about to be appended, and those that the appends add."""

    ids: dict[int, IdUse] = field(default_factory=dict)  # by event id, as an integer
    # by the event that appended a message first, the last one that puts it back
    newest: dict[int, int] = field(default_factory=dict)
    # of each conversation in which a known message may have left it
    paths: dict[str, KnownPath] = field(default_factory=dict)
    erased: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def read(cls, cursor: Any, known: Iterable[int], events: Collection[EncodedEvent]) -> Self:
        """Read what is in the file under the ids of ``events``, and of the messages that they edit."""
        used = cls()
        for position in known:
            for row in query_all(cursor, _AT, (position,)):
                use = used._add_row(row)
                if use.delivered:
                    values = (use.conversation_id, use.sequence, PUT_BACK_PATH, str(UUID(int=use.first)))
                    for newer in query_all(cursor, _NEWEST_PUT_BACK, values):
                        used.newest[use.first] = int.from_bytes(newer[0])
                        used._add_row(newer)
        if used.ids or len({event.event_id for event in events}) < len(events):
            rewound = {event.conversation_id for event in events if event.type == ConversationRewound.type}
            names = {use.conversation_id for use in used.ids.values()}
            for name in names | rewound:
                if name in rewound or query_one(cursor, _REWOUND, (name,)) is not None:
                    used.paths[name] = read_path(cursor, name)
        for event in events:
            if event.type == MessageEdited.type:
                edited = (event.conversation_id, _message(event))
                if query_one(cursor, _ERASED, edited) is not None:
                    used.erased.add(edited)
        return used

    def _add_row(self, row: Sequence[Any]) -> IdUse:
        event_id, conversation_id, sequence, digest, salt, metadata, delivered = row
        used = int.from_bytes(event_id)
        use = self.ids[used] = IdUse(conversation_id, sequence, digest, salt, _first(used, metadata), bool(delivered))
        return use

    def check_edits(self, events: Iterable[EncodedEvent]) -> None:
        """Refuse edits of erased messages, which would never be read."""
        for event in events:
            if event.type == MessageRedacted.type:
                self.erased.add((event.conversation_id, _message(event)))
            elif event.type == MessageEdited.type and (event.conversation_id, _message(event)) in self.erased:
                raise InvalidInput("message_id", "the message's content was erased for good: it cannot be edited")

    def add(self, event: EncodedEvent, sequence: int) -> None:
        used = event.event_id.int
        use = self.ids[used] = IdUse(
            event.conversation_id, sequence, event.digest, event.salt, _first(used, event.metadata)
        )
        if use.first != used:
            self.newest[use.first] = used


@dataclass(slots=True)
class SortedEvents:
    """The events of one append."""

    new: list[EncodedEvent]  # to be written, each once; those that put a message back as they are written
    ids: list[UUID]  # one an event of the append: under which it is there, or will be
    path: KnownPath | None  # the conversation's after the append; ``None`` if no known message can have left it

    def add(self, event: EncodedEvent, first: int) -> None:
        self.new.append(event)
        self.ids.append(event.event_id)
        if self.path is not None:
            self.path.add_event(event, first)

    def put_back(self, event: EncodedEvent, first: int) -> None:
        """Add the event that puts back the message which another event appended first."""
        self.add(put_back(event, first=UUID(int=first), event_id=uuid7()), first)


def sort_events(prepared: Prepared, used: UsedIds, *, deleted: bool) -> SortedEvents:
    """Tell the events of an append that are new from those that are there."""
    events, known = prepared.events, used.ids
    path = used.paths.get(prepared.conversation_id)
    sorted_events = SortedEvents([], [], None if path is None else path.copy())
    # Ids of this append; the plan learns them only once the whole append is accepted.
    own: dict[int, EncodedEvent] = {}
    unknown: dict[UUID, str] = {}
    targets: set[str] = set()
    for event, message_id in zip(events, prepared.message_ids, strict=True):
        event_id, use = _use_of(event, prepared, used)
        first = event_id.int if use is None else use.first
        shown = None if prepared.shown is None else prepared.shown.get(event.event_id)
        if use is not None:
            reason = _other_content(event, use)
            if reason is None and sorted_events.path is not None and sorted_events.path.erased(first):
                reason = Reuse.ERASED  # of a reset that is pending, so that the content is still here
            # It was edited, or what the file holds of it was set aside.
            if shown is not None and reason in (None, Reuse.OTHER_CONTENT):
                sorted_events.put_back(event, first)
                continue
        elif shown is not None:
            sorted_events.put_back(event, shown.int)
            continue
        elif event_id.int not in own:
            own[event_id.int] = event
            sorted_events.add(event, first)
            continue
        else:
            reason = _other_content(event, own[event_id.int])
        newest = event_id.int if use is None else used.newest.get(first, event_id.int)
        if reason is None and message_id is not None:
            left = sorted_events.path is not None and sorted_events.path.left(first)
            if use is not None:
                doubtful = frozenset() if sorted_events.path is None else sorted_events.path.stays_unless(first)
                delivered = prepared.on_path is not None and known[newest].delivered
                if prepared.ask and (doubtful or delivered):
                    targets |= doubtful
                    if delivered:
                        unknown[event.event_id] = message_id
                    continue
                left = left or not doubtful.isdisjoint(prepared.elsewhere)
                left = left or (delivered and event.event_id not in (prepared.on_path or ()))
            if left and prepared.put_back:
                sorted_events.put_back(event, first)
                continue
            reason = Reuse.OFF_PATH if left else None
        if reason is Reuse.ERASED and deleted:
            raise ConversationGone(conversation_id=prepared.conversation_id)
        if reason is not None:
            raise EventIdReused(
                conversation_id=prepared.conversation_id, event_id=event_id, message_id=message_id, reason=reason
            )
        sorted_events.ids.append(UUID(int=newest))
    if unknown or targets:
        raise PathUnknown(unknown, targets)
    if prepared.expects is not None and sorted_events.new and sorted_events.new[0].event_id != events[0].event_id:
        # The event that was to decide for all is there already, or is put back under another id.
        sorted_events.new = with_one_leader(sorted_events.new)
    return sorted_events


def _other_content(event: EncodedEvent, known: IdUse | EncodedEvent) -> Reuse | None:
    """Return why an event is not the one that is known under its id; ``None`` if it has the same content."""
    if event.conversation_id != known.conversation_id:
        return Reuse.OTHER_CONTENT
    if known.salt is None:
        return Reuse.ERASED
    return None if event.has_content_of(known.digest, known.salt) else Reuse.OTHER_CONTENT


def _use_of(event: EncodedEvent, prepared: Prepared, used: UsedIds) -> tuple[UUID, IdUse | None]:
    """Return where the id of an event is in use, and this id; that of a message that was read may be another."""
    use = used.ids.get(event.event_id.int)
    if use is None and (alias := prepared.aliases.get(event.event_id)) is not None:
        other = used.ids.get(alias.int)
        # A fork may be given messages of its parent: they are its own there.
        if other is not None and other.conversation_id == event.conversation_id:
            return alias, other
    return event.event_id, use


def _first(event_id: int, metadata: str | None) -> int:
    return UUID(decode(metadata)[PUT_BACK_KEY]).int if puts_back(metadata) else event_id


def _message(event: EncodedEvent) -> str:
    return str(decode(event.data).get("message_id"))

"""Decide whether an event id in use may be appended again: only with the same content."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

from letopis.outbox.event_log.known_path import PUT_BACK_PATH, KnownPath, read_path
from letopis.outbox.event_log.statements import query_all, query_one
from letopis.store.errors import InvalidInput, LetopisError, Reuse
from letopis.store.model.codec import EncodedEvent, decode
from letopis.store.model.event_types import ConversationRewound, MessageEdited, MessageRedacted
from letopis.store.rules.put_back import PUT_BACK_KEY, puts_back

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
    """Messages that were delivered are appended again, and only the history store knows whether it still shows them.

    :ivar messages: their ids, by the ids of their events.
    :ivar targets: pending messages to which a rewind led, and which the store may have from another outbox.
    """

    def __init__(self, messages: dict[UUID, str], targets: set[str]) -> None:
        super().__init__("only the history store knows whether these messages are on the path")
        self.messages = messages
        self.targets = targets


class IdUse(NamedTuple):
    """Where an event id is in use.

    :ivar salt: ``None`` where the content was erased.
    :ivar first: the id of the event that appended the message first, as an integer; another one if this puts it back.
    :ivar delivered: True if it appends a message and the history store has it, and did not set it aside.
    """

    conversation_id: str
    sequence: int
    digest: bytes
    salt: bytes | None
    first: int
    delivered: bool = False


@dataclass(slots=True)
class UsedIds:
    """The event ids in use among those about to be appended, and those that the appends add.

    :ivar ids: by event id, as an integer.
    :ivar newest: by the id of the event that appended a message first, that of the last one that puts it back.
    :ivar paths: the path of each conversation in which a known message may have left it.
    :ivar erased: conversation and id of each message that is about to be edited or put back, and whose content was
        erased.
    """

    ids: dict[int, IdUse] = field(default_factory=dict)
    newest: dict[int, int] = field(default_factory=dict)
    paths: dict[str, KnownPath] = field(default_factory=dict)
    erased: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def read(cls, cursor: Any, known: Iterable[int], events: Collection[EncodedEvent]) -> Self:
        """Read what is in the file under the ids of ``events``, and of the messages that they edit.

        :param known: the positions of the events with these ids.
        """
        found = cls()
        for position in known:
            for row in query_all(cursor, _AT, (position,)):
                use = found._add_row(row)
                if use.delivered:
                    values = (use.conversation_id, use.sequence, PUT_BACK_PATH, str(UUID(int=use.first)))
                    for newer in query_all(cursor, _NEWEST_PUT_BACK, values):
                        found.newest[use.first] = int.from_bytes(newer[0])
                        found._add_row(newer)
        if found.ids or len({event.event_id for event in events}) < len(events):
            rewound = {event.conversation_id for event in events if event.type == ConversationRewound.type}
            names = {use.conversation_id for use in found.ids.values()}
            for name in names | rewound:
                if name in rewound or query_one(cursor, _REWOUND, (name,)) is not None:
                    found.paths[name] = read_path(cursor, name)
        for event in events:
            if event.type == MessageEdited.type:
                edited = (event.conversation_id, _message(event))
                if query_one(cursor, _ERASED, edited) is not None:
                    found.erased.add(edited)
        return found

    def _add_row(self, row: Sequence[Any]) -> IdUse:
        event_id, conversation_id, sequence, digest, salt, metadata, delivered = row
        used = int.from_bytes(event_id)
        use = self.ids[used] = IdUse(conversation_id, sequence, digest, salt, _first(used, metadata), bool(delivered))
        return use

    def reason(self, event: EncodedEvent, use: IdUse) -> Reuse | None:
        """Return why an event may not be appended under an id in use; ``None`` if it has the same content."""
        if use.conversation_id != event.conversation_id:
            return Reuse.OTHER_CONTENT
        return self.other_content(event, use)

    @staticmethod
    def other_content(event: EncodedEvent, known: IdUse | EncodedEvent) -> Reuse | None:
        """Return why an event is not the one that is known under its id; ``None`` if it has the same content."""
        if known.salt is None:
            return Reuse.ERASED
        return None if event.has_content_of(known.digest, known.salt) else Reuse.OTHER_CONTENT

    def check_edits(self, events: Iterable[EncodedEvent]) -> None:
        """Refuse edits of erased messages, which would never be read.

        :raises InvalidInput: ``events`` contain one.
        """
        for event in events:
            if event.type == MessageRedacted.type:
                self.erased.add((event.conversation_id, _message(event)))
            elif event.type == MessageEdited.type and (event.conversation_id, _message(event)) in self.erased:
                raise InvalidInput("message_id", "the message's content was erased for good: it cannot be edited")

    def add(self, event: EncodedEvent, sequence: int) -> None:
        """Record an event that is being appended."""
        used = event.event_id.int
        use = self.ids[used] = IdUse(
            event.conversation_id, sequence, event.digest, event.salt, _first(used, event.metadata)
        )
        if use.first != used:
            self.newest[use.first] = used


def _first(event_id: int, metadata: str | None) -> int:
    return UUID(decode(metadata)[PUT_BACK_KEY]).int if puts_back(metadata) else event_id


def _message(event: EncodedEvent) -> str:
    return str(decode(event.data).get("message_id"))

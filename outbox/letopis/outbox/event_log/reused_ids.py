"""Tell which events of an append are new, and refuse an id that is in use for other content."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

from letopis.outbox.event_log.append_encoding import Prepared
from letopis.outbox.event_log.statements import query_all, query_one
from letopis.store.errors import ConversationGone, IdReused, InvalidInput, Reuse
from letopis.store.model.codec import EncodedEvent, decode
from letopis.store.model.event_types import MessageEdited, MessageRedacted
from letopis.store.rules.preconditions import with_one_leader

_KNOWN: Final = (
    "SELECT e.event_id, l.conversation_id, e.sequence, e.digest, e.salt"
    " FROM letopis_outbox_events AS e JOIN letopis_outbox_lanes AS l ON l.lane = e.lane WHERE e.position = ?"
)
# A message is erased by its redaction or, in a conversation that was reset, with all others.
_ERASED: Final = (
    "SELECT 1 FROM letopis_outbox_log WHERE conversation_id = ?"
    " AND (type = 'message.redacted' OR (type = 'message.appended' AND redacted = 1))"
    " AND iif(json_valid(data), json_extract(data, '$.message_id'), NULL) = ? LIMIT 1"
)


class IdUse(NamedTuple):
    """Where an event id is in use."""

    conversation_id: str
    sequence: int
    digest: bytes
    salt: bytes | None  # ``None`` where the content was erased


@dataclass(slots=True)
class UsedIds:
    """The event ids in use among those about to be appended, and those that the appends add."""

    ids: dict[int, IdUse] = field(default_factory=dict)  # by event id, as an integer
    erased: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def read(cls, cursor: Any, known: Iterable[int], events: Collection[EncodedEvent]) -> Self:
        """Read what is in the file under the ids of ``events``, and of the messages that they edit."""
        used = cls()
        for position in known:
            for event_id, *use in query_all(cursor, _KNOWN, (position,)):
                used.ids[int.from_bytes(event_id)] = IdUse(*use)
        for event in events:
            if event.type == MessageEdited.type:
                edited = (event.conversation_id, _message(event))
                if query_one(cursor, _ERASED, edited) is not None:
                    used.erased.add(edited)
        return used

    def check_edits(self, events: Iterable[EncodedEvent]) -> None:
        """Refuse edits of erased messages, which would never be read."""
        for event in events:
            if event.type == MessageRedacted.type:
                self.erased.add((event.conversation_id, _message(event)))
            elif event.type == MessageEdited.type and (event.conversation_id, _message(event)) in self.erased:
                raise InvalidInput("message_id", "the message's content was erased for good: it cannot be edited")

    def add(self, event: EncodedEvent, sequence: int) -> None:
        self.ids[event.event_id.int] = IdUse(event.conversation_id, sequence, event.digest, event.salt)

    def sort(self, prepared: Prepared, *, deleted: bool) -> tuple[list[EncodedEvent], list[UUID]]:
        """Return the new events of an append, and one id for each event: under which it is there, or will be."""
        events = prepared.events
        new: dict[int, EncodedEvent] = {}
        ids: list[UUID] = []
        for event, message_id in zip(events, prepared.message_ids, strict=True):
            event_id, use = self._known(event, prepared)
            known = new.get(event_id.int) if use is None else use
            reuse = None if known is None else _other_content(event, known)
            if reuse is Reuse.ERASED and deleted:
                raise ConversationGone(conversation_id=prepared.conversation_id)
            if reuse is not None:
                raise IdReused(
                    conversation_id=prepared.conversation_id, event_id=event_id, message_id=message_id, reuse=reuse
                )
            if known is None:
                new[event_id.int] = event
            ids.append(event_id)
        fresh = list(new.values())
        if prepared.expects is not None and fresh and fresh[0] is not events[0]:
            fresh = with_one_leader(fresh)  # the event that was to decide for all is there already
        return fresh, ids

    def _known(self, event: EncodedEvent, prepared: Prepared) -> tuple[UUID, IdUse | None]:
        """Return the id of an event and where it is in use; a message that was read may have another id."""
        use = self.ids.get(event.event_id.int)
        if use is None and (alias := prepared.aliases.get(event.event_id)) is not None:
            other = self.ids.get(alias.int)
            # A fork may be given messages of its parent: they are its own there.
            if other is not None and other.conversation_id == event.conversation_id:
                return alias, other
        return event.event_id, use


def _other_content(event: EncodedEvent, known: IdUse | EncodedEvent) -> Reuse | None:
    """Return why an event is not the one that is known under its id; ``None`` if it has the same content."""
    if event.conversation_id != known.conversation_id:
        return Reuse.OTHER_CONTENT
    if known.salt is None:
        return Reuse.ERASED
    return None if event.has_content_of(known.digest, known.salt) else Reuse.OTHER_CONTENT


def _message(event: EncodedEvent) -> str:
    return str(decode(event.data).get("message_id"))

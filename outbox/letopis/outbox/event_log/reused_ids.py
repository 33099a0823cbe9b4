"""Decide whether an event id in use may be appended again: only with the same content, and while it is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

from letopis.outbox.event_log.statements import query_all, query_one
from letopis.store.errors import InvalidInput, Reuse
from letopis.store.model.codec import EncodedEvent, decode
from letopis.store.model.event_types import ConversationRewound, MessageAppended, MessageEdited, MessageRedacted

_KNOWN: Final = (
    "SELECT event_id, conversation_id, sequence, iif(redacted, NULL, digest) FROM letopis_outbox_log WHERE position = ?"
)
_REWOUND: Final = "SELECT 1 FROM letopis_outbox_log WHERE conversation_id = ? AND type = 'conversation.rewound' LIMIT 1"
# Superseded events are on no path, and take nothing off it.
_STEPS: Final = (
    "SELECT sequence,"
    " iif(type = 'message.appended', iif(json_valid(data), json_extract(data, '$.message_id'), ''), NULL),"
    " iif(json_valid(data), json_extract(data, '$.to_message_id'), NULL) FROM letopis_outbox_log AS e"
    " WHERE conversation_id = ? AND type IN ('message.appended', 'conversation.rewound')"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_superseded AS s"
    " WHERE s.conversation_id = e.conversation_id AND s.sequence = e.sequence) ORDER BY sequence"
)
# A message is erased by its redaction or, in a conversation that was reset, with all others.
_ERASED: Final = (
    "SELECT 1 FROM letopis_outbox_log WHERE conversation_id = ?"
    " AND (type = 'message.redacted' OR (type = 'message.appended' AND redacted = 1))"
    " AND iif(json_valid(data), json_extract(data, '$.message_id'), NULL) = ? LIMIT 1"
)


class PathStep(NamedTuple):
    """An event that puts a message on the path, or takes messages off it.

    :ivar message_id: the appended message; ``None`` for a rewind.
    :ivar target: the last message that stays after a rewind.
    """

    sequence: int
    message_id: str | None
    target: str | None = None


class IdUse(NamedTuple):
    """Where an event id is in use.

    :ivar digest: ``None`` where the content was erased.
    """

    conversation_id: str
    sequence: int
    digest: bytes | None


@dataclass(slots=True)
class UsedIds:
    """The event ids in use among those about to be appended, and those that the appends add.

    :ivar ids: by event id, as an integer.
    :ivar steps: the path of each conversation in which a known message may have left it.
    :ivar erased: conversation and id of each message that is about to be edited and whose content was erased.
    """

    ids: dict[int, IdUse] = field(default_factory=dict)
    steps: dict[str, list[PathStep]] = field(default_factory=dict)
    erased: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def read(cls, cursor: Any, known: Iterable[int], events: Collection[EncodedEvent]) -> Self:
        """Read what is in the file under the ids of ``events``, and of the messages that they edit.

        :param known: the positions of the events with these ids.
        """
        found = cls()
        for position in known:
            for event_id, conversation_id, sequence, digest in query_all(cursor, _KNOWN, (position,)):
                found.ids[int.from_bytes(event_id)] = IdUse(conversation_id, sequence, digest)
        if found.ids:
            rewound = {event.conversation_id for event in events if event.type == ConversationRewound.type}
            for name in {use.conversation_id for use in found.ids.values()}:
                if name in rewound or query_one(cursor, _REWOUND, (name,)) is not None:
                    found.steps[name] = [PathStep(*row) for row in query_all(cursor, _STEPS, (name,))]
        for event in events:
            if event.type == MessageEdited.type:
                edited = (event.conversation_id, _message(event))
                if query_one(cursor, _ERASED, edited) is not None:
                    found.erased.add(edited)
        return found

    def reason(self, event: EncodedEvent, use: IdUse) -> Reuse | None:
        """Return why an event may not be appended under an id in use; ``None`` if it is the same event, and read."""
        if use.conversation_id != event.conversation_id:
            return Reuse.OTHER_CONTENT
        if use.digest is None:
            return Reuse.ERASED
        if use.digest != event.digest:
            return Reuse.OTHER_CONTENT
        steps = self.steps.get(use.conversation_id)
        if event.type == MessageAppended.type and steps and left_path(steps, use.sequence):
            return Reuse.OFF_PATH
        return None

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
        self.ids[event.event_id.int] = IdUse(event.conversation_id, sequence, event.digest)
        steps = self.steps.get(event.conversation_id)
        if steps is not None:
            if event.type == MessageAppended.type:
                steps.append(PathStep(sequence, _message(event)))
            elif event.type == ConversationRewound.type:
                steps.append(PathStep(sequence, None, decode(event.data).get("to_message_id")))


def left_path(steps: Iterable[PathStep], sequence: int) -> bool:
    """Return True if the message that was appended at ``sequence`` has left the path since.

    A rewind to a message that the outbox does not hold takes all of these off the path: that message was pruned, or a
    fork inherits it. (If it is another outbox's, the result may be True for a message that is still read.)

    :param steps: the conversation's, in order, as far as the outbox holds them.
    """
    path: list[PathStep] = []
    known: set[str | None] = set()
    found = False
    for step in steps:
        found = found or step.sequence == sequence
        if step.message_id is not None:
            path.append(step)
            known.add(step.message_id)
        elif step.target not in known:
            path.clear()
        else:
            stays = [index for index, one in enumerate(path) if one.message_id == step.target]
            if stays:  # otherwise the target is off the path itself, and the rewind does nothing
                del path[stays[-1] + 1 :]
    return found and all(step.sequence != sequence for step in path)


def _message(event: EncodedEvent) -> str:
    return str(decode(event.data).get("message_id"))

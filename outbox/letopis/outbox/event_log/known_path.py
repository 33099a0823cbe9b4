"""Follow the path of a conversation as far as the outbox file holds its events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from letopis.outbox.event_log.statements import query_all
from letopis.store.model.codec import EncodedEvent, decode
from letopis.store.model.event_types import ConversationRewound, MessageAppended
from letopis.store.model.identifiers import uuid_of
from letopis.store.rules.decoding import PUT_BACK_KEY

# Superseded events are on no path, and take nothing off it.
_STEPS: Final = (
    "SELECT iif(type = 'message.appended', iif(json_valid(data), json_extract(data, '$.message_id'), ''), NULL),"
    " event_id, iif(json_valid(metadata), json_extract(metadata, ?), NULL),"
    " iif(json_valid(data), json_extract(data, '$.to_message_id'), NULL),"
    " iif(json_valid(data), json_extract(data, '$.erase'), NULL),"
    " sequence > (SELECT delivered FROM letopis_outbox_lanes AS l WHERE l.lane = e.lane) FROM letopis_outbox_log AS e"
    " WHERE conversation_id = ? AND type IN ('message.appended', 'conversation.rewound')"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_superseded AS s"
    " WHERE s.conversation_id = e.conversation_id AND s.sequence = e.sequence) ORDER BY sequence"
)
PUT_BACK_PATH: Final = f'$."{PUT_BACK_KEY}"'
"""Where the metadata of an event that puts a message back names the event that appended it first."""
_DERIVED: Final = 5  # the version of the ids that are derived from a message's id, so that every outbox has the same


class PathStep(NamedTuple):
    """An event that puts a message on the path, or takes messages off it."""

    message_id: str | None
    first: int = 0  # the event that appended the message first, as an integer
    target: str | None = None  # the last message that stays after a rewind
    erase: bool = False  # a reset, which erases all that came before it
    doubtful: bool = False  # it is pending, and another outbox may have changed the path, or appended the message


class KnownPath:
    """The messages on the path of a conversation, among those whose events the outbox holds.

    A rewind to a message that the outbox does not hold takes all of these off the path: that message was pruned, or a
    fork inherits it. (If it is another outbox's, :meth:`left` may be True for a message that is still read.)
    """

    __slots__ = ("_doubtful", "_erased", "_known", "_messages", "_on_path", "_path", "_unless", "_unsure")

    def __init__(self, steps: Iterable[PathStep] = ()) -> None:
        self._path: list[PathStep] = []
        self._on_path: set[int] = set()
        self._known: set[int] = set()
        self._erased: set[int] = set()
        self._messages: set[str] = set()
        self._doubtful: set[str] = set()
        self._unless: dict[int, frozenset[str]] = {}
        # Off the path, unless they came before the target of a rewind that is not here: putting one back moves nothing.
        self._unsure: set[str] = set()
        for step in steps:
            self.add(step)

    def add(self, step: PathStep) -> None:
        if step.message_id is not None:
            self._known.add(step.first)
            self._messages.add(step.message_id)
            if step.doubtful:
                self._doubtful.add(step.message_id)
            if step.first not in self._on_path:
                self._path.append(step)
                self._on_path.add(step.first)
                self._unless.pop(step.first, None)
        elif step.target not in self._messages:
            if step.erase:
                self._erased |= self._known
            # A rewind to nothing certainly takes them off.
            off = {earlier.message_id for earlier in self._path if earlier.message_id is not None}
            self._unsure = set() if step.target is None else self._unsure | off
            self._path.clear()
            self._on_path.clear()
        else:
            stays = next((i for i in range(len(self._path), 0, -1) if self._path[i - 1].message_id == step.target), 0)
            if stays:  # otherwise the target is off the path itself, and the rewind does nothing
                self._on_path.difference_update(step.first for step in self._path[stays:])
                del self._path[stays:]
            # The store may have it in another position, or still on the path; then it took off what it did not here.
            perhaps = self._path[: stays - 1] if step.target in self._doubtful else []
            if step.doubtful and not stays and step.target in self._unsure:
                perhaps = self._path
            for earlier in perhaps:
                self._unless[earlier.first] = self.stays_unless(earlier.first) | {str(step.target)}

    def add_event(self, event: EncodedEvent, first: int) -> None:
        """Take the step of an event, if it is one."""
        if event.type == MessageAppended.type:
            self.add(PathStep(str(decode(event.data).get("message_id")), first))
        elif event.type == ConversationRewound.type:
            data = decode(event.data)
            self.add(PathStep(None, 0, data.get("to_message_id"), data.get("erase") is True, doubtful=True))

    def left(self, first: int) -> bool:
        """Return True if the message that an event appended first has left the path, and was not put back."""
        return first in self._known and first not in self._on_path

    def stays_unless(self, first: int) -> frozenset[str]:
        """Return the messages to which a rewind led, and took this one off the path if the store has one of them."""
        return self._unless.get(first, frozenset())

    def erased(self, first: int) -> bool:
        """Return True if a reset erases the content of the message on delivery."""
        return first in self._erased

    def copy(self) -> KnownPath:
        other = KnownPath()
        other._path, other._on_path = self._path.copy(), self._on_path.copy()
        other._known, other._messages = self._known.copy(), self._messages.copy()
        other._erased = self._erased.copy()
        other._doubtful, other._unless = self._doubtful.copy(), self._unless.copy()
        other._unsure = self._unsure.copy()
        return other


def read_path(cursor: Any, conversation_id: str) -> KnownPath:
    rows = query_all(cursor, _STEPS, (PUT_BACK_PATH, conversation_id))
    return KnownPath(PathStep(row[0], _first(row[1], row[2]), row[3], row[4] == 1, _doubtful(row)) for row in rows)


def _doubtful(row: Sequence[Any]) -> bool:
    return bool(row[5]) and (row[0] is None or uuid_of(row[1]).version == _DERIVED)


def _first(event_id: bytes, named: object) -> int:
    return UUID(named).int if isinstance(named, str) else int.from_bytes(event_id)

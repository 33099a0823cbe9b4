"""What an erasure removes: one value, made by whoever asks and carried out by one function on each side."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from letopis.store.model.codec import INTEGER_MAX
from letopis.store.model.event_types import STATE_EVENTS, ConversationDeleted
from letopis.store.rules.redaction import MESSAGE_CONTENT_TYPES


class Cause(StrEnum):
    """Why words are erased. It is kept with long work, logged, and decides what of the state stays."""

    REDACTION = "redaction"
    RESET = "reset"
    DELETION = "deletion"
    TRIM = "trim"
    OWNER = "owner"
    PERSON = "person"
    CONVERSATION = "conversation"
    RELEASE = "release"
    RECORDS = "records"


_KEEP_STATE: Final = frozenset({Cause.TRIM})
"""Causes that leave the events which make the state of a conversation: its title, owner, tags and metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasurePlan:
    """What leaves one lane: a range of its events, or some messages of it.

    Places are versions in the history store and sequences in an outbox. Carrying a plan out is idempotent.

    :ivar lane: the conversation, or the lane of records.
    :ivar after: the place after which events are erased.
    :ivar upto: the last place whose event is erased.
    :ivar message_ids: erase these messages alone, wherever they are in the range; ``None`` for everything.
    :ivar beyond: the last place up to which later changes of the erased messages go with them; 0 for none.
    :ivar at: in the store, the place of the event that asks for it; 0 where what is erased is hidden already.
    :ivar retained: in the store, the last place whose event keeps its content, because forks read it.
    """

    lane: str
    cause: Cause
    after: int = 0
    upto: int = INTEGER_MAX
    message_ids: frozenset[str] | None = None
    beyond: int = 0
    at: int = 0
    retained: int = 0

    @property
    def keeps_state(self) -> bool:
        """Whether the events that make the state of the conversation stay."""
        return self.cause in _KEEP_STATE

    def covers(self, place: int, type_name: str, message_id: str | None = None) -> bool:
        """Return True if the plan removes the content of an event."""
        if not max(self.after, self.retained) < place <= self.upto or type_name == ConversationDeleted.type:
            return False  # a deletion keeps its reason
        if self.message_ids is not None:
            return type_name in MESSAGE_CONTENT_TYPES and message_id in self.message_ids
        return not (self.keeps_state and type_name.startswith(STATE_EVENTS))

"""Decide which words a reader sees: one rule, of the word and of the conversation that it is read in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from letopis.store.model.codec import RESERVED
from letopis.store.model.conversations import Conversation, Page, RecordedMessage
from letopis.store.model.event_types import STATE_EVENTS, ConversationDeleted, MessageAppended
from letopis.store.model.events import RecordedEvent
from letopis.store.rules.fold import redacted
from letopis.store.rules.redaction import MESSAGE_CONTENT_TYPES, stripped


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is gone for those who read a conversation, whether or not a fork has its words retained.

    A fork that reads its parent has the sight of the fork: the parent's erasures hide nothing of what it retains.

    :ivar reset_to: the version up to which a reset or the deletion erased everything.
    :ivar trimmed: the version up to which retention took the content; the state of the conversation stays.
    :ivar redacted: messages that were redacted, by events that the history store may not have yet.
    """

    conversation_id: str
    reset_to: int = 0
    trimmed: int = 0
    redacted: frozenset[str] = frozenset()

    @classmethod
    def of(cls, conversation: Conversation, redacted: frozenset[str] = frozenset()) -> Self:
        """Return the sight of those who read a conversation as it stands."""
        reset_to, trimmed = conversation.reset_to, conversation.trimmed
        return cls(conversation_id=conversation.conversation_id, reset_to=reset_to, trimmed=trimmed, redacted=redacted)

    def hides(self, version: int | None, type_name: str) -> bool:
        """Return True if the content of an event of the conversation is gone; one that is pending is not."""
        if version is None or type_name == ConversationDeleted.type:
            return False  # a deletion keeps its reason
        return version <= self.reset_to or (version <= self.trimmed and not type_name.startswith(STATE_EVENTS))

    def event(self, event: RecordedEvent) -> RecordedEvent:
        """Return an event of the conversation as it is seen."""
        named = event.type in MESSAGE_CONTENT_TYPES and event.data.get("message_id") in self.redacted
        return without_content(event) if named or self.hides(event.version, event.type) else event

    def message(self, message: RecordedMessage) -> RecordedMessage:
        """Return a message of the conversation, as it was or is, or one that it inherits, as it is seen."""
        own = message.conversation_id == self.conversation_id
        hidden = self.hides(message.version, MessageAppended.type) if own else self.reset_to or self.trimmed
        if hidden:
            return without_words(message)
        return redacted(message) if own and message.id in self.redacted else message

    def page(self, page: Page[RecordedMessage]) -> Page[RecordedMessage]:
        """Return a page of messages of the conversation as it is seen."""
        if not (self.reset_to or self.trimmed or self.redacted):
            return page
        return replace(page, items=tuple(map(self.message, page)))

    def conversation(self, past: Conversation, *, pending: bool = False) -> Conversation:
        """Return a past state, made of events as they are seen; ``pending``: before some that erase."""
        if pending and past.reset_to < self.reset_to:
            return replace(past, title=None, metadata={}, tags=())
        return replace(past, title=past.title or None) if self.reset_to else past


def without_words(message: RecordedMessage) -> RecordedMessage:
    """Return a message without its content and its reactions."""
    return replace(redacted(message), reactions=())


def without_content(event: RecordedEvent) -> RecordedEvent:
    """Return an event without its content, which may still be in its row."""
    if event.type == ConversationDeleted.type or event.digest is None:
        return event
    ours = {key: value for key, value in event.metadata.items() if key.startswith(RESERVED)}
    return replace(event, data=stripped(event.type, event.data), metadata=ours, digest=None)

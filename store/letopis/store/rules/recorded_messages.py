"""Make recorded messages from events, and change them by events, without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from letopis.store.model.conversations import Delivery, Reaction, RecordedMessage, Saved
from letopis.store.model.event_types import (
    MessageAppended,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
)
from letopis.store.model.events import RecordedEvent
from letopis.store.model.messages import Message, empty
from letopis.store.rules.redaction import stripped
from letopis.store.rules.reducer import MessageChange

MAX_REACTION_CHARACTERS: Final = 1_048_576
"""Characters of all reactions to a message: they share one row, and MariaDB bounds a statement. More are ignored."""
_CHARACTERS_OF_A_NUMBER: Final = 24


def recorded_message(body: MessageAppended, event: RecordedEvent, *, saved: Saved = Saved.SAVED) -> RecordedMessage:
    """Return the message as the event that appended it records it."""
    return RecordedMessage(
        conversation_id=event.conversation_id,
        message=body.message,
        event_id=event.event_id,
        origin_id=event.origin_id,
        sequence=event.sequence,
        occurred_at=event.occurred_at,
        version=event.version,
        recorded_at=event.recorded_at,
        saved=saved,
        redacted=event.digest is None,
    )


def with_change(message: RecordedMessage, body: MessageChange, *, saved: Saved = Saved.SAVED) -> RecordedMessage:
    """Return ``message`` after an event that changes it; ``saved`` says how far the event has got."""
    match body:
        case MessageEdited():
            return replace(replace_content(message, body), saved=_least_saved(message.saved, saved))
        case MessageSent() | MessageFailed():
            return with_delivery(message, body, redacted=message.redacted)
        case MessageRedacted():
            return redacted(message) if message.on_path else replace(redacted(message), reactions=())
        case ReactionAdded() | ReactionRemoved():
            return replace(message, reactions=reacted(message.reactions, body))


def replace_content(message: RecordedMessage, edit: MessageEdited) -> RecordedMessage:
    """Return ``message`` with the content of ``edit``."""
    return replace(message, message=replace(message.message, content=edit.content), edited=True)


def with_delivery(
    message: RecordedMessage, body: MessageSent | MessageFailed, *, redacted: bool = False
) -> RecordedMessage:
    """Return ``message`` with what the platform did with it."""
    whole = stripped(body.type, body.to_data()) if redacted else body.to_data()
    data = {key: value for key, value in whole.items() if key != "message_id"}
    delivery = Delivery.SENT if isinstance(body, MessageSent) else Delivery.FAILED
    return replace(message, delivery=delivery, delivery_data=data or empty())


def redacted(message: RecordedMessage) -> RecordedMessage:
    """Return ``message`` without its content."""
    left = Message.from_data(stripped(MessageAppended.type, message.message.to_data()))
    kind = MessageSent.type if message.delivery is Delivery.SENT else MessageFailed.type
    return replace(
        message,
        message=left,
        redacted=True,
        edited=False,
        delivery_data=stripped(kind, message.delivery_data) or empty(),
    )


def reacted(reactions: Sequence[Reaction], body: ReactionAdded | ReactionRemoved) -> tuple[Reaction, ...]:
    """Return the reactions of a message after one more was given or taken back."""
    same = (body.key, body.actor)
    if isinstance(body, ReactionRemoved):
        return tuple(one for one in reactions if (one.key, one.actor) != same)
    given = Reaction(key=body.key, actor=body.actor, value=body.value)
    after = tuple(given if (one.key, one.actor) == same else one for one in reactions)
    if given not in after:
        after = (*after, given)
    return after if sum(map(_length, after)) <= MAX_REACTION_CHARACTERS else tuple(reactions)


def _length(reaction: Reaction) -> int:
    value = reaction.value
    characters = len(value) if isinstance(value, str) else _CHARACTERS_OF_A_NUMBER
    return len(reaction.key) + len(reaction.actor or "") + characters


def _least_saved(one: Saved, other: Saved) -> Saved:
    order = (Saved.SAVED, Saved.PENDING, Saved.BLOCKED)
    return max(one, other, key=order.index)

"""Fold: events in, a conversation and its messages out; pure, so projections, overlay and time travel share it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from letopis.store.conversation import Conversation, Delivery, RecordedMessage, Saved
from letopis.store.events import RecordedEvent
from letopis.store.messages import empty
from letopis.store.upcasters import NO_UPCASTERS, Upcasters
from letopis.store.vocabulary import (
    ConversationRenamed,
    ConversationStarted,
    MessageAppended,
    MessageEdited,
    MessageFailed,
    MessageSent,
)


@dataclass(frozen=True, slots=True)
class Folded:
    """What a run of events comes to."""

    conversation: Conversation | None
    messages: tuple[RecordedMessage, ...]


class Fold:
    """A running fold of one conversation: start from nothing or from what was read, then :meth:`apply` what follows.

    Events that this version gives no meaning to move ``version`` and ``updated_at`` and change nothing else.
    """

    __slots__ = ("_conversation", "_messages", "_places", "_upcasters")

    def __init__(
        self,
        conversation: Conversation | None = None,
        messages: Iterable[RecordedMessage] = (),
        *,
        upcasters: Upcasters = NO_UPCASTERS,
    ) -> None:
        self._conversation = conversation
        self._messages = list(messages)
        self._places: dict[str, list[int]] = {}
        for place, message in enumerate(self._messages):
            self._places.setdefault(message.id, []).append(place)
        self._upcasters = upcasters

    def apply(self, event: RecordedEvent, *, saved: Saved = Saved.SAVED) -> None:
        """Take in the next event; ``saved`` says how far it has got."""
        body = event.body(self._upcasters)
        before = self._conversation or Conversation(
            conversation_id=event.conversation_id, created_at=event.occurred_at, updated_at=event.occurred_at
        )
        after = replace(
            before,
            version=before.version if event.version is None else event.version,
            pending=before.pending + (event.version is None),
            # Clocks step back; the list of conversations must not.
            updated_at=max(before.updated_at, event.occurred_at),
        )
        match body:
            case ConversationStarted():
                after = replace(
                    after,
                    owner_id=after.owner_id if after.owner_id is not None else body.owner_id,
                    title=after.title if after.title is not None else body.title,
                )
            case ConversationRenamed():
                after = replace(after, title=body.title)
            case MessageAppended():
                self._append(body, event, saved)
                after = replace(
                    after, message_count=after.message_count + 1, tokens=after.tokens + (body.message.tokens or 0)
                )
            case MessageEdited():
                for place in self._places.get(body.message_id, ()):
                    old = self._messages[place]
                    message = replace_content(old, body)
                    self._messages[place] = replace(message, saved=_weaker(old.saved, saved))
            case MessageSent() | MessageFailed():
                for place in self._places.get(body.message_id, ()):
                    self._messages[place] = with_delivery(self._messages[place], body)
            case _:
                pass  # carried and shown in the log; no state of the conversation hangs on it
        self._conversation = after

    def _append(self, body: MessageAppended, event: RecordedEvent, saved: Saved) -> None:
        self._places.setdefault(body.message.id, []).append(len(self._messages))
        self._messages.append(recorded_message(body, event, saved=saved))

    def result(self) -> Folded:
        """Return the conversation (``None`` before the first event) and its messages, in order."""
        return Folded(self._conversation, tuple(self._messages))


def fold(events: Iterable[RecordedEvent], *, upcasters: Upcasters = NO_UPCASTERS) -> Folded:
    """Return what the events of one conversation come to, taken in the order given."""
    running = Fold(upcasters=upcasters)
    for event in events:
        running.apply(event)
    return running.result()


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
    )


def replace_content(message: RecordedMessage, edit: MessageEdited) -> RecordedMessage:
    """Return ``message`` with the content of ``edit``."""
    return replace(message, message=replace(message.message, content=edit.content), edited=True)


def with_delivery(message: RecordedMessage, body: MessageSent | MessageFailed) -> RecordedMessage:
    """Return ``message`` with what the platform did with it."""
    data = {key: value for key, value in body.to_data().items() if key != "message_id"}
    delivery = Delivery.SENT if isinstance(body, MessageSent) else Delivery.FAILED
    return replace(message, delivery=delivery, delivery_data=data or empty())


def _weaker(one: Saved, other: Saved) -> Saved:
    order = (Saved.SAVED, Saved.PENDING, Saved.BLOCKED)
    return max(one, other, key=order.index)

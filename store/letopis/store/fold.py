"""Fold: events in, a conversation and its messages out; pure, so projections, overlay and time travel share it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Generic, TypeVar

from letopis.store.conversation import Conversation, Delivery, RecordedMessage, Saved
from letopis.store.events import RecordedEvent
from letopis.store.messages import empty
from letopis.store.upcasters import NO_UPCASTERS, Upcasters
from letopis.store.vocabulary import (
    Body,
    ConversationRenamed,
    ConversationStarted,
    MessageAppended,
    MessageEdited,
    MessageFailed,
    MessageSent,
)

Moment = TypeVar("Moment", datetime, int)

TOKENS_MAX: Final = 2**63 - 1
"""Where the sum of tokens stops: the largest number that all three stores hold."""


@dataclass(slots=True, kw_only=True)
class Tally(Generic[Moment]):
    """One conversation while events are taken in: all of it but the messages themselves.

    Mutable, because it takes in thousands of events a second and nobody sees it in between. Moments are datetimes in a
    fold and microseconds in the history store, which keeps its row of the conversation by this same rule.
    """

    owner_id: str | None = None
    title: str | None = None
    state: str = "active"
    version: int = 0
    message_count: int = 0
    tokens: int = 0
    created_at: Moment
    updated_at: Moment

    def take(self, body: Body, *, version: int | None, occurred_at: Moment) -> None:
        """Take in the next event; ``version`` is ``None`` while it is pending."""
        if version is not None:
            self.version = version
        # Clocks step back; the list of conversations must not.
        self.updated_at = max(self.updated_at, occurred_at)
        match body:
            case MessageAppended():
                self.message_count += 1
                self.tokens = min(self.tokens + (body.message.tokens or 0), TOKENS_MAX)
            case ConversationStarted():
                if self.owner_id is None:
                    self.owner_id = body.owner_id
                if self.title is None:
                    self.title = body.title
            case ConversationRenamed():
                self.title = body.title
            case _:
                pass  # carried and shown in the log; no state of the conversation hangs on it


@dataclass(frozen=True, slots=True)
class Folded:
    """What a run of events comes to."""

    conversation: Conversation | None
    messages: tuple[RecordedMessage, ...]


class Fold:
    """A running fold of one conversation: start from nothing or from what was read, then :meth:`apply` what follows.

    Events that this version gives no meaning to move ``version`` and ``updated_at`` and change nothing else.
    """

    __slots__ = ("_conversation", "_messages", "_pending", "_places", "_tally", "_upcasters")

    def __init__(
        self,
        conversation: Conversation | None = None,
        messages: Iterable[RecordedMessage] = (),
        *,
        upcasters: Upcasters = NO_UPCASTERS,
    ) -> None:
        self._conversation = conversation
        self._tally: Tally[datetime] | None = None
        self._pending = 0
        self._messages = list(messages)
        self._places: dict[str, list[int]] = {}
        for place, message in enumerate(self._messages):
            self._places.setdefault(message.id, []).append(place)
        self._upcasters = upcasters

    def apply(self, event: RecordedEvent, *, saved: Saved = Saved.SAVED) -> None:
        """Take in the next event; ``saved`` says how far it has got."""
        body = event.body(self._upcasters)
        if self._tally is None:
            self._tally = self._begin(event)
        self._tally.take(body, version=event.version, occurred_at=event.occurred_at)
        self._pending += event.version is None
        match body:
            case MessageAppended():
                self._append(body, event, saved)
            case MessageEdited():
                for place in self._places.get(body.message_id, ()):
                    old = self._messages[place]
                    message = replace_content(old, body)
                    self._messages[place] = replace(message, saved=_weaker(old.saved, saved))
            case MessageSent() | MessageFailed():
                for place in self._places.get(body.message_id, ()):
                    self._messages[place] = with_delivery(self._messages[place], body)
            case _:
                pass  # no message hangs on it

    def _begin(self, event: RecordedEvent) -> Tally[datetime]:
        before = self._conversation
        if before is None:
            before = self._conversation = Conversation(
                conversation_id=event.conversation_id, created_at=event.occurred_at, updated_at=event.occurred_at
            )
        return Tally(
            owner_id=before.owner_id,
            title=before.title,
            state=before.state,
            version=before.version,
            message_count=before.message_count,
            tokens=before.tokens,
            created_at=before.created_at,
            updated_at=before.updated_at,
        )

    def _append(self, body: MessageAppended, event: RecordedEvent, saved: Saved) -> None:
        self._places.setdefault(body.message.id, []).append(len(self._messages))
        self._messages.append(recorded_message(body, event, saved=saved))

    def result(self) -> Folded:
        """Return the conversation (``None`` before the first event) and its messages, in order."""
        conversation, tally = self._conversation, self._tally
        if conversation is not None and tally is not None:
            conversation = replace(
                conversation,
                owner_id=tally.owner_id,
                title=tally.title,
                state=tally.state,
                version=tally.version,
                message_count=tally.message_count,
                tokens=tally.tokens,
                updated_at=tally.updated_at,
                pending=conversation.pending + self._pending,
            )
        return Folded(conversation, tuple(self._messages))


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

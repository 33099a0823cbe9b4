"""Fold events into a conversation and its messages, and change recorded messages by events, without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from letopis.store.model.conversations import Conversation, Delivery, Reaction, RecordedMessage, Saved
from letopis.store.model.event_types import (
    MessageAppended,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
)
from letopis.store.model.events import NO_UPCASTERS, RecordedEvent, Upcasters
from letopis.store.model.messages import Message, empty
from letopis.store.rules.preconditions import SUPERSEDED_KEY
from letopis.store.rules.redaction import ARRIVED_ERASED_KEY, stripped
from letopis.store.rules.reducer import (
    STATE_FIELDS,
    ConversationState,
    MessageChange,
    MessageSink,
    reduce_event,
    takes_effect,
)

_NO_MESSAGES: Final = MessageSink()


@dataclass(frozen=True, slots=True)
class Folded:
    """The result of a fold."""

    conversation: Conversation | None  # None before the first event
    messages: tuple[RecordedMessage, ...]  # in order, on and off the path; none of a deleted conversation

    @property
    def path(self) -> tuple[RecordedMessage, ...]:
        return tuple([message for message in self.messages if message.on_path])


@dataclass(frozen=True, slots=True, kw_only=True)
class PathPosition:
    """A message that a fold does not hold, to which a rewind may lead."""

    version: int
    on_path: bool
    count: int  # messages on the path up to and including it


class Fold:
    """A fold in progress: start from nothing or from what was read, then :meth:`apply` the events that follow."""

    # ``messages`` may be a part of those that exist; ``elsewhere`` has the positions of others, by id. ``beyond`` tells
    # how many stored ones a reset with a bound leaves on the path.
    __slots__ = ("_conversation", "_messages", "_pending", "_state", "_upcasters")

    def __init__(
        self,
        conversation: Conversation | None = None,
        messages: Iterable[RecordedMessage] = (),
        *,
        elsewhere: Mapping[str, PathPosition] | None = None,
        beyond: int | None = None,
        upcasters: Upcasters = NO_UPCASTERS,
    ) -> None:
        self._conversation = conversation
        self._state: ConversationState[datetime] | None = None
        self._pending = 0
        self._messages = _Messages(messages, elsewhere or {}, beyond)
        self._upcasters = upcasters

    def apply(self, event: RecordedEvent, *, saved: Saved = Saved.SAVED, known: bool = False) -> None:
        """Apply the next event; ``saved`` says how far it has got. A ``known`` one has its effect already."""
        state = self._state
        if state is None:
            before = self._conversation
            if before is None:
                before = self._conversation = Conversation(
                    conversation_id=event.conversation_id, created_at=event.occurred_at, updated_at=event.occurred_at
                )
            state = self._state = ConversationState(**{name: getattr(before, name) for name in STATE_FIELDS})
        self._pending += event.version is None
        if known:
            return
        deleted = state.state == "deleted"
        self._messages.event, self._messages.saved = event, saved
        sink = _NO_MESSAGES if deleted else self._messages
        body, at, late = event.body(self._upcasters), event.occurred_at, deleted or SUPERSEDED_KEY in event.metadata
        arrived = ARRIVED_ERASED_KEY in event.metadata
        reduce_event(state, body, sink, version=event.version, occurred_at=at, superseded=late, arrived_erased=arrived)

    def result(self) -> Folded:
        conversation, state = self._conversation, self._state
        if conversation is not None and state is not None:
            conversation = replace(
                conversation,
                pending=conversation.pending + self._pending,
                **{name: getattr(state, name) for name in STATE_FIELDS},
            )
        return Folded(conversation, tuple(self._messages.messages))


def fold(events: Iterable[RecordedEvent], *, upcasters: Upcasters = NO_UPCASTERS) -> Folded:
    """Return the result of applying the events of one conversation in the order given."""
    # Of a fork, its own part; it inherits the fold of its parent's events up to ``forked_from``.
    running = Fold(upcasters=upcasters)
    for event in events:
        running.apply(event)
    return running.result()


class _Messages(MessageSink):
    __slots__ = (
        "_arrived",
        "_beyond",
        "_elsewhere",
        "_given",
        "_indexed",
        "_path_end",
        "_path_start",
        "event",
        "messages",
        "saved",
    )

    event: RecordedEvent  # that is being applied; ``saved`` is how far it has got
    saved: Saved

    def __init__(
        self, messages: Iterable[RecordedMessage], elsewhere: Mapping[str, PathPosition], beyond: int | None
    ) -> None:
        self.messages = list(messages)
        self._elsewhere = elsewhere
        self._beyond = beyond
        self._given, self._arrived = len(self.messages), set[int]()  # which may have, and which have arrived erased
        self._path_start = 0  # stored messages up to this version have left the path
        self._indexed: dict[str, list[int]] | None = None
        self._path_end: int | None = None  # stored messages after this version have left the path

    def append(self, body: MessageAppended, *, superseded: bool) -> None:
        message = recorded_message(body, self.event, saved=self.saved)
        if superseded:
            message.on_path, message.superseded = False, True
        if ARRIVED_ERASED_KEY in self.event.metadata:
            self._arrived.add(len(self.messages))
        if self._indexed is not None:
            self._indexed.setdefault(message.id, []).append(len(self.messages))
        self.messages.append(message)

    @property
    def _indices(self) -> dict[str, list[int]]:
        """The indices of each message, by id: made for the first event that changes a message, as most append one."""
        if self._indexed is None:
            self._indexed = {}
            for index, message in enumerate(self.messages):
                self._indexed.setdefault(message.id, []).append(index)
        return self._indexed

    def _stays(self, there: PathPosition) -> bool:
        """Return True if a stored message is on the path still."""
        before_end = self._path_end is None or there.version <= self._path_end
        return there.on_path and before_end and there.version > self._path_start

    def change(self, body: MessageChange, *, trimmed: int) -> None:
        has_content = self.event.digest is not None
        for index in self._indices.get(body.message_id, ()):
            message = self.messages[index]
            shown = message.on_path and (message.version is None or message.version > trimmed)
            if takes_effect(body, has_content=has_content, redacted=message.redacted, shown=shown):
                self.messages[index] = with_change(message, body, saved=self.saved)

    def rewind_to(self, message_id: str, count: int) -> int | None:
        indices = self._indices.get(message_id)
        if indices is None:
            return self._rewind_elsewhere(message_id, count)
        on_path = [index for index in indices if self.messages[index].on_path]
        if not on_path:
            return count
        if (version := self.messages[on_path[-1]].version) is not None:
            self._path_end = version
        return count - self._remove_from(on_path[-1] + 1)

    def _rewind_elsewhere(self, message_id: str, count: int) -> int | None:
        target = self._elsewhere.get(message_id)
        if target is None:
            return None
        if not self._stays(target):
            return count
        self._remove_from(0, after=target.version)
        self._path_end = target.version
        return target.count

    def clear_path(self) -> None:
        self._path_end = 0
        self._remove_from(0)

    def leave(self, upto: int, count: int) -> int:
        stay = 0
        for index, message in enumerate(self.messages):
            if message.on_path:
                version, arrived = message.version, index < self._given or index in self._arrived
                leaves = version is None or version <= upto or (arrived and message.redacted)
                stay += not leaves
                if leaves:
                    self.messages[index] = replace(message, on_path=False)
        self._path_start = max(self._path_start, upto)
        return stay if self._beyond is None else min(self._beyond, count)

    def erase(self, upto: int) -> None:
        for index, message in enumerate(self.messages):
            if message.version is None or message.version <= upto:
                self.messages[index] = replace(redacted(message), reactions=())

    def trim(self, after: int, upto: int) -> None:
        for index, message in enumerate(self.messages):
            if message.version is not None and after < message.version <= upto:
                self.messages[index] = replace(redacted(message), reactions=())

    def delete(self) -> None:
        self.messages.clear()
        self._indexed = None

    def _remove_from(self, start: int, *, after: int = 0) -> int:
        """Take the messages from an index on off the path, stored ones only after a version; return how many."""
        # Only stored messages have a version, and the pending ones come after them.
        removed = 0
        for index in range(start, len(self.messages)):
            message = self.messages[index]
            if message.on_path and (message.version is None or message.version > after):
                self.messages[index] = replace(message, on_path=False)
                removed += 1
        return removed


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
        return tuple(reaction for reaction in reactions if (reaction.key, reaction.actor) != same)
    given = Reaction(key=body.key, actor=body.actor, value=body.value)
    after = tuple(given if (reaction.key, reaction.actor) == same else reaction for reaction in reactions)
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

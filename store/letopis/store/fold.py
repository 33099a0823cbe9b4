"""Fold: events in, a conversation and its messages out; pure, so projections, overlay and time travel share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

import orjson

from letopis.store.codec import RESERVED
from letopis.store.conversation import Conversation, Delivery, Reaction, RecordedMessage, Saved
from letopis.store.erasure import stripped
from letopis.store.events import RecordedEvent
from letopis.store.making import quick
from letopis.store.messages import EMPTY, Message, empty
from letopis.store.upcasters import NO_UPCASTERS, Upcasters
from letopis.store.vocabulary import (
    Body,
    ConversationActivated,
    ConversationAnnotated,
    ConversationArchived,
    ConversationDeleted,
    ConversationRenamed,
    ConversationRestored,
    ConversationRewound,
    ConversationStarted,
    ForkPoint,
    MessageAppended,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
)

Moment = TypeVar("Moment", datetime, int)

PROJECTION_RULES: Final = 2
"""The number of these rules; raised when they change, so that `letopis db rebuild` finds what older ones made."""
TOKENS_MAX: Final = 2**63 - 1
"""Where the sum of tokens stops: the largest number that all three stores hold."""
METADATA_MAX: Final = 4_194_304
"""Bytes, as JSON, of a conversation's own metadata: an annotation that would take it further stays in the log alone.

Each event is bounded, but what they add up to is one row, and MariaDB takes no statement of more than 16 MB: it cuts
the connection, which looks like an outage of the store, for all conversations.
"""
REACTIONS_MAX: Final = 1_048_576
"""Characters of all reactions to a message, for the same reason: one that would take them further is not put to it."""
SUPERSEDED: Final = f"{RESERVED}superseded"
"""The key of an event's metadata under which the history store keeps its verdict that the event came too late."""


@dataclass(slots=True, kw_only=True)
class Tally(Generic[Moment]):
    """One conversation while events are taken in: all of it but the messages themselves.

    Mutable, because it takes in thousands of events a second and nobody sees it in between. Moments are datetimes in a
    fold and microseconds in the history store, which keeps its row of the conversation by this same rule. How many
    messages a rewind leaves on the path is known by whoever holds the messages, who sets ``message_count`` then.
    """

    owner_id: str | None = None
    title: str | None = None
    state: str = "active"
    version: int = 0
    message_count: int = 0
    tokens: int = 0
    metadata: Mapping[str, Any] = field(default_factory=empty)
    fork: ForkPoint | None = None
    inherits: bool = False
    inherited_to: str | None = None
    created_at: Moment
    updated_at: Moment

    def take(self, body: Body, *, version: int | None, occurred_at: Moment, superseded: bool = False) -> None:
        """Take in the next event; ``version`` is ``None`` while it is pending."""
        if version is not None:
            self.version = version
        # Clocks step back; the list of conversations must not.
        if occurred_at > self.updated_at:
            self.updated_at = occurred_at
        if isinstance(body, MessageAppended):
            # Paid for, wherever it ends up.
            if tokens := body.message.tokens:
                self.tokens = min(self.tokens + tokens, TOKENS_MAX)
            self.message_count += not superseded
            return
        if superseded:
            return
        match body:
            case ConversationStarted():
                self._start(body)
            case ConversationRenamed():
                self.title = body.title
            case ConversationAnnotated():
                merged = {**self.metadata, **body.metadata}
                kept = {key: value for key, value in merged.items() if value is not None}
                size = len(orjson.dumps(kept))
                # What makes it smaller is never too much.
                if size <= METADATA_MAX or size <= len(orjson.dumps(dict(self.metadata))):
                    self.metadata = kept
            case ConversationArchived():
                self.state = "archived"
            case ConversationRestored() | ConversationActivated():
                self.state = "active"
            case ConversationDeleted():
                self.state, self.title, self.metadata, self.inherits = "deleted", None, EMPTY, False
            case _:
                pass  # of a message, or carried and shown in the log: no state of the conversation hangs on it

    def _start(self, body: ConversationStarted) -> None:
        if self.owner_id is None:
            self.owner_id = body.owner_id
        if self.title is None:
            self.title = body.title
        if self.fork is None and (fork := body.fork) is not None:
            self.fork, self.inherits = fork, True


@dataclass(frozen=True, slots=True)
class Folded:
    """What a run of events comes to.

    :ivar messages: all of them, in order; those that are not ``on_path`` too. None of a deleted conversation.
    """

    conversation: Conversation | None
    messages: tuple[RecordedMessage, ...]

    @property
    def path(self) -> tuple[RecordedMessage, ...]:
        """The messages on the active path."""
        return tuple(message for message in self.messages if message.on_path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """A message that a fold does not hold, to which a rewind may lead.

    :ivar count: messages on the path up to and with it.
    """

    version: int
    on_path: bool
    count: int


class Fold:
    """A running fold of one conversation: start from nothing or from what was read, then :meth:`apply` what follows.

    Events that this version gives no meaning to move ``version`` and ``updated_at`` and change nothing else.

    :param messages: of what was read, the newest, or a part of them.
    :param elsewhere: messages that were read about but are not among ``messages``, by id.
    """

    __slots__ = ("_bound", "_conversation", "_elsewhere", "_messages", "_pending", "_places", "_tally", "_upcasters")

    def __init__(
        self,
        conversation: Conversation | None = None,
        messages: Iterable[RecordedMessage] = (),
        *,
        elsewhere: Mapping[str, Elsewhere] | None = None,
        upcasters: Upcasters = NO_UPCASTERS,
    ) -> None:
        self._conversation = conversation
        self._tally: Tally[datetime] | None = None
        self._pending = 0
        self._messages = list(messages)
        self._places: dict[str, list[int]] = {}
        for place, message in enumerate(self._messages):
            self._places.setdefault(message.id, []).append(place)
        self._elsewhere = elsewhere or {}
        self._bound: int | None = None  # stored messages beyond it have left the path
        self._upcasters = upcasters

    def apply(self, event: RecordedEvent, *, saved: Saved = Saved.SAVED) -> None:
        """Take in the next event; ``saved`` says how far it has got."""
        body = event.body(self._upcasters)
        tally = self._tally
        if tally is None:
            tally = self._tally = self._begin(event)
        # After a deletion nothing has an effect any more.
        superseded = SUPERSEDED in event.metadata or tally.state == "deleted"
        tally.take(body, version=event.version, occurred_at=event.occurred_at, superseded=superseded)
        self._pending += event.version is None
        if isinstance(body, MessageAppended):
            if tally.state != "deleted":
                self._append(body, event, saved, superseded=superseded)
            return
        if superseded:
            return
        match body:
            case ConversationRewound():
                self._rewind(body.to_message_id, tally)
            case ConversationDeleted():
                # Nothing of it is shown any more, off the path neither.
                self._messages.clear()
                self._places.clear()
                tally.message_count, self._bound = 0, 0
                self._messages = [replace(message, reactions=()) for message in self._messages]
            case MessageEdited() if event.digest is not None:
                for place in self._places.get(body.message_id, ()):
                    old = self._messages[place]
                    if not old.redacted:
                        edited = replace_content(old, body)
                        self._messages[place] = replace(edited, saved=_weaker(old.saved, saved))
            case MessageSent() | MessageFailed():
                for place in self._places.get(body.message_id, ()):
                    message = self._messages[place]
                    self._messages[place] = with_delivery(message, body, redacted=message.redacted)
            case MessageRedacted():
                for place in self._places.get(body.message_id, ()):
                    self._messages[place] = redacted(self._messages[place])
            case ReactionAdded() | ReactionRemoved() if event.digest is not None:
                for place in self._places.get(body.message_id, ()):
                    message = self._messages[place]
                    self._messages[place] = replace(message, reactions=reacted(message.reactions, body))
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
            metadata=before.metadata,
            fork=before.forked_from,
            inherits=before.inherits,
            inherited_to=before.inherited_to,
            created_at=before.created_at,
            updated_at=before.updated_at,
        )

    def _append(self, body: MessageAppended, event: RecordedEvent, saved: Saved, *, superseded: bool) -> None:
        self._places.setdefault(body.message.id, []).append(len(self._messages))
        message = recorded_message(body, event, saved=saved)
        self._messages.append(replace(message, on_path=False, superseded=True) if superseded else message)

    def _rewind(self, target: str | None, tally: Tally[datetime]) -> None:
        if target is None:
            tally.inherits, tally.message_count, self._bound = False, 0, 0
            self._leave(0)
            return
        own = [place for place in self._places.get(target, ()) if self._messages[place].on_path]
        if own:
            tally.message_count -= self._leave(own[-1] + 1)
            if (version := self._messages[own[-1]].version) is not None:
                self._bound = version
        elif target in self._places:
            return  # off the path already
        elif (there := self._elsewhere.get(target)) is not None:
            if there.on_path and (self._bound is None or there.version <= self._bound):
                self._leave(0, beyond=there.version)
                tally.message_count, self._bound = there.count, there.version
        elif tally.inherits:
            tally.inherited_to, tally.message_count, self._bound = target, 0, 0
            self._leave(0)

    def _leave(self, start: int, *, beyond: int = 0) -> int:
        """Take the messages from a place on off the path, of the stored ones those beyond a version; return how many.

        A message has its version only once it is stored, and then those of the outbox come after it.
        """
        left = 0
        for place in range(start, len(self._messages)):
            message = self._messages[place]
            if message.on_path and (message.version is None or message.version > beyond):
                self._messages[place] = replace(message, on_path=False)
                left += 1
        return left

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
                metadata=tally.metadata,
                forked_from=tally.fork,
                inherits=tally.inherits,
                inherited_to=tally.inherited_to,
                updated_at=tally.updated_at,
                pending=conversation.pending + self._pending,
            )
        return Folded(conversation, tuple(self._messages))


def fold(events: Iterable[RecordedEvent], *, upcasters: Upcasters = NO_UPCASTERS) -> Folded:
    """Return what the events of one conversation come to, taken in the order given.

    Of a fork it is the fork's own part; what it inherits is the fold of its parent's events up to ``forked_from``.
    """
    running = Fold(upcasters=upcasters)
    for event in events:
        running.apply(event)
    return running.result()


_recorded: Final = quick(RecordedMessage)


def recorded_message(body: MessageAppended, event: RecordedEvent, *, saved: Saved = Saved.SAVED) -> RecordedMessage:
    """Return the message as the event that appended it records it."""
    return _recorded(
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
    """Return ``message`` without what was said."""
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
    if isinstance(body, ReactionRemoved):
        return tuple(one for one in reactions if (one.key, one.actor) != (body.key, body.actor))
    given = Reaction(key=body.key, actor=body.actor, value=body.value)
    if any((one.key, one.actor) == (body.key, body.actor) for one in reactions):
        after = tuple(given if (one.key, one.actor) == (body.key, body.actor) else one for one in reactions)
    else:
        after = (*reactions, given)
    return after if sum(map(_length, after)) <= REACTIONS_MAX else tuple(reactions)


def _length(reaction: Reaction) -> int:
    value = reaction.value
    return len(reaction.key) + len(reaction.actor or "") + (len(value) if isinstance(value, str) else 24)


def _weaker(one: Saved, other: Saved) -> Saved:
    order = (Saved.SAVED, Saved.PENDING, Saved.BLOCKED)
    return max(one, other, key=order.index)

"""Reduce events to the state of a conversation, and tell a sink what they do to its messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

import orjson

from letopis.store.model.event_types import (
    MAX_TAGS,
    NULL,
    Body,
    ConversationActivated,
    ConversationAnnotated,
    ConversationArchived,
    ConversationDeleted,
    ConversationRenamed,
    ConversationRestored,
    ConversationRewound,
    ConversationStarted,
    ConversationTagged,
    ConversationTrimmed,
    MessageAppended,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
)
from letopis.store.model.identifiers import ForkPoint
from letopis.store.model.messages import EMPTY, empty

Moment = TypeVar("Moment", datetime, int)
MessageChange = MessageEdited | MessageSent | MessageFailed | MessageRedacted | ReactionAdded | ReactionRemoved
"""An event that changes a message appended before it."""

NO_MESSAGE: Final = ""
"""What a fork reads its parent up to when all that it inherits was undone."""
PROJECTION_RULES: Final = 2
"""The number of these rules; raised when they change, so that `letopis db rebuild` finds rows that older ones made."""
MAX_TOKENS: Final = 2**63 - 1
"""Where the sum of tokens stops: the largest number that all three stores hold."""
MAKES_STATE: Final = (ConversationStarted, ConversationRenamed, ConversationAnnotated, ConversationTagged)
"""The events that make the title, the metadata and the tags of a conversation."""
MAX_METADATA_BYTES: Final = 4_194_304
"""Bytes, as JSON, of a conversation's metadata: an annotation that would exceed them stays in the log alone.

Each event is bounded, but their sum is one row, and MariaDB refuses a statement of more than 16 MB by cutting the
connection, which looks like an outage of the store for all conversations.
"""


@dataclass(slots=True, kw_only=True)
class ConversationState(Generic[Moment]):
    """A conversation while events are applied to it: everything but its messages."""

    # Mutable, because thousands of events a second pass through it. Moments are microseconds in the history store.
    owner_id: str | None = None
    title: str | None = None
    state: str = "active"
    version: int = 0
    message_count: int = 0
    tokens: int = 0
    metadata: Mapping[str, Any] = field(default_factory=empty)
    tags: tuple[str, ...] = ()
    trimmed: int = 0
    reset_to: int = 0
    forked_from: ForkPoint | None = None
    inherits: bool = False
    inherited_to: str | None = None
    created_at: Moment
    updated_at: Moment
    # What made title, metadata and tags, by version: a reset up to a version lets the later ones stand.
    made_by: list[tuple[int, Body]] = field(init=False, default_factory=list)

    @property
    def reads_parent(self) -> bool:
        """Whether it shows words of its parent: a trimmed fork shows the messages alone."""
        return self.inherits and not self.trimmed


STATE_FIELDS: Final = tuple(spec.name for spec in fields(ConversationState) if spec.init)
"""The fields of a conversation's state that are kept."""


class MessageSink:
    """Receives the effects of events on messages. Each method does nothing unless a subclass holds messages."""

    __slots__ = ()

    def append(self, body: MessageAppended, *, superseded: bool) -> None:
        """Add a message, a superseded one off the path."""

    def change(self, body: MessageChange, *, trimmed: int) -> None:
        """Change each message of the id that the event names, where :func:`takes_effect` holds."""

    def rewind_to(self, message_id: str, count: int) -> int | None:
        """Take the messages after one off the path, unless it is off it itself; of ``count``, return how many stay."""
        # None if the conversation has no own message of that id.
        return count

    def clear_path(self) -> None:
        """Take all messages off the path."""

    def leave(self, upto: int, count: int) -> int:
        """Take the messages up to a version off the path, and later ones that arrived erased; return how many stay."""
        return count

    def erase(self, upto: int) -> None:
        """Take away the content and the reactions of the messages up to a version, and of pending ones."""

    def trim(self, after: int, upto: int) -> None:
        """Take away the content and the reactions of the messages of some versions."""

    def delete(self) -> None:
        """Drop all messages: the conversation was deleted."""


def reduce_event(
    state: ConversationState[Moment],
    body: Body,
    sink: MessageSink,
    *,
    version: int | None,
    occurred_at: Moment,
    superseded: bool = False,
    arrived_erased: bool = False,
) -> None:
    """Apply the next event to a conversation and, through ``sink``, to its messages."""
    # Types without a meaning here move version and updated_at only. ``superseded``: put aside, or after the deletion of
    # the conversation.
    if version is not None:
        state.version = version
    # Clocks step back; the list of conversations must not.
    if occurred_at > state.updated_at:
        state.updated_at = occurred_at
    if isinstance(body, MessageAppended):
        # A superseded message was paid for too.
        if tokens := body.message.tokens:
            state.tokens = min(state.tokens + tokens, MAX_TOKENS)
        sink.append(body, superseded=superseded)
        state.message_count += not superseded
        return
    if superseded:
        return
    if isinstance(body, MAKES_STATE) and not arrived_erased:
        state.made_by.append((0 if version is None else version, body))
    match body:
        case ConversationStarted() | ConversationRenamed() | ConversationAnnotated() | ConversationTagged():
            _make(state, body)
        case ConversationTrimmed():
            _trim(state, body, sink, version)
        case ConversationArchived():
            state.state = "archived"
        case ConversationRestored() | ConversationActivated():
            state.state = "active"
        case ConversationRewound(erase=True):
            _reset(state, body, sink, version)
        case ConversationRewound():
            _rewind(state, body, sink)
        case ConversationDeleted():
            _reset(state, body, sink, version)
            state.state = "deleted"
            sink.delete()
        case _ if isinstance(body, MessageChange):
            sink.change(body, trimmed=state.trimmed)
        case _:
            pass  # only carried, and shown in the log


def takes_effect(body: MessageChange, *, has_content: bool, redacted: bool, shown: bool) -> bool:
    """Return True if an event, which has content unless it was redacted, changes a message that it names."""
    # ``shown``: on the path, and not trimmed.
    match body:
        case MessageEdited():
            return has_content and not redacted
        case ReactionAdded():
            # A message that is erased off the path has no reactions, so that a replay, which knows only what is left of
            # it from the start, comes to the same. Nor has a trimmed one: no later trim would look for them.
            return has_content and (shown or not redacted)
        case ReactionRemoved():
            return has_content
    return True


def _make(state: ConversationState[Any], body: Body) -> None:
    match body:
        case ConversationStarted():
            if state.owner_id is None:
                state.owner_id = body.owner_id
            if state.title is None:
                state.title = body.title
            if state.forked_from is None and (fork := body.fork) is not None:
                state.forked_from, state.inherits = fork, True
        case ConversationRenamed():
            state.title = body.title
        case ConversationAnnotated():
            _annotate(state, body.metadata)
        case ConversationTagged():
            _tag(state, body)


def _annotate(state: ConversationState[Any], metadata: Mapping[str, Any]) -> None:
    merged = dict(state.metadata)
    for key, value in metadata.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = None if value is NULL else value
    size = len(orjson.dumps(merged))
    # An annotation that makes it smaller is never too large.
    if size <= MAX_METADATA_BYTES or size <= len(orjson.dumps(dict(state.metadata))):
        state.metadata = merged


def _tag(state: ConversationState[Any], body: ConversationTagged) -> None:
    tags = {*state.tags, *(body.add or ())}.difference(body.remove or ())
    if len(tags) <= MAX_TAGS:
        state.tags = tuple(sorted(tags))


def _trim(state: ConversationState[Any], body: ConversationTrimmed, sink: MessageSink, version: int | None) -> None:
    # Of several for one place the first counts: any number of relays may come to the same.
    upto = min(body.upto, _last_before(state, version))
    if upto > state.trimmed:
        after, state.trimmed = state.trimmed, upto
        sink.trim(after, upto)


def _reset(
    state: ConversationState[Any],
    body: ConversationRewound | ConversationDeleted,
    sink: MessageSink,
    version: int | None,
) -> None:
    """Erase everything before an event or, if it has a bound, up to that and what had arrived erased."""
    bound, upto = getattr(body, "upto", None), _last_before(state, version)
    if bound is None:
        _rewind(state, ConversationRewound(), sink)
    else:
        upto = min(bound, upto)
        state.message_count = sink.leave(upto, state.message_count)
    state.reset_to = max(state.reset_to, upto)
    state.title, state.metadata, state.tags = None, EMPTY, ()
    state.made_by = [(at, made) for at, made in state.made_by if at > upto]
    for _, made in state.made_by:
        _make(state, made)
    state.inherits &= any(isinstance(made, ConversationStarted) and made.fork for _, made in state.made_by)
    sink.erase(upto)


def _last_before(state: ConversationState[Any], version: int | None) -> int:
    """Return the last version before an event; of a pending one, that of the history store."""
    return state.version if version is None else version - 1


def _rewind(state: ConversationState[Any], body: ConversationRewound, sink: MessageSink) -> None:
    target = body.to_message_id
    if target is None:
        if state.inherits and body.undone:
            state.inherited_to = NO_MESSAGE
        else:
            state.inherits = False
    elif (count := sink.rewind_to(target, state.message_count)) is not None:
        state.message_count = count
        return
    elif state.inherits and state.inherited_to != NO_MESSAGE:
        state.inherited_to = target
    else:
        return
    state.message_count = 0
    sink.clear_path()

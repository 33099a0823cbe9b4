"""Reduce events to the state of a conversation, and tell a sink what they do to its messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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

PROJECTION_RULES: Final = 2
"""The number of these rules; raised when they change, so that `letopis db rebuild` finds rows that older ones made."""
MAX_TOKENS: Final = 2**63 - 1
"""Where the sum of tokens stops: the largest number that all three stores hold."""
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
    forked_from: ForkPoint | None = None
    inherits: bool = False
    inherited_to: str | None = None
    created_at: Moment
    updated_at: Moment


class MessageSink:
    """Receives the effects of events on messages. Each method does nothing unless a subclass holds messages."""

    __slots__ = ()

    def append(self, body: MessageAppended, *, superseded: bool, back: bool) -> bool:
        """Add a message, a superseded one off the path; return False if it is put ``back`` and is on it already."""
        return True

    def change(self, body: MessageChange) -> None:
        """Change each message of the id that the event names, where :func:`takes_effect` holds."""

    def rewind_to(self, message_id: str, count: int) -> int | None:
        """Take the messages after one off the path, unless it is off it itself; of ``count``, return how many stay."""
        # None if the conversation has no own message of that id.
        return count

    def clear_path(self) -> None:
        """Take all messages off the path."""

    def erase(self) -> None:
        """Take away the content of all messages, and their reactions."""

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
    back: bool = False,
) -> None:
    """Apply the next event to a conversation and, through ``sink``, to its messages."""
    # Types without a meaning here move version and updated_at only. ``superseded``: put aside, or after the deletion of
    # the conversation. ``back``: the message was appended before, and paid for then.
    if version is not None:
        state.version = version
    # Clocks step back; the list of conversations must not.
    if occurred_at > state.updated_at:
        state.updated_at = occurred_at
    if isinstance(body, MessageAppended):
        # A superseded message was paid for too.
        if (tokens := body.message.tokens) and not back:
            state.tokens = min(state.tokens + tokens, MAX_TOKENS)
        added = sink.append(body, superseded=superseded, back=back)
        state.message_count += added and not superseded
        return
    if superseded:
        return
    match body:
        case ConversationStarted():
            _start(state, body)
        case ConversationRenamed():
            state.title = body.title
        case ConversationAnnotated():
            _annotate(state, body.metadata)
        case ConversationTagged():
            _tag(state, body)
        case ConversationTrimmed():
            _trim(state, body, sink, version)
        case ConversationArchived():
            state.state = "archived"
        case ConversationRestored() | ConversationActivated():
            state.state = "active"
        case ConversationRewound():
            _rewind(state, body.to_message_id, sink)
            if body.erase:
                state.title, state.metadata, state.tags = None, EMPTY, ()
                sink.erase()
        case ConversationDeleted():
            state.state, state.title, state.metadata, state.inherits = "deleted", None, EMPTY, False
            state.message_count, state.tags = 0, ()
            sink.delete()
        case _ if isinstance(body, MessageChange):
            sink.change(body)
        case _:
            pass  # only carried, and shown in the log


def takes_effect(body: MessageChange, *, has_content: bool, redacted: bool, on_path: bool) -> bool:
    """Return True if an event, which has content unless it was redacted, changes a message that it names."""
    match body:
        case MessageEdited():
            return has_content and not redacted
        case ReactionAdded():
            # A message that is erased off the path has no reactions, so that a replay, which knows only what is left of
            # it from the start, comes to the same.
            return has_content and (on_path or not redacted)
        case ReactionRemoved():
            return has_content
    return True


def _start(state: ConversationState[Any], body: ConversationStarted) -> None:
    if state.owner_id is None:
        state.owner_id = body.owner_id
    if state.title is None:
        state.title = body.title
    if state.forked_from is None and (fork := body.fork) is not None:
        state.forked_from, state.inherits = fork, True


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
    upto = min(body.upto, state.version if version is None else version - 1)
    if upto > state.trimmed:
        after, state.trimmed, state.inherits = state.trimmed, upto, False
        sink.trim(after, upto)


def _rewind(state: ConversationState[Any], target: str | None, sink: MessageSink) -> None:
    if target is None:
        state.inherits = False
    elif (count := sink.rewind_to(target, state.message_count)) is not None:
        state.message_count = count
        return
    elif state.inherits:
        state.inherited_to = target
    else:
        return
    state.message_count = 0
    sink.clear_path()

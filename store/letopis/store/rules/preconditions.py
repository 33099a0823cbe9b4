"""Decide which conditional events came too late, given what their writers had seen, without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self
from uuid import UUID

import orjson

from letopis.store.model.codec import INTEGER_MAX, RESERVED, EncodedEvent, decode
from letopis.store.model.event_types import ConversationRewound, MessageAppended, MessageEdited, MessageRedacted

PRECONDITION_KEY: Final = f"{RESERVED}expects"
"""The key of an event's metadata that holds its precondition."""
SUPERSEDED_KEY: Final = f"{RESERVED}superseded"
"""The key of an event's metadata under which the history store notes that the event came too late."""
TURN_TYPES: Final = frozenset(
    {MessageAppended.type, MessageEdited.type, MessageRedacted.type, ConversationRewound.type}
)
"""The types of events that change the messages which an answer is based on; titles and reactions do not."""
MAX_VERSION: Final = INTEGER_MAX
"""A version beyond all events: the whole conversation was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precondition:
    """The condition of an event: that no other event, or none of some types, has come since its writer read.

    :ivar sequence: that of the last event of the writer's own outbox that it had seen.
    :ivar version: that of the last event in the history store that it had seen; ``None`` if it had read its own outbox
        alone: then everything before its own last event there counts as seen.
    :ivar types: the types of conflicting events; ``None`` is all types.
    :ivar batch_id: the id of the first event of the same append, which decides for all of them; ``None`` in the first.
    """

    sequence: int
    version: int | None = None
    types: frozenset[str] | None = None
    batch_id: UUID | None = None

    def to_data(self) -> dict[str, Any]:
        """Return it as the metadata of an event holds it."""
        data: dict[str, Any] = {"sequence": self.sequence}
        if self.version is not None:
            data["version"] = self.version
        if self.types is not None:
            data["types"] = sorted(self.types)
        if self.batch_id is not None:
            data["turn"] = str(self.batch_id)
        return data

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self | None:
        """Return the condition in an event's metadata; ``None`` if there is none or it is malformed."""
        match metadata.get(PRECONDITION_KEY):
            case {"sequence": int(sequence), **rest}:
                version, types, batch_id = rest.get("version"), rest.get("types"), rest.get("turn")
                version = version if isinstance(version, int) else None
                types = frozenset(name for name in types if isinstance(name, str)) if isinstance(types, list) else None
                try:
                    batch_id = UUID(batch_id) if isinstance(batch_id, str) else None
                except ValueError:
                    return None
                return cls(sequence=sequence, version=version, types=types, batch_id=batch_id)
        return None

    def conflicts_with(self, type_name: str) -> bool:
        """Return True if an event of this type conflicts."""
        return self.types is None or type_name in self.types


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """An event came too late, or was refused for what it would have shown or erased.

    :ivar expected: the version that its writer had seen; 0 if it was refused.
    :ivar actual: the version of the event that came in between.
    :ivar erased: what that event erased for good, so that the outbox erases it too; ``None`` for nothing.
    :ivar held: True if the event would have erased what a hold protects.
    """

    expected: int
    actual: int
    erased: Literal["message", "conversation"] | None = None
    held: bool = False

    def to_data(self) -> dict[str, Any]:
        """Return it as the metadata of the event holds it."""
        data: dict[str, Any] = {"expected": self.expected, "actual": self.actual}
        if self.held:
            data["held"] = True
        return data if self.erased is None else {**data, "erased": self.erased}

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self | None:
        """Return the conflict noted in an event's metadata; ``None`` if there is none."""
        match metadata.get(SUPERSEDED_KEY):
            case {"expected": int(expected), "actual": int(actual), "erased": ("message" | "conversation") as erased}:
                return cls(expected=expected, actual=actual, erased=erased)
            case {"expected": int(expected), "actual": int(actual), **rest}:
                return cls(expected=expected, actual=actual, held=rest.get("held") is True)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEvent:
    """An event of the log, as far as conflicts depend on it."""

    version: int
    event_id: UUID
    type: str
    sequence: int
    own: bool  # it came through the outbox whose events are checked
    conflict: Conflict | None

    @property
    def lateness(self) -> Conflict | None:
        """Return its conflict if it came too late; ``None`` if it was refused: that makes nothing else late."""
        return None if self.conflict is None or self.conflict.held or self.conflict.erased else self.conflict


def detect_conflicts(
    conditions: Sequence[tuple[int, UUID, Precondition]], log: Sequence[LoggedEvent], *, head: int = 0
) -> dict[int, Conflict]:
    """Return the conflicts of an outbox's conditional events, by sequence."""
    # It does not depend on how the events are split into deliveries. ``log`` holds at least the events of other
    # outboxes after the version that was seen, and of this one the last that were seen and the first of the batches.
    own = [event for event in log if event.own]
    stored = {event.event_id: event.lateness for event in own}
    conflicts: dict[int, Conflict] = {}
    decided: dict[UUID, Conflict | None] = {}
    for sequence, event_id, expects in conditions:
        if expects.batch_id is not None and expects.batch_id in decided:
            conflict = decided[expects.batch_id]
        elif expects.batch_id is not None and expects.batch_id in stored:
            conflict = stored[expects.batch_id]
        else:
            seen = _seen_version(expects, own, head)
            if expects.version is None and expects.sequence in conflicts:
                # An answer to a superseded event has seen no more than that event had.
                seen = conflicts[expects.sequence].expected
            unseen = (event for event in log if not event.own and event.version > seen and event.conflict is None)
            actual = next((event.version for event in unseen if expects.conflicts_with(event.type)), None)
            conflict = None if actual is None else Conflict(expected=seen, actual=actual)
        decided[event_id] = conflict
        if conflict is not None:
            conflicts[sequence] = conflict
    return conflicts


def lowest_seen_version(
    conditions: Iterable[tuple[int, UUID, Precondition]], own: Sequence[LoggedEvent], *, head: int
) -> int:
    """Return the version after which events of other outboxes may matter to :func:`detect_conflicts`."""
    return min((_seen_version(expects, own, head) for _, _, expects in conditions), default=MAX_VERSION)


def _seen_version(expects: Precondition, own: Sequence[LoggedEvent], head: int) -> int:
    """Return the version of the last event that a writer had seen."""
    if expects.version is not None:
        return expects.version
    if expects.sequence > head:
        return MAX_VERSION  # what it answers comes with this delivery, after everything that is stored
    last = max(
        (event for event in own if event.sequence <= expects.sequence), key=lambda one: one.sequence, default=None
    )
    if last is None:
        return 0
    return last.version if last.lateness is None else last.lateness.expected


def batch_of(event: EncodedEvent) -> UUID | None:
    """Return the id of the event that decides for the whole append of ``event``; ``None`` if none does."""
    if event.metadata is None or PRECONDITION_KEY not in event.metadata:
        return None
    try:
        expects = Precondition.of(decode(event.metadata))
    except ValueError:
        return None
    return None if expects is None else expects.batch_id or event.event_id


def with_one_leader(events: Sequence[EncodedEvent]) -> list[EncodedEvent]:
    """Return the events of an append so that the first with a condition decides for all, under the id it has now."""
    # Their digests, which leave conditions out, stay.
    led = []
    leader: UUID | None = None
    for event in events:
        metadata = decode(event.metadata)
        expects = Precondition.of(metadata)
        if expects is not None:
            if expects.batch_id != leader:
                data = replace(expects, batch_id=leader).to_data()
                event = replace(event, metadata=orjson.dumps({**metadata, PRECONDITION_KEY: data}).decode())
            leader = leader or event.event_id
        led.append(event)
    return led


def with_conflict(event: EncodedEvent, conflict: Conflict) -> EncodedEvent:
    """Return an event with a note that it came too late; its digest, which leaves the note out, stays."""
    metadata = {**decode(event.metadata), SUPERSEDED_KEY: conflict.to_data()}
    return replace(event, metadata=orjson.dumps(metadata).decode())

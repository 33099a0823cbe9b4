"""Turns: what a writer had seen when it spoke, and whether somebody else was first; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self
from uuid import UUID

from letopis.store.codec import INTEGER_MAX, RESERVED
from letopis.store.fold import SUPERSEDED
from letopis.store.vocabulary import ConversationRewound, MessageAppended, MessageEdited, MessageRedacted

EXPECTS: Final = f"{RESERVED}expects"
"""The key of an event's metadata that holds its condition."""
TURN_TYPES: Final = frozenset(
    {MessageAppended.type, MessageEdited.type, MessageRedacted.type, ConversationRewound.type}
)
"""What changes the messages that an answer was made from; a title or a reaction does not."""
BEYOND_ALL: Final = INTEGER_MAX
"""A version that no event has: all of the conversation was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expects:
    """The condition of an event: that nothing, or nothing of some types, has come since its writer looked.

    :ivar sequence: of the last event of the writer's own outbox that it had seen.
    :ivar version: of the last event in the history store that it had seen; ``None`` where it had looked at its own
        outbox alone: then whatever came before its own last event there is taken as seen.
    :ivar types: of what would be in the way; ``None`` is everything.
    :ivar turn: the first event of the same append: it decides for all of them. ``None`` in the first one.
    """

    sequence: int
    version: int | None = None
    types: frozenset[str] | None = None
    turn: UUID | None = None

    def to_data(self) -> dict[str, Any]:
        """Return it as the metadata of an event holds it."""
        data: dict[str, Any] = {"sequence": self.sequence}
        if self.version is not None:
            data["version"] = self.version
        if self.types is not None:
            data["types"] = sorted(self.types)
        if self.turn is not None:
            data["turn"] = str(self.turn)
        return data

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self | None:
        """Return the condition that an event's metadata holds; ``None`` where there is none that makes sense."""
        match metadata.get(EXPECTS):
            case {"sequence": int(sequence), **rest}:
                version, types, turn = rest.get("version"), rest.get("types"), rest.get("turn")
                try:
                    return cls(
                        sequence=sequence,
                        version=version if isinstance(version, int) else None,
                        types=frozenset(one for one in types if isinstance(one, str))
                        if isinstance(types, list)
                        else None,
                        turn=UUID(turn) if isinstance(turn, str) else None,
                    )
                except ValueError:
                    return None  # a turn that is no id
        return None

    def stands_against(self, type_name: str) -> bool:
        """Whether an event of this type would be in the way."""
        return self.types is None or type_name in self.types


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """The verdict that an event came too late.

    :ivar expected: the version that its writer had seen; ``actual``: that of the event that came in between.
    """

    expected: int
    actual: int

    def to_data(self) -> dict[str, Any]:
        """Return it as the metadata of the event holds it."""
        return {"expected": self.expected, "actual": self.actual}

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self | None:
        """Return the verdict that an event's metadata holds; ``None`` where the event stands."""
        match metadata.get(SUPERSEDED):
            case {"expected": int(expected), "actual": int(actual)}:
                return cls(expected=expected, actual=actual)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """An event of the log as far as a verdict hangs on it.

    :ivar own: whether it came through the outbox whose event is judged.
    """

    version: int
    event_id: UUID
    type: str
    sequence: int
    own: bool
    conflict: Conflict | None


def judge(
    conditions: Sequence[tuple[int, UUID, Expects]], log: Iterable[Logged], *, head: int = 0
) -> dict[int, Conflict]:
    """Return the verdicts of an outbox's conditional events, by sequence; those that stand are left out.

    The verdict is the same however the outbox's events are parted into deliveries.

    :param conditions: sequence, event id and condition of the events, in order.
    :param log: what the conversation holds already, in order; at least the other outboxes' events that come after what
        was seen, and of this one's own the last ones that were seen and those that began the turns.
    :param head: how far the conversation holds this outbox's events; what it has said after that comes now.
    """
    logged = list(log)
    own = [one for one in logged if one.own]
    before = {one.event_id: one.conflict for one in own}
    verdicts: dict[int, Conflict] = {}
    decided: dict[UUID, Conflict | None] = {}
    for sequence, event_id, expects in conditions:
        if expects.turn is not None and expects.turn in decided:
            verdict = decided[expects.turn]
        elif expects.turn is not None and expects.turn in before:
            verdict = before[expects.turn]
        else:
            seen = _seen(expects, own, head)
            if expects.version is None and expects.sequence in verdicts:
                # An answer to what is put aside itself has seen no more than that had.
                seen = verdicts[expects.sequence].expected
            late = next(
                (
                    one
                    for one in logged
                    if not one.own and one.version > seen and one.conflict is None and expects.stands_against(one.type)
                ),
                None,
            )
            verdict = None if late is None else Conflict(expected=seen, actual=late.version)
        decided[event_id] = verdict
        if verdict is not None:
            verdicts[sequence] = verdict
    return verdicts


def unseen_from(conditions: Iterable[tuple[int, UUID, Expects]], own: Iterable[Logged], *, head: int) -> int:
    """Return the version after which the other outboxes' events may matter to :func:`judge`.

    :param own: this outbox's events among what ``judge`` is to be given.
    """
    known = list(own)
    return min((_seen(expects, known, head) for _, _, expects in conditions), default=BEYOND_ALL)


def _seen(expects: Expects, own: Sequence[Logged], head: int) -> int:
    """Return the version of the last event that a writer had seen."""
    if expects.version is not None:
        return expects.version
    if expects.sequence > head:
        return BEYOND_ALL  # what it answers comes just before it, and so after all that is there
    last = max((one for one in own if one.sequence <= expects.sequence), key=lambda one: one.sequence, default=None)
    if last is None:
        return 0
    return last.version if last.conflict is None else last.conflict.expected

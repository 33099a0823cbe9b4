"""Judge whether what became of a hostile value is what is promised, and say what is wrong if not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from letopis.store import Event, LetopisError, Message, OutboxUnavailable, RecordedEvent, StoreFault
from letopis.store.model.event_types import Body
from letopis.store.model.parts import Part, part_to_json
from tests.acceptance.test_bad_input import same
from tests.support.values.places import plain

FALLS_AWAY: Final = (None, False, "", (), [], {})
"""What stands for nothing given: a field that holds it may be left out."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One value that was accepted, and where it must be found."""

    label: str
    value: Any
    conversation_id: str
    event_ids: tuple[UUID, ...]


@dataclass(slots=True)
class Tally:
    """The results of the values so far."""

    tried: int = 0
    refused: int = 0
    accepted: int = 0
    compared: int = 0
    kept: list[Kept] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def blame(self, words: str) -> None:
        self.problems.append(words)

    def refusal(self, label: str, error: BaseException) -> None:
        """Record what a call raised."""
        self.refused += 1
        if (wrong := fault_of(error)) is not None:
            self.blame(f"{label}: {wrong}")


def fault_of(error: BaseException) -> str | None:
    if not isinstance(error, LetopisError):
        return f"{type(error).__name__}, which is not documented: {str(error)!a:.150}"
    if isinstance(error, StoreFault | OutboxUnavailable):
        return f"a database was asked and refused it: {type(error).__name__} {str(error)!a:.150}"
    words = str(error)
    if len(words) < 8 or not any(character.isspace() for character in words):
        return f"{type(error).__name__} does not say what was wrong: {words!a}"
    if not words.isprintable():
        return f"{type(error).__name__} repeats what cannot be printed: {words!a:.150}"
    return None


def as_json(value: Any) -> Any:
    """Return a value as documented to be stored: parts and bodies as objects, tuples as lists."""
    if isinstance(value, Part):
        return plain(part_to_json(value))
    if isinstance(value, Message | Body):
        return plain(value.to_data())
    if isinstance(value, Mapping):
        return {plain(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return plain(value)


def found_in(value: Any, events: Iterable[RecordedEvent]) -> bool:
    """Return True if an equal value is somewhere in what was kept: in a field, or at any depth of data or metadata."""
    if any(value is nothing or (type(value) is type(nothing) and value == nothing) for nothing in FALLS_AWAY):
        return True
    wanted = as_json(value.data if isinstance(value, Event) else value)
    return any(_holds(wanted, place) for event in events for place in _places(event))


def _places(event: RecordedEvent) -> Iterable[Any]:
    return (
        event.conversation_id,
        event.event_id,
        event.type,
        event.schema_version,
        event.occurred_at,
        plain(event.data),
        plain(event.metadata),
    )


def _holds(value: Any, place: Any) -> bool:
    if type(value) is int:
        # Compared directly: too long to be written out. An owner may be given as a number, and is kept as text.
        owner = isinstance(place, Mapping) and value.bit_length() < 256 and place.get("owner_id") == str(value)
        return bool(owner or (type(place) is int and place == value)) or _deeper(value, place)
    return same(place, value) or _deeper(value, place)


def _deeper(value: Any, place: Any) -> bool:
    if isinstance(place, dict):
        if isinstance(value, str) and value in place:
            return True
        # Keys of the caller's beside those of Letopis.
        if isinstance(value, dict) and value and all(key in place and same(place[key], value[key]) for key in value):
            return True
        return any(_holds(value, item) for item in place.values())
    if isinstance(place, list):
        return any(_holds(value, item) for item in place)
    return False

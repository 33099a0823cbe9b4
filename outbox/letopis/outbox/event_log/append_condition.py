"""Build the condition of an append from what its caller has seen."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from letopis.store.errors import InvalidInput
from letopis.store.model.codec import INTEGER_MAX
from letopis.store.model.conversations import Seen
from letopis.store.model.events import check_type
from letopis.store.rules.preconditions import TURN_TYPES, Precondition


class HasSeen(Protocol):
    """An object that knows how much of a conversation was seen: a page, a conversation or a receipt."""

    @property
    def seen(self) -> Seen | None:
        """How much was seen."""


After = int | Seen | HasSeen
"""What to append after: the sequence of a receipt, or what was read."""


def condition(
    *, expected: After | None, after: After | None, fail_if_types: Collection[str] | None
) -> Precondition | None:
    """Return the condition of an append; ``None`` where the caller sets none.

    :raises InvalidInput: an argument is wrong, or the combination is contradictory.
    """
    if expected is not None and after is not None:
        raise InvalidInput("after", "cannot be combined with expected, which already covers every event")
    if expected is not None:
        if fail_if_types is not None:
            raise InvalidInput(
                "fail_if_types", "cannot be combined with expected, which already covers every event: use after"
            )
        seen = _seen(expected, "expected")
        return Precondition(sequence=seen.sequence, version=seen.version)
    if after is None:
        if fail_if_types is not None:
            raise InvalidInput("fail_if_types", "needs after, which names what was seen")
        return None
    types = TURN_TYPES if fail_if_types is None else check_types(fail_if_types, "fail_if_types")
    seen = _seen(after, "after")
    return Precondition(sequence=seen.sequence, version=seen.version, types=types)


def check_types(given: Collection[str], field: str = "types") -> frozenset[str]:
    """Return event types that a caller names.

    :raises InvalidInput: that is no collection, or one of them cannot be an event type.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidInput(field, "must be a collection of event types, for example a set")
    try:
        return frozenset(check_type(name) for name in given)
    except InvalidInput as error:
        raise InvalidInput(field, error.reason) from error


def _seen(given: After, field: str) -> Seen:
    seen = given if isinstance(given, Seen | int) else getattr(given, "seen", None)
    if isinstance(seen, int) and not isinstance(seen, bool):
        seen = Seen(sequence=seen)
    if not isinstance(seen, Seen):
        raise InvalidInput(field, "must be a page or conversation that was read, a receipt, or a receipt's sequence")
    for value in (seen.sequence, seen.version or 0):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= INTEGER_MAX:
            raise InvalidInput(field, "must be a whole number from 0")
    return seen

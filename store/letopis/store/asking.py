"""Asking: what may be asked of a page, checked: windows of messages, sizes, places and states."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import orjson

from letopis.store.codec import INTEGER_MAX, INTEGER_MIN
from letopis.store.errors import InvalidInput
from letopis.store.identifiers import check_identifier

STATES: Final = ("active", "archived", "deleted")
EVERYDAY: Final = ("active",)
"""The states of conversations that a list shows when it is not asked for others."""
MAX_PAGE: Final = 10_000
"""Items in one page, so that a page fits in memory whatever is asked for."""


class Shape(NamedTuple):
    """What a window asks for, without the values.

    :ivar last: the newest, not the oldest. ``limited``: only so many. ``before``, ``after``: of these versions.
    :ivar every: those that have left the path too.
    :ivar limit: how many, written into the statement, where that is worth one of its own.
    """

    last: bool
    limited: bool
    before: bool
    after: bool
    every: bool
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which messages of a conversation: the newest ``last``, or the ``first``, or all, between two versions.

    :ivar every: those that have left the active path too.
    :ivar before_depth, after_depth: in whose messages the versions count: 0 the conversation's own, 1 its parent's.
    """

    last: int | None = None
    first: int | None = None
    before: int | None = None
    after: int | None = None
    every: bool = False
    before_depth: int = 0
    after_depth: int = 0

    @classmethod
    def of(
        cls,
        *,
        last: int | None,
        first: int | None,
        before: int | str | None,
        after: int | str | None,
        every: bool = False,
    ) -> Window:
        """Return the window that a caller asks for.

        :raises InvalidInput: both ``last`` and ``first``, a number out of bounds, or no place of a page.
        """
        if last is not None and first is not None:
            raise InvalidInput("first", "cannot be given together with last: ask for the newest or for the oldest")
        before_depth, before = _depth_of(before)
        after_depth, after = _depth_of(after)
        return cls(
            last=None if last is None else check_count(last, "last"),
            first=None if first is None else check_count(first, "first"),
            before=check_place(before, "before"),
            after=check_place(after, "after"),
            every=every,
            before_depth=before_depth,
            after_depth=after_depth,
        )

    @property
    def limit(self) -> int | None:
        """The number of messages asked for, whichever the end; ``None`` for all."""
        return self.last if self.last is not None else self.first

    @property
    def values(self) -> dict[str, int]:
        """What binds it in its select; one more than asked for tells whether there are more."""
        limit = None if self.limit is None else self.limit + 1
        values = {"before": self.before, "after": self.after, "limit": limit}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def shape(self) -> Shape:
        """What it asks for, without the values."""
        return Shape(
            last=self.last is not None,
            limited=self.limit is not None,
            before=self.before is not None,
            after=self.after is not None,
            every=self.every,
        )

    def at(self, depth: int) -> Window | None:
        """Return the window on the messages of one ancestor alone; ``None`` where it shows none of them."""
        # What lies deeper was said earlier.
        if (self.before is not None and depth < self.before_depth) or (
            self.after is not None and depth > self.after_depth
        ):
            return None
        return replace(
            self,
            before=self.before if depth == self.before_depth else None,
            after=self.after if depth == self.after_depth else None,
            every=self.every and depth == 0,
            before_depth=0,
            after_depth=0,
        )


def _depth_of(place: object) -> tuple[int, Any]:
    """Part a place among inherited messages, ``<depth>.<version>``, which is the ``next`` of a page of a fork."""
    depth, dot, version = place.partition(".") if isinstance(place, str) else ("", "", "")
    if dot and depth.isascii() and depth.isdigit() and len(depth) <= 2:
        return int(depth), version
    return 0, place


def check_count(value: object, field: str) -> int:
    """Return ``value`` if it may be the size of a page.

    :raises InvalidInput: no whole number from 1 to 10,000.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_PAGE:
        raise InvalidInput(field, f"must be a whole number from 1 to {MAX_PAGE}")
    return value


def check_place(value: object, field: str) -> int | None:
    """Return a version or a position; a page gives it as text.

    :raises InvalidInput: no whole number from 0, as a number or as text.
    """
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= INTEGER_MAX:
        raise InvalidInput(field, "must be a whole number from 0, or the `next` of a page")
    return value


def check_states(states: Collection[str]) -> list[str]:
    """Return the states of conversations that are asked for.

    :raises InvalidInput: none, or one that does not exist.
    """
    kind = isinstance(states, Collection) and not isinstance(states, str)
    if not kind or not states or not all(isinstance(one, str) and one in STATES for one in states):
        raise InvalidInput("states", f"must be some of {', '.join(STATES)}")
    return sorted(set(states))


def conversations_cursor(updated_at: int, conversation_id: str) -> str:
    """Return the place after a conversation in the list of conversations; ``updated_at`` in microseconds."""
    place = orjson.dumps([updated_at, conversation_id])
    return urlsafe_b64encode(place).decode().rstrip("=")


def read_conversations_cursor(cursor: object) -> tuple[int, str]:
    """Return what :func:`conversations_cursor` made a cursor of.

    :raises InvalidInput: it did not make this one.
    """
    try:
        if not isinstance(cursor, str) or len(cursor) > 4_000:
            raise TypeError  # noqa: TRY301 - all that is wrong with a cursor has one answer
        place = orjson.loads(urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
        updated, conversation_id = place
        if type(updated) is not int or not INTEGER_MIN <= updated <= INTEGER_MAX:
            raise TypeError  # noqa: TRY301
        return updated, check_identifier(conversation_id, "after")
    except (TypeError, ValueError) as error:
        raise InvalidInput("after", "must be the `next` of a page of conversations") from error

"""Hits: what a search gives back, and the place at which it goes on."""

from __future__ import annotations

import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from letopis.store.codec import INTEGER_MAX
from letopis.store.conversation import RecordedMessage
from letopis.store.errors import InvalidInput

HITS_MAX: Final = 1_000
"""Hits that one search shows, over all its pages."""
_CURSOR_MAX: Final = 40_000
_UNPACKED_MAX: Final = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A message that was found.

    :ivar snippet: the piece of its text that shows why, on one line.
    :ivar marks: start and end, in ``snippet``, of each word that was looked for, in whatever form it stands there.
    :ivar score: how well it fits; above 1 for what no index holds yet, which comes first. To be compared within one
        search of one store only, and not for long: what else is said changes what a word is worth.
    """

    message: RecordedMessage
    conversation_id: str
    snippet: str
    marks: tuple[tuple[int, int], ...]
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a search of a store goes on.

    :ivar bounds: by log partition, the position given out last when the search began: what came later is not in it.
    :ivar shown: by log partition, the positions of the messages that were on a page.
    """

    bounds: Mapping[int, int]
    shown: Mapping[int, frozenset[int]]

    @property
    def count(self) -> int:
        """How many hits were shown."""
        return sum(map(len, self.shown.values()))

    def with_shown(self, more: Iterable[tuple[int, int]]) -> Place:
        """Return the place after ``more`` hits, each by partition and position."""
        shown = {partition: set(positions) for partition, positions in self.shown.items()}
        for partition, position in more:
            shown.setdefault(partition, set()).add(position)
        return Place(bounds=self.bounds, shown={partition: frozenset(one) for partition, one in shown.items()})

    def to_json(self) -> list[Any]:
        """Return JSON values: small differences rather than large numbers, so that they pack well."""
        return [
            [[partition, bound] for partition, bound in sorted(self.bounds.items())],
            [[partition, *_steps(positions)] for partition, positions in sorted(self.shown.items())],
        ]

    @classmethod
    def from_json(cls, value: Any) -> Place:
        """Return the place that :meth:`to_json` gave.

        :raises ValueError: it did not give this.
        """
        bounds, shown = value
        return cls(
            bounds={_number(partition): _number(bound) for partition, bound in bounds},
            shown={_number(partition): frozenset(_summed(steps)) for partition, *steps in shown},
        )


def pack(value: Any) -> str:
    """Return JSON values as the ``next`` of a page."""
    return urlsafe_b64encode(zlib.compress(orjson.dumps(value), 9)).decode("ascii").rstrip("=")


def unpack(cursor: object) -> Any:
    """Return what :func:`pack` was given.

    :raises InvalidInput: it was given nothing like this.
    """
    try:
        if not isinstance(cursor, str) or len(cursor) > _CURSOR_MAX:
            raise TypeError  # noqa: TRY301 - all that is wrong with a cursor has one answer
        packed = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        # A few bytes may be made to unpack to gigabytes.
        unpacking = zlib.decompressobj()
        plain = unpacking.decompress(packed, _UNPACKED_MAX)
        if not unpacking.eof:
            raise ValueError  # noqa: TRY301
        return orjson.loads(plain)
    except (TypeError, ValueError, zlib.error) as error:
        raise no_place() from error


def read_place(cursor: object) -> Place:
    """Return the place that the ``next`` of a store's page names.

    :raises InvalidInput: it names none.
    """
    value = unpack(cursor)
    try:
        return Place.from_json(value)
    except (TypeError, ValueError) as error:
        raise no_place() from error


def no_place() -> InvalidInput:
    """Return the error about a cursor that is none."""
    return InvalidInput("after", "must be the `next` of a page of hits")


def _steps(positions: Iterable[int]) -> list[int]:
    last, steps = 0, []
    for position in sorted(positions):
        steps.append(position - last)
        last = position
    return steps


def _summed(steps: Iterable[Any]) -> list[int]:
    total, positions = 0, []
    for step in steps:
        total += _number(step)
        positions.append(_number(total))
    return positions


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= INTEGER_MAX:
        raise ValueError("no number of a place")
    return value

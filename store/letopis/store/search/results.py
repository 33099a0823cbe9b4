"""Hold what a search returns, and the position at which its next page goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Final

from letopis.store.model.codec import INTEGER_MAX
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.large_content import without_references
from letopis.store.read.paging import CursorCodec
from letopis.store.search.query import Query, match
from letopis.store.search.snippets import snippet

MAX_HITS: Final = 1_000
"""Hits that one search shows, over all its pages."""
_CURSOR: Final = CursorCodec("store-search", "hits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A message that was found.

    :ivar snippet: the part of its text that shows why, on one line.
    :ivar marks: start and end, in ``snippet``, of each word that matches, in whatever form it stands there.
    :ivar score: how well it matches; above 1 for a message that is not indexed yet, which comes first. Scores compare
        within one search of one store, for a short time: what is appended later changes the weight of a word.
    """

    message: RecordedMessage
    conversation_id: str
    snippet: str
    marks: tuple[tuple[int, int], ...]
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPosition:
    """Where a search of a store goes on."""

    bounds: Mapping[int, int]  # last positions by partition when it began: later messages are not part of it
    shown: Mapping[int, frozenset[int]]  # positions by partition of the messages that were on a page

    @property
    def count(self) -> int:
        return sum(map(len, self.shown.values()))

    @property
    def cursor(self) -> str:
        # Differences rather than positions: small numbers compress well.
        return _CURSOR.encode(
            [[partition, bound] for partition, bound in sorted(self.bounds.items())],
            [
                [partition, *(b - a for a, b in pairwise((0, *sorted(positions))))]
                for partition, positions in sorted(self.shown.items())
            ],
        )

    def with_shown(self, more: Iterable[tuple[int, int]]) -> SearchPosition:
        """Return the position after ``more`` hits, each given by partition and position."""
        shown = {partition: set(positions) for partition, positions in self.shown.items()}
        for partition, position in more:
            shown.setdefault(partition, set()).add(position)
        return SearchPosition(
            bounds=self.bounds, shown={partition: frozenset(of_partition) for partition, of_partition in shown.items()}
        )

    @classmethod
    def from_cursor(cls, cursor: object) -> SearchPosition:
        return _CURSOR.decode(cursor, cls._from_values)

    @classmethod
    def _from_values(cls, bounds: Any, shown: Any) -> SearchPosition:
        return cls(
            bounds={_position(partition): _position(bound) for partition, bound in bounds},
            shown={
                _position(partition): frozenset(map(_position, accumulate(map(_position, steps))))
                for partition, *steps in shown
            },
        )


def hit_of(message: RecordedMessage, query: Query, score: float | None = None) -> Hit | None:
    """Return a message as a hit; ``None`` where this query does not find it."""
    if message.redacted or not message.on_path:
        return None
    text = without_references(message.text)
    fit = match(query, text)
    if fit is None:
        return None
    excerpt = snippet(text, fit)
    return Hit(
        message=message,
        conversation_id=message.conversation_id,
        snippet=excerpt.text,
        marks=excerpt.marks,
        score=1.0 + fit.score if score is None else score,
    )


def _position(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= INTEGER_MAX:
        raise ValueError("not a partition or a position")
    return value

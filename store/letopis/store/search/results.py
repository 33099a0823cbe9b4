"""Hold what a search returns, with the part of a text that shows why, and where its next page goes on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Final

from letopis.store.model.codec import INTEGER_MAX
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.large_content import without_references
from letopis.store.read.paging import CursorCodec
from letopis.store.search.query import Match, Query, match

MAX_HITS: Final = 1_000
"""Hits that one search shows, over all its pages."""
_CURSOR: Final = CursorCodec("store-search", "hits")
MAX_SNIPPET_LENGTH: Final = 200
"""Characters of a snippet, approximately; the ellipses are not counted."""
CONTEXT_LENGTH: Final = 40
"""Characters before the first mark."""
_ELLIPSIS: Final = "…"
_ZERO_WIDTH_JOINER: Final = "\u200d"
_JOINS: Final = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff\U000e0020-\U000e007f]")
"""What is invisible and part of a word or of an emoji: a space in its place would tear them."""
_CONTINUES: Final = re.compile("[\U0001f3fb-\U0001f3ff]")
"""Skin tones, which colour the emoji before them."""


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


@dataclass(frozen=True, slots=True)
class Snippet:
    """A part of a text on one line."""

    text: str
    marks: tuple[tuple[int, int], ...]


def snippet(text: str, match: Match, *, length: int = MAX_SNIPPET_LENGTH) -> Snippet:
    """Return the part of ``text`` with the most matches; all of it where it is short."""
    start, end = (0, len(text)) if len(text) <= length else _window(text, match, length)
    # Each replaced by one space, so that the marks stay in place.
    piece = "".join(
        character if _JOINS.match(character) or (character.isprintable() and not character.isspace()) else " "
        for character in text[start:end]
    )
    shift = len(_ELLIPSIS) * (start > 0) - start
    return Snippet(
        text=f"{_ELLIPSIS if start > 0 else ''}{piece}{_ELLIPSIS if end < len(text) else ''}",
        marks=tuple((first + shift, last + shift) for first, last in match.marks if start <= first and last <= end),
    )


def _window(text: str, match: Match, length: int) -> tuple[int, int]:
    first = match.marks[_densest(match, length - CONTEXT_LENGTH)][0] if match.marks else 0
    start = min(max(0, first - CONTEXT_LENGTH), len(text) - length)
    end = start + length
    return _next_word_start(text, start, first), (len(text) if end >= len(text) else _last_word_end(text, end, first))


def _densest(match: Match, width: int) -> int:
    """Return the mark after which the most different terms, then the most marks, lie within ``width``."""
    best, best_density = 0, (0, 0)
    counts: dict[int, int] = {}
    last = 0
    for index, (start, _) in enumerate(match.marks):
        while last < len(match.marks) and match.marks[last][1] <= start + width:
            counts[match.terms[last]] = counts.get(match.terms[last], 0) + 1
            last += 1
        density = (len(counts), last - index)
        if density > best_density:
            best, best_density = index, density
        if last > index:
            counts[match.terms[index]] -= 1
            if not counts[match.terms[index]]:
                del counts[match.terms[index]]
        else:
            last = index + 1  # a word longer than the snippet
    return best


def _next_word_start(text: str, start: int, limit: int) -> int:
    """Return where the next word begins, so that none is cut; not beyond ``limit``."""
    if start == 0:
        return 0
    for index in range(start, limit):
        if text[index - 1].isspace():
            return index
    while start < limit and _is_joined(text, start):
        start += 1
    return start


def _last_word_end(text: str, end: int, least: int) -> int:
    """Return where the last whole word ends, not before ``least``."""
    for index in range(end, max(least, end - 30), -1):
        if text[index].isspace():
            return index
    while end > least and _is_joined(text, end):
        end -= 1
    return end


def _is_joined(text: str, index: int) -> bool:
    """Return True if a character belongs to the one before it, so that the text must not be cut there."""
    character = text[index]
    return (
        text[index - 1] == _ZERO_WIDTH_JOINER
        or unicodedata.category(character).startswith("M")
        or bool(_JOINS.match(character) or _CONTINUES.match(character))
    )


def marked_pieces(text: str, marks: Sequence[tuple[int, int]]) -> list[tuple[str, bool]]:
    """Return ``text`` in pieces, each with a flag that tells whether it is marked."""
    pieces: list[tuple[str, bool]] = []
    last = 0
    for start, end in marks:
        if start > last:
            pieces.append((text[last:start], False))
        pieces.append((text[start:end], True))
        last = end
    if last < len(text):
        pieces.append((text[last:], False))
    return pieces

"""Cut the part of a text that shows why it was found."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from letopis.store.search.query import Match

MAX_LENGTH: Final = 200
"""Characters of a snippet, approximately; the ellipses are not counted."""
CONTEXT_LENGTH: Final = 40
"""Characters before the first mark."""
_ELLIPSIS: Final = "…"
_ZERO_WIDTH_JOINER: Final = "\u200d"
_JOINS: Final = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff\U000e0020-\U000e007f]")
"""What is invisible and part of a word or of an emoji: a space in its place would tear them."""
_CONTINUES: Final = re.compile("[\U0001f3fb-\U0001f3ff]")
"""Skin tones, which colour the emoji before them."""


@dataclass(frozen=True, slots=True)
class Snippet:
    """A part of a text on one line."""

    text: str
    marks: tuple[tuple[int, int], ...]


def snippet(text: str, match: Match, *, length: int = MAX_LENGTH) -> Snippet:
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

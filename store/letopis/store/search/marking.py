"""Marking: the piece of a text that shows why it was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from letopis.store.search.query import Match

LENGTH: Final = 200
"""Characters of a snippet, about; the marks of what was left out not counted."""
_BEFORE: Final = 40
"""Characters that come before the first mark."""
_CUT: Final = "…"


@dataclass(frozen=True, slots=True)
class Snippet:
    """A piece of a text on one line.

    :ivar marks: start and end, in ``text``, of each word that was looked for.
    """

    text: str
    marks: tuple[tuple[int, int], ...]


def snippet(text: str, found: Match, *, length: int = LENGTH) -> Snippet:
    """Return the piece of ``text`` that shows the most of what was looked for; all of it where it is short."""
    start, end = (0, len(text)) if len(text) <= length else _window(text, found, length)
    # A space for a space, so that the marks stay where they are.
    piece = "".join(" " if one.isspace() or not one.isprintable() else one for one in text[start:end])
    shift = len(_CUT) * (start > 0) - start
    return Snippet(
        text=f"{_CUT if start > 0 else ''}{piece}{_CUT if end < len(text) else ''}",
        marks=tuple((one + shift, other + shift) for one, other in found.marks if start <= one and other <= end),
    )


def _window(text: str, found: Match, length: int) -> tuple[int, int]:
    first = found.marks[_densest(found, length - _BEFORE)][0] if found.marks else 0
    start = min(max(0, first - _BEFORE), len(text) - length)
    end = start + length
    return _to_a_gap(text, start, first), (len(text) if end >= len(text) else _back_to_a_gap(text, end, first))


def _densest(found: Match, width: int) -> int:
    """Return the mark from which on most different terms, then most marks, come within ``width``."""
    best, best_worth = 0, (0, 0)
    counts: dict[int, int] = {}
    last = 0
    for index, (start, _) in enumerate(found.marks):
        while last < len(found.marks) and found.marks[last][1] <= start + width:
            counts[found.terms[last]] = counts.get(found.terms[last], 0) + 1
            last += 1
        worth = (len(counts), last - index)
        if worth > best_worth:
            best, best_worth = index, worth
        if last > index:
            counts[found.terms[index]] -= 1
            if not counts[found.terms[index]]:
                del counts[found.terms[index]]
        else:
            last = index + 1  # a word longer than the piece
    return best


def _to_a_gap(text: str, start: int, most: int) -> int:
    """Return where the next word begins, so that none is cut; not beyond ``most``."""
    if start == 0:
        return 0
    for index in range(start, most):
        if text[index - 1].isspace():
            return index
    return start


def _back_to_a_gap(text: str, end: int, least: int) -> int:
    """Return where the last whole word ends."""
    for index in range(end, max(least, end - 30), -1):
        if text[index].isspace():
            return index
    return end


def pieces(text: str, marks: Sequence[tuple[int, int]]) -> list[tuple[str, bool]]:
    """Return ``text`` in pieces, each with whether it is marked."""
    found: list[tuple[str, bool]] = []
    last = 0
    for start, end in marks:
        if start > last:
            found.append((text[last:start], False))
        found.append((text[start:end], True))
        last = end
    if last < len(text):
        found.append((text[last:], False))
    return found

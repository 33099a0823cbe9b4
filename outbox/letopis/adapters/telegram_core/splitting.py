"""Split a long text into messages that Telegram accepts; pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

TEXT_LIMIT: Final = 4096
"""The longest message, in UTF-16 units; it never has more characters than that."""
CAPTION_LIMIT: Final = 1024
"""The longest caption of a file, in UTF-16 units."""
_EARLIEST: Final = 0.5
"""The share of a message that must be filled before a cut at a paragraph or a line is used."""
_FENCE: Final = re.compile(r"^[ ]{0,3}(`{3,8}|~{3,8}(?!~))([^`\n]*)$", re.MULTILINE)
_JOINERS: Final = frozenset("\u200d\ufe0e\ufe0f\u20e3")
_TONES: Final = range(0x1F3FB, 0x1F400)
_REGIONS: Final = range(0x1F1E6, 0x1F200)

Entity = Mapping[str, Any]
"""A piece of formatting as the Bot API describes it: ``type``, ``offset`` and ``length`` in UTF-16 units, and more."""


@dataclass(frozen=True, slots=True)
class Part:
    """One message of a longer text.

    :ivar text: the message's text.
    :ivar entities: its entities, with offsets in this message.
    :ivar start: where it starts in the whole text, in characters.
    :ivar end: where it ends in the whole text.
    """

    text: str
    entities: tuple[Entity, ...]
    start: int
    end: int


def units(text: str) -> int:
    """Return the length of a text in UTF-16 units, as Telegram counts."""
    return len(text) + sum(character > "\uffff" for character in text)


def split(text: str, entities: Sequence[Entity] = (), *, limit: int = TEXT_LIMIT) -> list[Part]:
    """Split a text into messages of at most ``limit`` UTF-16 units, in order.

    It is cut at a paragraph, otherwise at a line, otherwise between words, and within a word only if there is no other
    place. It is never cut inside a character, and inside an entity only if the entity is longer than a message; the
    entity then continues in the next one. A fenced code block (three to eight backticks or tildes) is closed at the end
    of a message and reopened in the next. White space at a cut is dropped, and so are parts that are only white space.

    :param limit: at least 64.
    """
    if limit < 64:
        raise ValueError("limit must be at least 64 UTF-16 units")
    return _Splitter(text, entities, limit).parts()


def beginning(text: str, entities: Sequence[Entity] = (), *, limit: int) -> Part:
    """Return the first part of a text, of at most ``limit`` UTF-16 units."""
    parts = split(text, entities, limit=limit)
    return parts[0] if parts else Part("", (), 0, 0)


@dataclass(frozen=True, slots=True)
class _Fence:
    """A fenced code block: its opening line, its body, and its closing line to the end.

    :ivar opening: the line that opens it again.
    :ivar closing: the line that closes it.
    """

    start: int
    body: int
    body_end: int
    end: int
    opening: str
    closing: str


class _Splitter:
    """Splits one text."""

    def __init__(self, text: str, entities: Sequence[Entity], limit: int) -> None:
        self._text = text
        self._limit = limit
        # Where each character begins, in UTF-16 units.
        self._at = [0, *accumulate(2 if character > "\uffff" else 1 for character in text)]
        self._entities = [self._placed(one) for one in entities]
        # Formatting by entities has no fences: backticks are text there.
        self._fences = [] if entities else _fenced(text)

    def parts(self) -> list[Part]:
        """Return the messages."""
        found: list[Part] = []
        start = self._skip(0)
        while start < len(self._text):
            fence = self._fence_at(start)
            if fence is not None and not self._text[start : fence.body_end].strip():
                start = self._skip(fence.end)  # nothing is left of it but its closing line
                continue
            head = "" if fence is None else f"{fence.opening}\n"
            end = self._end(start, self._limit - units(head))
            tail = self._tail(end)
            if tail and not self._fits(start, end, head + tail):
                end = self._end(start, self._limit - units(head) - units(tail))
                tail = self._tail(end)
            shown = self._text[start:end].rstrip()
            if shown:
                moved = () if head else self._entities_of(start, start + len(shown))
                found.append(Part(f"{head}{shown}{tail}", moved, start, end))
            cut = self._fence_at(end)
            if cut is not None and not self._text[end : cut.body_end].strip():
                end = cut.end  # nothing is left of it but its closing line
            start = self._skip(end)
        return found

    def _tail(self, end: int) -> str:
        fence = self._fence_at(end)
        return "" if fence is None else f"\n{fence.closing}"

    def _fits(self, start: int, end: int, around: str) -> bool:
        shown = self._text[start:end].rstrip()
        return self._at[start + len(shown)] - self._at[start] + units(around) <= self._limit

    def _skip(self, start: int) -> int:
        """Return where the next part starts: after white space, but keeping the indentation of code."""
        text, end = self._text, start
        while end < len(text) and text[end].isspace():
            end += 1
        if end < len(text) and self._fence_at(end) is not None:
            return max(start, text.rfind("\n", start, end) + 1)
        return end

    def _end(self, start: int, budget: int) -> int:
        """Return the best place to end a part that begins at ``start`` and has at most ``budget`` UTF-16 units."""
        text, at = self._text, self._at
        if at[-1] - at[start] <= budget:
            return len(text)
        low, high = start, len(text)
        while low < high:  # the furthest character that still fits
            middle = (low + high + 1) // 2
            low, high = (middle, high) if at[middle] - at[start] <= budget else (low, middle - 1)
        last = low
        earliest = start + max(1, int((last - start) * _EARLIEST))
        marks = [("\n\n", earliest), ("\n", earliest), (" ", earliest), ("\n", start + 1), (" ", start + 1)]
        if self._fence_at(last) is not None:
            marks.sort(key=lambda mark: mark[0] == " ")  # code has another meaning with a line that is cut
        for inside in (False, True):
            for mark, least in marks:
                end = self._last(mark, least, last, inside=inside)
                if end is not None:
                    return end
        return self._within_a_word(start, last)

    def _last(self, mark: str, least: int, last: int, *, inside: bool) -> int | None:
        """Return the last place of a separator, outside of entities unless ``inside``; ``None`` if there is none."""
        stop = last + len(mark)
        while (place := self._text.rfind(mark, least, stop)) >= 0:
            if place <= last and not self._in_fence_line(place) and (inside or not self._is_inside(place)):
                return place
            stop = place + len(mark) - 1
        return None

    def _is_inside(self, place: int) -> bool:
        """Return True if a place is inside something that could move to the next message as a whole."""
        limit, at = self._limit, self._at
        if any(one.start < place < one.end and at[one.end] - at[one.start] <= limit for one in self._fences):
            return True
        return any(start < place < end and at[end] - at[start] <= limit for start, end, _ in self._entities)

    def _in_fence_line(self, place: int) -> bool:
        return any(one.start < place <= one.body or one.body_end <= place < one.end for one in self._fences)

    def _within_a_word(self, start: int, last: int) -> int:
        """Return a place to cut if there is no separator: not within what is displayed as one character."""
        for one in self._fences:
            if one.start < last <= one.body and one.start > start:
                return one.start
        end = last
        while end > start + 1 and _belongs_to_previous(self._text, end):
            end -= 1
        # Hundreds of combining marks are not one character.
        return last if _belongs_to_previous(self._text, end) else end

    def _fence_at(self, place: int) -> _Fence | None:
        """Return the code block whose body contains a place; ``None`` if there is none."""
        return next((one for one in self._fences if one.body <= place < one.body_end), None)

    # Entities.

    def _placed(self, entity: Entity) -> tuple[int, int, Entity]:
        start = _index(self._at, entity["offset"])
        return start, _index(self._at, entity["offset"] + entity["length"]), entity

    def _entities_of(self, start: int, end: int) -> tuple[Entity, ...]:
        found = []
        for first, last, entity in self._entities:
            begin, stop = max(first, start), min(last, end)
            if begin < stop:
                offset = self._at[begin] - self._at[start]
                found.append({**entity, "offset": offset, "length": self._at[stop] - self._at[begin]})
        return tuple(found)


def _index(at: Sequence[int], offset: int) -> int:
    """Return the character that starts at an offset in UTF-16 units, or the next one."""
    low, high = 0, len(at) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if at[middle] < offset else (low, middle)
    return low


def _fenced(text: str) -> list[_Fence]:
    """Return the code blocks in a text."""
    blocks: list[_Fence] = []
    opened: re.Match[str] | None = None
    for line in _FENCE.finditer(text):
        if opened is None:
            opened = line
        elif line[1].startswith(opened[1]) and not line[2].strip():
            blocks.append(_Fence(opened.start(), opened.end(), line.start(), line.end(), _opening(opened), opened[1]))
            opened = None
    if opened is not None:  # the model did not close it
        blocks.append(_Fence(opened.start(), opened.end(), len(text) + 1, len(text), _opening(opened), opened[1]))
    return blocks


def _opening(line: re.Match[str]) -> str:
    language = line[2].split()[:1]
    return f"{line[1]}{language[0][:20]}" if language else line[1]


def _belongs_to_previous(text: str, place: int) -> bool:
    """Return True if the character at ``place`` is displayed as one with the one before it."""
    if place >= len(text):
        return False
    here, before = text[place], text[place - 1]
    if here in _JOINERS or before == "\u200d" or unicodedata.combining(here) or ord(here) in _TONES:
        return True
    if ord(here) in _REGIONS and ord(before) in _REGIONS:  # two of them are a flag
        run = 1
        while place - run - 1 >= 0 and ord(text[place - run - 1]) in _REGIONS:
            run += 1
        return run % 2 == 1
    return False

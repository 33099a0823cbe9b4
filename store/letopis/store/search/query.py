"""Query: what somebody looks for, read from what was typed, and whether a text has it.

Words must all be there, in any form. ``"quoted"`` words must stand there as they are and in that order; what has a
``-`` before it must not be there. There is no other syntax: everything else is words, or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from letopis.store.errors import InvalidInput
from letopis.store.search.words import Place, Word, places, words

LENGTH_MAX: Final = 1_000
"""Characters of a query."""
TERMS_MAX: Final = 32
"""Words of a query."""

_QUOTES: Final = str.maketrans(dict.fromkeys("“”„«»", '"'))  # what telephones make of a quotation mark
_PARTS: Final = re.compile(r'(?P<minus>(?<!\S)-)?(?:"(?P<quoted>[^"]*)"|(?P<plain>[^\s"]+))')
_EXACT: Final = 1.0
_FORM: Final = 0.6


@dataclass(frozen=True, slots=True)
class Term:
    """One thing to look for: a word, or several that follow each other.

    :ivar exact: as it stands (it was quoted), and not in any form.
    """

    words: tuple[Word, ...]
    exact: bool = False

    @property
    def codes(self) -> tuple[str, ...]:
        """What an index is asked for, in order."""
        return tuple(word.exact_code if self.exact else word.stem_code for word in self.words)


@dataclass(frozen=True, slots=True)
class Query:
    """What somebody looks for: at least one term that has to be there, and those that must not be."""

    wanted: tuple[Term, ...]
    excluded: tuple[Term, ...] = ()


@dataclass(frozen=True, slots=True)
class Match:
    """Where a text has what was looked for.

    :ivar marks: start and end of each word found, in order.
    :ivar terms: the number of the wanted term that each mark belongs to.
    :ivar score: how well it fits, above 0 and below 1.
    """

    marks: tuple[tuple[int, int], ...]
    terms: tuple[int, ...]
    score: float


def parse(typed: object) -> Query:
    """Return what ``typed`` looks for.

    A word that is written with signs in it (``e-mail``, ``letopis.store``) is several that follow each other. A
    quotation mark without its other half is nothing.

    :raises InvalidInput: no text, longer than 1,000 characters, more than 32 words, or without a word to look for.
    """
    if not isinstance(typed, str):
        raise InvalidInput("query", f"must be text, not {type(typed).__name__}")
    if len(typed) > LENGTH_MAX:
        raise InvalidInput("query", f"has {len(typed)} characters, the limit is {LENGTH_MAX}")
    wanted, excluded = dict[Term, None](), dict[Term, None]()  # in order, each once
    count = 0
    for part in _PARTS.finditer(typed.translate(_QUOTES)):
        quoted = part["quoted"]
        found = tuple(words(part["plain"] if quoted is None else quoted))
        count += len(found)
        if found:
            (wanted if part["minus"] is None else excluded)[Term(found, quoted is not None)] = None
    if count > TERMS_MAX:
        raise InvalidInput("query", f"has {count} words, the limit is {TERMS_MAX}")
    if not wanted:
        reason = "has only words that must not be there" if excluded else "has no word in it, only signs"
        raise InvalidInput("query", f"{reason}: say what to look for")
    return Query(tuple(wanted), tuple(excluded))


def match(query: Query, text: str) -> Match | None:
    """Return where ``text`` has what ``query`` looks for; ``None`` where it has not, or has what it must not."""
    there = list(places(text))
    stems: dict[str, list[int]] = {}
    for index, place in enumerate(there):
        stems.setdefault(place.word.stem, []).append(index)
    if any(_found(term, there, stems) for term in query.excluded):
        return None
    marked: dict[int, int] = {}
    total = 0.0
    for number, term in enumerate(query.wanted):
        found = _found(term, there, stems)
        if not found:
            return None
        exact = sum(_as_it_stands(term, there, start) for start in found)
        worth = exact * _EXACT + (len(found) - exact) * _FORM
        total += worth / (worth + 1.0)
        for start in found:
            for index in range(start, start + len(term.words)):
                marked.setdefault(index, number)
    order = sorted(marked)
    return Match(
        marks=tuple((there[index].start, there[index].end) for index in order),
        terms=tuple(marked[index] for index in order),
        # In a long text a word says less.
        score=total / len(query.wanted) / (1.0 + len(there) / 1_000.0),
    )


def _found(term: Term, there: Sequence[Place], stems: dict[str, list[int]]) -> list[int]:
    """Return where the words of a term begin, each follows the one before."""
    equal: Callable[[Word, Word], bool] = _same_word if term.exact else _same_stem
    # A word has its own stem, so the stems know the exact ones too.
    return [
        start
        for start in stems.get(term.words[0].stem, ())
        if start + len(term.words) <= len(there)
        and all(equal(word, there[start + offset].word) for offset, word in enumerate(term.words))
    ]


def _as_it_stands(term: Term, there: Sequence[Place], start: int) -> bool:
    return all(_same_word(word, there[start + offset].word) for offset, word in enumerate(term.words))


def _same_word(one: Word, other: Word) -> bool:
    return one.exact == other.exact


def _same_stem(one: Word, other: Word) -> bool:
    return one.stem == other.stem

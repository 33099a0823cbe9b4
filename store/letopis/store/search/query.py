"""Parse a search query and match texts with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from letopis.store.errors import InvalidInput
from letopis.store.search.analysis import Word, WordSpan, word_spans, words

MAX_QUERY_LENGTH: Final = 1_000
MAX_TERMS: Final = 32

_QUOTES: Final = str.maketrans(dict.fromkeys("“”„«»", '"'))  # quotation marks of phone keyboards
_PARTS: Final = re.compile(r'(?P<minus>(?<!\S)-)?(?:"(?P<quoted>[^"]*)"|(?P<plain>[^\s"]+))')
_EXACT_WEIGHT: Final = 1.0
_OTHER_FORM_WEIGHT: Final = 0.6
_exact, _stem = attrgetter("exact"), attrgetter("stem")


@dataclass(frozen=True, slots=True)
class Term:
    """A word to look for, or several that follow each other."""

    words: tuple[Word, ...]
    exact: bool = False

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes to look up in an index, in order."""
        return tuple(word.exact_code if self.exact else word.stem_code for word in self.words)


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query: at least one term that must be there, and those that must not be."""

    wanted: tuple[Term, ...]
    excluded: tuple[Term, ...] = ()


@dataclass(frozen=True, slots=True)
class Match:
    """Where a text matches a query."""

    marks: tuple[tuple[int, int], ...]  # start and end of each word found, in order
    terms: tuple[int, ...]  # the index of the wanted term of each mark
    score: float  # above 0 and below 1


def parse(typed: object) -> Query:
    """Return the query that ``typed`` means."""
    if not isinstance(typed, str):
        raise InvalidInput("query", f"must be text, not {type(typed).__name__}")
    if len(typed) > MAX_QUERY_LENGTH:
        raise InvalidInput("query", f"has {len(typed)} characters, the limit is {MAX_QUERY_LENGTH}")
    wanted, excluded = dict[Term, None](), dict[Term, None]()  # in order, each once
    count = 0
    for part in _PARTS.finditer(typed.translate(_QUOTES)):
        quoted = part["quoted"]
        parsed = tuple(words(part["plain"] if quoted is None else quoted))
        count += len(parsed)
        if parsed:
            (wanted if part["minus"] is None else excluded)[Term(parsed, quoted is not None)] = None
    if count > MAX_TERMS:
        raise InvalidInput("query", f"has {count} words, the limit is {MAX_TERMS}")
    if not wanted:
        reason = "has only words that must not be there" if excluded else "has no word in it, only signs"
        raise InvalidInput("query", f"{reason}: say what to look for")
    return Query(tuple(wanted), tuple(excluded))


def match(query: Query, text: str) -> Match | None:
    """Return where ``text`` matches; ``None`` where a wanted term is missing or an excluded one is there."""
    spans = list(word_spans(text))
    stems: dict[str, list[int]] = {}
    for index, span in enumerate(spans):
        stems.setdefault(span.word.stem, []).append(index)
    if any(_found(term, spans, stems) for term in query.excluded):
        return None
    marked: dict[int, int] = {}
    total = 0.0
    for number, term in enumerate(query.wanted):
        matched = _found(term, spans, stems)
        if not matched:
            return None
        exact = sum(_stands_at(term, spans, start, _exact) for start in matched)
        weight = exact * _EXACT_WEIGHT + (len(matched) - exact) * _OTHER_FORM_WEIGHT
        total += weight / (weight + 1.0)
        for start in matched:
            for index in range(start, start + len(term.words)):
                marked.setdefault(index, number)
    order = sorted(marked)
    return Match(
        marks=tuple((spans[index].start, spans[index].end) for index in order),
        terms=tuple(marked[index] for index in order),
        # A word counts for less in a long text.
        score=total / len(query.wanted) / (1.0 + len(spans) / 1_000.0),
    )


def _found(term: Term, spans: Sequence[WordSpan], stems: dict[str, list[int]]) -> list[int]:
    """Return where the words of a term begin, each following the one before."""
    form = _exact if term.exact else _stem
    # Words with the same exact form have the same stem.
    return [start for start in stems.get(term.words[0].stem, ()) if _stands_at(term, spans, start, form)]


def _stands_at(term: Term, spans: Sequence[WordSpan], start: int, form: Callable[[Word], str]) -> bool:
    """Return True if the words of a term follow each other from a place on, in the same form."""
    there = spans[start : start + len(term.words)]
    return [form(span.word) for span in there] == [form(word) for word in term.words]

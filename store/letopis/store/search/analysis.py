"""Split a text into words, and give each the codes by which an index knows it."""

# All three databases index the same codes: a search finds the same in each, and what is not indexed yet is matched by
# the same rule. A code is 14 letters and digits, so no tokenizer, collation, stop list or length limit of a database
# changes what is found, an index is no second copy of the messages, and user input is never part of a query.

from __future__ import annotations

import re
import threading
import unicodedata
from base64 import b32encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import blake2b
from importlib import import_module
from itertools import islice
from typing import Any, Final, cast

GENERATION: Final = 1
"""Version of these rules: each has an index of its own. A change to the codes of a word raises it."""
MAX_WORDS: Final = 16_000
"""Words of one message that are indexed; PostgreSQL counts no positions beyond 16,383."""

MAX_CACHED_WORDS: Final = 50_000
"""Words whose codes are cached: stemming is slow."""
_INVISIBLE: Final = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
_WITHOUT_INVISIBLE: Final = dict.fromkeys(map(ord, _INVISIBLE))
_UNSPACED: Final = "\u2e80-\u2fff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Scripts without spaces between words: each character counts as a word."""
# Stress marks and accents are removed, also those of ё; the marks of й, ў and ї make other letters and stay.
_ACCENTS: Final = re.compile("(?<![иу])\u0306|(?<!і)\u0308|[\u0300-\u0305\u0307\u0309-\u036f]")
_CYRILLIC: Final = re.compile("[а-я]+")
_LATIN: Final = re.compile("[a-z]+")
_stemming = threading.Lock()


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a text as it is compared."""

    exact: str
    stem: str

    @property
    def exact_code(self) -> str:
        """The code of this form of the word."""
        return _code("w", self.exact)

    @property
    def stem_code(self) -> str:
        """The code that all its forms share."""
        return _code("s", self.stem)


@dataclass(frozen=True, slots=True)
class WordSpan:
    """A word and its position in a text."""

    word: Word
    start: int
    end: int


def word_spans(text: str, *, limit: int = MAX_WORDS) -> Iterator[WordSpan]:
    """Yield the words of ``text`` in order with their positions, at most ``limit``."""
    for match in islice(_pattern().finditer(text), limit):
        yield WordSpan(word_of(match.group()), match.start(), match.end())


def words(text: str, *, limit: int = MAX_WORDS) -> list[Word]:
    """Return the words of ``text`` in order, at most ``limit``."""
    return [word_of(match.group()) for match in islice(_pattern().finditer(text), limit)]


@lru_cache(maxsize=MAX_CACHED_WORDS)
def word_of(written: str) -> Word:
    """Return the word of a string of letters and digits."""
    exact = _folded(written)
    return Word(exact, _stem(exact))


def scope_code(kind: str, name: str | None) -> str:
    """Return the code of a message's ``c``onversation or ``o``wner; ``None`` stands for an unknown owner."""
    return _code(kind, "" if name is None else name)


def _folded(written: str) -> str:
    if written.isascii():
        return written.lower()
    folded = unicodedata.normalize("NFKD", written.translate(_WITHOUT_INVISIBLE).casefold()).casefold()
    return unicodedata.normalize("NFC", _ACCENTS.sub("", folded))


def _stem(exact: str) -> str:
    if _CYRILLIC.fullmatch(exact):
        stem = _stemmer("russian")
    elif _LATIN.fullmatch(exact):
        stem = _stemmer("english")
    else:
        return exact
    with _stemming:  # a stemmer holds the word that it works on
        stemmed = stem(exact)
    return stemmed if len(stemmed) > 1 else exact


@lru_cache(maxsize=2 * MAX_CACHED_WORDS)
def _code(kind: str, word: str) -> str:
    digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8, person=kind.encode()).digest()
    return kind + b32encode(digest).decode("ascii").rstrip("=").lower()


@cache
def _stemmer(language: str) -> Callable[[str], str]:
    # Imported with the first word, and from its modules: the package itself prefers a compiled stemmer of any version
    # that is installed.
    module = import_module(f"snowballstemmer.{language}_stemmer")
    stemmer: Any = getattr(module, f"{language.capitalize()}Stemmer")()
    return cast("Callable[[str], str]", stemmer.stemWord)


@cache
def _pattern() -> re.Pattern[str]:
    """Return the pattern of a word: letters and digits with their marks; built once, from 65,536 characters."""
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code))[0] == "M")
    begins = rf"(?![{_UNSPACED}])[^\W_]"
    return re.compile(rf"[{_UNSPACED}]|{begins}(?:{begins}|[{marks}{_INVISIBLE}])*")

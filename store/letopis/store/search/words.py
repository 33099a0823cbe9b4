"""Words: the words of a text, how they are compared, and the codes by which an index knows them.

All three stores index the same codes, made here: a search finds the same on each of them, and what is not indexed yet
is matched by the same rule. A code is 14 letters and digits, so no tokenizer, collation, stop list or length limit of a
database changes what is found, an index is no second copy of what people said, and nothing that a person typed is ever
part of a query language.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from base64 import b32encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import blake2b
from importlib import import_module
from itertools import islice
from typing import Any, Final, cast

GENERATION: Final = 1
"""Number of these rules; another number is another index. A change to what a word becomes raises it."""
WORDS_MAX: Final = 16_000
"""Words of one message that are looked at; PostgreSQL counts no positions beyond 16,383."""

_KEPT: Final = 50_000
"""Words whose forms are remembered: making one costs 40 microseconds."""
_INVISIBLE: Final = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
_ALONE: Final = "\u2e80-\u2fff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Scripts that put no space between words: each character is one."""
# A stress mark or an accent goes; the marks that make other letters of й, ў and ї stay, those of ё do not.
_ACCENTS: Final = re.compile("(?<![иу])\u0306|(?<!і)\u0308|[\u0300-\u0305\u0307\u0309-\u036f]")
_CYRILLIC: Final = re.compile("[а-я]+")
_LATIN: Final = re.compile("[a-z]+")
_making = threading.Lock()


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a text as it is compared.

    :ivar exact: folded: no case, no accents, ``ё`` as ``е``.
    :ivar stem: what its forms share; the word itself where its language has no rules here.
    """

    exact: str
    stem: str

    @property
    def exact_code(self) -> str:
        """The code of the word as it stands."""
        return _code("w", self.exact)

    @property
    def stem_code(self) -> str:
        """The code of all its forms."""
        return _code("s", self.stem)


@dataclass(frozen=True, slots=True)
class Place:
    """A word and where it stands in its text."""

    word: Word
    start: int
    end: int


def places(text: str, *, most: int = WORDS_MAX) -> Iterator[Place]:
    """Yield the words of ``text`` in order, at most ``most``."""
    for found in islice(_pattern().finditer(text), most):
        yield Place(word_of(found.group()), found.start(), found.end())


def words(text: str, *, most: int = WORDS_MAX) -> list[Word]:
    """Return the words of ``text`` in order, at most ``most``."""
    return [word_of(found.group()) for found in islice(_pattern().finditer(text), most)]


@lru_cache(maxsize=_KEPT)
def word_of(written: str) -> Word:
    """Return the word that is written so."""
    exact = _folded(written)
    return Word(exact, _stem(exact))


def scope_code(kind: str, name: str | None) -> str:
    """Return the code of whose a message is: of a ``c``onversation or an ``o``wner; ``None`` is an owner not known."""
    return _code(kind, "" if name is None else name)


def joined(codes: Iterable[str]) -> str:
    """Return codes as the text that is indexed."""
    return " ".join(codes)


def _folded(written: str) -> str:
    if written.isascii():
        return written.lower()
    folded = unicodedata.normalize("NFKD", written.translate(_without_invisible()).casefold()).casefold()
    return unicodedata.normalize("NFC", _ACCENTS.sub("", folded))


def _stem(exact: str) -> str:
    if _CYRILLIC.fullmatch(exact):
        stem = _stemmer("russian")
    elif _LATIN.fullmatch(exact):
        stem = _stemmer("english")
    else:
        return exact
    with _making:  # a stemmer keeps the word it works on in itself
        found = stem(exact)
    return found if len(found) > 1 else exact


@lru_cache(maxsize=2 * _KEPT)
def _code(kind: str, word: str) -> str:
    digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8, person=kind.encode()).digest()
    return kind + b32encode(digest).decode("ascii").rstrip("=").lower()


@cache
def _stemmer(language: str) -> Callable[[str], str]:
    # Imported with the first word. From its modules: the package puts a compiled stemmer in their place, of whatever
    # version, where one is installed.
    module = import_module(f"snowballstemmer.{language}_stemmer")
    stemmer: Any = getattr(module, f"{language.capitalize()}Stemmer")()
    return cast("Callable[[str], str]", stemmer.stemWord)


@cache
def _without_invisible() -> dict[int, None]:
    return dict.fromkeys(map(ord, _INVISIBLE))


@cache
def _pattern() -> re.Pattern[str]:
    """Letters and digits with the marks on them; made when first needed, for it asks after 65,536 characters."""
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code))[0] == "M")
    begins = rf"(?![{_ALONE}])[^\W_]"
    return re.compile(rf"[{_ALONE}]|{begins}(?:{begins}|[{marks}{_INVISIBLE}])*")

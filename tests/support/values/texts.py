"""List texts, and say of each whether it may be content and whether it may be an id."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Words:
    """A text: whether it may be content, and whether it may be an id."""

    name: str
    value: str
    as_text: bool = True
    as_id: bool = True


_TEXTS_AND_IDS: Final = (
    {"plain": "abc", "upper": "ABC", "mixed": "aBc", "accent-nfc": "caf\u00e9", "accent-nfd": "cafe\u0301"}
    | {"no-accent": "cafe", "trailing-space": "abc ", "leading-space": " abc", "only-space": " ", "two-spaces": "  "}
    | {"no-break-space": "abc\u00a0", "ideographic-space": "\u3000", "percent": "%", "underscore": "_", "star": "*"}
    | {"wildcards": "a%c_", "backslash": "\\", "backslash-end": "abc\\", "quote": "'"}
    | {"quotes": "'; DROP TABLE letopis_events; --", "double-quote": '"', "backtick": "`", "bind-name": ":id"}
    | {"bind-pyformat": "%(id)s", "bind-question": "?", "bind-dollar": "$1", "percent-s": "%s %d %%"}
    | {"braces": "{0} {conversation_id}", "html": "<script>alert(1)</script>", "json": '{"a": 1}'}
    | {"json-escape": "\\u0000", "json-surrogate-escape": "\\ud800", "null-word": "null", "none-word": "None"}
    | {"nan-word": "NaN", "number": "1", "number-padded": "01", "number-float": "1.0", "dot": "."}
    | {"dots": "../../etc/passwd", "slash": "a/b", "colon": "tenant:chat", "comma": "a,b", "hash": "#"}
    | {"uuid-upper": "018F4E2A-0000-7000-8000-000000000000", "uuid-lower": "018f4e2a-0000-7000-8000-000000000000"}
    | {"russian": "История", "russian-lower": "история", "russian-yo": "\u0451", "russian-yo-nfd": "\u0435\u0308"}
    | {"russian-ye": "\u0435", "greek-sigma": "ΣΊΣΥΦΟΣ", "greek-final-sigma": "σίσυφος", "german-sharp-s": "straße"}
    | {"german-ss": "strasse", "turkish-dotless": "ı", "turkish-dotted": "İ", "ligature": "\ufb01"}
    | {
        "full-width": "\uff41\uff42\uff43",
        "chinese": "历史",
        "hangul-nfc": "\ud55c",
        "hangul-nfd": "\u1112\u1161\u11ab",
    }
    | {"arabic": "تاريخ", "hebrew": "היסטוריה", "devanagari": "इतिहास", "emoji": "🤖", "emoji-family": "👩‍👩‍👧‍👦"}
    | {"emoji-skin": "👍🏽", "emoji-plain": "👍", "emoji-flag": "🇦🇲", "variation-selector": "\u2764\ufe0f"}
    | {"heart": "\u2764", "plane-16": "\U0010ffff", "non-character": "\ufffe", "replacement": "\ufffd"}
    | {"byte-order-mark": "\ufeffabc", "zero-width-space": "a\u200bb", "zero-width-joiner": "a\u200db"}
    | {"soft-hyphen": "a\u00adb", "right-to-left-override": "a\u202eb", "line-separator": "a\u2028b"}
    | {"paragraph-separator": "a\u2029b", "private-use": "\ue000", "zalgo": "a" + "\u0301" * 100}
    | {"characters-255": "x" * 255, "emoji-255": "😀" * 255, "russian-255": "я" * 255}
)
_TEXTS: Final = (
    {"characters-256": "x" * 256, "characters-100k": "x" * 100_000, "empty": "", "line-feed": "a\nb"}
    | {"carriage-return": "a\r\nb", "only-line-feed": "\n", "tab": "a\tb", "bell": "\a", "backspace": "a\bb"}
    | {"escape": "\x1b[31mred", "unit-separator": "\x1f", "delete": "\x7f", "next-line": "a\x85b"}
    | {"c1-control": "\x9b31m"}
)
_NEITHER: Final = (
    {"nul": "a\x00b", "only-nul": "\x00", "nul-end": "abc\x00", "high-surrogate": "a\ud800"}
    | {"low-surrogate": "\udc00b", "surrogates-swapped": "\udc00\ud800"}
    # Two halves in a Python string are not the character that they would be in UTF-16.
    | {"surrogate-pair": "\ud83e\udd16"}
)
TEXTS: Final[Sequence[Words]] = (
    *(Words(*one) for one in _TEXTS_AND_IDS.items()),
    *(Words(*one, as_id=False) for one in _TEXTS.items()),
    *(Words(*one, as_text=False, as_id=False) for one in _NEITHER.items()),
)

"""List values, texts among them, and say of each whether it may be content, an id, or part of JSON."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Final
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Words:
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


class Colour(enum.StrEnum):
    """A string that is taken by its value."""

    RED = "red"


class Level(enum.IntEnum):
    """An integer that is taken by its value."""

    HIGH = 3


def own(kind: type[Any]) -> Any:
    """Return a subclass, as callers have of their own."""
    return type(f"Own{kind.__name__}", (kind,), {})


KINDS_OF_NO_TEXT: Final[Sequence[tuple[str, Any]]] = tuple(
    (
        {"none": None, "true": True, "integer": 42, "float": 1.5, "bytes": b"abc", "list": ["abc"]}
        | {"object": {"a": 1}, "uuid": UUID(int=7)}
    ).items()
)

KEPT_JSON: Final[Sequence[tuple[str, Any]]] = tuple(
    (
        {"null": None, "true": True, "false": False, "zero": 0, "minus-one": -1, "beyond-32-bits": 2**31}
        | {"beyond-53-bits": 2**53 + 1, "largest-integer": 2**63 - 1, "smallest-integer": -(2**63), "float": 0.1}
        | {"minus-zero": -0.0, "whole-float": 1.0, "smallest-float": 5e-324, "largest-float": 1.7976931348623157e308}
        | {"many-digits": 0.30000000000000004, "empty-list": [], "empty-object": {}, "empty-key": {"": 1}}
        | {"keys-by-case": {"a": 1, "A": 2}, "keys-by-accent": {"e": 1, "\u00e9": 2, "e\u0301": 3}}
        | {"key-order": {"b": 1, "a": 2}, "mixed-list": [1, "1", 1.5, None, True, [], {}], "nested-lists": [[[[1]]]]}
        | {"long-list": list(range(2000)), "many-keys": {f"key-{number}": number for number in range(500)}}
        | {"tuple": (1, (2, 3)), "string-enum": Colour.RED, "integer-enum": Level.HIGH, "own-string": own(str)("abc")}
        | {"float-subclass": own(float)(21.5), "enum-key": {Colour.RED: "a"}}
    ).items()
)

REFUSED_JSON: Final[Sequence[tuple[str, Any]]] = tuple(
    (
        {"nan": math.nan, "infinity": math.inf, "minus-infinity": -math.inf, "beyond-64-bits": 2**63}
        | {"unsigned-64-bits": 2**64 - 1, "below-64-bits": -(2**63) - 1, "hundred-digits": 10**100, "bytes": b"abc"}
        | {"bytearray": bytearray(b"abc"), "set": {1}, "frozenset": frozenset((1,))}
        | {"datetime": datetime(2026, 1, 1, tzinfo=UTC), "date": date(2026, 1, 1), "decimal": Decimal("1.1")}
        | {"complex": 1j, "uuid": UUID(int=1), "function": len, "class": int, "generator": iter(())}
        | {"range": range(3), "exception": ValueError("abc"), "dataclass": Words("a", "b"), "integer-key": {1: "a"}}
        | {"none-key": {None: "a"}, "tuple-key": {(1, 2): "a"}, "nan-inside": [{"a": [1, math.nan]}]}
        | {"nul-in-key": {"a\x00": 1}, "surrogate-in-key": {"\ud800": 1}, "nul-inside": [["a\x00"]]}
        | {"surrogate-inside": {"a": ["\udfff"]}}
    ).items()
)

NO_OBJECTS: Final[Sequence[tuple[str, Any]]] = tuple(
    (
        {"list": [1], "pairs": [("a", 1)], "string": "abc", "bytes": b"abc", "integer": 1, "true": True}
        | {"empty-list": [], "empty-string": "", "zero": 0, "false": False}
    ).items()
)

MOMENTS: Final[Sequence[tuple[str, Any, bool]]] = (
    ("epoch", datetime(1970, 1, 1, tzinfo=UTC), True),
    ("before-the-epoch", datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), True),
    ("one-microsecond", datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC), True),
    ("last-microsecond", datetime(2026, 1, 1, 0, 0, 0, 999_999, tzinfo=UTC), True),
    ("leap-day", datetime(2024, 2, 29, tzinfo=UTC), True),
    ("after-2038", datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC), True),
    ("after-2106", datetime(2106, 2, 7, 6, 28, 16, tzinfo=UTC), True),
    ("first", datetime.min.replace(tzinfo=UTC), True),
    ("last", datetime.max.replace(tzinfo=UTC), True),
    ("east", datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=14))), True),
    ("west", datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=-12))), True),
    ("odd-offset", datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=45))), True),
    ("seconds-offset", datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2, seconds=17))), True),
    # In UTC it lies before the year 1, or after 9999, which no datetime can show.
    ("before-the-first", datetime.min.replace(tzinfo=timezone(timedelta(hours=1))), False),
    ("after-the-last", datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), False),
    ("no-zone", datetime(2026, 1, 1), False),  # noqa: DTZ001  # the fault that is tried
    ("date", date(2026, 1, 1), False),
    ("string", "2026-01-01T00:00:00Z", False),
    ("integer", 1_767_225_600, False),
    ("float", 1_767_225_600.0, False),
)

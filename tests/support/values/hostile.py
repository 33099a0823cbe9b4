"""List what a caller could hand over on purpose or by mistake: strings, numbers, depths and types, each by name."""

import math
import unicodedata
from collections import OrderedDict, UserDict, UserString
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import PurePosixPath
from random import Random
from types import MappingProxyType
from typing import Any, Final

from tests.support.values.types import KEPT_JSON, KINDS_OF_NO_TEXT, MOMENTS, NO_OBJECTS, REFUSED_JSON, TEXTS, Level, own

TWINS: Final = ("chat", "café", "Straße", "ﬁle", "Ёлка", "ΣΊΣΥΦΟΣ", "ｗｉｄｅ", "İstanbul", "한글", "Å")
SQL: Final = (
    *("' OR '1'='1", '" OR ""="', "'; DROP TABLE letopis_events CASCADE; --", "') UNION SELECT NULL,NULL,NULL--"),
    *("admin'/*", "\\'; DROP TABLE letopis_lanes; --", "%' OR 'a' LIKE '%", "_%_%", "x'; SELECT pg_sleep(5); --"),
    *("0x27204f522031", "$$; DROP TABLE letopis_events; $$", "E'\\047'", "%s' %(x)s", ":conversation_id", "?1"),
    *("@@version", "`letopis_events`", "null; ATTACH DATABASE 'x.db' AS x", "NEAR(a b, 5)", "a* ^b AND NOT c"),
)
PATHS: Final = (
    *("..", "../../../../etc/passwd", "..\\..\\windows\\system32", "/etc/passwd", "//host/share", "C:\\con"),
    *("file:///etc/passwd", "aux.txt", "~root/.ssh/id_rsa", "$HOME/x", "%2e%2e%2f", "--help", "@file", "$(id)", ";id"),
)
MARKUP: Final = (
    *("<img src=x onerror=alert(1)>", "javascript:alert(1)", "</script><script>", "<!--", "]]>", "&lt;b&gt;"),
    *("<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>", "[a](javascript:b)", "{{7*7}}", "=cmd|' /C calc'!A0"),
)
JSON: Final = ('{"a":', "[[[[", '{"a":1,"a":2}', '"', "\\", "\\u0000", "\\ud800", "1e999", "[NaN]", '{"__proto__":{}}')
FORMATS: Final = ("%n%n%n", "%(conversation_id)s", "{}", "{0.__class__}", "{conversation_id!r:>99}", "%")
UUIDS: Final = (
    *("018f4e2a-0000-7000-8000-00000000000", "{018f4e2a-0000-7000-8000-000000000000}"),
    *("018f4e2a000070008000000000000000", "018F4E2A-0000-7000-8000-000000000000"),
    *("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
)
LENGTHS: Final = (1, 2, 63, 64, 65, 254, 255, 256, 1_024, 2_049, 65_535, 65_536)


@dataclass(frozen=True, slots=True)
class Hostile:
    name: str
    value: Any


@cache
def kinds() -> tuple[tuple[Hostile, ...], ...]:
    return tuple(_strings()), tuple(_numbers()), tuple(_depths()), tuple(_types())


def values() -> list[Hostile]:
    return [one for kind in kinds() for one in kind]


def sample(many: int, random: Random) -> list[Hostile]:
    """Return this many, with some of every kind."""
    share = (0.5, 0.17, 0.08, 0.25)
    chosen: list[Hostile] = []
    for kind, part in zip(kinds(), share, strict=True):
        chosen += random.sample(kind, min(len(kind), max(1, round(many * part))))
    return chosen


def _strings() -> Iterator[Hostile]:
    for words in TEXTS:
        if len(words.value) < 100_000:  # one is enough, below
            yield Hostile(f"text-{words.name}", words.value)
    groups = {"sql": SQL, "path": PATHS, "markup": MARKUP, "json": JSON, "format": FORMATS, "uuid": UUIDS}
    for kind, texts in groups.items():
        yield from _named(f"{kind}-", ((str(number), text) for number, text in enumerate(texts)))
    for code in (*range(0x20), *range(0x7F, 0xA0)):
        yield Hostile(f"control-{code:02x}", f"a{chr(code)}b")
    for code in (*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF, 0xE0001, 0xFFFC):
        yield Hostile(f"invisible-{code:04x}", f"a{chr(code)}b")
    for code in (0xD800, 0xDBFF, 0xDC00, 0xDFFF):
        yield Hostile(f"surrogate-{code:04x}", f"{chr(code)}b")
    for word in TWINS:
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            yield Hostile(f"twin-{word}-{form}", unicodedata.normalize(form, word))
        made = {"upper": word.upper(), "lower": word.lower(), "fold": word.casefold()}
        made |= {"space": f"{word} ", "tail": f"{word}\u00a0"}
        yield from _named(f"twin-{word}-", made.items())
    for length in LENGTHS:
        yield Hostile(f"long-{length}", "x" * length)
        yield Hostile(f"long-wide-{length}", "😀" * length)
    yield Hostile("long-million", "x " * 500_000)
    yield Hostile("long-too-much", "x" * 1_200_000)


def _numbers() -> Iterator[Hostile]:
    for bits in (7, 8, 15, 16, 31, 32, 53, 62, 63, 64, 128):
        for name, number in (("less", 2**bits - 1), ("", 2**bits), ("minus", -(2**bits)), ("below", -(2**bits) - 1)):
            yield Hostile(f"power-{bits}-{name}", number)
    for number in (0, 1, -1, 10_000, 10_001, 10**100, 10**5_000):
        yield Hostile(f"integer-{number if number < 10**9 else len(bin(number))}", number)
    floats = {"nan": math.nan, "inf": math.inf, "minus-inf": -math.inf, "minus-zero": -0.0, "tiny": 5e-324} | {
        "huge": 1.7976931348623157e308,
        "half": 0.5,
        "whole": 3.0,
        "beyond-53": 9007199254740993.0,
    }
    others: dict[str, Any] = {
        "true": True,
        "false": False,
        "decimal": Decimal("1.10"),
        "decimal-nan": Decimal("NaN"),
    } | {"fraction": Fraction(1, 3), "complex": 1j, "number-subclass": own(int)(7), "number-enum": Level.HIGH}
    yield from _named("float-", floats.items())
    yield from _named("", others.items())


def _depths() -> Iterator[Hostile]:
    for depth in (2, 60, 61, 62, 63, 64, 65, 200, 253, 254, 255, 900, 5_000):
        as_list: Any = []
        as_object: Any = {}
        mixed: Any = 1
        for level in range(depth - 1):
            as_list, as_object = [as_list], {"a": as_object}
            mixed = {"a": mixed} if level % 2 else [mixed]
        yield Hostile(f"lists-{depth}", as_list)
        yield Hostile(f"objects-{depth}", as_object)
        yield Hostile(f"mixed-{depth}", {"a": mixed})
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    ring: list[Any] = []
    ring.append(ring)
    yield Hostile("cycle-object", cycle)
    yield Hostile("cycle-list", ring)
    yield Hostile("wide-object", {f"k{number}": number for number in range(20_000)})


def _types() -> Iterator[Hostile]:
    for kind, table in (("kept", KEPT_JSON), ("refused", REFUSED_JSON)):
        for name, value in table:
            yield from _named(f"{kind}-", ((name, value), (f"in-object-{name}", {"value": value})))
    yield from _named("no-object-", NO_OBJECTS)
    yield from _named("kind-", KINDS_OF_NO_TEXT)
    yield from _named("moment-", ((name, value) for name, value, _ in MOMENTS))
    made: dict[str, Any] = (
        {"user-string": UserString("abc"), "own-object": own(dict)(a=1), "own-object-inside": {"a": own(dict)(b=1)}}
        | {"ordered": OrderedDict(b=1, a=2), "user-object": UserDict(a=1), "user-object-inside": {"a": UserDict(b=1)}}
        | {"read-only": MappingProxyType({"a": 1}), "read-only-inside": {"a": MappingProxyType({"b": 1})}}
        | {"list-subclass": own(list)([1]), "tuple": ("a", 1), "memory": memoryview(b"abc"), "time": time(12)}
        | {"delta": timedelta(days=1), "delta-longest": timedelta.max, "zone": UTC}
        | {"path": PurePosixPath("/etc/passwd"), "not-implemented": NotImplemented, "ellipsis": ...}
        | {"lambda": lambda: None, "type": dict, "bare-object": object(), "list-of-none": [None]}
        | {"list-of-lists": [[1], [2]], "list-of-bytes": [b"a"], "set-of-words": {"a", "b"}}
    )
    yield from _named("type-", made.items())


def _named(kind: str, table: Iterable[tuple[str, Any]]) -> Iterator[Hostile]:
    for name, value in table:
        yield Hostile(f"{kind}{name}", value)

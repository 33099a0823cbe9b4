"""Hostile values and the places where a caller can put them.

Each value says whether it may be kept. What may be kept must come back equal from every store; what may not must be
refused with an error that names the field, and leave nothing behind.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Final, Literal
from uuid import UUID

from letopis.store.messages import Data, File, Reasoning, Text, ToolCall, ToolResult

Place = Literal[
    "conversation_id",
    "owner",
    "message_id",
    "role",
    "content",
    "part_text",
    "parts",
    "name",
    "tokens",
    "usage",
    "external_ids",
    "metadata",
    "metadata_key",
    "event_metadata",
    "event_id",
    "type",
    "schema_version",
    "data",
    "data_key",
    "occurred_at",
    "title",
    "platform_id",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One value at one place.

    :ivar field: how the refusal must name the place (its beginning), where ``kept`` is false.
    """

    place: Place
    name: str
    value: Any
    kept: bool
    field: str = ""


class Colour(enum.StrEnum):
    """A string that is not quite one."""

    RED = "red"


class Level(enum.IntEnum):
    """An integer that is not quite one."""

    HIGH = 3


class Name(str):
    """A string of a kind of its own."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Words:
    """A text: whether it may be content, and whether it may be an id."""

    name: str
    value: str
    as_text: bool = True
    as_id: bool = True


TEXTS: Final[Sequence[Words]] = (
    Words("plain", "abc"),
    Words("upper", "ABC"),
    Words("mixed", "aBc"),
    Words("accent-nfc", "caf\u00e9"),
    Words("accent-nfd", "cafe\u0301"),
    Words("no-accent", "cafe"),
    Words("trailing-space", "abc "),
    Words("leading-space", " abc"),
    Words("only-space", " "),
    Words("two-spaces", "  "),
    Words("no-break-space", "abc\u00a0"),
    Words("ideographic-space", "\u3000"),
    Words("percent", "%"),
    Words("underscore", "_"),
    Words("star", "*"),
    Words("wildcards", "a%c_"),
    Words("backslash", "\\"),
    Words("backslash-end", "abc\\"),
    Words("quote", "'"),
    Words("quotes", "'; DROP TABLE letopis_events; --"),
    Words("double-quote", '"'),
    Words("backtick", "`"),
    Words("bind-name", ":id"),
    Words("bind-pyformat", "%(id)s"),
    Words("bind-question", "?"),
    Words("bind-dollar", "$1"),
    Words("percent-s", "%s %d %%"),
    Words("braces", "{0} {conversation_id}"),
    Words("html", "<script>alert(1)</script>"),
    Words("json", '{"a": 1}'),
    Words("json-escape", "\\u0000"),
    Words("json-surrogate-escape", "\\ud800"),
    Words("null-word", "null"),
    Words("none-word", "None"),
    Words("nan-word", "NaN"),
    Words("number", "1"),
    Words("number-padded", "01"),
    Words("number-float", "1.0"),
    Words("dot", "."),
    Words("dots", "../../etc/passwd"),
    Words("slash", "a/b"),
    Words("colon", "tenant:chat"),
    Words("comma", "a,b"),
    Words("hash", "#"),
    Words("uuid-upper", "018F4E2A-0000-7000-8000-000000000000"),
    Words("uuid-lower", "018f4e2a-0000-7000-8000-000000000000"),
    Words("russian", "История"),
    Words("russian-lower", "история"),
    Words("russian-yo", "\u0451"),
    Words("russian-yo-nfd", "\u0435\u0308"),
    Words("russian-ye", "\u0435"),
    Words("greek-sigma", "ΣΊΣΥΦΟΣ"),
    Words("greek-final-sigma", "σίσυφος"),
    Words("german-sharp-s", "straße"),
    Words("german-ss", "strasse"),
    Words("turkish-dotless", "ı"),
    Words("turkish-dotted", "İ"),
    Words("ligature", "\ufb01"),
    Words("full-width", "\uff41\uff42\uff43"),
    Words("chinese", "历史"),
    Words("hangul-nfc", "\ud55c"),
    Words("hangul-nfd", "\u1112\u1161\u11ab"),
    Words("arabic", "تاريخ"),
    Words("hebrew", "היסטוריה"),
    Words("devanagari", "इतिहास"),
    Words("emoji", "🤖"),
    Words("emoji-family", "👩‍👩‍👧‍👦"),
    Words("emoji-skin", "👍🏽"),
    Words("emoji-plain", "👍"),
    Words("emoji-flag", "🇦🇲"),
    Words("variation-selector", "\u2764\ufe0f"),
    Words("heart", "\u2764"),
    Words("plane-16", "\U0010ffff"),
    Words("non-character", "\ufffe"),
    Words("replacement", "\ufffd"),
    Words("byte-order-mark", "\ufeffabc"),
    Words("zero-width-space", "a\u200bb"),
    Words("zero-width-joiner", "a\u200db"),
    Words("soft-hyphen", "a\u00adb"),
    Words("right-to-left-override", "a\u202eb"),
    Words("line-separator", "a\u2028b"),
    Words("paragraph-separator", "a\u2029b"),
    Words("private-use", "\ue000"),
    Words("zalgo", "a" + "\u0301" * 100),
    Words("characters-255", "x" * 255),
    Words("emoji-255", "😀" * 255),
    Words("russian-255", "я" * 255),
    Words("characters-256", "x" * 256, as_id=False),
    Words("characters-100k", "x" * 100_000, as_id=False),
    Words("empty", "", as_id=False),
    Words("line-feed", "a\nb", as_id=False),
    Words("carriage-return", "a\r\nb", as_id=False),
    Words("only-line-feed", "\n", as_id=False),
    Words("tab", "a\tb", as_id=False),
    Words("bell", "\a", as_id=False),
    Words("backspace", "a\bb", as_id=False),
    Words("escape", "\x1b[31mred", as_id=False),
    Words("unit-separator", "\x1f", as_id=False),
    Words("delete", "\x7f", as_id=False),
    Words("next-line", "a\x85b", as_id=False),
    Words("c1-control", "\x9b31m", as_id=False),
    Words("nul", "a\x00b", as_text=False, as_id=False),
    Words("only-nul", "\x00", as_text=False, as_id=False),
    Words("nul-end", "abc\x00", as_text=False, as_id=False),
    Words("high-surrogate", "a\ud800", as_text=False, as_id=False),
    Words("low-surrogate", "\udc00b", as_text=False, as_id=False),
    Words("surrogates-swapped", "\udc00\ud800", as_text=False, as_id=False),
    # Two halves in a Python string are not the character that they would be in UTF-16.
    Words("surrogate-pair", "\ud83e\udd16", as_text=False, as_id=False),
)

KINDS_OF_NO_TEXT: Final[Sequence[tuple[str, Any]]] = (
    ("none", None),
    ("true", True),
    ("integer", 42),
    ("float", 1.5),
    ("bytes", b"abc"),
    ("list", ["abc"]),
    ("object", {"a": 1}),
    ("uuid", UUID(int=7)),
)

KEPT_JSON: Final[Sequence[tuple[str, Any]]] = (
    ("null", None),
    ("true", True),
    ("false", False),
    ("zero", 0),
    ("minus-one", -1),
    ("beyond-32-bits", 2**31),
    ("beyond-53-bits", 2**53 + 1),
    ("largest-integer", 2**63 - 1),
    ("smallest-integer", -(2**63)),
    ("float", 0.1),
    ("minus-zero", -0.0),
    ("whole-float", 1.0),
    ("smallest-float", 5e-324),
    ("largest-float", 1.7976931348623157e308),
    ("many-digits", 0.30000000000000004),
    ("empty-list", []),
    ("empty-object", {}),
    ("empty-key", {"": 1}),
    ("keys-by-case", {"a": 1, "A": 2}),
    ("keys-by-accent", {"e": 1, "\u00e9": 2, "e\u0301": 3}),
    ("key-order", {"b": 1, "a": 2}),
    ("mixed-list", [1, "1", 1.5, None, True, [], {}]),
    ("nested-lists", [[[[1]]]]),
    ("deep-but-allowed", None),  # made in `cases`
    ("long-list", list(range(2000))),
    ("many-keys", {f"key-{number}": number for number in range(500)}),
    ("tuple", (1, (2, 3))),
)

REFUSED_JSON: Final[Sequence[tuple[str, Any]]] = (
    ("nan", math.nan),
    ("infinity", math.inf),
    ("minus-infinity", -math.inf),
    ("beyond-64-bits", 2**63),
    ("unsigned-64-bits", 2**64 - 1),
    ("below-64-bits", -(2**63) - 1),
    ("hundred-digits", 10**100),
    ("bytes", b"abc"),
    ("bytearray", bytearray(b"abc")),
    ("set", {1}),
    ("frozenset", frozenset((1,))),
    ("datetime", datetime(2026, 1, 1, tzinfo=UTC)),
    ("date", date(2026, 1, 1)),
    ("decimal", Decimal("1.1")),
    ("complex", 1j),
    ("uuid", UUID(int=1)),
    ("string-enum", Colour.RED),
    ("integer-enum", Level.HIGH),
    ("string-subclass", Name("abc")),
    ("function", len),
    ("class", int),
    ("generator", iter(())),
    ("range", range(3)),
    ("exception", ValueError("abc")),
    ("dataclass", Words("a", "b")),
    ("integer-key", {1: "a"}),
    ("none-key", {None: "a"}),
    ("tuple-key", {(1, 2): "a"}),
    ("enum-key", {Colour.RED: "a"}),
    ("nan-inside", [{"a": [1, math.nan]}]),
    ("nul-in-key", {"a\x00": 1}),
    ("surrogate-in-key", {"\ud800": 1}),
    ("nul-inside", [["a\x00"]]),
    ("surrogate-inside", {"a": ["\udfff"]}),
)

NO_OBJECTS: Final[Sequence[tuple[str, Any]]] = (
    ("list", [1]),
    ("pairs", [("a", 1)]),
    ("string", "abc"),
    ("bytes", b"abc"),
    ("integer", 1),
    ("true", True),
    ("empty-list", []),
    ("empty-string", ""),
    ("zero", 0),
    ("false", False),
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

TYPES: Final[Sequence[tuple[str, Any, bool]]] = (
    ("plain", "custom.payment", True),
    ("dotted", "custom.payment.taken", True),
    ("digits", "custom.4711", True),
    ("underscore", "custom._x_", True),
    ("unknown", "poll.opened", True),
    ("unknown-of-ours", "message.pinned", True),
    ("characters-64", "custom." + "x" * 57, True),
    ("characters-65", "custom." + "x" * 58, False),
    ("no-dot", "custom", False),
    ("empty", "", False),
    ("ends-with-dot", "custom.", False),
    ("two-dots", "custom..x", False),
    ("upper", "custom.Payment", False),
    ("space", "custom.a b", False),
    ("line-feed", "custom.a\n", False),
    ("nul", "custom.a\x00", False),
    ("russian", "custom.оплата", False),
    ("full-width-digit", "custom.\uff11", False),
    ("surrogate", "custom.\ud800", False),
    ("sql", "custom.x'; --", False),
    ("percent", "custom.%", False),
    ("none", None, False),
    ("integer", 1, False),
    ("bytes", b"custom.x", False),
)

VERSIONS: Final[Sequence[tuple[str, Any, bool]]] = (
    ("one", 1, True),
    ("two", 2, True),
    ("largest", 32_767, True),
    ("zero", 0, False),
    ("negative", -1, False),
    ("too-large", 32_768, False),
    ("beyond-64-bits", 2**64, False),
    ("true", True, False),
    ("float", 1.0, False),
    ("string", "1", False),
    ("none", None, False),
)

TOKENS: Final[Sequence[tuple[str, Any, bool]]] = (
    ("none", None, True),
    ("zero", 0, True),
    ("one", 1, True),
    ("beyond-32-bits", 2**40, True),
    ("largest", 2**63 - 1, True),
    ("beyond-64-bits", 2**63, False),
    ("negative", -1, False),
    ("true", True, False),
    ("float", 1.0, False),
    ("nan", math.nan, False),
    ("string", "7", False),
    ("enum", Level.HIGH, False),
    ("list", [7], False),
)

ROLES: Final[Sequence[tuple[str, Any, bool]]] = (
    ("system", "system", True),
    ("user", "user", True),
    ("assistant", "assistant", True),
    ("tool", "tool", True),
    ("upper", "User", False),
    ("space", "user ", False),
    ("unknown", "developer", False),
    ("empty", "", False),
    ("nul", "user\x00", False),
    ("none", None, False),
    ("integer", 1, False),
    ("list", ["user"], False),
    ("object", {"role": "user"}, False),
)

PARTS: Final[Sequence[tuple[str, Any, bool]]] = (
    ("none-at-all", (), True),
    ("one-text", (Text("abc"),), True),
    ("empty-text", (Text(""),), True),
    ("all-kinds", (Text("a"), Reasoning("b"), File("c"), ToolCall("d", "e"), ToolResult("d"), Data(1)), True),
    ("a-list", [Text("abc")], True),
    ("file-in-full", (File("s3://a/b?c=d", "text/plain", "имя.txt"),), True),
    ("call-with-object", (ToolCall("1", "search", {"q": ["a", 1, None]}),), True),
    ("call-with-raw-text", (ToolCall("1", "search", '{"q": broken'),), True),
    ("result-with-list", (ToolResult("1", [1, 2], "error"),), True),
    ("data-false", (Data(False),), True),
    ("data-empty", (Data({}), Data([]), Data("")), True),
    ("many", tuple(Text(str(number)) for number in range(300)), True),
    ("nul-in-text", (Text("a"), Text("b\x00")), False),
    ("surrogate-in-reasoning", (Reasoning("\ud800"),), False),
    ("nan-in-arguments", (ToolCall("1", "x", {"y": math.nan}),), False),
    ("huge-in-output", (ToolResult("1", 2**64),), False),
    ("bytes-in-data", (Data(b"abc"),), False),
    ("number-in-text", (Text(7),), False),  # type: ignore[arg-type]
    ("none-in-text", (Text(None),), False),  # type: ignore[arg-type]
    ("number-in-uri", (File(7),), False),  # type: ignore[arg-type]
    ("a-string", ("abc",), False),
    ("a-number", (1,), False),
    ("none", None, False),
    ("bytes", b"abc", False),
    ("integer", 7, False),
    ("object", {"type": "text", "text": "abc"}, False),
)

EVENT_IDS: Final[Sequence[tuple[str, Any, bool]]] = (
    ("nil", UUID(int=0), True),
    ("max", UUID(int=2**128 - 1), True),
    ("version-4", UUID("6f1b6a52-9a0e-4c39-8a53-0a1c7be5b3a1"), True),
    ("string", "6f1b6a52-9a0e-4c39-8a53-0a1c7be5b3a2", False),
    ("bytes", b"\x01" * 16, False),
    ("none", None, False),
    ("integer", 7, False),
)

MAX_DEPTH: Final = 64


def nested(depth: int) -> dict[str, Any]:
    """Return objects ``depth`` deep."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def cases() -> Iterator[Case]:
    """Yield every case; names are unique within a place."""
    yield from _texts()
    yield from _json()
    yield from _rest()


def _texts() -> Iterator[Case]:
    identifiers: Sequence[tuple[Place, str]] = (
        ("conversation_id", "conversation_id"),
        ("owner", "owner"),
        ("message_id", "id"),
    )
    texts: Sequence[tuple[Place, str]] = (
        ("content", "data.content"),
        ("part_text", "data.content"),
        ("name", "data.name"),
        ("title", "data.title"),
        ("metadata", "data.metadata"),
        ("metadata_key", "data.metadata"),
        ("event_metadata", "metadata"),
        ("data", "data"),
        ("data_key", "data"),
        ("platform_id", "data.platform_ids"),
    )
    for words in TEXTS:
        for place, field in identifiers:
            # An empty message id asks for a new one.
            kept = words.as_id or (place == "message_id" and words.value == "")
            yield Case(place=place, name=words.name, value=words.value, kept=kept, field=field)
        for place, field in texts:
            value = {"a": words.value} if place in ("metadata", "event_metadata", "data") else words.value
            yield Case(place=place, name=words.name, value=value, kept=words.as_text, field=field)
    for name, value in KINDS_OF_NO_TEXT:
        for place, field in identifiers:
            kept = place == "owner" and value is None  # no owner is no fault
            yield Case(place=place, name=f"kind-{name}", value=value, kept=kept, field=field)
        yield Case(place="name", name=f"kind-{name}", value=value, kept=value is None, field="data.name")
        yield Case(place="title", name=f"kind-{name}", value=value, kept=False, field="data.title")
    yield Case(place="name", name="string-enum", value=Colour.RED, kept=False, field="data.name")
    yield Case(place="content", name="too-large", value="x" * 1_100_000, kept=False, field="data")
    yield Case(place="content", name="large", value="я" * 400_000, kept=True)


def _json() -> Iterator[Case]:
    objects: Sequence[tuple[Place, str]] = (
        ("usage", "data.usage"),
        ("external_ids", "data.external_ids"),
        ("metadata", "data.metadata"),
        ("event_metadata", "metadata"),
        ("data", "data"),
    )
    for place, field in objects:
        for name, value in KEPT_JSON:
            if name != "deep-but-allowed":
                yield Case(place=place, name=f"json-{name}", value={"value": value}, kept=True)
        for name, value in REFUSED_JSON:
            yield Case(place=place, name=f"json-{name}", value={"value": value}, kept=False, field=field)
        for name, value in NO_OBJECTS:
            # A message refuses it itself, before there is an event.
            own = place if place in ("usage", "external_ids", "metadata") else field
            yield Case(place=place, name=f"no-object-{name}", value=value, kept=False, field=own)
        # A message's objects lie one deeper, in the data of their event.
        room = MAX_DEPTH - (place in ("usage", "external_ids", "metadata"))
        yield Case(place=place, name="deepest", value=nested(room), kept=True)
        yield Case(place=place, name="too-deep", value=nested(room + 1), kept=False, field=field)
        yield Case(place=place, name="bomb", value=nested(900), kept=False, field=field)
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    yield Case(place="data", name="cycle", value=cycle, kept=False, field="data")
    yield Case(place="data", name="too-large", value={"a": ["x" * 1000] * 1100}, kept=False, field="data")
    yield Case(place="event_metadata", name="too-large", value={"a": "x" * 1_100_000}, kept=False, field="metadata")


def _rest() -> Iterator[Case]:
    tables: Sequence[tuple[Place, str, Sequence[tuple[str, Any, bool]]]] = (
        ("occurred_at", "occurred_at", MOMENTS),
        ("type", "type", TYPES),
        ("schema_version", "schema_version", VERSIONS),
        ("tokens", "data.tokens", TOKENS),
        ("role", "role", ROLES),
        ("parts", "", PARTS),
        ("event_id", "event_id", EVENT_IDS),
    )
    for place, field, table in tables:
        for name, value, kept in table:
            yield Case(place=place, name=name, value=value, kept=kept, field=field)


def plain(value: Any) -> Any:
    """Return what JSON makes of a value: a tuple is a list, any mapping an object."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
